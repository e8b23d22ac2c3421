# SPDX-License-Identifier: MIT
"""Long taps: one forward transform for all phases, and inverse transforms that interleave what they write.

Every phase r is a plain convolution of x with its own taps h_r, so with X the transform of a block of x

    y[q s + r] = inverse(X H_r)[q]

The s products are kept side by side, (bins, s), and inverted along the bins' axis: the result (q, s) is the block of y
in order, interleaved by the transform's own stride; the zero-stuffed signal never exists. Blocks overlap by `span`
inputs, as many rows as the circular convolution spoils (overlap-save). Several input channels are added up bin by bin,
as a product of matrices when there are many.

It wins from about a hundred taps a phase for one channel, from more for a dense layer. Its error is relative to the
loudest part of a block, not of a sample, and a NaN spreads over its block.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import scipy.fft

from cupy_convt.core.plan_cpu import CpuPlan
from cupy_convt.core.problem import Problem
from cupy_convt.core.rows_cpu import RealShape, RowGrid, row_grid
from cupy_convt.engines.cpu_arrays import Pieces
from cupy_convt.engines.cpu_direct import DirectTile
from cupy_convt.engines.cpu_direct import tiles as direct_tiles
from cupy_convt.engines.cpu_threads import Array, Scratch, for_each

#: Input channels from which adding up spectra is left to BLAS.
MATRIX_CHANNELS = 4
#: Points of the filters that are transformed together, and bins from which packing uses all cores.
PACKED_POINTS, PARALLEL_BINS = 1 << 17, 1 << 16


def pack(problem: Problem, plan: CpuPlan, weight: Array) -> Array:
    """Spectra of the phases: (g, ci, co, bins, phases), or (g, bins, ci, co, phases) for many input channels."""
    real, grid, length = RealShape.of(problem), row_grid(problem), plan.fft_length
    grouped = weight.reshape(problem.groups, real.c_in, real.c_out, problem.kernel_size)
    residues = active_residues(problem)
    bins, phases = length // 2 + 1, len(residues)
    many = real.c_in >= MATRIX_CHANNELS
    channels = real.c_in, real.c_out
    shape = (problem.groups, bins, *channels, phases) if many else (problem.groups, *channels, bins, phases)
    packed = np.empty(shape, _complex(weight))
    spectra = packed.transpose(0, 2, 3, 1, 4) if many else packed

    def work(groups: slice, scratch: Scratch) -> None:
        taps = scratch.get("taps", (groups.stop - groups.start, real.c_out, length, phases), weight.dtype)
        taps[...] = 0
        for ci in range(real.c_in):
            for index, (_, first_tap, count, lead) in enumerate(residues):
                delay = grid.lookahead - lead
                stop = delay + (count - 1) * grid.input_step + 1
                taps[:, :, delay : stop : grid.input_step, index] = grouped[groups, ci, :, first_tap :: grid.tap_step]
            spectra[groups, ci] = scipy.fft.rfft(taps, axis=2)

    # several transforms at a time share their twiddles and fill the vector registers
    step = max(1, PACKED_POINTS // (real.c_out * length * phases))
    slices = [slice(g, min(g + step, problem.groups)) for g in range(0, problem.groups, step)]
    for_each(work, slices, parallel=len(slices) > 1 and packed.size > PARALLEL_BINS, products=False)
    return packed


def active_residues(problem: Problem) -> list[tuple[int, int, int, int]]:
    """(residue, first_tap, taps, lead) of every phase with taps, residues ascending."""
    found = []
    for phase in problem.phases.active:
        residue = (phase.residue - problem.p_left) % problem.stride
        lead = (residue + problem.p_left - phase.residue) // problem.stride + phase.offset
        found.append((residue, phase.first_tap, phase.taps, lead))
    return sorted(found)


def _complex(array: Array) -> np.dtype[Any]:
    return np.result_type(array.dtype, np.complex64)


def tiles(pieces: Pieces, plan: CpuPlan, grid: RowGrid) -> Iterator[DirectTile]:
    """Tiles whose rows are whole blocks."""
    return direct_tiles(pieces, plan, grid)


def run(pieces: Pieces, plan: CpuPlan, spectra: Array, *, parallel: bool) -> None:
    """Compute every tile with the spectra that `pack` made."""
    grid = row_grid(pieces.problem)

    def work(tile: DirectTile, scratch: Scratch) -> None:
        _tile(pieces, plan, spectra, grid, tile, scratch)

    for_each(work, tiles(pieces, plan, grid), parallel=parallel, products=pieces.real.c_in >= MATRIX_CHANNELS)


def _tile(pieces: Pieces, plan: CpuPlan, spectra: Array, grid: RowGrid, tile: DirectTile, scratch: Scratch) -> None:
    problem, real = pieces.problem, pieces.real
    start, stop = tile.rows.start * problem.stride, min(tile.rows.stop * problem.stride, problem.l_out)
    scale = real.c_out // problem.c_out_group
    channels = slice(tile.channels.start * scale, tile.channels.stop * scale)
    transformed = _forward(pieces, plan, grid, tile, scratch)
    if real.c_in >= MATRIX_CHANNELS:
        rows = _many_channels(transformed, spectra[tile.groups, :, :, channels], plan.fft_length)
    else:
        rows = _few_channels(transformed, spectra[tile.groups, :, channels], plan.fft_length)
    piece = pieces.result(scratch, tile.items, tile.groups, tile.channels, start, stop)
    _store(piece, rows[:, :, :, :, grid.span :], [residue for residue, *_ in active_residues(problem)], problem.stride)
    pieces.finish(piece, tile.items, tile.groups, tile.channels, start, stop)


def _forward(pieces: Pieces, plan: CpuPlan, grid: RowGrid, tile: DirectTile, scratch: Scratch) -> Array:
    """Spectra of overlapping blocks of x: (n, g, ci, blocks, bins)."""
    real, length = pieces.real, plan.fft_length
    valid = length - grid.span
    blocks = -(-(tile.rows.stop - tile.rows.start) // valid)
    per_group = pieces.problem.c_in_group
    channels = slice(tile.groups.start * per_group, tile.groups.stop * per_group)
    items, groups = real.planes * (tile.items.stop - tile.items.start), tile.groups.stop - tile.groups.start
    slab = scratch.get("slab", (items, groups * real.c_in, blocks * valid + grid.span), pieces.dtype)
    pieces.fill_inputs(slab, tile.items, channels, tile.rows.start - grid.lookback)
    n, c, i = slab.strides
    view = np.lib.stride_tricks.as_strided(
        slab, (items, groups, real.c_in, blocks, length), (n, c * real.c_in, c, i * valid, i)
    )
    transformed: Array = scipy.fft.rfft(view, axis=-1)
    return transformed


def _few_channels(transformed: Array, spectra: Array, length: int) -> Array:
    """Rows (n, g, co, blocks, q, phases) from (n, g, ci, blocks, bins) and (g, ci, co, bins, phases)."""
    total = transformed[:, :, 0, None, :, :, None] * spectra[:, 0, :, None]
    for ci in range(1, spectra.shape[1]):
        total += transformed[:, :, ci, None, :, :, None] * spectra[:, ci, :, None]
    rows: Array = scipy.fft.irfft(total, length, axis=4, overwrite_x=True)
    return rows


def _many_channels(transformed: Array, spectra: Array, length: int) -> Array:
    """The same from spectra (g, bins, ci, co, phases): a product of matrices in every bin."""
    items, groups, c_in, blocks, bins = transformed.shape
    left = np.ascontiguousarray(transformed.transpose(1, 4, 0, 3, 2)).reshape(groups, bins, items * blocks, c_in)
    c_out, phases = spectra.shape[3:]
    total = np.matmul(left, np.ascontiguousarray(spectra).reshape(groups, bins, c_in, c_out * phases))
    rows: Array = scipy.fft.irfft(total, length, axis=1, overwrite_x=True)
    return rows.reshape(groups, length, items, blocks, c_out, phases).transpose(2, 0, 4, 3, 1, 5)


def _store(piece: Array, rows: Array, residues: list[int], stride: int) -> None:
    """Put rows (n, g, co, blocks, q, phases) into a tile (n, g, co, t)."""
    blocks, valid = rows.shape[3:5]
    width = valid * stride
    if len(residues) < stride:
        piece[...] = 0
    n, g, c, t = piece.strides
    for block in range(blocks):
        begin = block * width
        part = piece[..., begin : begin + width]
        if len(residues) == stride:
            whole = part.shape[-1] // stride
            shape = (*piece.shape[:3], whole, stride)
            home = np.lib.stride_tricks.as_strided(part, shape, (n, g, c, t * stride, t))
            np.copyto(home, rows[:, :, :, block, :whole])
            left = part.shape[-1] - whole * stride
            if left:
                part[..., whole * stride :] = rows[:, :, :, block, whole, :left]
            continue
        for index, residue in enumerate(residues):
            home = part[..., residue::stride]
            np.copyto(home, rows[:, :, :, block, : home.shape[-1], index])
