"""Dropout that is a function of a seed, may be drawn by several threads at once, and is cheap on a CPU.

Dropout is a seventh of a small model's update when torch draws it (one 32-bit number per element, three passes). Here
an element takes 16 bits of a counter-free generator, and the mask is one comparison: the probability is rounded to a
multiple of 1/65,536, and the scale is that of the rounded probability, so the expectation is exact.
"""

import math
import threading

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Dropped", "Noise"]

_LEVELS = 65_536
_CUDA = torch.cuda.is_available()  # asking takes a tenth of a millisecond, each time


# Dropout that is drawn, not applied: bits, limit, scale. Elements whose bits are less than the limit become 0, others
# are scaled. A plain tuple, because compiled code takes it as it is.
Dropped = tuple[npt.NDArray[np.int16], np.int16, np.float32]


class Noise(threading.local):
    """The random numbers of dropout, one stream per thread.

    Source: the generator is SFC64 of numpy (Doty-Humphrey, PractRand); dropout is Srivastava et al. 2014.
    """

    def __init__(self) -> None:
        self._bits = np.random.SFC64(0)

    def seed(self, *numbers: int) -> None:
        """Start this thread's stream from these numbers, whatever was drawn before."""
        self._bits = np.random.SFC64(np.random.SeedSequence(numbers))
        if _CUDA:
            torch.manual_seed(int(self._bits.random_raw()) >> 1)

    def dropout(self, x: Tensor, p: float, training: bool) -> Tensor:
        """Set each element to 0 with probability `p` and scale the others by 1 / (1 - p); nothing outside training."""
        if not training or p == 0.0:
            return x
        if x.device.type != "cpu":
            return F.dropout(x, p)
        return x * self.factors(p, *x.shape)

    def factors(self, p: float, *shape: int) -> Tensor:
        """Draw what dropout multiplies each element with, 0 or 1 / (1 - p)."""
        # numpy compares and multiplies such short integers several times as fast as torch does
        bits, limit, scale = self.dropped(p, *shape)
        return torch.from_numpy(np.multiply(bits >= limit, scale, dtype=np.float32))

    def dropped(self, p: float, *shape: int) -> Dropped:
        """Draw which elements dropout keeps."""
        dropped, count = round(p * _LEVELS), math.prod(shape)
        raw = self._bits.random_raw(-(-count // 4)).view(np.int16)[:count].reshape(shape)
        limit = np.int16(dropped - _LEVELS // 2)  # int16 runs from -32,768
        return raw, limit, np.float32(_LEVELS / (_LEVELS - dropped))
