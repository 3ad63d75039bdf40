"""Compiling loops over numbers with numba, and what such loops call: matrix products, and the exponential.

Compiling takes some seconds. numba keeps the machine code beside the source, or in its folder for the user where that
cannot be written; where neither can, each process compiles anew.
"""

import hashlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import llvmlite.binding
import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import get_cython_function_address

from bert_miniatures.transfer import say

__all__ = ["compiled", "exp", "helper", "product"]

_Function = TypeVar("_Function", bound=Callable[..., Any])
_F = np.float32
_njit: Any = numba.njit
_cgutils: Any = cgutils

# numba compiles again when the file of a function has changed, but not when the helpers that it calls have: those here
# are told by the name under which it keeps the function.
_STAMP = "_" + hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:8]

# Sums may be taken in any order, so that they can be taken eight at a time; nothing is assumed of nan and infinity.
_OPTIONS = {"error_model": "numpy", "fastmath": {"reassoc", "contract", "nsz"}, "nogil": True}


def compiled(*arguments: Any) -> Callable[[_Function], _Function]:
    """Make a decorator that compiles a function for arguments of these types, at once."""

    def of(function: _Function) -> _Function:
        function.__qualname__ = function.__qualname__.removesuffix(_STAMP) + _STAMP
        try:
            made: _Function = _njit(arguments, cache=True, **_OPTIONS)(function)
        except Exception:  # no folder can be written, the disk is full, or what was kept is damaged
            made = _njit(arguments, **_OPTIONS)(function)
        if not made.stats.cache_hits:  # type: ignore[attr-defined]
            _tell()
        return made

    return of


@cache
def _tell() -> None:
    say("training is compiled for this machine, which is done once and takes about 8 seconds")


def helper(function: _Function) -> _Function:
    """Compile a function for the compiled functions that call it."""
    made: _Function = _njit(**_OPTIONS)(function)
    return made


def _intrinsic(function: Callable[..., Any]) -> Any:
    return numba.extending.intrinsic(function)


llvmlite.binding.add_symbol("bert_miniatures_sgemm", get_cython_function_address("scipy.linalg.cython_blas", "sgemm"))


@_intrinsic
def _sgemm(
    _: Any, transa: Any, transb: Any, m: Any, n: Any, k: Any, alpha: Any, a: Any, lda: Any, b: Any, ldb: Any, beta: Any,
    c: Any, ldc: Any,
) -> Any:  # fmt: skip
    """Call BLAS, which takes the address of everything: its numbers are put on the stack, and arrays are addresses."""
    letter, size, number, address = types.uint8, types.int32, types.float32, types.uintp
    each = (letter, letter, size, size, size, number, address, size, address, size, number, address, size)

    def generate(context: Any, builder: Any, _: Any, values: Any) -> Any:
        pointer = ir.IntType(8).as_pointer()
        places = [
            builder.inttoptr(value, pointer)
            if kind is address
            else builder.bitcast(_cgutils.alloca_once_value(builder, value), pointer)
            for kind, value in zip(each, values, strict=True)
        ]
        kind = ir.FunctionType(ir.VoidType(), [pointer] * len(each))
        builder.call(_cgutils.get_or_insert_function(builder.module, kind, "bert_miniatures_sgemm"), places)
        return context.get_dummy_value()

    return types.void(*each), generate


@helper
def product(a: Any, across: bool, b: Any, down: bool, c: Any, alpha: float, beta: float) -> None:
    """c = alpha a b + beta c, with a and b transposed where `across` and `down` say so.

    BLAS reads columns where these arrays have rows: to it they are transposed, and c' = b' a'.
    """
    depth = a.shape[0] if across else a.shape[1]
    _sgemm(
        np.uint8(84 if down else 78),  # T or N
        np.uint8(84 if across else 78),
        np.int32(c.shape[1]),
        np.int32(c.shape[0]),
        np.int32(depth),
        _F(alpha),
        b.ctypes.data,
        np.int32(b.strides[0] // 4),
        a.ctypes.data,
        np.int32(a.strides[0] // 4),
        _F(beta),
        c.ctypes.data,
        np.int32(c.strides[0] // 4),
    )


@_intrinsic
def _as_float(_: Any, bits: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.bitcast(values[0], ir.FloatType())

    return types.float32(types.int32), generate


@helper
def exp(x: Any) -> Any:
    """The exponential of a number that is not positive, to 2 units in the last place; 0 below -87.

    Source: the polynomial is that of Cephes' expf (Moshier), whose steps have no branch.
    """
    near = x if x > _F(-87.0) else _F(-87.0)
    whole = np.int32(near * _F(1.4426950408889634) - _F(0.5))
    rest = near - _F(whole) * _F(0.693359375) + _F(whole) * _F(2.12194440e-4)
    p = _F(1.9875691500e-4) * rest + _F(1.3981999507e-3)
    p = p * rest + _F(8.3334519073e-3)
    p = p * rest + _F(4.1665795894e-2)
    p = p * rest + _F(1.6666665459e-1)
    p = p * rest + _F(5.0000001201e-1)
    p = p * rest * rest + rest + _F(1)
    value = p * _as_float((whole + np.int32(127)) << np.int32(23))
    return value if x > _F(-87.0) else _F(0)
