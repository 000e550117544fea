"""CLIP: an image transformer and a text transformer whose blocks can be called one by one.

State-dict names are those of OpenAI. Tokens have the shape `(B, T, D)`, with the batch first. The
methods need access to the inside of CLIP: SAN adds an attention bias, OVSeg replaces patch tokens
between blocks, and CaR reads attention maps and differentiates the last block.

Source: Radford et al. 2021, "Learning Transferable Visual Models From Natural Language
Supervision", section 2; Dosovitskiy et al. 2021 for the image tower.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openvocab.clip.config import Activation, CLIPConfig, VisionConfig
from openvocab.clip.tokenizer import decode
from openvocab.errors import InputError
from openvocab.weights.state_dict import fingerprint


def normal_parameter(*shape: int, std: float) -> nn.Parameter:
    """Return a parameter of normally distributed numbers; unfilled under `weights.unfilled`."""
    return nn.Parameter(torch.empty(shape).normal_(std=std))


class QuickGELU(nn.Module):
    """OpenAI's approximation of GELU, x * sigmoid(1.702 x). Weights trained with it need it."""

    def forward(self, x: Tensor) -> Tensor:
        """Apply the activation to a tensor of any shape."""
        return x * torch.sigmoid(1.702 * x)


class Attention(nn.Module):
    """Multi-head attention with access to its queries, keys and values."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"{heads} heads do not divide a width of {width}")
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.normal_(self.in_proj_weight, std=width**-0.5)

    def split_heads(self, x: Tensor) -> Tensor:
        """Reshape (B, T, D) to (B, heads, T, D / heads)."""
        return torch.unflatten(x, -1, (self.heads, -1)).transpose(1, 2)

    def qkv(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values of (B, T, D) tokens, each (B, heads, T, D / heads)."""
        q, k, v = F.linear(x, self.in_proj_weight, self.in_proj_bias).chunk(3, dim=-1)
        return self.split_heads(q), self.split_heads(k), self.split_heads(v)

    def merge(self, values: Tensor) -> Tensor:
        """Join heads, (B, heads, T, D / heads) to (B, T, D), and apply the output projection."""
        out: Tensor = self.out_proj(values.transpose(1, 2).flatten(2))
        return out

    def forward(
        self,
        query: Tensor,
        key_value: Tensor | None = None,
        *,
        bias: Tensor | None = None,
        causal: bool = False,
    ) -> Tensor:
        """Let `query` (B, Tq, D) attend to `key_value` (B, T, D), or to itself.

        Args:
            query: Normalized tokens.
            key_value: Normalized tokens to attend to. None for self-attention.
            bias: Bias that is added to the scaled attention scores, broadcastable to
                (B, heads, Tq, T).
            causal: Whether each token attends only to itself and to the tokens before it.
        """
        if key_value is None:
            q, k, v = self.qkv(query)
        else:
            width = query.shape[-1]
            weight, offset = self.in_proj_weight, self.in_proj_bias
            q = self.split_heads(F.linear(query, weight[:width], offset[:width]))
            k, v = F.linear(key_value, weight[width:], offset[width:]).chunk(2, dim=-1)
            k, v = self.split_heads(k), self.split_heads(v)
        return self.merge(F.scaled_dot_product_attention(q, k, v, attn_mask=bias, is_causal=causal))


class MLP(nn.Module):
    """The feed-forward half of a block."""

    def __init__(self, width: int, hidden: int, activation: Activation) -> None:
        super().__init__()
        self.c_fc = nn.Linear(width, hidden)
        self.gelu = QuickGELU() if activation == "quick_gelu" else nn.GELU()
        self.c_proj = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., D) to (..., D)."""
        if isinstance(self.gelu, QuickGELU):
            return self._quick(x)
        out: Tensor = self.c_proj(self.gelu(self.c_fc(x)))
        return out

    def _quick(self, x: Tensor) -> Tensor:
        """Let the two products do the scaling of x * sigmoid(1.702 x) = silu(1.702 x) / 1.702.

        The activation is then one pass over its largest tensor instead of three.
        """
        flat, first, second = x.flatten(0, -2), self.c_fc, self.c_proj
        hidden = torch.addmm(first.bias, flat, first.weight.t(), beta=1.702, alpha=1.702)
        hidden = F.silu(hidden, inplace=not torch.is_grad_enabled())
        out = torch.addmm(second.bias, hidden, second.weight.t(), alpha=1 / 1.702)
        return out.view(x.shape)


class Block(nn.Module):
    """A pre-norm residual block, with four public parts that models can combine differently."""

    def __init__(self, width: int, heads: int, mlp_width: int, activation: Activation) -> None:
        super().__init__()
        self.attn = Attention(width, heads)
        self.ln_1 = nn.LayerNorm(width)
        self.mlp = MLP(width, mlp_width, activation)
        self.ln_2 = nn.LayerNorm(width)

    def forward(self, x: Tensor, bias: Tensor | None = None, *, causal: bool = False) -> Tensor:
        """Update (B, T, D) tokens.

        Args:
            x: Tokens (B, T, D).
            bias: Bias that is added to the attention scores, broadcastable to (B, heads, T, T).
            causal: Whether each token attends only to itself and to the tokens before it.
        """
        return self.feed_forward(x + self.attn(self.ln_1(x), bias=bias, causal=causal))

    def feed_forward(self, x: Tensor) -> Tensor:
        """Run the second half of the block on (B, T, D) tokens."""
        out: Tensor = x + self.mlp(self.ln_2(x))
        return out

    def class_token(self, x: Tensor) -> Tensor:
        """Update only the class token, the first of (B, T, D) tokens, and return it as (B, 1, D).

        It attends to all tokens. In the last block the other tokens need not be updated if only the
        class token is used afterwards.
        """
        normed = self.ln_1(x)
        return self.feed_forward(x[:, :1] + self.attn(normed[:, :1], normed))


class Transformer(nn.Module):
    """A stack of blocks, `resblocks`."""

    def __init__(
        self, width: int, layers: int, heads: int, mlp_width: int, activation: Activation
    ) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(
            Block(width, heads, mlp_width, activation) for _ in range(layers)
        )


def make_stem(channels: Sequence[int]) -> nn.Sequential:
    """Return one 3x3 convolution of stride 2 with a ReLU for each entry of `channels`."""
    layers: list[nn.Module] = []
    for before, after in pairwise([3, *channels]):
        layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.ReLU()]
    return nn.Sequential(*layers)


class VisionTransformer(nn.Module):
    """The image tower: a ViT over patches and a class token, for images of any size."""

    def __init__(self, config: VisionConfig, embed_dim: int, activation: Activation) -> None:
        super().__init__()
        width = config.width
        self.config = config
        self.stem = make_stem(config.stem)
        channels, patch = [3, *config.stem][-1], config.patch_size >> len(config.stem)
        self.conv1 = nn.Conv2d(channels, width, patch, patch, bias=False)
        self.class_embedding = normal_parameter(width, std=width**-0.5)
        self.positional_embedding = normal_parameter(
            1 + config.grid_size**2, width, std=width**-0.5
        )
        self.ln_pre = nn.LayerNorm(width)
        self.transformer = Transformer(
            width, config.layers, config.heads, config.mlp_width, activation
        )
        self.ln_post = nn.LayerNorm(width)
        self.proj = normal_parameter(width, embed_dim, std=width**-0.5)

    @property
    def blocks(self) -> list[Block]:
        """The residual blocks, first to last."""
        return list(self.transformer.resblocks)  # type: ignore[arg-type]

    def patchify(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Embed the patches of normalized images (B, 3, H, W), without position embeddings.

        Rows and columns of pixels that do not fill a whole patch are ignored.

        Returns:
            Patch tokens (B, h * w, D) in raster order, and their grid (h, w).
        """
        features = self.conv1(self.stem(images))  # (B, D, h, w)
        return features.flatten(2).transpose(1, 2), (features.shape[2], features.shape[3])

    def positions(self, grid: tuple[int, int]) -> Tensor:
        """Return the position embedding (1 + h * w, D) for a grid (h, w).

        The row of the class token is kept. The other rows are resized bicubically, without
        antialiasing, if the grid differs from the native one.
        """
        return resize_positions(self.positional_embedding, grid)

    def add_positions(
        self, patches: Tensor, grid: tuple[int, int], position: Tensor | None = None
    ) -> Tensor:
        """Prepend the class token to patch tokens, add position embeddings, and normalize.

        Args:
            patches: Patch tokens (B, h * w, D).
            grid: Height and width (h, w) of the grid of patches.
            position: Position embeddings (1 + h * w, D). None for the tower's own.

        Returns:
            Tokens (B, 1 + h * w, D), the input of the first block.
        """
        position = self.positions(grid) if position is None else position
        class_token = self.class_embedding.expand(patches.shape[0], 1, -1)
        tokens: Tensor = self.ln_pre(torch.cat([class_token, patches], dim=1) + position)
        return tokens

    def embed(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Return the first block's input (B, 1 + h * w, D) and the grid (h, w)."""
        patches, grid = self.patchify(images)
        return self.add_positions(patches, grid), grid

    def project(self, tokens: Tensor) -> Tensor:
        """Project tokens (..., D) after the last block to the joint space of CLIP (..., E)."""
        out: Tensor = self.ln_post(tokens) @ self.proj
        return out

    def forward(self, images: Tensor) -> Tensor:
        """Encode normalized images (B, 3, H, W) of any size to (B, E), not of unit length."""
        x, _ = self.embed(images)
        *trunk, last = self.blocks
        for block in trunk:
            x = block(x)
        return self.project(last.class_token(x)[:, 0])

    def encode_dense(self, images: Tensor) -> Tensor:
        """Return the projected patch tokens (B, E, h, w) of normalized images (B, 3, H, W)."""
        x, grid = self.embed(images)
        for block in self.blocks:
            x = block(x)
        return torch.unflatten(self.project(x[:, 1:]).transpose(1, 2), 2, grid)


class CLIP(nn.Module):
    """CLIP: an image tower and a text tower with a joint embedding space."""

    token_ids: Tensor | None

    def __init__(self, config: CLIPConfig) -> None:
        super().__init__()
        text = config.text
        self.config = config
        self.visual = VisionTransformer(config.vision, config.embed_dim, config.activation)
        self.transformer = Transformer(
            text.width, text.layers, text.heads, text.mlp_width, config.activation
        )
        self.token_embedding = nn.Embedding(text.vocab_size, text.width)
        # The tokenizer's ids of the table's rows, ascending; None: the rows are the ids.
        ids = torch.arange(text.vocab_size) if text.reduced else None
        self.register_buffer("token_ids", ids)
        self.positional_embedding = normal_parameter(text.context_length, text.width, std=0.01)
        self.ln_final = nn.LayerNorm(text.width)
        self.text_projection = normal_parameter(text.width, config.embed_dim, std=text.width**-0.5)
        self.logit_scale = nn.Parameter(torch.tensor(2.6592))  # ln(1 / 0.07)
        nn.init.normal_(self.token_embedding.weight, std=0.02)

    def encode_image(self, images: Tensor) -> Tensor:
        """Encode normalized images (B, 3, H, W) of any size to (B, E), not of unit length."""
        out: Tensor = self.visual(images)
        return out

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Encode token ids (N, context length) to (N, E), not of unit length.

        The embedding is that of the end-of-text token, which has the highest id. Attention is
        causal, so positions after the longest text of the batch are not computed.

        Raises:
            InputError: A text contains a token that the model does not know.
        """
        end = tokens.argmax(dim=-1)  # (N,)
        length = int(end.max()) + 1 if len(tokens) else 1
        x = (
            self.token_embedding(self._rows(tokens[:, :length]))
            + self.positional_embedding[:length]
        )
        for block in self.transformer.resblocks:
            x = block(x, causal=True)
        x = x[torch.arange(len(x), device=x.device), end]  # (N, width)
        out: Tensor = self.ln_final(x) @ self.text_projection
        return out

    def _rows(self, tokens: Tensor) -> Tensor:
        """Return the table's rows of token ids (N, T); padding behind a text may be any row."""
        if self.token_ids is None:
            return tokens
        rows = torch.searchsorted(self.token_ids, tokens.contiguous())
        rows = rows.clamp(max=len(self.token_ids) - 1)
        unknown = (self.token_ids[rows] != tokens) & (tokens != 0)
        if unknown.any():
            bad = int(unknown.any(dim=1).nonzero()[0])
            raise InputError(
                f"the text {decode(tokens[bad])!r} has a word that this CLIP never learned "
                f"({decode(tokens[bad][unknown[bad]])!r}); it knows {len(self.token_ids)} tokens "
                "only, so use its own names, or another CLIP"
            )
        return rows

    def fingerprint(self) -> str:
        """Return the SHA-256 of architecture and weights, independent of device and file."""
        text = f"{self.config} {fingerprint(self.state_dict())}"
        return hashlib.sha256(text.encode()).hexdigest()


def resize_positions(table: Tensor, grid: tuple[int, int]) -> Tensor:
    """Resize position embeddings (1 + n * n, D) to (1 + h * w, D), and keep the first row.

    Resizing is bicubic, with align_corners False and without antialiasing. If the grid is the
    native one, the table itself is returned.

    Source: SPEC san 3.
    """
    side = round((len(table) - 1) ** 0.5)
    if grid == (side, side):
        return table
    return torch.cat([table[:1], resize_patch_positions(table[1:], (side, side), grid)])


def resize_patch_positions(
    table: Tensor, native: tuple[int, int], grid: tuple[int, int], mode: str = "bicubic"
) -> Tensor:
    """Resize positions (n * m, D) of a native grid (n, m) to (h * w, D), without antialiasing."""
    image = torch.unflatten(table.float().T, 1, native)[None]  # (1, D, n, m)
    resized = F.interpolate(image, size=grid, mode=mode, align_corners=False)
    return resized[0].flatten(1).T.to(table.dtype)
