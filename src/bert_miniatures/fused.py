"""One encoder layer as one autograd function, its backward pass written by hand. For training in one thread of a CPU.

Matrix products are torch's, added to the gradients where these are; all between them is compiled (kernels.py).

The numbers are those of `_Layer` in model.py but for rounding (tests/test_fused.py).

Shapes: B batch, T positions, D width, N heads, R = B T rows.
"""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from threadpoolctl import ThreadpoolController
from torch import Tensor

from bert_miniatures.files import training_extra
from bert_miniatures.noise import Dropped, Noise

__all__ = ["Drawn", "Settings", "Sums", "Tensors", "draw", "layer", "one_blas_thread"]

Tensors = tuple[Tensor, ...]
Array = npt.NDArray[np.float32]
_NOTHING: Dropped = (np.empty((0, 0), np.int16), np.int16(0), np.float32(1))
_UNMASKED = np.empty((0, 0, 0), np.float32)


class Settings(NamedTuple):
    """What a layer has besides weights: number of heads, form of GELU ("none" or "tanh"), epsilon of LayerNorm."""

    heads: int
    tanh: str
    epsilon: float


class Drawn(NamedTuple):
    """Dropout of one layer, each as bits with a limit and a scale (see noise.py); no bits where nothing is dropped.

    Attributes:
        shares: of the attention shares, bits [B N T, T]; with first_only [B N, T]; with picked [B N M, T].
        attended: of the attention output, bits [R, D]; with first_only [B, D]; with picked [B M, D].
        down: of the feed-forward output, likewise.
    """

    shares: Dropped
    attended: Dropped
    down: Dropped


def draw(noise: Noise, of_shares: float, of_hidden: float, shares: tuple[int, ...], hidden: tuple[int, int]) -> Drawn:
    """Draw the dropout of one layer from two probabilities and the shapes of attention shares and hidden states."""
    flat, hiddens = _NOTHING, [_NOTHING] * 2
    if of_shares:
        bits, limit, scale = noise.dropped(of_shares, *shares)
        flat = bits.reshape(-1, shares[-1]), limit, scale
    if of_hidden:
        both, limit, scale = noise.dropped(of_hidden, 2, *hidden)
        hiddens = [(bits, limit, scale) for bits in both]
    return Drawn(flat, *hiddens)


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
        weights = tuple(weight.detach() for weight in weights)
        x = x.detach().contiguous()
        barred = _UNMASKED if mask is None else mask.expand(b, 1, -1, t)[:, 0].contiguous().numpy()
        rows = x.view(b * t, d)
        if first_only:
            asking = x[:, 0].contiguous()
            found = _kernels().attend_first(x.numpy(), s.heads, barred, drawn.shares, *_arrays(*weights[:2]))
            context, attention = torch.from_numpy(found[0]), found[1]
        else:
            asking = rows if picked is None else rows.index_select(0, picked.view(-1))
            context, attention = _attend(
                rows, None if picked is None else asking, barred, drawn.shares, b, s.heads, *weights[:2]
            )
        y, kept = _transform(asking, context, drawn, s, weights[2:])
        ctx.asked = (b, t, d), drawn, s, first_only, picked, sums
        ctx.kept = x, asking, weights, attention, kept  # save_for_backward would wrap and check 25 tensors, each time
        return y.view(b, -1, d)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.kept is None:
            raise RuntimeError("a second backward pass through a fused layer: the first wrote upon what it had read")
        x, asking, weights, attention, kept = ctx.kept
        ((b, t, d), drawn, s, first_only, picked, direct), ctx.kept = ctx.asked, None
        made = direct or Sums(tuple(torch.zeros_like(weight) for weight in weights))
        sums, beta = made.tensors, made.taken()
        dy = dy.reshape(-1, d).contiguous()
        dasking, dcontext = _transform_back(dy, drawn, weights[2:], kept, sums[2:], beta)
        if first_only:
            more = *_arrays(*weights[:2]), attention, *_arrays(*sums[:2]), beta
            dx = torch.from_numpy(_kernels().attend_first_back(*_arrays(dcontext, x), s.heads, drawn.shares, *more))
            dx[:, 0] += dasking
        else:
            rows = x.view(b * t, d), None if picked is None else asking
            back = _attend_back(dcontext, *rows, drawn.shares, b, s.heads, attention, sums[1])
            dx = _multiplied_back(back, rows, dasking, weights[0], sums[0], beta)
            if picked is not None:
                dx.index_add_(0, picked.view(-1), dasking)
        gradients = (None,) * len(sums) if direct else sums
        return (dx.view(b, t, d), None, None, None, None, None, None, *gradients)


def _attend(
    x: Tensor, asking: Tensor | None, mask: Array, dropped: Dropped, b: int, heads: int, qkv: Tensor, bias: Tensor
) -> tuple[Tensor, tuple[Any, ...]]:
    """Return the joined heads of the positions that ask, [B Q, D], or of all, and what the backward pass needs."""
    d = x.shape[1]
    projected = [x @ qkv.t()] if asking is None else [asking @ qkv[:d].t(), x @ qkv[d:].t()]
    qkv_split = _split(projected)
    context, *shares = _kernels().attend(*qkv_split, bias.numpy(), b, heads, mask, dropped)
    return torch.from_numpy(context), (*qkv_split, *shares)


def _attend_back(
    dcontext: Tensor,
    x: Tensor,
    asking: Tensor | None,
    dropped: Dropped,
    b: int,
    heads: int,
    saved: tuple[Any, ...],
    dbias: Tensor,
) -> list[Tensor]:
    """Return the gradients of the products in `_attend`, of which there are one or two; add those of the bias."""
    d = x.shape[1]
    back = [x.new_empty(len(x), 3 * d)]
    if asking is not None:
        back = [torch.empty_like(asking), x.new_empty(len(x), 2 * d)]
    _kernels().attend_back(dcontext.numpy(), *saved, b, heads, dropped, *_split(back), dbias.numpy())
    return back


def _split(products: list[Tensor]) -> list[Array]:
    """Return the columns that are queries, keys and values, of one product, or of queries and of the rest."""
    d = sum(product.shape[1] for product in products) // 3
    return [product[:, i : i + d].numpy() for product in products for i in range(0, product.shape[1], d)]


def _multiplied_back(
    back: list[Tensor], rows: tuple[Tensor, Tensor | None], dasking: Tensor, qkv: Tensor, dqkv: Tensor, beta: int
) -> Tensor:
    """Return the gradient of x, and add that of what asks to `dasking`, which is x's where all do; add the weights'."""
    x, asking = rows
    d = x.shape[1]
    if asking is None:
        dqkv.addmm_(back[0].t(), x, beta=beta)
        return dasking.addmm_(back[0], qkv)
    dqkv[:d].addmm_(back[0].t(), asking, beta=beta)
    dqkv[d:].addmm_(back[1].t(), x, beta=beta)
    dasking.addmm_(back[0], qkv[:d])
    return back[1] @ qkv[d:]


def _transform(
    x: Tensor, context: Tensor, drawn: Drawn, s: Settings, weights: Tensors
) -> tuple[Tensor, tuple[Any, ...]]:
    """Return what follows attention: projection, norm, feed-forward, norm; [R, D] to [R, D]."""
    project, project_bias, norm, norm_bias, up, up_bias, down, down_bias, last, last_bias = weights
    attended = context @ project.t()
    n, inverse = _norm(x, attended, drawn.attended, s, project_bias, norm, norm_bias)
    u = n @ up.t()  # R F
    g = torch.empty_like(u)
    (_kernels().gelu if s.tanh == "none" else _kernels().gelu_tanh)(*_arrays(u, up_bias, g))
    fed = g @ down.t()
    y, last_inverse = _norm(n, fed, drawn.down, s, down_bias, last, last_bias)
    return y, (context, attended, inverse, n, u, g, fed, last_inverse)


def _transform_back(
    dy: Tensor, drawn: Drawn, weights: Tensors, saved: tuple[Any, ...], sums: Tensors, beta: int
) -> tuple[Tensor, Tensor]:
    """Return the gradients of x and of the context; add those of the weights to `sums`.

    What was saved is written upon: less memory goes through the caches.
    """
    project, _, norm, _, up, _, down, _, last, _ = weights
    context, attended, inverse, n, slope, g, fed, last_inverse = saved
    dfed, df = _norm_back(dy, fed, last_inverse, drawn.down, last, sums[8], sums[9], sums[7])
    sums[6].addmm_(df.t(), g, beta=beta)
    du = torch.mm(df, down, out=g)
    _kernels().times(*_arrays(du, slope, sums[5]))
    sums[4].addmm_(du.t(), n, beta=beta)
    dfed.addmm_(du, up)
    dx, do = _norm_back(dfed, attended, inverse, drawn.attended, norm, sums[2], sums[3], sums[1])
    sums[0].addmm_(do.t(), context, beta=beta)
    return dx, do @ project


def _norm(
    x: Tensor, change: Tensor, dropped: Dropped, s: Settings, bias: Tensor, weight: Tensor, shift: Tensor
) -> tuple[Tensor, Array]:
    """Return LayerNorm of x + dropout(change + bias), and one over the deviations; see kernels.py."""
    y, inverse = _kernels().norm(*_arrays(x, change, bias), dropped, *_arrays(weight, shift), s.epsilon)
    return torch.from_numpy(y), inverse


def _norm_back(
    dy: Tensor,
    normal: Tensor,
    inverse: Array,
    dropped: Dropped,
    weight: Tensor,
    dweight: Tensor,
    dshift: Tensor,
    dbias: Tensor,
) -> tuple[Tensor, Tensor]:
    """Return the gradients of x and of the change, which is written upon `normal`."""
    of_weights = _arrays(dweight, dshift, dbias)
    dx = _kernels().norm_back(*_arrays(dy, normal), inverse, weight.numpy(), dropped, *of_weights)
    return torch.from_numpy(dx), normal


def _arrays(*tensors: Tensor) -> list[Array]:
    return [tensor.numpy() for tensor in tensors]


@cache
def _kernels() -> ModuleType:
    with training_extra("training"):
        from bert_miniatures import kernels  # here, because it reads or makes machine code, which only training needs

    return kernels


@cache
def _blas() -> ThreadpoolController:
    _kernels()  # which loads one
    return ThreadpoolController().select(user_api="blas")


def one_blas_thread() -> AbstractContextManager[Any]:
    """Load what is compiled; keep the BLAS that it calls from sharing its small products among threads meanwhile."""
    limited: AbstractContextManager[Any] = _blas().limit(limits=1)
    return limited
