# SPDX-License-Identifier: MIT
"""Spectra of the weight as the FFT method reads them: phase by phase, in windows where the form has them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from cupy_convt.core.plan_cpu import CpuPlan
from cupy_convt.core.problem import Problem, ceil_div, real_dtype
from cupy_convt.core.rows_cpu import RealShape, row_grid
from cupy_convt.core.tiles_fft_cpu import MATRIX_CHANNELS
from cupy_convt.core.transforms_cpu import FftForm
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
    real = RealShape.of(problem)
    grouped = weight.reshape(problem.groups, real.c_in, real.c_out, problem.kernel_size)
    phases, windows, dtype = len(problem.phases.active), form.tap_windows, complex_of(weight.dtype)
    many = real.c_in >= MATRIX_CHANNELS
    if many:
        packed = np.empty((problem.groups, form.bins, real.c_in, windows, real.c_out, phases), dtype)
        spectra = packed.transpose(0, 2, 4, 3, 5, 1)
    else:
        spectra = packed = np.empty((problem.groups, real.c_in, real.c_out, windows, phases, form.bins), dtype)

    def work(part: tuple[slice, slice, slice], scratch: Scratch) -> None:
        home = spectra[part]
        if many:
            made = scratch.get("spectra", home.shape, dtype)
            _transform(problem, form, grouped[part], slice(0, windows), made, scratch)
            home[...] = made
        else:
            _transform(problem, form, grouped[part], slice(0, windows), home, scratch)

    at_once = form.filters_at_once(phases, real.item)
    parts = list(_filter_parts(problem.groups, real.c_in, real.c_out, at_once))
    for_each(work, parts, parallel=len(parts) > 1 and packed.size > PARALLEL_BINS, products=False)
    return packed


def packs_by_tile(problem: Problem, plan: CpuPlan) -> bool:
    """Whether every tile can make the spectra it needs of the weight itself: no two of them need the same."""
    form, real = plan.fft, RealShape.of(problem)
    assert form is not None
    once = form.kind != "blocks" and plan.batch_tile >= problem.batch
    return once and real.c_in < MATRIX_CHANNELS and problem.weight_dtype == real_dtype(problem.accumulator)


def pack_tile(problem: Problem, form: FftForm, filters: Array, windows: slice, scratch: Scratch) -> Array:
    """Spectra (g, ci, co, windows, phases, bins) of some windows of some filters (g, ci, co, taps)."""
    phases = len(problem.phases.active)
    groups, c_in, c_out, _ = filters.shape
    shape = groups, c_in, c_out, windows.stop - windows.start, phases, form.bins
    spectra = scratch.get("packed", shape, complex_of(filters.dtype))
    for part in _filter_parts(groups, c_in, c_out, form.filters_at_once(phases, filters.itemsize)):
        _transform(problem, form, filters[part], windows, spectra[part], scratch)
    return spectra


def _transform(problem: Problem, form: FftForm, filters: Array, windows: slice, home: Array, scratch: Scratch) -> None:
    """Write spectra (g, ci, co, windows, phases, bins) of filters (g, ci, co, taps)."""
    grid, residues, count = row_grid(problem), active_residues(problem), windows.stop - windows.start
    samples = form.length + form.hop * (count - 1) if form.room else form.length
    taps = scratch.get("slab", (*filters.shape[:3], len(residues), samples), filters.dtype)
    taps[...] = 0
    # windows of taps begin `room - 1` before the first and one every `hop`
    before = max(form.room - 1, 0) - form.hop * windows.start
    step = grid.input_step
    for index, (_, first_tap, all_taps, lead) in enumerate(residues):
        delay = before + grid.lookahead - lead
        low, high = max(ceil_div(-delay, step), 0), min(ceil_div(samples - delay, step), all_taps)
        if low < high:
            home_taps = taps[..., index, delay + low * step : delay + (high - 1) * step + 1 : step]
            first, stop = first_tap + low * grid.tap_step, first_tap + (high - 1) * grid.tap_step + 1
            np.copyto(home_taps, filters[..., first : stop : grid.tap_step])
    *outer, phase, item = taps.strides
    shape = *taps.shape[:3], count, len(residues), form.length
    forward(np.ndarray(shape, taps.dtype, taps.data, 0, (*outer, form.hop * item, phase, item)), form, -1, home)


def _filter_parts(groups: int, c_in: int, c_out: int, at_once: int) -> Iterator[tuple[slice, slice, slice]]:
    """Ranges of groups, input and output channels with about `at_once` filters each."""
    co_step = min(at_once, c_out)
    ci_step = min(max(at_once // co_step, 1), c_in) if co_step == c_out else 1
    g_step = max(at_once // (co_step * ci_step), 1) if ci_step == c_in else 1
    for g in range(0, groups, g_step):
        for ci in range(0, c_in, ci_step):
            for co in range(0, c_out, co_step):
                yield slice(g, min(g + g_step, groups)), slice(ci, ci + ci_step), slice(co, co + co_step)
