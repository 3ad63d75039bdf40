"""What an encoder layer does between its large matrix products, compiled by numba for one thread of a CPU.

A layer of a small model is some forty operations of a few microseconds each, most of which go through memory once; the
interpreter between them takes as long as they do. Here a loop does in one pass what a library needs several for, and
attention is one call. The small products within are by the BLAS that comes with scipy.

All arrays are float32. Shapes: B batch, T positions, Q positions that ask, D width, N heads, H = D / N, F feed-forward,
R rows.
"""

import math
from typing import Any

import numpy as np
from numba import types

from bert_miniatures.compiling import compiled, exp, helper, product

__all__ = [
    "attend",
    "attend_back",
    "attend_first",
    "attend_first_back",
    "gelu",
    "gelu_tanh",
    "norm",
    "norm_back",
    "times",
]

_F = np.float32
_ZERO, _HALF, _ONE = _F(0), _F(0.5), _F(1)

_1, _2, _3 = types.float32[::1], types.float32[:, ::1], types.float32[:, :, ::1]
_columns = types.float32[:, :]  # some of the columns of a matrix
_int, _number = types.int64, types.float32
_tuple: Any = types.Tuple
_dropped = _tuple((types.int16[:, ::1], types.int16, types.float32))


@helper
def _add_rows(rows: Any, bias: Any) -> None:
    for i in range(rows.shape[0]):
        for j in range(rows.shape[1]):
            rows[i, j] += bias[j]


@helper
def _sum_rows(rows: Any, total: Any) -> None:
    for i in range(rows.shape[0]):
        for j in range(rows.shape[1]):
            total[j] += rows[i, j]


@compiled(_2, _1, _2)
def gelu(u: Any, bias: Any, y: Any) -> None:
    """Write the GELU of u + bias into y, and its derivative upon u.

    Source: Hendrycks and Gimpel 2016; the error function is Abramowitz and Stegun 7.1.26 (to 1.5e-7), which is also
    torch's. Value and derivative share its exponential, the density.
    """
    for i in range(u.shape[0]):
        for j in range(u.shape[1]):
            x = u[i, j] + bias[j]
            size = abs(x) * _F(0.7071067811865476)
            density = exp(-size * size)
            t = _ONE / (_ONE + _F(0.3275911) * size)
            tail = _F(1.061405429) * t + _F(-1.453152027)
            tail = tail * t + _F(1.421413741)
            tail = tail * t + _F(-0.284496736)
            tail = tail * t + _F(0.254829592)
            tail = _HALF * tail * t * density
            below = _ONE - tail if x >= _ZERO else tail
            y[i, j] = x * below
            u[i, j] = below + x * density * _F(0.3989422804014327)


@compiled(_2, _1, _2)
def gelu_tanh(u: Any, bias: Any, y: Any) -> None:
    """Like `gelu`, in the form with a hyperbolic tangent."""
    double = _F(1.5957691216057308)  # 2 sqrt(2 / pi): (1 + tanh(z)) / 2 is the logistic function of 2 z
    for i in range(u.shape[0]):
        for j in range(u.shape[1]):
            x = u[i, j] + bias[j]
            inner = double * (x + _F(0.044715) * x * x * x)
            power = exp(-abs(inner))
            small = power / (_ONE + power)
            below = _ONE - small if inner >= _ZERO else small
            y[i, j] = x * below
            u[i, j] = below + x * below * (_ONE - below) * double * (_ONE + _F(0.134145) * x * x)


@compiled(_2, _2, _1)
def times(dy: Any, slope: Any, dbias: Any) -> None:
    """Multiply dy by slope in place; add the sums over the rows to dbias."""
    for i in range(dy.shape[0]):
        for j in range(dy.shape[1]):
            value = dy[i, j] * slope[i, j]
            dy[i, j] = value
            dbias[j] += value


@compiled(_2, _2, _1, _dropped, _1, _1, _number)
def norm(x: Any, change: Any, bias: Any, dropped: Any, weight: Any, shift: Any, epsilon: float) -> Any:
    """Return LayerNorm of x + dropout(change + bias), [R, D], and one over the deviation of each row, [R].

    Leaves in `change` what is normalised, before weight and shift. Dropout sets an element to 0 where its 16 bits are
    less than a limit, and scales the others.
    """
    bits, limit, scale = dropped
    y, inverse = np.empty_like(x), np.empty(x.shape[0], np.float32)
    share = _ONE / _F(x.shape[1])
    for i in range(x.shape[0]):
        if len(bits):
            for j in range(x.shape[1]):
                value = (change[i, j] + bias[j]) * scale
                change[i, j] = x[i, j] + (value if bits[i, j] >= limit else _ZERO)
        else:
            for j in range(x.shape[1]):
                change[i, j] += x[i, j] + bias[j]
        total = _ZERO
        for j in range(x.shape[1]):
            total += change[i, j]
        mean = total * share
        square = _ZERO
        for j in range(x.shape[1]):
            value = change[i, j] - mean
            square += value * value
        factor = _ONE / math.sqrt(square * share + epsilon)
        inverse[i] = factor
        for j in range(x.shape[1]):
            value = (change[i, j] - mean) * factor
            change[i, j] = value
            y[i, j] = value * weight[j] + shift[j]
    return y, inverse


@compiled(_2, _2, _1, _1, _dropped, _1, _1, _1)
def norm_back(
    dy: Any, normal: Any, inverse: Any, weight: Any, dropped: Any, dweight: Any, dshift: Any, dbias: Any
) -> Any:
    """Return the gradient of x, and write that of `change` upon `normal`; add those of weight, shift and bias."""
    bits, limit, scale = dropped
    dx = np.empty_like(normal)
    share = _ONE / _F(dy.shape[1])
    for i in range(dy.shape[0]):
        along, across = _ZERO, _ZERO
        for j in range(dy.shape[1]):
            d, value = dy[i, j], normal[i, j]
            dweight[j] += d * value
            dshift[j] += d
            scaled = d * weight[j]
            across += scaled
            along += scaled * value
        along *= share
        across *= share
        factor = inverse[i]
        for j in range(dy.shape[1]):  # loops of their own: a compiler tells only a few arrays from each other
            dx[i, j] = (dy[i, j] * weight[j] - across - normal[i, j] * along) * factor
        if len(bits):
            for j in range(dy.shape[1]):
                value = dx[i, j] * scale
                normal[i, j] = value if bits[i, j] >= limit else _ZERO
        else:
            for j in range(dy.shape[1]):
                normal[i, j] = dx[i, j]
        for j in range(dy.shape[1]):
            dbias[j] += normal[i, j]
    return dx


@helper
def _softmax(scores: Any, mask: Any, row: int, bits: Any, limit: Any, scale: float, first: int, after: Any) -> None:
    """Make shares of the scores of one head [Q, T] in place, and write what dropout leaves of them into `after`.

    Args:
        mask: added to the scores, [B, Q or 1, T]; nothing where it is empty. `row` is which of B.
        bits: of dropout, [B N Q, T], those of this head from row `first` on; nothing is dropped where it is empty.
    """
    for i in range(scores.shape[0]):
        if len(mask):
            of = i if mask.shape[1] > 1 else 0
            for j in range(scores.shape[1]):
                scores[i, j] += mask[row, of, j]
        most = scores[i, 0]
        for j in range(scores.shape[1]):
            most = max(most, scores[i, j])
        total = _ZERO
        for j in range(scores.shape[1]):
            value = exp(scores[i, j] - most)
            scores[i, j] = value
            total += value
        share = _ONE / total
        for j in range(scores.shape[1]):
            scores[i, j] *= share
        if len(bits):
            for j in range(scores.shape[1]):
                value = scores[i, j] * scale
                after[i, j] = value if bits[first + i, j] >= limit else _ZERO
        else:
            for j in range(scores.shape[1]):
                after[i, j] = scores[i, j]


@helper
def _softmax_back(dafter: Any, shares: Any, bits: Any, limit: Any, scale: float, first: int) -> None:
    """Make the gradient of the scores of that of `after`, in place, [Q, T]."""
    for i in range(dafter.shape[0]):
        if len(bits):
            for j in range(dafter.shape[1]):
                value = dafter[i, j] * scale
                dafter[i, j] = value if bits[first + i, j] >= limit else _ZERO
        along = _ZERO
        for j in range(dafter.shape[1]):
            along += dafter[i, j] * shares[i, j]
        for j in range(dafter.shape[1]):
            dafter[i, j] = (dafter[i, j] - along) * shares[i, j]


# ------------------------------------------------------------------------------------------ attention


@compiled(_columns, _columns, _columns, _1, _int, _int, _3, _dropped)
def attend(q: Any, k: Any, v: Any, bias: Any, texts: int, heads: int, mask: Any, dropped: Any) -> Any:
    """Return the joined heads of queries [B Q, D] over keys and values [B T, D], and shares before and after dropout.

    The bias of the keys adds the same number to all scores of a query, which the softmax takes away again: it is left
    out, and its gradient is 0.

    Args:
        q, k, v: products of the weights; those of `bias` [3 D] that matter are added to them in place.
    """
    bits, limit, scale = dropped
    d, asking, length = q.shape[1], q.shape[0] // texts, k.shape[0] // texts
    h = d // heads
    _add_rows(q, bias[:d])
    _add_rows(v, bias[2 * d :])
    context = np.empty((q.shape[0], d), np.float32)
    shares = np.empty((texts * heads * asking, length), np.float32)
    after = np.empty_like(shares)
    for b in range(texts):
        rows, keys = slice(b * asking, (b + 1) * asking), slice(b * length, (b + 1) * length)
        for n in range(heads):
            of, first = slice(n * h, (n + 1) * h), (b * heads + n) * asking
            scores, left = shares[first : first + asking], after[first : first + asking]
            product(q[rows, of], False, k[keys, of], True, scores, h**-0.5, 0.0)
            _softmax(scores, mask, b, bits, limit, scale, first, left)
            product(left, False, v[keys, of], False, context[rows, of], 1.0, 0.0)
    return context, shares, after


@compiled(_2, _columns, _columns, _columns, _2, _2, _int, _int, _dropped, _columns, _columns, _columns, _1)
def attend_back(
    dcontext: Any, q: Any, k: Any, v: Any, shares: Any, after: Any, texts: int, heads: int, dropped: Any,
    dq: Any, dk: Any, dv: Any, dbias: Any,
) -> None:  # fmt: skip
    """Write the gradients of queries, keys and values into `dq`, `dk` and `dv`; add their sums to `dbias`."""
    bits, limit, scale = dropped
    d, asking, length = q.shape[1], q.shape[0] // texts, k.shape[0] // texts
    h = d // heads
    dscores = np.empty((asking, length), np.float32)
    for b in range(texts):
        rows, keys = slice(b * asking, (b + 1) * asking), slice(b * length, (b + 1) * length)
        for n in range(heads):
            of, first = slice(n * h, (n + 1) * h), (b * heads + n) * asking
            share, left = shares[first : first + asking], after[first : first + asking]
            product(left, True, dcontext[rows, of], False, dv[keys, of], 1.0, 0.0)
            product(dcontext[rows, of], False, v[keys, of], True, dscores, 1.0, 0.0)
            _softmax_back(dscores, share, bits, limit, scale, first)
            product(dscores, False, k[keys, of], False, dq[rows, of], h**-0.5, 0.0)
            product(dscores, True, q[rows, of], False, dk[keys, of], h**-0.5, 0.0)
    _sum_rows(dq, dbias[:d])
    _sum_rows(dv, dbias[2 * d :])


_first = _tuple((_2, _3, _3, _3, _3, _2))


@compiled(_3, _int, _3, _dropped, _2, _1)
def attend_first(x: Any, heads: int, mask: Any, dropped: Any, qkv: Any, bias: Any) -> Any:
    """Return the joined heads of the first position [B, D], without making keys and values of x [B, T, D].

    See `_attend_first` in model.py. The bias of the keys is left out here too.
    """
    bits, limit, scale = dropped
    texts, length, d = x.shape
    h = d // heads
    query, key, value = qkv[:d], qkv[d : 2 * d], qkv[2 * d :]
    q, r, context = (
        np.empty((texts, d), np.float32),
        np.empty((texts, heads, d), np.float32),
        np.empty((texts, d), np.float32),
    )
    shares, after = np.empty((texts, heads, length), np.float32), np.empty((texts, heads, length), np.float32)
    mixed, summed = np.empty_like(r), np.empty((texts, heads), np.float32)
    product(x[:, 0], False, query, True, q, 1.0, 0.0)
    for b in range(texts):
        for j in range(d):
            q[b, j] = (q[b, j] + bias[j]) * _F(h**-0.5)
    for n in range(heads):
        of = slice(n * h, (n + 1) * h)
        product(q[:, of], False, key[of], False, r[:, n], 1.0, 0.0)
    for b in range(texts):
        product(r[b], False, x[b], True, shares[b], 1.0, 0.0)
        _softmax(shares[b], mask, b, bits, limit, scale, b * heads, after[b])
        product(after[b], False, x[b], False, mixed[b], 1.0, 0.0)
        for n in range(heads):
            summed[b, n] = after[b, n].sum()
    for n in range(heads):
        of = slice(n * h, (n + 1) * h)
        product(mixed[:, n], False, value[of], True, context[:, of], 1.0, 0.0)
        for b in range(texts):
            for j in range(n * h, (n + 1) * h):
                context[b, j] += summed[b, n] * bias[2 * d + j]
    return context, (q, r, shares, after, mixed, summed)


@compiled(_2, _3, _int, _dropped, _2, _1, _first, _2, _1, _number)
def attend_first_back(
    dcontext: Any, x: Any, heads: int, dropped: Any, qkv: Any, bias: Any, kept: Any, dqkv: Any, dbias: Any, beta: float
) -> Any:
    """Return the gradient of x [B, T, D]; add those of weight and bias to `dqkv` and `dbias`."""
    q, r, shares, after, mixed, summed = kept
    bits, limit, scale = dropped
    texts, length, d = x.shape
    h = d // heads
    query, key, value = qkv[:d], qkv[d : 2 * d], qkv[2 * d :]
    dquery, dkey, dvalue = dqkv[:d], dqkv[d : 2 * d], dqkv[2 * d :]
    dmixed, dr, dq = np.empty_like(r), np.empty_like(r), np.empty_like(q)
    dshares, dx = np.empty((heads, length), np.float32), np.empty_like(x)
    for n in range(heads):
        of = slice(n * h, (n + 1) * h)
        product(dcontext[:, of], True, mixed[:, n], False, dvalue[of], 1.0, beta)
        product(dcontext[:, of], False, value[of], False, dmixed[:, n], 1.0, 0.0)
    for b in range(texts):
        product(dmixed[b], False, x[b], True, dshares, 1.0, 0.0)
        for n in range(heads):
            dsummed = _ZERO
            for j in range(n * h, (n + 1) * h):
                dsummed += dcontext[b, j] * bias[2 * d + j]
                dbias[2 * d + j] += summed[b, n] * dcontext[b, j]
            for j in range(length):
                dshares[n, j] += dsummed
        _softmax_back(dshares, shares[b], bits, limit, scale, b * heads)
        product(after[b], True, dmixed[b], False, dx[b], 1.0, 0.0)
        product(dshares, True, r[b], False, dx[b], 1.0, 1.0)
        product(dshares, False, x[b], False, dr[b], 1.0, 0.0)
    for n in range(heads):
        of = slice(n * h, (n + 1) * h)
        product(q[:, of], True, dr[:, n], False, dkey[of], 1.0, beta)
        product(dr[:, n], False, key[of], True, dq[:, of], h**-0.5, 0.0)
    product(dq, True, x[:, 0], False, dquery, 1.0, beta)
    _sum_rows(dq, dbias[:d])
    product(dq, False, query, False, dx[:, 0], 1.0, 1.0)
    return dx
