"""How the mean of CLIP's patches answers to the input of its last block, name by name.

Class activation weighs channels with gradients that are averaged over the patches, and nothing else
is made of them. Automatic differentiation computes them all, a T x T attention gradient for each
name among them, only to average. Written out, most of that work is one for all names:

- Every patch gets the same gradient from the mean, so the first of the feed-forward half's two
  products is one vector for each name and one for each patch, not one for each pair.
- The average moves through the linear maps, up to the queries, keys and values.
- A patch's row of attention sums to 1, whatever its query and the keys. So the keys of all patches
  together change it as much as the class token's key does, the other way round.
- The queries' sum needs one product of the attention's transpose, where the gradients of single
  queries and keys need four, and T x T intermediate values for each name.

Source: GradCAM as in Lin et al. 2023 (CLIP-ES), section 3; SPEC car 3.4.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openvocab.clip.model import Block

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
        """Normalize (n, D) tokens."""
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
        queries, keys, values = self.qkv
        attended = F.scaled_dot_product_attention(queries[:, :, 1:], keys, values)
        return (self.tokens[:, 1:] + self.block.attn.merge(attended))[0]

    @cached_property
    def qkv(self) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of all tokens, each (1, heads, T, d)."""
        return self.block.attn.qkv(self.activation)

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
    def hidden_share(self) -> Tensor:
        """(n, M) what hidden units send back along what the inner layer norm made of a patch."""
        return self.slope * (self.normed.unit @ self.into_hidden.t()) / self.into_hidden.shape[1]

    @cached_property
    def to_heads(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What goes on to the heads, through attention's output product.

        Returns:
            Of hidden units (M, D); and of each patch (n, D): its own direction, as it comes back
            all ways; that of the inner layer norm; and the slope (n, M) by that norm's spread.
        """
        weight, inner = self.block.attn.out_proj.weight, self.normed
        own = self.own_answer / inner.spread + self.out.unit / self.out.spread
        return (
            self.into_hidden @ weight,
            own @ weight,
            inner.unit / inner.spread @ weight,
            self.slope / inner.spread,
        )

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
        attention = self.block.attn
        sums = torch.cat(
            [attention_gradients(self.qkv, self._back_to_heads(piece)) for piece in pieces]
        )
        return sums.flatten(1) @ attention.in_proj_weight / count

    def _back_to_heads(self, given: Tensor) -> Tensor:
        """Take what a mean of layer norms is given (K, D) back to the heads: (n, K, heads, d).

        A layer norm that made unit output u of tokens with spread s turns a gradient g of mean 0
        into (g - u <g, u> / D) / s. So all is one large product, and what each patch subtracts:
        two vectors that are the same for all names, as often as a number for each says.

        Tokens are the rows and names the columns, so that the product is a single one, in which it
        is the weights and not the activations that are multiplied for each name.
        """
        hidden_to_heads, own, inner, slope = self.to_heads
        count, width = own.shape
        along = self.out.unit @ given.t() / width  # (n, K)
        hidden = (given @ self.block.mlp.c_proj.weight).t()  # (M, K)
        own_share = (self.own_answer * self.normed.unit).mean(dim=-1, keepdim=True)
        share = self.hidden_share @ hidden - along * own_share  # (n, K)
        weights = (hidden[..., None] * hidden_to_heads[:, None]).flatten(1)  # (M, K * D)
        heads = (slope @ weights).view(count, -1, width)  # (n, K, D)
        heads.addcmul_(along[..., None], own[:, None], value=-1)
        heads.addcmul_(share[..., None], inner[:, None], value=-1)
        straight = given @ self.block.attn.out_proj.weight  # the residual's way
        heads.addcmul_(straight, 1 / self.out.spread[..., None])
        return heads.view(count, len(given), self.block.attn.heads, -1)


def attention_gradients(qkv: tuple[Tensor, Tensor, Tensor], outputs: Tensor) -> Tensor:
    """Differentiate K functions of self-attention by the sums of all patches' q, k and v.

    Args:
        qkv: queries, keys and values of T tokens, each (1, heads, T, d).
        outputs: (n, K, heads, d) gradients of the functions by the heads' outputs at the n patches;
            nothing depends on the class token's output.

    Returns:
        (K, 3, heads, d).
    """
    queries, keys, values = (part[0] for part in qkv)  # (heads, T, d)
    count, names, heads, width = outputs.shape
    queries, scale = queries[:, 1:], width**-0.5
    sums = outputs.new_empty(3, heads, names, width)
    rows = max(1, BUDGET // keys.shape[1])
    for head, (query, key, value) in enumerate(zip(queries, keys, values, strict=True)):
        to_query, to_key, to_value = sums[:, head].zero_()
        # What each token's value, and its part in the normalization, get back: (T, K, d), (T, K).
        returned = outputs.new_zeros(len(key), names, width)
        shared = outputs.new_zeros(len(key), names)
        for some in (slice(start, start + rows) for start in range(0, count, rows)):
            given = outputs[some, :, head].contiguous()  # (r, K, d)
            weights = (query[some] * scale @ key.t()).softmax(dim=-1)  # (r, T)
            output, to_class = weights @ value, weights[:, :1]  # (r, d), (r, 1)
            along = (given @ output[..., None])[..., 0]  # (r, K)
            returned.flatten(1).addmm_(weights.t(), given.flatten(1))
            shared.addmm_(weights.t(), along)
            to_key.addmm_(((along - given @ value[0]) * to_class).t(), query[some])
            to_value += torch.einsum("rkd,r->kd", given, 1 - to_class[:, 0])
        to_query.addmm_(((returned @ value[..., None])[..., 0] - shared).t(), key)
    sums[:2] *= scale
    return sums.permute(2, 0, 1, 3)
