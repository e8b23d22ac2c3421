# SPDX-License-Identifier: MIT
"""The definition, tap by tap, in one fixed order of summation.

A sample is the sum over input channels in ascending order of the sum over its taps in ascending order, starting from
zero, the bias added last. Only element-wise real multiplications and additions are used, which round each number on its
own: unlike a product of matrices or a reduction they give the same bits whatever the length of the array, its
alignment, its neighbours and the way it is cut into tiles. Complex data are multiplied as four real products for the
same reason. Samples whose taps reach beyond x skip those taps: what padding was multiplied by is overwritten with zero.

Sums start from their first product or from zero, and taps that are skipped may add a zero. That differs only when every
product is a negative zero; adding a bias that is not a negative zero, or zero when there is none, makes up for it.

Loops run along time, tap by tap. With fewer inputs than taps they run along the taps, input by input, the newest first:
a sample's taps in the same order.

It wins for a few taps of few channels, where a product of matrices has too little to do; each multiplication costs two
passes through the first-level cache, so a handful of channels is enough for BLAS to win.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from cupy_convt.core.plan_cpu import CpuPlan
from cupy_convt.core.problem import Problem, ceil_div
from cupy_convt.core.rows_cpu import RowGrid, Run, row_grid
from cupy_convt.engines.cpu_arrays import Pieces, residues_of
from cupy_convt.engines.cpu_threads import Array, Scratch, for_each


class DirectTile(NamedTuple):
    """Part of the result: items, groups, channels within each of them, rows."""

    items: slice
    groups: slice
    channels: slice
    rows: slice


def tiles(pieces: Pieces, plan: CpuPlan, grid: RowGrid) -> Iterator[DirectTile]:
    """Tiles in the order in which the result lies in memory."""
    problem = pieces.problem
    for n in range(0, problem.batch, plan.batch_tile):
        items = slice(n, min(n + plan.batch_tile, problem.batch))
        for g in range(0, problem.groups, plan.group_tile):
            groups = slice(g, min(g + plan.group_tile, problem.groups))
            for c in range(0, problem.c_out_group, plan.channel_tile):
                channels = slice(c, min(c + plan.channel_tile, problem.c_out_group))
                for q in range(0, grid.rows, plan.row_tile):
                    yield DirectTile(items, groups, channels, slice(q, min(q + plan.row_tile, grid.rows)))


def run(pieces: Pieces, plan: CpuPlan, weight: Array, *, parallel: bool) -> None:
    """Compute every tile. `weight` is the real one, (C_in', C_out'/g, K)."""
    problem, real, grid = pieces.problem, pieces.real, row_grid(pieces.problem)
    taps = weight.reshape(problem.groups, real.c_in, real.c_out, problem.kernel_size)

    def work(tile: DirectTile, scratch: Scratch) -> None:
        _tile(pieces, taps, grid, tile, scratch)

    for_each(work, tiles(pieces, plan, grid), parallel=parallel, products=False)


def _tile(pieces: Pieces, weight: Array, grid: RowGrid, tile: DirectTile, scratch: Scratch) -> None:
    problem, real = pieces.problem, pieces.real
    start, stop = tile.rows.start * problem.stride, min(tile.rows.stop * problem.stride, problem.l_out)
    scale = real.c_out // problem.c_out_group
    piece = pieces.result(scratch, tile.items, tile.groups, tile.channels, start, stop)
    taps = weight[tile.groups, :, tile.channels.start * scale : tile.channels.stop * scale]
    channels = slice(tile.groups.start * problem.c_in_group, tile.groups.stop * problem.c_in_group)
    first, last = tile.rows.start - grid.lookback, tile.rows.stop + grid.lookahead
    by_input = problem.l_in < grid.max_taps
    if by_input:
        first, last = max(first, 0), min(last, problem.l_in)
    inputs = pieces.inputs(scratch, tile.items, channels, first, last)
    inputs = inputs.reshape(inputs.shape[0], taps.shape[0], real.c_in, max(last - first, 0))
    bias = np.zeros((1, 1, 1), pieces.dtype) if pieces.bias is None else pieces.bias_of(tile.groups, tile.channels)
    if by_input:
        _inputs_one_by_one(piece, inputs, taps, bias, first * problem.stride - problem.p_left - start, problem, scratch)
    else:
        for part in grid.runs:
            rows = max(ceil_div(stop - start - part.residue, problem.stride), 0)
            if rows:
                _taps_one_by_one(piece, inputs, taps, bias, grid, part, rows, first, problem, scratch)
    pieces.finish(piece, tile.items, tile.groups, tile.channels, start, stop, biased=True)


def _inputs_one_by_one(
    piece: Array, inputs: Array, taps: Array, bias: Array, begin: int, problem: Problem, scratch: Scratch
) -> None:
    """Every sample of a tile. inputs (n, g, ci, i), whose first meets tap 0 at sample `begin`; taps (g, ci, co, j)."""
    step, length = problem.dilation, piece.shape[-1]
    most = min(problem.kernel_size, ceil_div(length, step))
    product = scratch.get("product", (*piece.shape[:3], most), piece.dtype)
    pending = True
    for ci in range(inputs.shape[2]):
        for i in reversed(range(inputs.shape[3])):
            there = begin + i * problem.stride
            low, high = max(ceil_div(-there, step), 0), min(ceil_div(length - there, step), problem.kernel_size)
            if low >= high:
                continue
            samples = piece[..., there + low * step : there + (high - 1) * step + 1 : step]
            x, w = inputs[:, :, ci, None, i : i + 1], taps[:, ci, :, low:high]
            if pending:
                if high - low < length:
                    piece[...] = 0
                np.multiply(x, w, out=samples)
                pending = False
                continue
            inner = product[..., : high - low]
            np.multiply(x, w, out=inner)
            np.add(samples, inner, out=samples)
    if pending:
        piece[...] = 0
    by_plane = piece.reshape(bias.shape[0], -1, *piece.shape[1:])
    by_plane += bias[:, None, :, :, None]


def _taps_one_by_one(
    piece: Array,
    inputs: Array,
    taps: Array,
    bias: Array,
    grid: RowGrid,
    part: Run,
    rows: int,
    first: int,
    problem: Problem,
    scratch: Scratch,
) -> None:
    """One run of residues. inputs (n, g, ci, i) from x[first] on, zero outside x; taps (g, ci, co, j)."""
    items, groups, c_in, _ = inputs.shape
    shape = (items, groups, taps.shape[2], part.count, rows)
    sums = scratch.get("sums", shape, piece.dtype)
    product = scratch.get("product", shape, piece.dtype)
    target = sums
    for ci in range(c_in):
        for m in range(part.taps):
            # what the tile's first row meets of the padded inputs, and of x
            place = part.lead - m * grid.input_step + grid.lookback
            low, high = max(-(first + place), 0), min(problem.l_in - first - place, rows)
            if low >= high:
                continue
            tap = part.first_tap + m * grid.tap_step
            x = inputs[:, :, ci, None, None, place : place + rows]
            np.multiply(x, taps[:, ci, :, tap : tap + part.count, None], out=target)
            target[..., :low], target[..., high:] = 0, 0
            if target is product:
                np.add(sums, product, out=sums)
            target = product
    if target is sums:
        sums[...] = 0
    home = residues_of(piece, part, problem.stride)
    by_plane = (bias.shape[0], items // bias.shape[0], *shape[1:])
    np.add(sums.reshape(by_plane), bias[:, None, :, :, None, None], out=home.reshape(by_plane))
