"""One encoder layer as one autograd function, its backward pass written by hand. For training on a CPU.

A layer of a small model is about 30 short operations; recorded one by one, autograd spends as long on them as the
matrix products do, and two threads wait for each other's interpreter lock between them. Here the whole layer is one
node: no graph inside, products scaled and added where they are computed, no copy that is not needed. The numbers are
those of `_Layer` in model.py but for rounding (tests/test_fused.py).

Shapes: B batch, T positions, D width, N heads, H = D / N, R = B T rows, F feed-forward.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Drawn", "Settings", "Sums", "Tensors", "layer"]

Tensors = tuple[Tensor, ...]


class Settings(NamedTuple):
    """What a layer has besides weights: number of heads, form of GELU ("none" or "tanh"), epsilon of LayerNorm."""

    heads: int
    tanh: str
    epsilon: float


class Drawn(NamedTuple):
    """Dropout of one layer: what each element is multiplied with, 0 or 1 / (1 - p); None where p is 0.

    Attributes:
        shares: of the attention shares, [B, N, T, T]; with first_only [B, N, T]; with picked [B, N, M, T].
        attended: of the attention output, [R, D]; with first_only [B, D]; with picked [B M, D].
        down: of the feed-forward output, likewise.
    """

    shares: Tensor | None
    attended: Tensor | None
    down: Tensor | None


@dataclass
class Sums:
    """Where the backward pass adds the gradients of a layer's weights.

    Attributes:
        tensors: of weight and bias of qkv, attended, attended_norm, up, down, norm, in this order.
        forgotten: the next backward pass writes the gradients of the four matrices instead of adding to what is there;
            that saves a way through memory for setting them to zero and one for reading the zeros.
    """

    tensors: Tensors
    forgotten: bool = False

    def taken(self) -> int:
        """Return what the products multiply with what is there, 0 or 1; the next ones add."""
        beta, self.forgotten = 0 if self.forgotten else 1, False
        return beta

    @property
    def matrices(self) -> Tensors:
        """Gradients of the weights of qkv, attended, up and down."""
        return tuple(tensor for tensor in self.tensors if tensor.dim() == 2)

    def before_others(self, _: Tensor) -> None:
        """Have autograd, which is about to add to a matrix, find no forgotten numbers there."""
        self.settle()

    def settle(self) -> None:
        """Set to zero what was forgotten and not written since."""
        if self.taken() == 0:
            for matrix in self.matrices:
                matrix.zero_()


def layer(
    x: Tensor,
    mask: Tensor | None,
    drawn: Drawn,
    settings: Settings,
    weights: Tensors,
    *,
    first_only: bool = False,
    picked: Tensor | None = None,
    sums: Sums | None = None,
) -> Tensor:
    """Map [B, T, D] to [B, T, D], or to [B, 1, D] or [B, M, D] where the first or M picked positions are wanted.

    Args:
        mask: added to the attention scores, 0 or -inf, [B, 1, 1, T] or [B, 1, Q, T] with Q positions that ask; None
            where nothing is masked.
        picked: places in the flattened [B T], [B, M].
        weights: weight and bias of qkv, attended, attended_norm, up, down, norm, in this order.
        sums: where the matrix products themselves add the gradients of the weights, which then need none for autograd;
            None leaves making and adding them to autograd.
    """
    y: Tensor = _Layer.apply(x, mask, drawn, settings, first_only, picked, sums, *weights)  # type: ignore[no-untyped-call]
    return y


class _Layer(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        mask: Tensor | None,
        drawn: Drawn,
        s: Settings,
        first_only: bool,
        picked: Tensor | None,
        sums: Sums | None,
        *weights: Tensor,
    ) -> Tensor:
        b, t, d = x.shape
        qkv, qkv_bias, *rest = weights
        x = x.contiguous()
        if first_only:
            context, attention = _attend_first(x, mask, drawn.shares, s.heads, qkv, qkv_bias)
            residual = x[:, 0]
        elif picked is not None:
            residual = x.view(b * t, d).index_select(0, picked.view(-1))
            context, attention = _attend_picked(x, residual, mask, drawn.shares, s.heads, qkv, qkv_bias)
        else:
            context, attention = _attend(x, mask, drawn.shares, s.heads, qkv, qkv_bias)
            residual = x.view(b * t, d)
        y, kept = _transform(residual, context, drawn, s, rest)
        ctx.asked = s, drawn, first_only, picked, sums
        ctx.kept = x, weights, attention, kept  # save_for_backward would wrap and check 25 tensors, each time
        return y.view(b, -1, d)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.kept is None:
            raise RuntimeError("a second backward pass through a fused layer: the first wrote upon what it had read")
        x, (qkv, qkv_bias, *rest), attention, kept = ctx.kept
        (s, drawn, first_only, picked, direct), ctx.kept = ctx.asked, None
        made = direct or Sums(tuple(torch.zeros_like(weight) for weight in (qkv, qkv_bias, *rest)))
        sums, beta = made.tensors, made.taken()
        dresidual, dcontext = _transform_back(dy.reshape(-1, x.shape[2]), drawn, s, rest, kept, sums[2:], beta)
        if first_only:
            dx = _attend_first_back(dcontext, x, drawn.shares, s.heads, qkv, qkv_bias, attention, sums, beta)
            dx[:, 0] += dresidual
        elif picked is not None:
            dx = _attend_picked_back(dcontext, dresidual, x, picked, drawn.shares, s.heads, qkv, attention, sums, beta)
        else:
            dx = _attend_back(dcontext, dresidual, x, drawn.shares, s.heads, qkv, attention, sums, beta)
        gradients = (None,) * len(sums) if direct else sums
        return (dx, None, None, None, None, None, None, *gradients)


def _attend(
    x: Tensor, mask: Tensor | None, drawn: Tensor | None, heads: int, qkv: Tensor, bias: Tensor
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Return the joined heads [R, D], and what the backward pass needs."""
    b, t, d = x.shape
    h = d // heads
    projected = torch.addmm(bias, x.view(b * t, d), qkv.t())  # R 3D
    q, k, v = projected.view(b, t, 3, heads, h).permute(2, 0, 3, 1, 4).reshape(3, b * heads, t, h)
    return _mix(q, k, v, mask, drawn, b)


def _attend_back(
    dcontext: Tensor,
    dx: Tensor,
    x: Tensor,
    drawn: Tensor | None,
    heads: int,
    qkv: Tensor,
    saved: Tensors,
    sums: Tensors,
    beta: int,
) -> Tensor:
    """Return the gradient of x, that of the residual added; add those of weight and bias to `sums`."""
    b, t, d = x.shape
    h = d // heads
    dprojected = torch.empty(3, b * heads, t, h, dtype=x.dtype)
    _mix_back(dcontext, drawn, saved, b, *dprojected)
    rows = dprojected.view(3, b, heads, t, h).permute(1, 3, 0, 2, 4).reshape(b * t, 3 * d)
    sums[0].addmm_(rows.t(), x.view(b * t, d), beta=beta)
    sums[1].add_(rows.sum(0))
    return dx.addmm_(rows, qkv).view(b, t, d)


def _mix(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, drawn: Tensor | None, b: int
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Return the joined heads [B Q, D] of Q queries a row [BN, Q, H] over keys and values [BN, T, H]."""
    (_, asking, h), t = q.shape, k.shape[1]
    scores = torch.baddbmm(q.new_empty(1, 1, 1), q, k.transpose(1, 2), beta=0, alpha=h**-0.5)  # BN Q T
    if mask is not None:
        scores.view(b, -1, asking, t).add_(mask)
    shares = torch.softmax(scores, -1, out=scores)
    dropped = shares if drawn is None else shares * drawn.view_as(shares)
    context = (dropped @ v).view(b, -1, asking, h).transpose(1, 2).reshape(b * asking, -1)
    return context, (q, k, v, shares, dropped)


def _mix_back(
    dcontext: Tensor, drawn: Tensor | None, saved: Tensors, b: int, dq: Tensor, dk: Tensor, dv: Tensor
) -> None:
    """Write the gradients of queries, keys and values into `dq`, `dk` and `dv`."""
    q, k, v, shares, dropped = saved
    _, asking, h = q.shape
    dout = dcontext.view(b, asking, -1, h).transpose(1, 2).reshape(q.shape)
    torch.bmm(dropped.transpose(1, 2), dout, out=dv)
    dshares = dout @ v.transpose(1, 2)
    if drawn is not None:
        dshares.mul_(drawn.view_as(dshares))
    dscores = torch._softmax_backward_data(dshares, shares, -1, q.dtype)
    torch.baddbmm(dq, dscores, k, beta=0, alpha=h**-0.5, out=dq)
    torch.baddbmm(dk, dscores.transpose(1, 2), q, beta=0, alpha=h**-0.5, out=dk)


def _attend_picked(
    x: Tensor, residual: Tensor, mask: Tensor | None, drawn: Tensor | None, heads: int, qkv: Tensor, bias: Tensor
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Return the joined heads of the picked positions [B M, D]: queries of these, keys and values of all."""
    b, t, d = x.shape
    h, m = d // heads, len(residual) // b
    q = torch.addmm(bias[:d], residual, qkv[:d].t())
    q = q.view(b, m, heads, h).transpose(1, 2).reshape(b * heads, m, h)
    both = torch.addmm(bias[d:], x.view(b * t, d), qkv[d:].t())  # R 2D
    k, v = both.view(b, t, 2, heads, h).permute(2, 0, 3, 1, 4).reshape(2, b * heads, t, h)
    context, saved = _mix(q, k, v, mask, drawn, b)
    return context, (residual, *saved)


def _attend_picked_back(
    dcontext: Tensor,
    dresidual: Tensor,
    x: Tensor,
    picked: Tensor,
    drawn: Tensor | None,
    heads: int,
    qkv: Tensor,
    saved: Tensors,
    sums: Tensors,
    beta: int,
) -> Tensor:
    """Return the gradient of x, that of the residual added; add those of weight and bias to `sums`."""
    residual, mixed = saved[0], saved[1:]
    (b, t, d), m = x.shape, picked.shape[1]
    h = d // heads
    dq, dboth = torch.empty(b * heads, m, h, dtype=x.dtype), torch.empty(2, b * heads, t, h, dtype=x.dtype)
    _mix_back(dcontext, drawn, mixed, b, dq, *dboth)
    rows = dq.view(b, heads, m, h).transpose(1, 2).reshape(b * m, d)
    sums[0][:d].addmm_(rows.t(), residual, beta=beta)
    sums[1][:d].add_(rows.sum(0))
    dresidual.addmm_(rows, qkv[:d])
    rows = dboth.view(2, b, heads, t, h).permute(1, 3, 0, 2, 4).reshape(b * t, 2 * d)
    sums[0][d:].addmm_(rows.t(), x.view(b * t, d), beta=beta)
    sums[1][d:].add_(rows.sum(0))
    return (rows @ qkv[d:]).index_add_(0, picked.view(-1), dresidual).view(b, t, d)


def _attend_first(
    x: Tensor, mask: Tensor | None, drawn: Tensor | None, heads: int, qkv: Tensor, bias: Tensor
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Return the joined heads of the first position [B, D], without making keys and values.

    See `_attend_first` in model.py. The bias of the keys adds the same number to all scores of a query, which the
    softmax takes away again: it is left out, and its gradient is 0.
    """
    b, _, d = x.shape
    h = d // heads
    query, key, value = qkv.view(3, d, d)
    q = torch.addmm(bias[:d], x[:, 0], query.t(), beta=h**-0.5, alpha=h**-0.5)  # B D, scaled
    q = q.view(b, heads, h).transpose(0, 1)  # N B H
    r = torch.bmm(q, key.view(heads, h, d)).transpose(0, 1)  # B N D
    scores = r @ x.transpose(1, 2)  # B N T
    if mask is not None:
        scores += mask[:, :, 0]
    shares = scores.softmax(-1)
    dropped = shares if drawn is None else shares * drawn
    mixed = (dropped @ x).transpose(0, 1)  # N B D
    summed = dropped.sum(-1).t()  # N B
    context = summed[:, :, None] * bias[2 * d :].view(heads, 1, h)
    context = torch.baddbmm(context, mixed, value.view(heads, h, d).transpose(1, 2))  # N B H
    return context.transpose(0, 1).reshape(b, d), (q, r, shares, dropped, mixed, summed)


def _attend_first_back(
    dcontext: Tensor,
    x: Tensor,
    drawn: Tensor | None,
    heads: int,
    qkv: Tensor,
    bias: Tensor,
    saved: Tensors,
    sums: Tensors,
    beta: int,
) -> Tensor:
    """Return the gradient of x without the residual's; add those of weight and bias to `sums`."""
    q, r, shares, dropped, mixed, summed = saved
    b, _, d = x.shape
    h = d // heads
    query, key, value = qkv.view(3, d, d)
    dqkv, dbias = sums[:2]
    dout = dcontext.view(b, heads, h).transpose(0, 1)  # N B H
    dqkv[2 * d :].view(heads, h, d).baddbmm_(dout.transpose(1, 2), mixed, beta=beta)
    dbias[2 * d :].view(heads, 1, h).baddbmm_(summed[:, None], dout)
    dmixed = torch.bmm(dout, value.view(heads, h, d)).transpose(0, 1)  # B N D
    dsummed = torch.bmm(dout, bias[2 * d :].view(heads, h, 1)).transpose(0, 1)  # B N 1
    dshares = torch.baddbmm(dsummed, dmixed, x.transpose(1, 2))  # B N T
    if drawn is not None:
        dshares.mul_(drawn)
    dscores = torch._softmax_backward_data(dshares, shares, -1, x.dtype)
    dx = torch.bmm(dropped.transpose(1, 2), dmixed).baddbmm_(dscores.transpose(1, 2), r)
    dr = torch.bmm(dscores, x).transpose(0, 1)  # N B D
    dqkv[d : 2 * d].view(heads, h, d).baddbmm_(q.transpose(1, 2), dr, beta=beta)
    dq = torch.bmm(dr, key.view(heads, h, d).transpose(1, 2)).transpose(0, 1).reshape(b, d).mul_(h**-0.5)
    dqkv[:d].addmm_(dq.t(), x[:, 0], beta=beta)
    dbias[:d].add_(dq.sum(0))
    dx[:, 0].addmm_(dq, query)
    return dx


def _transform(
    x: Tensor, context: Tensor, drawn: Drawn, s: Settings, weights: list[Tensor]
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Return what follows attention: projection, norm, feed-forward, norm; [R, D] to [R, D]."""
    project, project_bias, norm, norm_bias, up, up_bias, down, down_bias, last, last_bias = weights
    width = (x.shape[1],)
    attended = _residual(x, torch.addmm(project_bias, context, project.t()), drawn.attended)
    n, mean, deviation = torch.native_layer_norm(attended, width, norm, norm_bias, s.epsilon)
    u = torch.addmm(up_bias, n, up.t())  # R F
    g = F.gelu(u, approximate=s.tanh)
    fed = _residual(n, torch.addmm(down_bias, g, down.t()), drawn.down)
    y, last_mean, last_deviation = torch.native_layer_norm(fed, width, last, last_bias, s.epsilon)
    return y, (context, attended, mean, deviation, n, u, g, fed, last_mean, last_deviation)


def _transform_back(
    dy: Tensor, drawn: Drawn, s: Settings, weights: list[Tensor], saved: Tensors, sums: Tensors, beta: int
) -> tuple[Tensor, Tensor]:
    """Return the gradients of x and of the context; add those of the weights to `sums`."""
    project, _, norm, norm_bias, up, _, down, _, last, last_bias = weights
    context, attended, mean, deviation, n, u, g, fed, last_mean, last_deviation = saved
    width, every = (dy.shape[1],), [True, True, True]
    dfed, *dlast = torch.ops.aten.native_layer_norm_backward(
        dy, fed, width, last_mean, last_deviation, last, last_bias, every
    )
    df = dfed if drawn.down is None else dfed * drawn.down
    sums[6].addmm_(df.t(), g, beta=beta)
    sums[7].add_(df.sum(0))
    dg = torch.mm(df, down, out=g)  # what is over is written upon: less memory goes through the caches
    du = torch.ops.aten.gelu_backward.grad_input(dg, u, approximate=s.tanh, grad_input=dg)
    sums[4].addmm_(du.t(), n, beta=beta)
    sums[5].add_(du.sum(0))
    dattended, *dnorm = torch.ops.aten.native_layer_norm_backward(
        dfed.addmm_(du, up), attended, width, mean, deviation, norm, norm_bias, every
    )
    for total, more in zip((*sums[2:4], *sums[8:10]), (*dnorm, *dlast), strict=True):
        total.add_(more)
    do = dattended if drawn.attended is None else dattended * drawn.attended
    sums[0].addmm_(do.t(), context, beta=beta)
    sums[1].add_(do.sum(0))
    return dattended, do @ project


def _residual(x: Tensor, change: Tensor, drawn: Tensor | None) -> Tensor:
    return change.add_(x) if drawn is None else torch.addcmul(x, change, drawn, out=change)
