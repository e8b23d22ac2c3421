# SPDX-License-Identifier: MIT
"""Sums of taps for the forms of core/phases_cpu.py: what cpu_phases.py wants of the weight."""

from __future__ import annotations

import numpy as np

from cupy_convt.core.phases_cpu import Form
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
    form, real, stride = plan.form, RealShape.of(problem), problem.stride
    summed, beside = form.summed(problem.phases.max_taps), form.beside(problem.phases.max_taps)
    taps = weight.reshape(problem.groups, real.c_in, real.c_out, problem.kernel_size)
    out = np.empty((form.points, problem.groups, summed, real.c_in, real.c_out, beside * stride), weight.dtype)
    step = max(min(_AT_ONCE // (real.c_out * beside * stride), ceil_div(real.c_in, 2)), 1)
    parts = ((g, slice(ci, ci + step)) for g in range(problem.groups) for ci in range(0, real.c_in, step))

    def work(part: tuple[int, slice], scratch: Scratch) -> None:
        for section in range(summed * beside):
            depth, row = (section, 0) if beside == 1 else (0, section)
            home = out[:, part[0], depth, part[1], :, row * stride : (row + 1) * stride]
            _pack_section(form, taps[part], section, home, scratch)

    for_each(work, parts, parallel=out.size > _AT_ONCE // 4, products=False)
    return out


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
