"""SAN as two ONNX graphs in which the size of the image and the number of names stay free.

Where torch picks an operation by the size of the image, that choice must become arithmetic on the
size, or the graph would be true for one size only. These are the positions of both image towers,
the pooling of the attention bias, and the smaller copy of the image for CLIP. The last is put
before the exported graph in ONNX's own language, since its size needs double precision (SPEC san
2.4).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import onnx
import torch
import torch.nn.functional as F
from onnx import compose, parser
from torch import Tensor, nn

from openvocab.clip import CLIP
from openvocab.clip.model import Block
from san.config import SANConfig
from san.model import SAN
from san.recognition import recognize

OPSET = 18
_CUBIC = -0.75  # of torch's bicubic interpolation
_LARGEST = 8192  # longest side, in pixels, up to which the windows of the pooling are checked
# F.interpolate(scale_factor=r): floor(r n) samples at (i + 1/2) / r - 1/2, as a product with
# matrices whose entries are the tents around these places.
_SHRINK = """
<ir_version: 8, opset_import: ["" : 18]>
shrink (float[1, 3, H, W] pixels)
    => (float[1, 3, height, width] full, float[1, 3, small_height, small_width] shrunk) {{
    shape = Shape(pixels)
    ratio = Constant<value = double {{{ratio!r}}}>()
    inverse = Constant<value = float {{{inverse!r}}}>()
    half = Constant<value = float {{0.5}}>()
    none = Constant<value = float {{0.0}}>()
    one = Constant<value = float {{1.0}}>()
    tall = Constant<value = int64[1] {{1}}>()
{rows}
{columns}
    narrowed = MatMul(pixels, columns_turned)
    shrunk = MatMul(rows_weights, narrowed)
    full = Identity(pixels)
}}
"""
_TENTS = """
    {axis}_at = Constant<value = int64 {{{place}}}>()
    {axis}_count = Gather(shape, {axis}_at)
    {axis}_length = Cast<to = 11>({axis}_count)
    {axis}_product = Mul({axis}_length, ratio)
    {axis}_less = Floor({axis}_product)
    {axis}_wanted = Cast<to = 1>({axis}_less)
    {axis}_cells = Cast<to = 1>({axis}_count)
    {axis}_steps = Range(none, {axis}_wanted, one)
    {axis}_middles = Add({axis}_steps, half)
    {axis}_scaled = Mul({axis}_middles, inverse)
    {axis}_places = Sub({axis}_scaled, half)
    {axis}_last = Sub({axis}_cells, one)
    {axis}_lower = Max({axis}_places, none)
    {axis}_inside = Min({axis}_lower, {axis}_last)
    {axis}_tall = Unsqueeze({axis}_inside, tall)
    {axis}_range = Range(none, {axis}_cells, one)
    {axis}_apart = Sub({axis}_tall, {axis}_range)
    {axis}_distance = Abs({axis}_apart)
    {axis}_height = Sub(one, {axis}_distance)
    {axis}_weights = Max({axis}_height, none)
    {axis}_turned = Transpose<perm = [1, 0]>({axis}_weights)
"""


class ImageGraph(nn.Module):
    """SAN's forward pass on one image, for any size.

    Takes pixels (1, 3, H, W) and CLIP's smaller copy of them, normalized, and class embeddings
    (K + 1, E); returns mask logits (1, Q, hs, ws) and class logits (1, Q, K + 1).
    """

    def __init__(self, network: SAN) -> None:
        super().__init__()
        self.network = network
        vit = network.side_adapter.vit_model
        self._window = longest_window(network.config)
        vit.positions = self._positions_of_side  # type: ignore[method-assign]

    def forward(
        self, pixels: Tensor, small: Tensor, class_embeddings: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Predict masks and classes; see the class."""
        san = self.network
        visual, fused = san.clip.visual, {clip for clip, _ in san.config.fusion}
        patches, grid = visual.patchify(small)
        x = visual.add_positions(patches, grid, self._positions_of_clip(grid))
        features = {0: x[:, 1:]}
        for index, block in enumerate(visual.blocks[: san.config.split], start=1):
            x = block(x)
            features[index] = x[:, 1:]
        features = {index: features[index] for index in fused}
        ((masks, biases),) = san.side_adapter(pixels, features, grid, all_layers=False)
        embeddings = recognize(
            visual, san.deep_blocks, x, grid, biases, san.config.num_queries, self._pool
        )
        return masks, embeddings @ class_embeddings.T

    def _positions_of_clip(self, grid: tuple[int, int]) -> Tensor:
        table = self.network.clip.visual.positional_embedding
        native = self.network.clip.visual.config.grid_size
        return torch.cat([table[:1], resized_positions(table[1:], native, grid)])

    def _positions_of_side(self, grid: tuple[int, int]) -> Tensor:
        """Return positions (1, hs * ws, D); those of the table where the number of cells agrees."""
        vit = self.network.side_adapter.vit_model
        table, cells = vit.pos_embed[0], torch.arange(grid[0] * grid[1])
        resized = resized_positions(table, vit.grid_size, grid)
        in_order = table[cells.clamp(max=len(table) - 1)]
        same_number = cells.max() + 1 == len(table)
        return torch.where(same_number, in_order, resized)[None]

    def _pool(self, bias: Tensor, grid: tuple[int, int]) -> Tensor:
        """Max-pool (B, heads, Q, hs, ws) adaptively to (B, heads, Q, h * w)."""
        pooled = _pool_last(bias, grid[1], self._window)
        pooled = _pool_last(pooled.transpose(-1, -2), grid[0], self._window)
        return pooled.transpose(-1, -2).flatten(3)


class TextGraph(nn.Module):
    """The text tower: rows of its token table (N, context length) to unit embeddings (N, E)."""

    def __init__(self, clip: CLIP) -> None:
        super().__init__()
        self.clip = clip

    def forward(self, tokens: Tensor) -> Tensor:
        """Encode texts, read at the end-of-text token, which has the highest row."""
        clip = self.clip
        x = clip.token_embedding(tokens) + clip.positional_embedding
        blocks: Sequence[Block] = list(clip.transformer.resblocks)  # type: ignore[arg-type]
        for block in blocks:
            x = block(x, causal=True)
        end = tokens.argmax(dim=-1)
        x = x.gather(1, end[:, None, None].expand(-1, 1, x.shape[-1]))[:, 0]
        return F.normalize(clip.ln_final(x) @ clip.text_projection, dim=-1)


def write_image_graph(network: SAN, path: Path) -> None:
    """Write the graph (pixels, class_embeddings) -> (mask_logits, class_logits)."""
    config = network.config
    unit = config.size_divisibility
    pixels = torch.zeros(1, 3, 8 * unit, 10 * unit)  # any size: none is built in
    sample = (pixels, network.clip_input(pixels), torch.zeros(4, config.clip.embed_dim))
    free = torch.export.Dim.DYNAMIC
    _export(
        ImageGraph(network),
        sample,
        path,
        inputs=["padded", "small", "class_embeddings"],
        outputs=["mask_logits", "class_logits"],
        dynamic=({2: free, 3: free}, {2: free, 3: free}, {0: free}),
    )
    _put_before(path, config.clip_resolution if config.asymmetric_input else 1.0)


def write_text_graph(clip: CLIP, path: Path) -> None:
    """Write the graph (tokens) -> (embeddings)."""
    sample = (torch.ones(2, clip.config.text.context_length, dtype=torch.long),)
    _export(
        TextGraph(clip),
        sample,
        path,
        inputs=["tokens"],
        outputs=["embeddings"],
        dynamic=({0: torch.export.Dim.DYNAMIC},),
    )


def longest_window(config: SANConfig) -> int:
    """Return how many cells of the side grid one cell of CLIP's grid reaches over at most."""
    longest = 1
    for side in range(config.size_divisibility, _LARGEST + 1, config.size_divisibility):
        cells = side // config.side_patch
        small = math.floor(side * config.clip_resolution) if config.asymmetric_input else side
        wanted = small // config.clip.vision.patch_size
        for i in range(wanted):
            longest = max(longest, -(-(i + 1) * cells // wanted) - i * cells // wanted)
    return longest


def _pool_last(x: Tensor, wanted: int, window: int) -> Tensor:
    """Max-pool the last axis of (..., n) to (..., wanted) with the windows of adaptive pooling."""
    cells = x.shape[-1]
    steps = torch.arange(wanted)
    start = steps * cells // wanted
    last = ((steps + 1) * cells + wanted - 1) // wanted - 1
    pooled = x[..., start]
    for offset in range(1, window):
        pooled = torch.maximum(pooled, x[..., torch.minimum(start + offset, last)])
    return pooled


def resized_positions(table: Tensor, native: int, grid: tuple[int, int]) -> Tensor:
    """Resize positions (native * native, D) bicubically to (h * w, D), as torch does."""
    image = torch.unflatten(table, 0, (native, native)).permute(2, 0, 1)  # (D, n, n)
    resized = _cubic(grid[0], native) @ image @ _cubic(grid[1], native).T
    return resized.flatten(1).T


def _cubic(wanted: int, native: int) -> Tensor:
    """Return the matrix (wanted, native) of torch's bicubic interpolation, edges repeated."""
    places = (torch.arange(wanted) + 0.5) * (native / (torch.arange(wanted) * 0 + wanted)) - 0.5
    before = places.floor()
    cells = torch.arange(native)
    matrix = torch.zeros(1, native)
    for offset in (-1, 0, 1, 2):
        distance = (places - before - offset).abs()[:, None]
        index = (before + offset).clamp(0, native - 1)[:, None]
        matrix = matrix + _cubic_weight(distance) * (index == cells)
    return matrix


def _cubic_weight(distance: Tensor) -> Tensor:
    near = ((_CUBIC + 2) * distance - (_CUBIC + 3)) * distance * distance + 1
    far = ((_CUBIC * distance - 5 * _CUBIC) * distance + 8 * _CUBIC) * distance - 4 * _CUBIC
    return torch.where(distance <= 1, near, far)


def _export(
    module: nn.Module,
    sample: tuple[Tensor, ...],
    path: Path,
    *,
    inputs: list[str],
    outputs: list[str],
    dynamic: tuple[dict[int, object], ...],
) -> None:
    with torch.no_grad():
        torch.onnx.export(
            module.eval(),
            sample,
            str(path),
            input_names=inputs,
            output_names=outputs,
            dynamic_shapes=dynamic,
            opset_version=OPSET,
            dynamo=True,
            external_data=False,
            verbose=False,
        )


def _put_before(path: Path, ratio: float) -> None:
    """Let the graph make CLIP's smaller copy itself, so that it takes the pixels once."""
    axes = {
        axis: _TENTS.format(axis=axis, place=place) for axis, place in (("rows", 2), ("columns", 3))
    }
    first = parser.parse_model(_SHRINK.format(ratio=ratio, inverse=1 / ratio, **axes))
    second = onnx.load(path)
    first.ir_version = second.ir_version
    merged = compose.merge_models(first, second, [("full", "padded"), ("shrunk", "small")])
    onnx.checker.check_model(merged)
    onnx.save(merged, path)
