"""Gradients of the references that the tests write down."""

from collections.abc import Callable

import numpy as np


def central_differences(function: Callable[..., float], *arrays: np.ndarray, step: float = 1e-5) -> list[np.ndarray]:
    """Slopes of a function of arrays with respect to every entry of each."""
    slopes = []
    for array in arrays:
        slope = np.zeros_like(array)
        for index in np.ndindex(*array.shape):
            value = array[index]
            array[index] = value + step
            above = function(*arrays)
            array[index] = value - step
            slope[index] = (above - function(*arrays)) / (2 * step)
            array[index] = value
        slopes.append(slope)
    return slopes
