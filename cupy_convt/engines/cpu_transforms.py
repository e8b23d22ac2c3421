# SPDX-License-Identifier: MIT
"""Real transforms by SciPy, in one step or, where a form asks for it, in two.

With n = B n1 + n2 and k = k1 + A k2 an M-point transform, M = A B, is

    X[k1 + A k2] = sum_n2 exp(-2 pi i n2 k2 / B) exp(-2 pi i k1 n2 / M) sum_n1 exp(-2 pi i k1 n1 / A) x[B n1 + n2]

The inner sum is a real transform of the columns, so that only k1 <= A/2 is needed, and every transform has its
neighbours to share the vector registers with (J. W. Cooley, J. W. Tukey, Math. Comp. 19 (1965) 297).

scipy.fft returns every real transform in fresh memory. The functions underneath, which it does not document, take the
array to write to; where they are not found, or not as they were, the result is copied there.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.fft

from cupy_convt.core.transforms_cpu import FftForm
from cupy_convt.engines.cpu_threads import Array

#: Tables of twiddle factors that are kept.
TABLES = 8
#: (samples or spectra, axis, out, workers) -> None
Real = Callable[[Array, int, Array, int], object]


def _public() -> tuple[Real, Real]:
    """Real transforms, forward and inverse, by SciPy's documented functions."""

    def forward(samples: Array, axis: int, out: Array, workers: int) -> None:
        out[...] = scipy.fft.rfft(samples, axis=axis, workers=workers)

    def inverse(spectra: Array, axis: int, out: Array, workers: int) -> None:
        out[...] = scipy.fft.irfft(spectra, out.shape[axis], axis=axis, workers=workers)

    return forward, inverse


def _in_place() -> tuple[Real, Real]:
    """The same by the functions underneath, straight into `out`."""
    from scipy.fft._pocketfft.pypocketfft import c2r, r2c

    def forward(samples: Array, axis: int, out: Array, workers: int) -> object:
        return r2c(samples, (axis,), True, 0, out, workers)

    def inverse(spectra: Array, axis: int, out: Array, workers: int) -> object:
        return c2r(spectra, (axis,), out.shape[axis], False, 2, out, workers)

    return forward, inverse


@lru_cache(maxsize=1)
def _real_transforms() -> tuple[Real, Real]:
    """The functions to use: the faster ones if they do what they are expected to."""
    samples = np.array([[1, 2, 3, 5], [0, 1, 0, 0]], np.float32)
    want = scipy.fft.rfft(samples)
    spectra, back = np.empty_like(want), np.empty_like(samples)
    try:
        forward, inverse = _in_place()
        forward(samples, 1, spectra, 1)
        inverse(spectra, 1, back, 1)
    except Exception:  # whatever another SciPy may raise
        return _public()
    return (forward, inverse) if np.allclose(spectra, want) and np.allclose(back, samples) else _public()


@lru_cache(maxsize=TABLES)
def _twiddles(length: int, rows: int, dtype: np.dtype[Any]) -> tuple[Array, Array]:
    """exp(-2 pi i k1 n2 / length) for k1 <= rows/2, n2 < length/rows, and its conjugate; rounded from float64."""
    exponents = np.outer(np.arange(rows // 2 + 1), np.arange(length // rows)) * (-2j * np.pi / length)
    table: Array = np.exp(exponents, out=exponents).astype(dtype)
    return table, table.conj()


def complex_of(dtype: npt.DTypeLike) -> np.dtype[Any]:
    """The complex dtype of a real one."""
    return np.result_type(dtype, np.complex64)


def forward(samples: Array, form: FftForm, axis: int, out: Array, workers: int = 1) -> Array:
    """Spectra of real signals that lie along a negative axis, of any stride, in `out`."""
    transform, _ = _real_transforms()
    at = samples.ndim + axis
    if not form.split:
        transform(samples, at, out, workers)
        return out
    rows, columns = form.split, form.length // form.split
    step = samples.strides[axis]
    view = np.lib.stride_tricks.as_strided(
        samples,
        (*samples.shape[:at], rows, columns, *samples.shape[at + 1 :]),
        (*samples.strides[:at], step * columns, step, *samples.strides[at + 1 :]),
    )
    spectra = _split_axis(out, at, rows // 2 + 1, columns)
    transform(view, at, spectra, workers)
    table = _twiddles(form.length, rows, spectra.dtype)[0]
    spectra *= table.reshape(*table.shape, *(1,) * (-axis - 1))
    _keep(spectra, scipy.fft.fft(spectra, axis=axis, overwrite_x=True, workers=workers))
    return out


def inverse(spectra: Array, form: FftForm, axis: int, out: Array, workers: int = 1) -> Array:
    """Real signals along a negative axis of spectra of any stride, which are overwritten, in `out`."""
    _, transform = _real_transforms()
    at = spectra.ndim + axis
    if not form.split:
        transform(spectra, at, out, workers)
        return out
    rows, columns = form.split, form.length // form.split
    view = _split_axis(spectra, at, rows // 2 + 1, columns)
    view = scipy.fft.ifft(view, axis=axis, overwrite_x=True, workers=workers)
    table = _twiddles(form.length, rows, spectra.dtype)[1]
    view *= table.reshape(*table.shape, *(1,) * (-axis - 1))
    transform(view, at, _split_axis(out, at, rows, columns), workers)
    return out


def _split_axis(array: Array, at: int, rows: int, columns: int) -> Array:
    """The array with one axis seen as rows and columns, never a copy."""
    return array.reshape(*array.shape[:at], rows, columns, *array.shape[at + 1 :])


def _keep(home: Array, result: Array) -> None:
    """The result of a transform in place, which SciPy allows itself to put elsewhere."""
    if not np.may_share_memory(home, result):
        home[...] = result
