# SPDX-License-Identifier: MIT
"""Signal-processing functions on top of the operator."""

from __future__ import annotations

from collections import OrderedDict
from functools import lru_cache
from threading import Lock
from typing import Any

import numpy as np

from cupy_convt import api

#: Filters that stay packed on their device, the most recently used ones.
_KEPT_FILTERS = 16
_filters: OrderedDict[tuple[object, ...], api.Operator] = OrderedDict()
_filters_lock = Lock()


@lru_cache(maxsize=64)
def anti_image_filter(factor: int, half_width: int, rolloff: float, beta: float) -> Any:
    """Low-pass that removes the images of zero-stuffing: a Kaiser-windowed sinc of gain s.

        h[n] = rolloff sinc(rolloff n / s) w[n],  |n| <= half_width s,  each phase n mod s scaled to sum 1

    with w the Kaiser window of shape `beta` (Oppenheim and Schafer, Discrete-Time Signal Processing, 3rd ed., sections
    4.6 and 7.5.3). The cut-off is `rolloff` times the input's Nyquist frequency; the gain s restores the level that
    zero-stuffing takes away. Phases that sum to 1 keep a constant that constant to rounding.

    Shape:
        result: (2 half_width s + 1,), read-only, symmetric.
    """
    reach = half_width * factor
    n = np.arange(-reach, reach + 1)
    taps = rolloff * np.sinc(rolloff * n / factor) * np.kaiser(2 * reach + 1, beta)
    for phase in range(factor):
        taps[phase::factor] /= taps[phase::factor].sum()
    taps = (taps + taps[::-1]) / 2  # the sums of phases r and s - r round differently
    taps.flags.writeable = False
    return taps


def _number(name: str, value: Any, low: float, high: float) -> float:
    """A real number above `low`, up to `high`."""
    if isinstance(value, (bool, str)) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError(f"{name}: expected a number, got {value!r} of type {type(value).__name__}")
    if not low < value <= high:
        raise ValueError(f"{name}: expected a number > {low:g} and <= {high:g}, got {value}")
    return float(value)


def _axis(axis: Any, rank: int) -> int:
    if isinstance(axis, bool) or not isinstance(axis, (int, np.integer)):
        raise TypeError(f"axis: expected an int, got {axis!r} of type {type(axis).__name__}")
    if not -rank <= axis < rank:
        raise ValueError(f"axis: expected {-rank} to {rank - 1} for {rank} axes, got {axis}")
    return int(axis)


def upsampling_operator(
    x: Any,
    factor: Any,
    *,
    half_width: Any = 64,
    rolloff: Any = 0.95,
    beta: Any = 10.0,
    method: str = "auto",
) -> api.Operator:
    """The prepared operator behind :func:`upsample` for arrays of x's kind, device and dtype.

    It takes (N, 1, L) and gives (N, 1, L * factor). The filter is made and packed once for each device, dtype and set
    of parameters, and kept for later calls. Arguments and errors are those of :func:`upsample`.
    """
    operand = api.array_operand("x", x)
    factor, half_width = api.positive("factor", factor), api.positive("half_width", half_width)
    rolloff, beta = _number("rolloff", rolloff, 0.0, 1.0), _number("beta", beta, 0.0, 100.0)
    device = getattr(getattr(x, "device", None), "id", None)
    key = (type(x), device, operand.dtype, factor, half_width, rolloff, beta, method)
    with _filters_lock:
        operator = _filters.get(key)
        if operator is None:
            weight = api.weight_like(x, anti_image_filter(factor, half_width, rolloff, beta)[None, None])
            # The group delay, half_width * factor, comes off the left end. L_full = (L - 1) s + 2 half_width s + 1, so
            # that much off the right end would leave (L - 1) s + 1 samples: output_padding restores the last s - 1.
            reach = half_width * factor
            operator = api.prepare(weight, stride=factor, padding=reach, output_padding=factor - 1, method=method)
            _filters[key] = operator
            if len(_filters) > _KEPT_FILTERS:
                _filters.popitem(last=False)
        _filters.move_to_end(key)
    return operator


def upsample(
    x: Any,
    factor: int,
    *,
    axis: int = -1,
    half_width: int = 64,
    rolloff: float = 0.95,
    beta: float = 10.0,
    method: str = "auto",
) -> Any:
    """Band-limited interpolation by an integer: `factor` times as many samples of the same signal.

        y[t] = sum over i of x[i] h[t - i s],  h[n] = rolloff sinc(rolloff n / s) kaiser[n],  |n| <= half_width s

    That is zero-stuffing, then a windowed-sinc anti-image filter of gain s = `factor`, cropped by its exact group
    delay: sample `i * factor` of the result lies at the time of sample i of x. Beyond both ends the signal is taken as
    zero. (Oppenheim and Schafer, Discrete-Time Signal Processing, section 4.6; scipy.signal.resample_poly(x, factor, 1,
    window=h / s) is the same sum.)

    With the default filter, frequencies up to 0.9 of the input's Nyquist frequency keep their amplitude within
    0.0002 dB, the cut-off (-6 dB) lies at 0.95 of it, and the images, all of which lie above it, are at least 99 dB
    down.

    >>> import numpy as np, cupy_convt as ct
    >>> float(ct.upsample(np.ones(1000), 6)[3000].round(6))
    1.0

    Args:
        x: real or complex array, NumPy or CuPy.
        factor: s, an int >= 1; 1 gives a copy.
        axis: axis of time.
        half_width: reach of the filter to each side, in input samples; the transition from pass band to stop band
            narrows in proportion.
        rolloff: cut-off as a share of the input's Nyquist frequency, in (0, 1].
        beta: shape of the Kaiser window, in (0, 100]: it attenuates the images by about 9 + 9 beta dB, and a larger
            one widens the transition.
        method: as :func:`conv_transpose1d`.

    Shape:
        x: (..., L, ...).
        result: (..., L * factor, ...), of x's dtype. float16 and bfloat16 round the filter as well, which leaves images
        of about the size of their rounding errors.

    Raises:
        TypeError: x is not an array of a floating or complex dtype, or a parameter is not a number.
        ValueError: a parameter or the axis is out of range, x has no axis, or the axis is empty.
    """
    operand = api.array_operand("x", x)
    if not operand.shape:
        raise ValueError("x: expected at least one axis, got an array without axes")
    axis = _axis(axis, len(operand.shape))
    operator = upsampling_operator(x, factor, half_width=half_width, rolloff=rolloff, beta=beta, method=method)
    if operand.shape[axis] == 0:
        raise ValueError(f"x: expected at least one sample along axis {axis}, got shape {operand.shape}")
    if operator.geometry.stride == 1:
        return x.astype(x.dtype.newbyteorder("="))
    rows = x.swapaxes(axis, -1)
    y = operator(rows.reshape(-1, 1, rows.shape[-1]))
    return y.reshape(*rows.shape[:-1], y.shape[-1]).swapaxes(axis, -1)
