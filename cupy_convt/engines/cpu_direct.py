# SPDX-License-Identifier: MIT
"""The definition, tap by tap, in one fixed order of summation.

A sample is the sum over input channels in ascending order of the sum over its taps in ascending order, starting from
zero, the bias added last. Only element-wise real multiplications and additions are used, which round each number on its
own: unlike a product of matrices or a reduction they give the same bits whatever the length of the array, its
alignment, its neighbours and the way it is cut into tiles. Complex data are multiplied as four real products for the
same reason. Samples whose taps reach beyond x skip those taps; nothing is multiplied by padding.

Sums start from their first product rather than from zero, which differs only when every product is a negative zero;
adding a bias that is not a negative zero, or zero when there is none, makes up for that.

It wins for a few taps of few channels, where a product of matrices has too little to do; each multiplication costs two
passes through the first-level cache, so a handful of channels is enough for BLAS to win.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from cupy_convt.core.plan_cpu import CpuPlan
from cupy_convt.core.problem import ceil_div
from cupy_convt.core.rows_cpu import RowGrid, Run, row_grid
from cupy_convt.engines.cpu_arrays import Pieces, residues_of
from cupy_convt.engines.cpu_threads import Array, Scratch, for_each


@dataclass(frozen=True)
class DirectTile:
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
    first = max(tile.rows.start - grid.lookback, 0)
    last = max(min(tile.rows.stop + grid.lookahead, problem.l_in), first)
    channels = slice(tile.groups.start * problem.c_in_group, tile.groups.stop * problem.c_in_group)
    inputs = pieces.inputs(scratch, tile.items, channels, first, last)
    inputs = inputs.reshape(inputs.shape[0], taps.shape[0], real.c_in, last - first)
    bias = np.zeros((1, 1, 1), pieces.dtype) if pieces.bias is None else pieces.bias_of(tile.groups, tile.channels)
    for part in grid.runs:
        rows = max(ceil_div(stop - start - part.residue, problem.stride), 0)
        if rows:
            _run(piece, inputs, taps, bias, grid, part, rows, first - tile.rows.start, problem.stride, scratch)
    pieces.finish(piece, tile.items, tile.groups, tile.channels, start, stop, biased=True)


def _run(
    piece: Array,
    inputs: Array,
    taps: Array,
    bias: Array,
    grid: RowGrid,
    part: Run,
    rows: int,
    first: int,
    stride: int,
    scratch: Scratch,
) -> None:
    """One run of residues. inputs (n, g, ci, i) begin `first` after the tile's first row; taps (g, ci, co, j)."""
    items, groups, c_in, length = inputs.shape
    shape = (items, groups, taps.shape[2], part.count, rows)
    sums = scratch.get("sums", shape, piece.dtype)
    product = scratch.get("product", shape, piece.dtype)
    pending = True
    for ci in range(c_in):
        for m in range(part.taps):
            shift = part.lead - m * grid.input_step - first
            low, high = min(max(-shift, 0), rows), min(length - shift, rows)
            if low >= high:
                continue
            tap = part.first_tap + m * grid.tap_step
            x = inputs[:, :, ci, None, None, low + shift : high + shift]
            w = taps[:, ci, :, tap : tap + part.count, None]
            if pending:
                sums[..., :low], sums[..., high:] = 0, 0
                np.multiply(x, w, out=sums[..., low:high])
                pending = False
                continue
            inner = product[..., low:high]
            np.multiply(x, w, out=inner)
            np.add(sums[..., low:high], inner, out=sums[..., low:high])
    if pending:
        sums[...] = 0
    home = residues_of(piece, part, stride)
    by_plane = (bias.shape[0], items // bias.shape[0], *shape[1:])
    np.add(sums.reshape(by_plane), bias[:, None, :, :, None, None], out=home.reshape(by_plane))
