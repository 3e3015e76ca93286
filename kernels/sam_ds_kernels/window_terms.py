"""The position terms of a window's tokens as they go through the matrix unit, and their way back.

See ``rel_pos_attention_window`` for TERMS, E and what "cut" means. S is the window's side, T and R are powers of
two of at least 2 S - 1 and 2 S + 1.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .tiles import load, scores


@triton.jit
def table(PTR, S: tl.constexpr, T: tl.constexpr, D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr):
    """The tile [T, D] of a table with 2 S - 1 rows, 0 beyond."""
    rows = tl.arange(0, T)
    return load(PTR + rows * D, rows < 2 * S - 1, D, D0, D1, False)


@triton.jit
def make(
    q, REL_H, REL_W, tokens, lowest, scale, S: tl.constexpr, T: tl.constexpr, R: tl.constexpr,
    D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """TERMS of the queries q, [tokens, R], cut out of their products with all rows of the tables."""
    # Whole rows of a table would fill a thread's registers; three products of tf32 are float32's to a bit or two.
    PRECISE: tl.constexpr = "tf32x3" if PRECISION == "ieee" else PRECISION
    gh = scores(q, table(REL_H, S, T, D, D0, D1), None, PRECISE) / scale
    gw = scores(q, table(REL_W, S, T, D, D0, D1), None, PRECISE) / scale
    term = tl.arange(0, R)[None, :]
    at_h = tl.minimum(tl.maximum((tokens // S)[:, None] - term + (S - 1), 0), T - 1)
    at_w = tl.minimum(tl.maximum((tokens % S)[:, None] - term + (2 * S - 1), 0), T - 1)
    terms = tl.where(term < S, tl.gather(gh, at_h, 1), tl.gather(gw, at_w, 1))
    terms = tl.where(term < 2 * S, terms, tl.where(term == 2 * S, lowest, 0.0))
    return terms.to(q[0].dtype)


@triton.jit
def one_hot(keys, S: tl.constexpr, R: tl.constexpr, DTYPE: tl.constexpr):
    """E, [keys, R]."""
    term = tl.arange(0, R)[None, :]
    key = keys[:, None]
    hit = (term == key // S) | (term == S + key % S)
    # By way of float32: the interpreter makes the bits 1 of a true bfloat16.
    return tl.where(key < S * S, hit, term == 2 * S).to(tl.float32).to(DTYPE)


@triton.jit
def turn(d_terms, place, FIRST: tl.constexpr, S: tl.constexpr, T: tl.constexpr):
    """The gradient of TERMS [tokens, R] to that of their products with all rows of one table, [tokens, T].

    ``place`` is the tokens' row or column in the window, FIRST the table's first column in TERMS.
    """
    key = place[:, None] + (S - 1) - tl.arange(0, T)[None, :]
    found = tl.gather(d_terms, tl.minimum(tl.maximum(key, 0), S - 1) + FIRST, 1)
    return tl.where((key >= 0) & (key < S), found, 0.0)
