# SPDX-License-Identifier: MIT
"""Real transforms by SciPy, in one step or, where a form asks for it, in two.

With n = B n1 + n2 and k = k1 + A k2 an M-point transform, M = A B, is

    X[k1 + A k2] = sum_n2 exp(-2 pi i n2 k2 / B) exp(-2 pi i k1 n2 / M) sum_n1 exp(-2 pi i k1 n1 / A) x[B n1 + n2]

The inner sum is a real transform of the columns, so that only k1 <= A/2 is needed, and every transform has its
neighbours to share the vector registers with (J. W. Cooley, J. W. Tukey, Math. Comp. 19 (1965) 297).
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.fft

from cupy_convt.core.transforms_cpu import FftForm
from cupy_convt.engines.cpu_threads import Array

#: Tables of twiddle factors that are kept.
TABLES = 8


@lru_cache(maxsize=TABLES)
def _twiddles(length: int, rows: int, dtype: np.dtype[Any]) -> tuple[Array, Array]:
    """exp(-2 pi i k1 n2 / length) for k1 <= rows/2, n2 < length/rows, and its conjugate; rounded from float64."""
    exponents = np.outer(np.arange(rows // 2 + 1), np.arange(length // rows)) * (-2j * np.pi / length)
    table: Array = np.exp(exponents, out=exponents).astype(dtype)
    return table, table.conj()


def complex_of(dtype: npt.DTypeLike) -> np.dtype[Any]:
    """The complex dtype of a real one."""
    return np.result_type(dtype, np.complex64)


def forward(samples: Array, form: FftForm, axis: int, workers: int = 1) -> Array:
    """Spectra of real signals that lie along a negative axis, of any stride."""
    if not form.split:
        whole: Array = scipy.fft.rfft(samples, axis=axis, workers=workers)
        return whole
    rows, columns = form.split, form.length // form.split
    step = samples.strides[axis]
    at = samples.ndim + axis
    view = np.lib.stride_tricks.as_strided(
        samples,
        (*samples.shape[:at], rows, columns, *samples.shape[at + 1 :]),
        (*samples.strides[:at], step * columns, step, *samples.strides[at + 1 :]),
    )
    spectra: Array = scipy.fft.rfft(view, axis=axis - 1, workers=workers)
    table = _twiddles(form.length, rows, spectra.dtype)[0]
    spectra *= table.reshape(*table.shape, *(1,) * (-axis - 1))
    spectra = scipy.fft.fft(spectra, axis=axis, overwrite_x=True, workers=workers)
    return spectra.reshape(*samples.shape[:at], form.bins, *samples.shape[at + 1 :])


def inverse(spectra: Array, form: FftForm, axis: int, workers: int = 1) -> Array:
    """Real signals along the axis of contiguous spectra, which are overwritten."""
    if not form.split:
        whole: Array = scipy.fft.irfft(spectra, form.length, axis=axis, overwrite_x=True, workers=workers)
        return whole
    rows, columns = form.split, form.length // form.split
    at = spectra.ndim + axis
    view = spectra.reshape(*spectra.shape[:at], rows // 2 + 1, columns, *spectra.shape[at + 1 :])
    view = scipy.fft.ifft(view, axis=axis, overwrite_x=True, workers=workers)
    table = _twiddles(form.length, rows, spectra.dtype)[1]
    view *= table.reshape(*table.shape, *(1,) * (-axis - 1))
    samples: Array = scipy.fft.irfft(view, rows, axis=axis - 1, overwrite_x=True, workers=workers)
    return samples.reshape(*spectra.shape[:at], form.length, *spectra.shape[at + 1 :])
