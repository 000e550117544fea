from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from car.crf import CRFConfig, DenseCRF, add_background, crf_image
from car.lattice import PermutohedralLattice


def assert_equal(q: np.ndarray, expected: np.ndarray) -> None:
    assert np.abs(q - expected).max() < 1e-4
    axis = 0
    assert (q.argmax(axis) == expected.argmax(axis)).mean() >= 0.9999


@pytest.mark.parametrize("index", [0, 1, 2, 3])
def test_input_and_marginals_equal_the_recording(golden, index: int) -> None:
    file = np.load(golden / "unit_crf.npz")

    def recorded(key: str) -> np.ndarray:
        return file[f"{index}.{key}"]

    image = crf_image(recorded("image_rgb"))
    np.testing.assert_array_equal(image, recorded("crf_image"))
    soft = add_background(recorded("cams"), float(recorded("bg_factor")))
    assert np.abs(soft.numpy() - recorded("prob")).max() < 1e-6
    crf = DenseCRF(image)
    probability = torch.from_numpy(recorded("prob"))
    assert_equal(crf.marginals(probability).numpy(), recorded("q"))
    for iterations in (0, 1, 2, 5):
        if f"{index}.q_iter{iterations}" in file:
            fewer = DenseCRF(image, CRFConfig(iterations=iterations))
            q = fewer.marginals(probability).numpy()
            assert_equal(q, recorded(f"q_iter{iterations}"))


def test_labels_of_the_large_recording(golden) -> None:
    file = np.load(golden / "unit_crf.npz")
    soft = file["big.cams"].astype(np.float32)
    q = DenseCRF(crf_image(file["big.image_rgb"])).marginals(add_background(soft, 1.0))
    height, width = soft.shape[1:]
    expected = np.unpackbits(file["big.masks"], axis=-1)[..., :width].astype(bool)
    labels = q.argmax(0).numpy()
    found = labels == np.arange(1, len(expected) + 1)[:, None, None]
    assert (found != expected).any(axis=0).sum() <= 1e-4 * height * width


def test_crf_of_every_case(golden, case_name: str) -> None:
    with np.load(golden / f"case_{case_name}.npz") as file:
        crf = DenseCRF(file["crf0.image"])
        parts = [key[:-6] for key in file.files if key.endswith(".image") and "crf" in key]
        together = torch.stack([torch.from_numpy(file[f"{part}.prob"]) for part in parts])
        for part, q in zip(parts, crf.marginals(together).numpy(), strict=True):
            assert_equal(q, file[f"{part}.q"])


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000), dims=st.integers(1, 5), scale=st.floats(0.2, 3))
def test_the_lattice_filter_is_linear_and_positive(seed: int, dims: int, scale: float):
    generator = torch.Generator().manual_seed(seed)
    lattice = PermutohedralLattice(torch.randn(40, dims, generator=generator) * scale)
    kernel = lattice.filter(torch.eye(40))
    assert (kernel >= 0).all() and (kernel.diagonal() > 0).all()
    values = torch.rand(40, 5, generator=generator)
    torch.testing.assert_close(lattice.filter(values), kernel @ values, rtol=1e-4, atol=1e-5)


def test_the_filter_is_close_to_a_gaussian() -> None:
    x = torch.linspace(0, 12, 121)[:, None]
    kernel = PermutohedralLattice(x).filter(torch.eye(121))[60]
    gaussian = torch.exp(-0.5 * (x[:, 0] - x[60, 0]) ** 2)
    cosine = torch.dot(kernel, gaussian) / (kernel.norm() * gaussian.norm())
    assert cosine > 0.98


def test_many_labels_and_several_fields_equal_each_alone(photo) -> None:
    crf = DenseCRF(crf_image(photo), CRFConfig(iterations=3))
    fields = torch.rand(2, 19, *photo.shape[:2], generator=torch.Generator().manual_seed(0))
    together = crf.marginals(fields)
    for field, q in zip(fields, together, strict=True):
        torch.testing.assert_close(crf.marginals(field), q)
    torch.testing.assert_close(together.sum(1), torch.ones(2, *photo.shape[:2]))


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1000), labels=st.integers(2, 35), height=st.sampled_from([1, 9]))
def test_the_order_of_labels_does_not_matter(seed: int, labels: int, height: int) -> None:
    rng = np.random.default_rng(seed)
    for size in ((height, 40), (40, height)):
        crf = DenseCRF(rng.integers(0, 256, (*size, 3), dtype=np.uint8))
        order = rng.permutation(labels)
        probability = rng.random((labels, *size), dtype=np.float32)
        q = crf.marginals(torch.from_numpy(probability))
        turned = crf.marginals(torch.from_numpy(probability[order]))
        # Noise has no edges: a few pixels are undecided, and there iterations make rounding larger.
        torch.testing.assert_close(turned, q[order], rtol=0, atol=1e-3)
        best, second = q.topk(2, dim=0).values
        sure = best - second > 2e-3
        assert sure.any()
        assert (order[turned.argmax(0)[sure].numpy()] == q.argmax(0)[sure].numpy()).all()


@pytest.mark.parametrize("size", [(1, 1), (1, 30), (30, 1), (12, 17)])
def test_labels_that_are_alike_stay_alike(size) -> None:
    crf = DenseCRF(crf_image(np.full((*size, 3), 90, np.uint8)))
    q = crf.marginals(torch.full((19, *size), 0.3))
    torch.testing.assert_close(q, torch.full_like(q, 1 / 19))
    assert (q.argmax(0) == 0).all()  # ties go to the first, the background


def test_empty_masks_leave_only_background(photo) -> None:
    soft = add_background(np.zeros((2, *photo.shape[:2]), np.float32), 1.0)
    q = DenseCRF(crf_image(photo)).marginals(soft)
    assert (q.argmax(0) == 0).all()


def test_masks_follow_edges(photo) -> None:
    inside = np.zeros(photo.shape[:2], dtype=np.float32)
    inside[18:74, 73:100] = 0.9  # of a rectangle at 20..70, 75..105
    soft = add_background([inside], 1.0)
    labels = DenseCRF(crf_image(photo)).marginals(soft).argmax(0).numpy()
    truth = np.zeros_like(labels)
    truth[20:71, 75:106] = 1

    def iou(labels: np.ndarray) -> float:
        return (labels & truth).sum() / (labels | truth).sum()

    assert iou(labels) > iou((inside > 0.5).astype(np.int64)) + 0.05


def test_dark_pixels_wrap_around() -> None:
    image = np.zeros((1, 2, 3), np.uint8)
    image[0, 1] = (122, 116, 104)
    np.testing.assert_array_equal(crf_image(image)[0], [[152, 140, 134], [0, 0, 0]])
