# SPDX-License-Identifier: MIT
"""Sums of taps for the forms of core/phases_cpu.py: what cpu_phases.py wants of the weight."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cupy_convt.core.phases_cpu import Form, rows_of
from cupy_convt.core.plan_cpu import CpuPlan
from cupy_convt.core.problem import Problem, ceil_div
from cupy_convt.core.rows_cpu import RealShape
from cupy_convt.engines.cpu_arrays import copy_runs
from cupy_convt.engines.cpu_threads import Array, Scratch, for_each

#: Elements of a weight that are packed at a time.
_AT_ONCE = 1 << 18


def pack(problem: Problem, plan: CpuPlan, weight: Array) -> Array:
    """v (points, g, section, ci, co, f) of a real weight (C_in', C_out'/g, K); f too counts sections, if beside."""
    assert plan.form is not None
    real, taps = RealShape.of(problem), _taps(problem, weight)
    points, *shape = _shape(problem, plan.form, real.c_out)
    out = np.empty((points, problem.groups, *shape), weight.dtype)
    step = max(min(_at_once(shape), ceil_div(real.c_in, 2)), 1)
    parts = ((g, slice(ci, ci + step)) for g in range(problem.groups) for ci in range(0, real.c_in, step))

    def work(part: tuple[int, slice], scratch: Scratch) -> None:
        assert plan.form is not None
        _pack_inputs(plan.form, taps[part], out[:, part[0], :, part[1]], problem.stride, scratch)

    for_each(work, parts, parallel=out.size > _AT_ONCE // 4, products=False)
    return out


def packs_by_tile(problem: Problem, plan: CpuPlan) -> bool:
    """Whether each tile has channels of its own, whose weight may as well be packed where and when it is needed."""
    assert plan.form is not None
    first, stop = rows_of(problem)
    once = plan.batch_tile >= problem.batch and plan.row_tile >= stop - first
    return once and problem.groups * ceil_div(problem.c_out_group, plan.channel_tile) > 1


def pack_tile(problem: Problem, form: Form, weight: Array, group: int, channels: slice, scratch: Scratch) -> Array:
    """v (points, section, ci, co, f) of some real channels of a group, in working memory."""
    taps = _taps(problem, weight)[group, :, channels]
    shape = _shape(problem, form, taps.shape[1])
    out = scratch.get("weight", shape, weight.dtype)
    step = max(_at_once(shape[1:]), 1)
    for ci in range(0, taps.shape[0], step):
        _pack_inputs(form, taps[ci : ci + step], out[:, :, ci : ci + step], problem.stride, scratch)
    return out


def _taps(problem: Problem, weight: Array) -> Array:
    """A real weight as (g, ci, co, K)."""
    real = RealShape.of(problem)
    return weight.reshape(problem.groups, real.c_in, real.c_out, problem.kernel_size)


def _shape(problem: Problem, form: Form, c_out: int) -> tuple[int, ...]:
    taps = problem.phases.max_taps
    return form.points, form.summed(taps), RealShape.of(problem).c_in, c_out, form.beside(taps) * problem.stride


def _at_once(shape: Sequence[int]) -> int:
    """Input channels that are packed at a time, of a weight (section, ci, co, f)."""
    return _AT_ONCE // (shape[2] * shape[3])


def _pack_inputs(form: Form, taps: Array, out: Array, stride: int, scratch: Scratch) -> None:
    """Taps (ci, co, K) of some input channels into out (points, section, ci, co, f)."""
    summed, beside = out.shape[1], out.shape[-1] // stride
    for section in range(summed * beside):
        depth, row = (section, 0) if beside == 1 else (0, section)
        _pack_section(form, taps, section, out[:, depth, ..., row * stride : (row + 1) * stride], scratch)


def _pack_section(form: Form, taps: Array, section: int, out: Array, scratch: Scratch) -> None:
    """The sums of one section of taps (ci, co, K) into out (points, ci, co, f)."""

    def tap(place: int, home: Array) -> Array:
        """Tap g of the section, that is m = section's first + last - g."""
        stride = home.shape[-1]
        first = (section * form.section + form.section - 1 - place) * stride
        count = min(max(taps.shape[-1] - first, 0), stride)
        if count:
            copy_runs(taps[..., first : first + count], home[..., :count])
        home[..., count:] = 0
        return home

    if form.points == 1:
        tap(0, out[0])
        return
    low, high = tap(0, out[0]), tap(form.section - 1, out[-1])
    if form.points == 3:
        np.add(low, high, out=out[1])
        return
    even, odd = out[1], out[2]
    half = out.dtype.type(0.5)
    if form.section == 2:
        np.add(low, high, out=even)
        np.subtract(low, high, out=odd)
    else:
        middle = tap(1, scratch.get("taps", low.shape, low.dtype))
        np.add(low, high, out=even)
        np.subtract(even, middle, out=odd)
        np.add(even, middle, out=even)
    np.multiply(even, half, out=even)
    np.multiply(odd, half, out=odd)
