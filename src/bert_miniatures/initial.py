"""Weights that nothing has trained.

Source: google-research/bert `modeling.py`, create_initializer: truncated normal, biases 0, LayerNorm's weights 1.
"""

import numpy as np

__all__ = ["initial"]


def initial(name: str, shape: tuple[int, ...], deviation: float, drawn: np.random.Generator) -> np.ndarray:
    """Draw a weight.

    Args:
        name: ours, as in names.py; tells biases and norms.
        deviation: of the normal distribution, which is cut at two deviations.
    """
    if name.endswith("bias"):
        return np.zeros(shape)
    if "norm" in name:
        return np.ones(shape)
    values = drawn.standard_normal(shape)
    while (far := np.abs(values) > 2).any():
        values[far] = drawn.standard_normal(int(far.sum()))
    return values * deviation
