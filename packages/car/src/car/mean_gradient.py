"""How the mean of CLIP's patches answers to the input of its last block, name by name.

Class activation weighs channels with gradients that are averaged over the patches, and nothing else
is made of them. Automatic differentiation computes them all, a T x T attention gradient for each
name among them, only to average. Written out, most of that work is one for all names:

- Every patch gets the same gradient from the mean, so the first of the feed-forward half's two
  products is one vector for each name and one for each patch, not one for each pair.
- The average moves through the linear maps, up to the queries, keys and values.
- A patch's row of attention sums to 1, whatever its query and the keys. So the keys of all patches
  together change it as much as the class token's key does, the other way round.
- A query's gradient is the covariance of keys and values under its attention, times that of its
  output. What the attention gives back is then one small matrix for each patch and head.

Source: GradCAM as in Lin et al. 2023 (CLIP-ES), section 3; SPEC car 3.4.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from openvocab.clip.model import Attention, Block

# Pieces of the work hold about this many numbers: the attention of some patches, and the gradients
# of some names. Larger ones are no faster.
BUDGET = 1 << 24


@dataclass(frozen=True)
class Normed:
    """What a layer norm made of (n, D) tokens, before its scale and offset.

    Attributes:
        unit: (n, D) with mean 0 and variance 1.
        spread: (n, 1) the standard deviation that was divided by.
    """

    unit: Tensor
    spread: Tensor

    @classmethod
    def of(cls, tokens: Tensor, eps: float) -> Normed:
        """Normalise (n, D) tokens."""
        variance, mean = torch.var_mean(tokens, dim=-1, keepdim=True, correction=0)
        spread = (variance + eps).sqrt()
        return cls((tokens - mean) / spread, spread)


class MeanFeature:
    """The mean over the patches behind the last block, and how it answers to the block's input.

    Args:
        block: the last one, fp32.
        ln_post: the layer norm behind it.
        tokens: (1, T, D) in front of the block; the first is the class token, the n others patches.
        activation: (1, T, D) behind the block's first layer norm.
    """

    def __init__(
        self, block: Block, ln_post: nn.LayerNorm, tokens: Tensor, activation: Tensor
    ) -> None:
        self.block, self.ln_post = block, ln_post
        self.tokens, self.activation = tokens, activation
        self.between = self._attend()  # (n, D) patches between the block's halves
        self.normed = Normed.of(self.between, block.ln_2.eps)
        out = block.feed_forward(self.between[None])[0]
        self.out = Normed.of(out, ln_post.eps)
        self.value = ln_post(out).mean(dim=0)  # (D,)

    def _attend(self) -> Tensor:
        """Run the first half of the block on the patches: (n, D)."""
        attended: Tensor = self.block.attn(self.activation[:, 1:], self.activation)
        return (self.tokens[:, 1:] + attended)[0]

    @cached_property
    def slope(self) -> Tensor:
        """(n, M) the activation function's derivative, by the spread of the patch behind it."""
        mlp = self.block.mlp
        with torch.enable_grad():
            hidden = mlp.c_fc(self.block.ln_2(self.between)).detach().requires_grad_()
            # A copy: what watches modules, such as a counter of operations, can hook no leaf.
            slope: Tensor = torch.autograd.grad(mlp.gelu(hidden.clone()).sum(), hidden)[0]
        return slope / self.out.spread

    @cached_property
    def into_hidden(self) -> Tensor:
        """(M, D) the product into the hidden units with the layer norm's scale, rows of mean 0.

        The backward pass of a layer norm takes the mean out of what comes behind this product.
        """
        weight: Tensor = self.block.mlp.c_fc.weight * self.block.ln_2.weight
        return weight - weight.mean(dim=-1, keepdim=True)

    @cached_property
    def own_answer(self) -> Tensor:
        """(n, D) what comes back through the feed-forward half for a patch's own direction."""
        return (self.slope * (self.out.unit @ self.block.mlp.c_proj.weight)) @ self.into_hidden

    @cached_property
    def attention(self) -> AttentionAnswer:
        """How the block's attention answers."""
        return AttentionAnswer.of(self.block.attn, self.activation)

    def mean_gradients(self, directions: Tensor) -> Tensor:
        """Return the gradients of <direction, value> by the activation, averaged over the patches.

        Args:
            directions: (K, D).

        Returns:
            (K, D).
        """
        count = len(self.between)
        given = directions * self.ln_post.weight / count
        given = given - given.mean(dim=-1, keepdim=True)
        at_once = max(1, BUDGET // (max(self.slope.shape) * given.shape[1]))
        pieces = torch.split(given, at_once)
        sums = torch.cat([self.attention.sums(self._back_to_heads(piece)) for piece in pieces])
        return sums.flatten(1) @ self.block.attn.in_proj_weight / count

    def _back_to_heads(self, given: Tensor) -> Tensor:
        """Take what a mean of layer norms is given (K, D) back to the heads: (n, K, heads, d).

        Tokens are the rows and names the columns, so that the large product is a single one, in
        which it is the weights and not the activations that are multiplied for each name.
        """
        normed, out, width = self.normed, self.out, given.shape[1]
        along = (out.unit @ given.t() / width)[..., None]  # (n, K, 1)
        hidden = (given @ self.block.mlp.c_proj.weight).t()[..., None]  # (M, K, 1)
        weights = (hidden * self.into_hidden[:, None]).flatten(1)  # (M, K * D)
        back = (self.slope @ weights).view(-1, *given.shape)  # (n, K, D)
        back -= along * self.own_answer[:, None]
        back -= normed.unit[:, None] * (back @ normed.unit[..., None] / width)
        back /= normed.spread[..., None]
        back += (given - along * out.unit[:, None]) / out.spread[..., None]
        heads: Tensor = back @ self.block.attn.out_proj.weight
        return heads.view(*heads.shape[:2], self.block.attn.heads, -1)


@dataclass(frozen=True)
class AttentionAnswer:
    """How self-attention's queries, keys and values, each summed over n patches, answer to outputs.

    Attributes:
        covariance: (heads, n, d, d) of values and scaled keys under each patch's attention.
        rest: (heads, n, d) output of each patch, less the class token's value.
        pull: (heads, n, d) scaled query of each patch, times its attention to the class token.
        to_patches: (heads, n) attention of each patch to all of them.
    """

    covariance: Tensor
    rest: Tensor
    pull: Tensor
    to_patches: Tensor

    @classmethod
    def of(cls, attention: Attention, activation: Tensor) -> AttentionAnswer:
        """Look at attention to (1, T, D) tokens, a head after another and some rows at a time."""
        queries, keys, values = (part[0] for part in attention.qkv(activation))  # (heads, T, d)
        heads, length, width = queries.shape
        queries, scaled = queries[:, 1:], keys * width**-0.5
        covariance = activation.new_empty(heads, length - 1, width, width)
        output, to_class = torch.empty_like(queries), activation.new_empty(heads, length - 1)
        rows = max(1, BUDGET // max(length, width**2))
        for head, (query, key, value) in enumerate(zip(queries, scaled, values, strict=True)):
            pairs = (value[:, :, None] * key[:, None]).flatten(1)  # (T, d * d)
            for start in range(0, length - 1, rows):
                some = slice(start, start + rows)
                weights = (query[some] @ key.t()).softmax(dim=-1)  # (r, T)
                mean_value, mean_key = weights @ value, weights @ key
                torch.sub(
                    (weights @ pairs).view(-1, width, width),
                    mean_value[:, :, None] * mean_key[:, None],
                    out=covariance[head, some],
                )
                output[head, some], to_class[head, some] = mean_value, weights[:, 0]
        pull = queries * to_class[..., None] * width**-0.5
        return cls(covariance, output - values[:, :1], pull, 1 - to_class)

    def sums(self, outputs: Tensor) -> Tensor:
        """Turn gradients of the heads' outputs (n, K, heads, d) into the sums' (K, 3, heads, d)."""
        outputs = outputs.permute(2, 1, 0, 3).contiguous()  # (heads, K, n, d)
        queries = outputs.flatten(2) @ self.covariance.flatten(1, 2)
        through_class = torch.einsum("hknd,hnd->hkn", outputs, self.rest)
        values = torch.einsum("hknd,hn->hkd", outputs, self.to_patches)
        sums = torch.stack([queries, through_class @ self.pull, values])  # (3, heads, K, d)
        return sums.permute(2, 0, 1, 3)
