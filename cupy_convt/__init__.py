# SPDX-License-Identifier: MIT
"""Transposed 1-D convolution for NumPy and CuPy arrays.

>>> import numpy as np, cupy_convt as ct
>>> x = np.ones((1, 4, 10), dtype=np.float32)
>>> weight = np.ones((4, 2, 6), dtype=np.float32)
>>> ct.conv_transpose1d(x, weight, stride=3).shape
(1, 2, 33)
"""

from cupy_convt.api import conv_transpose1d, explain, output_length, prepare, reference, workspace_limit
from cupy_convt.core.version import __version__
from cupy_convt.layer import ConvTranspose1d
from cupy_convt.signal import upsample
from cupy_convt.tuning import precompile, tune

__all__ = [
    "ConvTranspose1d",
    "__version__",
    "conv_transpose1d",
    "explain",
    "output_length",
    "precompile",
    "prepare",
    "reference",
    "tune",
    "upsample",
    "workspace_limit",
]
