"""SAM's two-way transformer: prompt tokens and picture cells attend to each other.

The picture side has N = 1,024 to 4,096 cells an object and the token side about a dozen tokens, so memory
traffic over [O, N, D] is what costs. Projecting the cells to keys, values and queries, as written in the paper,
makes six such tensors a layer. Matrix products are associative, so the same numbers come from moving the
projections to the few tokens (heads h, token t, cell n with content x_n and place p_n):

    token to picture:  (Wq a_t + bq)_h . (Wk (x_n + p_n) + bk)_h = (Wk_h^T (Wq a_t + bq)_h) . (x_n + p_n) + const(t)
                       sum_n s_n (Wv x_n + bv)_h = Wv_h (sum_n s_n x_n) + bv_h                as sum_n s_n = 1
    picture to token:  the first line with the roles exchanged; its constant, (bq . k_t)_h, depends on the token
                       attended to, so here it stays
                       Wo (sum_t s_t v_t)_h + bo = sum_h sum_t s_th (Wo_h v_th + bo / heads)

The constant of the first line is the same for all cells and vanishes in the softmax. What remains on the
picture side is two products with [heads * T, D] matrices an attention, and no tensor of head slices.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sam_ds.modeling.vit import Mlp
from sam_ds.ops import gather_cells, update_cells


class Attention(nn.Module):
    """Multi-head attention whose heads live in ``dim / downsample`` channels. Self-attention of a few tokens."""

    def __init__(self, dim: int, num_heads: int, downsample: int = 1) -> None:
        super().__init__()
        inner = dim // downsample
        if inner % num_heads:
            raise ValueError(f"{num_heads} decoder heads do not divide {inner} channels")
        self.num_heads = num_heads
        self.scale = (inner // num_heads) ** -0.5
        self.q_proj = nn.Linear(dim, inner)
        self.k_proj = nn.Linear(dim, inner)
        self.v_proj = nn.Linear(dim, inner)
        self.out_proj = nn.Linear(inner, dim)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        """q, k, v: [O, T, D]; mask: [O, 1, 1, T], added to the scores. Returns [O, T, D]."""
        q, k, v = self._heads(self.q_proj(q)), self._heads(self.k_proj(k)), self._heads(self.v_proj(v))
        scores = (q * self.scale) @ k.transpose(-2, -1) + mask.to(q.dtype)  # [O, heads, T, T]
        return self.out_proj((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))

    @torch.no_grad()
    def start_at_own_place(self, gain: float) -> None:
        """Draw random weights with which like attends to like: W_k = W_q, so scores are gain * (W a) . (W b).

        Between positional encodings that is a kernel with its peak where the places are equal. With W_q and W_k
        drawn apart it has no peak anywhere, and that a point means its own place is left to be found by chance.
        """
        self.q_proj.weight.mul_(gain**0.5)
        self.k_proj.weight.copy_(self.q_proj.weight)
        self.q_proj.bias.zero_()
        self.k_proj.bias.zero_()

    def _heads(self, x: Tensor) -> Tensor:
        """[O, T, inner] to [O, heads, T, d]."""
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def _pull_back(self, x: Tensor, weight: Tensor) -> Tensor:
        """Apply a projection's transpose head by head: [O, heads, T, d] and [inner, D] to [O, heads * T, D]."""
        return (x @ weight.unflatten(0, (self.num_heads, -1))).flatten(1, 2)


class TokenToImage(Attention):
    """The tokens attend to the picture."""

    def forward(self, tokens: Tensor, cells: Tensor, positions: Tensor) -> Tensor:  # type: ignore[override]
        """tokens: [O, T, D]; cells: [O, N, D]; positions: [N, D]. Returns [O, T, D]."""
        q = self._heads(self.q_proj(tokens) * self.scale)
        seen = gather_cells(self._pull_back(q, self.k_proj.weight), cells, positions)  # [O, heads * T, D]
        seen = seen.unflatten(1, (self.num_heads, -1))  # [O, heads, T, D]
        v_weight = self.v_proj.weight.unflatten(0, (self.num_heads, -1))  # [heads, d, D]
        out = (seen @ v_weight.transpose(1, 2)).transpose(1, 2).flatten(2)  # [O, T, inner]
        # k_proj's bias changes no score. It stays in the graph for its gradient, an exact zero: ZeRO-3 re-applies
        # old gradients to a parameter that gets none.
        return self.out_proj(out + (self.v_proj.bias + 0.0 * self.k_proj.bias))


class ImageToToken(Attention):
    """The picture attends to the tokens."""

    def forward(  # type: ignore[override]
        self, cells: Tensor, positions: Tensor, k: Tensor, v: Tensor, mask: Tensor
    ) -> Tensor:
        """cells: [O, N, D]; positions: [N, D]; k, v: [O, T, D]; mask: [O, 1, 1, T]. Returns cells + the answer."""
        k = self._heads(self.k_proj(k) * self.scale)  # [O, heads, T, d]
        bias = k @ self.q_proj.bias.view(self.num_heads, -1, 1) + mask.to(k.dtype).transpose(2, 3)  # [O, heads, T, 1]
        keys = self._pull_back(k, self.q_proj.weight)  # [O, heads * T, D]
        v = self._heads(self.v_proj(v))
        values = self._pull_back(v, self.out_proj.weight.t()) + self.out_proj.bias / self.num_heads
        return update_cells(cells, positions, keys, bias.flatten(1, 2), values, self.num_heads)


class TwoWayBlock(nn.Module):
    """Self-attention of the tokens, tokens to picture, MLP, picture to tokens; a norm after each."""

    def __init__(self, dim: int, num_heads: int, mlp_dim: int, first: bool) -> None:
        super().__init__()
        self.self_attn = Attention(dim, num_heads)
        self.norm1 = nn.LayerNorm(dim)
        self.cross_attn_token_to_image = TokenToImage(dim, num_heads, downsample=2)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, mlp_dim, nn.ReLU)
        self.norm3 = nn.LayerNorm(dim)
        self.norm4 = nn.LayerNorm(dim)
        self.cross_attn_image_to_token = ImageToToken(dim, num_heads, downsample=2)
        self.first = first

    def forward(
        self, tokens: Tensor, cells: Tensor, token_positions: Tensor, grid_positions: Tensor, mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """tokens [O, T, D] and cells [O, N, D] to their next values."""
        if self.first:  # the tokens still equal their positions: neither a residual nor positions, as released
            tokens = self.self_attn(tokens, tokens, tokens, mask)
        else:
            placed = tokens + token_positions
            tokens = tokens + self.self_attn(placed, placed, tokens, mask)
        tokens = self.norm1(tokens)
        seen = self.cross_attn_token_to_image(tokens + token_positions, cells, grid_positions)
        tokens = self.norm2(tokens + seen)
        tokens = self.norm3(tokens + self.mlp(tokens))
        cells = self.cross_attn_image_to_token(cells, grid_positions, tokens + token_positions, tokens, mask)
        return tokens, self.norm4(cells)


class TwoWayTransformer(nn.Module):
    def __init__(self, dim: int, depth: int, num_heads: int, mlp_dim: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(TwoWayBlock(dim, num_heads, mlp_dim, first=i == 0) for i in range(depth))
        self.final_attn_token_to_image = TokenToImage(dim, num_heads, downsample=2)
        self.norm_final_attn = nn.LayerNorm(dim)

    def start_at_own_place(self, gain: float) -> None:
        """Let both directions of attention start between places that are alike (``Attention.start_at_own_place``)."""
        for module in self.modules():
            if isinstance(module, (TokenToImage, ImageToToken)):
                module.start_at_own_place(gain)

    def forward(self, tokens: Tensor, cells: Tensor, grid_positions: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Let tokens and picture attend to each other.

        Args:
            tokens: [O, T, D], which also serve as the tokens' positional encoding.
            cells: [O, N, D], the picture's embedding with the dense prompt.
            grid_positions: [N, D].
            mask: float [O, 1, 1, T], 0 or -inf: the tokens that nothing attends to.

        Returns:
            tokens [O, T, D] and cells [O, N, D].
        """
        token_positions = tokens
        for layer in self.layers:
            tokens, cells = layer(tokens, cells, token_positions, grid_positions, mask)
        seen = self.final_attn_token_to_image(tokens + token_positions, cells, grid_positions)
        return self.norm_final_attn(tokens + seen), cells
