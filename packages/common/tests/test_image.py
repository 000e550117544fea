from __future__ import annotations

import io
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from openvocab.errors import InputError
from openvocab.image import (
    list_images,
    output_size_shortest_edge,
    read_image,
    read_label_map,
    resample_image,
    resize_shortest_edge,
)

GOLDEN = np.load(Path(__file__).parent / "golden" / "resize.npz")
CASES = sorted({key.split(".")[0] for key in GOLDEN.files})


def noise(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


# --- the resize rules


@pytest.mark.parametrize("case", CASES)
def test_resize_equals_the_originals_to_the_pixel(case: str) -> None:
    short, longest = (int(value) for value in GOLDEN[f"{case}.rule"])
    resized = resize_shortest_edge(GOLDEN[f"{case}.image"], short, longest)
    np.testing.assert_array_equal(resized, GOLDEN[f"{case}.resized"])


def test_the_order_of_the_axes_depends_on_no_version_of_pillow() -> None:
    image = Image.fromarray(noise(270, 90))
    found = resample_image(image, (67, 200), Image.Resampling.BILINEAR)
    height_first = image.resize((90, 200), Image.Resampling.BILINEAR)
    width_first = image.resize((67, 270), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(found, height_first.resize((67, 200), Image.Resampling.BILINEAR))
    assert (np.array(found) != width_first.resize((67, 200), Image.Resampling.BILINEAR)).any()
    wide = resample_image(Image.fromarray(noise(90, 270)), (200, 67), Image.Resampling.BILINEAR)
    direct = Image.fromarray(noise(90, 270)).resize((200, 90), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(wide, direct.resize((200, 67), Image.Resampling.BILINEAR))


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((480, 640), (640, 853)),  # 853.33
        ((640, 427), (959, 640)),  # 959.25
        ((500, 333), (961, 640)),  # 960.96
        ((100, 1000), (256, 2560)),
        ((1, 5000), (1, 2560)),  # 0.512 rounds up
        ((1, 100_000), (1, 2560)),  # would round to nothing
        ((256, 513), (640, 1283)),  # 1282.5: halves go up
    ],
)
def test_sizes_computed_by_hand(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert output_size_shortest_edge(*size, 640, 2560) == expected


@given(st.integers(1, 9000), st.integers(1, 9000), st.integers(1, 900), st.integers(1, 3000))
def test_sizes_keep_their_promises(height: int, width: int, short: int, longest: int) -> None:
    new = output_size_shortest_edge(height, width, short, longest)
    assert min(new) >= 1 and max(new) <= max(longest, 1)
    assert min(new) <= short
    assert output_size_shortest_edge(width, height, short, longest) == new[::-1]


# --- reading


@pytest.mark.parametrize("form", ["PNG", "BMP", "TIFF", "PPM", "TGA"])
@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (20, 30)])
def test_lossless_formats_come_back_exactly(form: str, size: tuple[int, int]) -> None:
    pixels = noise(*size)
    image = read_image(encoded(Image.fromarray(pixels), form))
    np.testing.assert_array_equal(image, pixels)
    assert image.flags.c_contiguous and image.flags.writeable and image.dtype == np.uint8


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_exif_orientation_is_applied(orientation: int, form: str) -> None:
    upright = np.zeros((16, 32, 3), np.uint8)
    upright[:8, :8] = 255  # a white upper left corner says how the image is turned
    turns = {
        1: lambda x: x,
        2: lambda x: x[:, ::-1],
        3: lambda x: x[::-1, ::-1],
        4: lambda x: x[::-1],
        5: lambda x: x.transpose(1, 0, 2),
        6: lambda x: np.rot90(x, 1),  # stored so that turning it clockwise makes it upright
        7: lambda x: x[::-1, ::-1].transpose(1, 0, 2),
        8: lambda x: np.rot90(x, -1),
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(turns[orientation](upright)))
    image = read_image(encoded(stored, form, exif=exif, quality=95))
    assert image.shape == upright.shape
    assert np.abs(image.astype(int) - upright).max() < 40


def test_a_broken_exif_block_does_not_matter() -> None:
    data = encoded(Image.fromarray(noise(8, 9)), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\x7fjunk")
    assert read_image(data).shape == (8, 9, 3)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "HSV"])
def test_every_pillow_mode_becomes_rgb(mode: str) -> None:
    image = Image.fromarray(noise(6, 7)).convert("L" if mode == "PA" else "RGB").convert(mode)
    assert read_image(image).shape == (6, 7, 3)


def test_cmyk_jpeg_has_the_right_colors() -> None:
    image = read_image(encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=95))
    np.testing.assert_allclose(image[4, 4].astype(int), (255, 0, 0), atol=4)


def test_transparency_is_laid_over_white() -> None:
    pixels = np.zeros((1, 3, 4), np.uint8)
    pixels[0, :, 3] = 0, 128, 255
    expected = [255, 127, 0]
    for image in (
        read_image(pixels),
        read_image(encoded(Image.fromarray(pixels), "PNG")),
        read_image(Image.fromarray(pixels).convert("LA")),
    ):
        np.testing.assert_array_equal(image[0, :, 0], expected)


def test_palette_and_color_key_transparency_are_white() -> None:
    palette = Image.fromarray(np.array([[0, 1]], np.uint8)).convert("L").convert("P")
    palette.putpalette([10, 20, 30, 200, 100, 50])
    image = read_image(encoded(palette, "PNG", transparency=0))
    np.testing.assert_array_equal(image[0], [[255, 255, 255], [200, 100, 50]])
    rgb = Image.fromarray(np.array([[[1, 2, 3], [4, 5, 6]]], np.uint8))
    image = read_image(encoded(rgb, "PNG", transparency=(1, 2, 3)))
    np.testing.assert_array_equal(image[0], [[255, 255, 255], [4, 5, 6]])


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_16_bit_grey_is_scaled_not_clipped(form: str) -> None:
    values = np.array([[0, 257, 128 * 257, 65535]], np.uint16)
    image = read_image(encoded(Image.fromarray(values), form))
    np.testing.assert_array_equal(image[0, :, 1], [0, 1, 128, 255])


def test_a_dark_16_bit_png_stays_dark() -> None:
    image = read_image(encoded(Image.fromarray(np.full((2, 2), 200, np.uint16)), "PNG"))
    assert image.max() == 1


def test_float_tiff_in_unit_range() -> None:
    image = read_image(encoded(Image.fromarray(np.array([[0, 0.5, 1]], np.float32)), "TIFF"))
    np.testing.assert_array_equal(image[0, :, 0], [0, 128, 255])


def test_nan_tiff_is_refused() -> None:
    with pytest.raises(InputError, match="fit no known range"):
        read_image(encoded(Image.fromarray(np.array([[0, np.nan]], np.float32)), "TIFF"))


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_an_animation_the_first_frame_is_read(form: str) -> None:
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "lime", "blue")]
    options = {"lossless": True} if form == "WEBP" else {}
    data = encoded(frames[0], form, save_all=True, append_images=frames[1:], **options)
    np.testing.assert_array_equal(read_image(data)[3, 3], [255, 0, 0])


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (np.array([[0, 255]], np.uint8), [0, 255]),
        (np.array([[[7], [9]]], np.uint8), [7, 9]),
        (np.array([[False, True]]), [0, 255]),
        (np.array([[0, 65535]], np.uint16), [0, 255]),
        (np.array([[0.0, 1.0]]), [0, 255]),
    ],
)
def test_arrays(array: np.ndarray, expected: list[int]) -> None:
    image = read_image(array)
    assert image.shape == (1, 2, 3)
    np.testing.assert_array_equal(image[0, :, 2], expected)


def test_an_array_is_copied() -> None:
    array = noise(3, 4)
    read_image(array)[:] = 0
    assert array.any()


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((3, 20, 30), np.uint8), r"shape \(3, 20, 30\)"),
        (np.zeros((4,), np.uint8), "shape"),
        (np.zeros((0, 5, 3), np.uint8), "no pixels"),
        (np.full((2, 2), 200.0), "0..1"),
        (np.zeros((2, 2), np.int64) - 1, "int64 in -1..-1"),
    ],
)
def test_unusable_arrays(array: np.ndarray, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_image(array)


# --- what cannot be read


def test_missing_empty_folder_and_text(tmp_path: Path) -> None:
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.jpg").write_text("this is no image")
    for name, message in {
        "missing.jpg": "there is no file",
        "empty.jpg": "is empty",
        "text.jpg": "is not an image",
        ".": "is a folder",
    }.items():
        with pytest.raises(InputError, match=message) as caught:
            read_image(tmp_path / name)
        assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"])
def test_truncated_files_are_refused(form: str, tmp_path: Path) -> None:
    data = encoded(Image.fromarray(noise(60, 80)), form)
    path = tmp_path / "cut.img"
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match=r"cut\.img"):
        read_image(path)


@settings(max_examples=120, deadline=None)
@given(
    st.sampled_from(["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "TGA", "JPEG2000"]),
    st.data(),
)
def test_damaged_bytes_give_an_image_or_one_sentence(form: str, data: st.DataObject) -> None:
    whole = bytearray(encoded(Image.fromarray(noise(9, 11)), form))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(whole)))
    try:
        image = read_image(bytes(whole[:cut]), max_pixels=10_000)
    except InputError as error:
        assert "\n" not in str(error)
    else:
        assert image.ndim == 3 and image.shape[2] == 3


def test_postscript_is_not_executed() -> None:
    program = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n"
    with pytest.raises(InputError, match="not an image"):
        read_image(program)


def huge_png_header(side: int) -> bytes:
    """Return a PNG that says it is huge, though it is small as a file."""
    import struct
    import zlib

    def chunk(kind: bytes, content: bytes) -> bytes:
        checksum = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"0"))


@pytest.mark.parametrize("side", [15_000, 100_000])
def test_absurdly_large_images_are_refused_before_decoding(side: int) -> None:
    with pytest.raises(InputError, match=rf"{side}x{side} = .* more than the limit"):
        read_image(huge_png_header(side))


@pytest.mark.filterwarnings("error")
def test_the_limit_can_be_changed_both_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(Image.fromarray(noise(20, 30)), "PNG")
    with pytest.raises(InputError, match="600 pixels, more than the limit of 599"):
        read_image(data, max_pixels=599)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # Pillow's own would refuse it
    assert read_image(data, max_pixels=600).shape == (20, 30, 3)
    assert Image.MAX_IMAGE_PIXELS == 100


def test_threads_leave_pillows_limit_alone() -> None:
    data, limit = encoded(Image.fromarray(noise(8, 8)), "PNG"), Image.MAX_IMAGE_PIXELS
    threads = [threading.Thread(target=lambda: read_image(data)) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert limit is not None and limit == Image.MAX_IMAGE_PIXELS


# --- label maps


@pytest.mark.parametrize(
    ("dtype", "name"),
    [(np.uint8, "a.png"), (np.uint16, "a.png"), (np.uint16, "a.tif"), (np.int32, "a.tiff")],
)
def test_label_maps_come_back(dtype: type, name: str, tmp_path: Path) -> None:
    labels = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (7, 9)).astype(dtype)
    Image.fromarray(labels).save(tmp_path / name)
    read = read_label_map(tmp_path / name)
    assert read.dtype == np.int32
    np.testing.assert_array_equal(read, labels)


def test_palette_label_maps_give_their_indices(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[0, 1, 255]], np.uint8))
    image.putpalette(np.random.default_rng(0).integers(0, 256, 768).astype(np.uint8).tobytes())
    image.save(tmp_path / "p.png")
    np.testing.assert_array_equal(read_label_map(tmp_path / "p.png"), [[0, 1, 255]])


def test_color_pictures_are_no_label_maps(tmp_path: Path) -> None:
    Image.fromarray(noise(4, 4)).save(tmp_path / "rgb.png")
    with pytest.raises(InputError, match=r"rgb\.png' is no label map.*'RGB'"):
        read_label_map(tmp_path / "rgb.png")


# --- finding


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in ("b.jpg", "a.PNG", "sub/deep/c.tif", "notes.txt", ".hidden.png", "sub/._c.tif"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path


def test_folders_are_searched_recursively(tree: Path) -> None:
    found = [path.relative_to(tree).as_posix() for path in list_images([tree])]
    assert found == ["a.PNG", "b.jpg", "sub/deep/c.tif"]


def test_globs_files_and_repeats(tree: Path) -> None:
    patterns = [f"{tree}/**/*.tif", tree / "notes.txt", tree, tree / "sub" / ".." / "b.jpg"]
    found = [path.resolve().relative_to(tree).as_posix() for path in list_images(patterns)]
    assert found == ["sub/deep/c.tif", "notes.txt", "a.PNG", "b.jpg"]


def test_a_file_whose_name_looks_like_a_glob(tree: Path) -> None:
    (tree / "x[1].jpg").touch()
    assert list_images([tree / "x[1].jpg"]) == [tree / "x[1].jpg"]


@pytest.mark.parametrize("pattern", ["missing.jpg", "*.gif", "sub/deep/nothing"])
def test_what_names_nothing_is_refused(tree: Path, pattern: str) -> None:
    with pytest.raises(InputError, match="no image at"):
        list_images([tree / pattern])


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no image"):
        list_images([tmp_path])


# --- HEIC photographs, and the order of OpenCV --------------------------------------------------


def test_heic_photographs_are_read_and_counted(tmp_path: Path) -> None:
    heif = pytest.importorskip("pillow_heif")
    heif.register_heif_opener()
    Image.new("RGB", (40, 24), (200, 30, 60)).save(tmp_path / "a.heic", quality=95)
    Image.OPEN.pop("HEIF")  # as in a fresh process
    assert list_images([tmp_path]) == [tmp_path / "a.heic"]
    image = read_image(tmp_path / "a.heic")
    assert image.shape == (24, 40, 3)
    assert np.abs(image.mean((0, 1)) - (200, 30, 60)).max() < 12


def test_heic_without_the_library_says_how_to_read_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    Image.init()
    monkeypatch.delitem(Image.OPEN, "HEIF", raising=False)
    (tmp_path / "a.HEIC").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    assert list_images([tmp_path]) == [tmp_path / "a.HEIC"]
    with pytest.raises(InputError, match=r"a\.HEIC' cannot be read: .*'pillow_heif'.*\[heif\]"):
        read_image(tmp_path / "a.HEIC")


@pytest.mark.parametrize("channels", [3, 4])
def test_arrays_of_opencv_are_turned_around_where_that_is_said(channels: int) -> None:
    blue_first = np.zeros((2, 2, channels), np.uint8)
    blue_first[..., 0], blue_first[..., 3:] = 255, 255
    assert read_image(blue_first)[0, 0].tolist() == [255, 0, 0]
    assert read_image(blue_first, bgr=True)[0, 0].tolist() == [0, 0, 255]
    grey = np.full((2, 2), 7, np.uint8)
    assert (read_image(grey, bgr=True) == 7).all()


def test_files_say_their_order_themselves(tmp_path: Path) -> None:
    Image.new("RGB", (2, 2), "red").save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png", bgr=True)[0, 0].tolist() == [255, 0, 0]
