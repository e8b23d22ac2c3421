# SPDX-License-Identifier: MIT
"""Operands of sub-pixel convolutions, in the orders that the graphs of cpu_openvino.py read, and the way out."""

from __future__ import annotations

import numpy as np

from cupy_convt.core.problem import Problem
from cupy_convt.core.subpixel_cpu import SubpixelForm
from cupy_convt.engines.cpu_arrays import copy_runs
from cupy_convt.engines.cpu_threads import Array, Scratch, for_each

#: The bits of one as a bfloat16.
_ONE = 0x3F80
#: Stride from which a row of samples is a loop.
LONG_STRIDE = 32
#: Elements of a weight, or of a result, that are packed at a time.
_AT_ONCE = 1 << 18


def bits_of(array: Array) -> Array:
    """bfloat16 numbers as uint16: NumPy copies the former one by one."""
    return array.view(np.uint16) if array.itemsize == 2 else array


def has_subnormals(values: Array) -> bool:
    """Whether a contiguous float32 array has any."""
    flat, tiny = values.reshape(-1), np.finfo(np.float32).tiny
    parts = (flat[i : i + _AT_ONCE] for i in range(0, len(flat), _AT_ONCE))
    return any(bool(((np.abs(part) < tiny) & (part != 0)).any()) for part in parts)


def taps_of(problem: Problem, form: SubpixelForm, weight: Array) -> Array:
    """The weight (ci, co, K) as ((co, f), ci, m), taps in the order of ascending time, those beyond K zero."""
    s, taps = problem.stride, form.taps
    out = np.zeros((problem.c_out, s, problem.c_in, taps), weight.dtype)
    step = max(_AT_ONCE // (problem.c_in * s * taps), 1)

    def work(channels: slice, scratch: Scratch) -> None:
        for m in range(taps):
            phases = min(problem.kernel_size - m * s, s)
            part = weight[:, channels, m * s : m * s + phases]
            out[channels, :phases, :, taps - 1 - m] = part.transpose(1, 2, 0)

    parts = (slice(co, co + step) for co in range(0, problem.c_out, step))
    for_each(work, parts, parallel=out.size > _AT_ONCE, products=False)
    return out.reshape(problem.c_out * s, problem.c_in, taps)


def rows_of_taps(problem: Problem, form: SubpixelForm, weight: Array, bias: Array | None) -> list[Array]:
    """The weight (ci, co, K) as ((m, ci), (co, f)) and the bias as a last row; apart if the weight is that already."""
    s, c_in, depth = problem.stride, problem.c_in, problem.c_in * form.taps
    if problem.kernel_size == s and weight.flags.c_contiguous:
        whole = [weight.reshape(c_in, problem.c_out * s)]
        return whole if bias is None else [*whole, np.repeat(bias, s)[None]]
    out = np.empty((depth + (bias is not None), problem.c_out, s), weight.dtype)
    step = max(_AT_ONCE // (problem.c_out * s), 1)

    def work(channels: slice, scratch: Scratch) -> None:
        for m in range(form.taps):
            phases = min(problem.kernel_size - m * s, s)
            home = out[m * c_in : (m + 1) * c_in][channels]
            copy_runs(weight[channels, :, m * s : m * s + phases], home[..., :phases])
            home[..., phases:] = 0

    parts = (slice(ci, ci + step) for ci in range(0, c_in, step))
    for_each(work, parts, parallel=out.size > _AT_ONCE, products=False)
    if bias is not None:
        out[depth] = bias[:, None]
    return [out.reshape(len(out), problem.c_out * s)]


def windows_of(problem: Problem, form: SubpixelForm, x: Array, bias: Array | None) -> Array:
    """x (n, ci, i) as windows ((m, ci), n, u), and ones for the bias."""
    items, c_in, inputs = x.shape
    rows = inputs + form.before + form.after - form.taps + 1
    depth = c_in * form.taps
    if bias is None and form.taps == items == 1 and rows == inputs:
        return x.reshape(c_in, 1, inputs)
    out = np.empty((depth + (bias is not None), items, rows), x.dtype)

    def work(place: tuple[int, int], scratch: Scratch) -> None:
        item, m = place
        first = m + form.before - form.taps + 1  # the row to which tap m adds x[0]
        low, high = (min(max(end, 0), rows) for end in (first, first + inputs))
        home = out[m * c_in : (m + 1) * c_in, item]
        home[:, :low], home[:, high:] = 0, 0
        home[:, low:high] = x[item, :, low - first : high - first]

    places = ((item, m) for item in range(items) for m in range(form.taps))
    for_each(work, places, parallel=out.size > _AT_ONCE, products=False)
    out[depth:] = _ONE
    return out


def interleave(rows: Array, first: int, out: Array) -> None:
    """Write samples t = u s + f of rows (n, co, f, u), from sample `first` on, to out (n, co, t)."""
    items, c_out, s, length = rows.shape
    step = max(_AT_ONCE // (s * length), 1) if rows.size > 2 * _AT_ONCE else c_out

    def work(place: tuple[int, slice], scratch: Scratch) -> None:
        _interleave(rows[place], first, out[place])

    places = ((n, slice(co, co + step)) for n in range(items) for co in range(0, c_out, step))
    for_each(work, places, parallel=rows.size > 2 * _AT_ONCE, products=False)


def _interleave(rows: Array, first: int, out: Array) -> None:
    """The same of rows (co, f, u), in loops along u, or along f where that is long."""
    c_out, s, _ = rows.shape
    length = out.shape[-1]
    if s < LONG_STRIDE:
        for start in range(min(s, length)):
            u, f = divmod(first + start, s)
            samples = out[:, start::s]
            samples[...] = rows[:, f, u : u + samples.shape[-1]]
        return
    u, f = divmod(first, s)
    head = min(s - f, length) if f else 0
    out[:, :head] = rows[:, f : f + head, u]
    u, whole = u + (head > 0), (length - head) // s
    inner = slice(head, head + whole * s)
    out[:, inner].reshape(c_out, whole, s)[...] = rows[:, :, u : u + whole].swapaxes(1, 2)
    out[:, inner.stop :] = rows[:, : length - inner.stop, min(u + whole, rows.shape[-1] - 1)]
