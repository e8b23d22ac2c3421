# SPDX-License-Identifier: MIT
"""Spectra of the weight as the FFT method reads them: phase by phase, in windows where the form has them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from cupy_convt.core.plan_cpu import CpuPlan
from cupy_convt.core.problem import Problem
from cupy_convt.core.rows_cpu import RealShape, row_grid
from cupy_convt.core.tiles_fft_cpu import MATRIX_CHANNELS
from cupy_convt.engines.cpu_threads import Array, Scratch, for_each
from cupy_convt.engines.cpu_transforms import complex_of, forward

#: Bins from which packing uses all cores.
PARALLEL_BINS = 1 << 16


def active_residues(problem: Problem) -> list[tuple[int, int, int, int]]:
    """(residue, first_tap, taps, lead) of every phase with taps, residues ascending."""
    found = []
    for phase in problem.phases.active:
        residue = (phase.residue - problem.p_left) % problem.stride
        lead = (residue + problem.p_left - phase.residue) // problem.stride + phase.offset
        found.append((residue, phase.first_tap, phase.taps, lead))
    return sorted(found)


def pack(problem: Problem, plan: CpuPlan, weight: Array) -> Array:
    """Spectra of the phases: (g, ci, co, windows, phases, bins), or (g, bins, ci, windows, co, phases) for many ci."""
    form = plan.fft
    assert form is not None
    real, grid = RealShape.of(problem), row_grid(problem)
    grouped = weight.reshape(problem.groups, real.c_in, real.c_out, problem.kernel_size)
    residues = active_residues(problem)
    phases, windows = len(residues), form.tap_windows
    dtype = complex_of(weight.dtype)
    many = real.c_in >= MATRIX_CHANNELS
    if many:
        packed = np.empty((problem.groups, form.bins, real.c_in, windows, real.c_out, phases), dtype)
        spectra = packed.transpose(0, 2, 4, 3, 5, 1)
    else:
        spectra = packed = np.empty((problem.groups, real.c_in, real.c_out, windows, phases, form.bins), dtype)
    # windows of taps begin `room - 1` before the first and one every `hop`
    before = max(form.room - 1, 0)

    def work(part: tuple[slice, slice, slice], scratch: Scratch) -> None:
        groups, ci, co = part
        filters = grouped[groups, ci, co]
        taps = scratch.get("slab", (*filters.shape[:3], phases, form.filter_samples), weight.dtype)
        taps[...] = 0
        for index, (_, first_tap, count, lead) in enumerate(residues):
            delay = before + grid.lookahead - lead
            stop = delay + (count - 1) * grid.input_step + 1
            taps[..., index, delay : stop : grid.input_step] = filters[..., first_tap :: grid.tap_step]
        *outer, phase, step = taps.strides
        view = np.lib.stride_tricks.as_strided(
            taps, (*taps.shape[:3], windows, phases, form.length), (*outer, form.hop * step, phase, step)
        )
        home = spectra[groups, ci, co]
        if many:
            home[...] = forward(view, form, -1, scratch.get("spectra", home.shape, dtype))
        else:
            forward(view, form, -1, home)

    parts = list(_filter_parts(problem.groups, real, form.filters_at_once(phases, real.item)))
    for_each(work, parts, parallel=len(parts) > 1 and packed.size > PARALLEL_BINS, products=False)
    return packed


def _filter_parts(groups: int, real: RealShape, at_once: int) -> Iterator[tuple[slice, slice, slice]]:
    """Ranges of groups, input and output channels with about `at_once` filters each."""
    co_step = min(at_once, real.c_out)
    ci_step = min(max(at_once // co_step, 1), real.c_in) if co_step == real.c_out else 1
    g_step = max(at_once // (co_step * ci_step), 1) if ci_step == real.c_in else 1
    for g in range(0, groups, g_step):
        for ci in range(0, real.c_in, ci_step):
            for co in range(0, real.c_out, co_step):
                yield slice(g, min(g + g_step, groups)), slice(ci, ci + ci_step), slice(co, co + co_step)
