# SPDX-License-Identifier: MIT
"""Dtype names to NumPy dtypes; bfloat16 is the one that the package ml_dtypes registers."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np


@cache
def named_dtype(name: str) -> np.dtype[Any]:
    """The NumPy dtype of a name.

    Raises:
        ImportError: bfloat16 without ml_dtypes.
    """
    if name == "bfloat16":
        import ml_dtypes

        bfloat16: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
        return bfloat16
    return np.dtype(name)
