# SPDX-License-Identifier: MIT
"""Few channels: blocks of rows as one product with a banded matrix of taps.

A block of B rows (B s samples) of one output channel depends on the B + span inputs around it, linearly and always in
the same way, so all blocks of a signal are one product

    (blocks x (B + span) C_in/g)  @  ((B + span) C_in/g x B s)

whose result is the signal itself, in order: nothing is interleaved afterwards. The left operand is made by copying
windows, (B + span)/(B s) numbers for each sample of the result; the right one is almost all zeros for long blocks:
(B + span)/J multiplications for each useful one. BLAS does a hundred of them in the time of one strided store, so this
beats everything else from one channel to a dozen (depthwise layers are batches of such products), up to some hundred
taps for each phase, where transforms take over.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from cupy_convt.core.plan_cpu import MERGED_BELOW, CpuPlan
from cupy_convt.core.problem import Problem
from cupy_convt.core.rows_cpu import RealShape, RowGrid, row_grid
from cupy_convt.engines.cpu_arrays import Pieces, copy_runs
from cupy_convt.engines.cpu_threads import Array, Scratch, for_each


def pack(problem: Problem, plan: CpuPlan, weight: Array) -> Array:
    """The banded matrices (g, co, ci (B + span), B s) of a real weight (C_in', C_out'/g, K).

    Row u of a block's window is the input q0 - lookback + u; the sample r of its row b has tap m at
    u = b + lead - m input_step + lookback.
    """
    real, grid = RealShape.of(problem), row_grid(problem)
    window, stride = plan.block + grid.span, problem.stride
    grouped = weight.reshape(problem.groups, real.c_in, real.c_out, problem.kernel_size)
    out = np.zeros((problem.groups, real.c_out, real.c_in, window, plan.block, stride), weight.dtype)
    g, co, ci, u, b, _ = out.strides
    for phase in problem.phases.active:
        residue = (phase.residue - problem.p_left) % stride
        lead = (residue + problem.p_left - phase.residue) // stride + phase.offset
        taps = grouped[..., phase.first_tap :: grid.tap_step].transpose(0, 2, 1, 3)
        newest = lead + grid.lookback
        oldest = newest - (phase.taps - 1) * grid.input_step
        diagonal = np.lib.stride_tricks.as_strided(
            out[:, :, :, oldest:, :, residue:],
            (*out.shape[:3], phase.taps, plan.block),
            (g, co, ci, u * grid.input_step, u + b),
        )
        diagonal[...] = taps[..., ::-1, None]
    return out.reshape(problem.groups, real.c_out, real.c_in * window, plan.block * stride)


@dataclass(frozen=True)
class BlockTile:
    """Part of the result: items, groups, rows that are whole blocks."""

    items: slice
    groups: slice
    rows: slice


def tiles(pieces: Pieces, plan: CpuPlan, grid: RowGrid) -> Iterator[BlockTile]:
    """Tiles; the last one of a signal may reach beyond its end."""
    problem = pieces.problem
    for n in range(0, problem.batch, plan.batch_tile):
        items = slice(n, min(n + plan.batch_tile, problem.batch))
        for g in range(0, problem.groups, plan.group_tile):
            groups = slice(g, min(g + plan.group_tile, problem.groups))
            for q in range(0, grid.rows, plan.row_tile):
                yield BlockTile(items, groups, slice(q, min(q + plan.row_tile, grid.rows)))


def run(pieces: Pieces, plan: CpuPlan, matrices: Array, *, parallel: bool) -> None:
    """Compute every tile with the matrices that `pack` made."""
    grid = row_grid(pieces.problem)

    def work(tile: BlockTile, scratch: Scratch) -> None:
        _tile(pieces, plan, matrices, grid, tile, scratch)

    for_each(work, tiles(pieces, plan, grid), parallel=parallel, products=True)


def _tile(pieces: Pieces, plan: CpuPlan, matrices: Array, grid: RowGrid, tile: BlockTile, scratch: Scratch) -> None:
    problem = pieces.problem
    width = plan.block * problem.stride
    start, stop = tile.rows.start * problem.stride, min(tile.rows.stop * problem.stride, problem.l_out)
    every = slice(0, problem.c_out_group)
    whole, rest = divmod(stop - start, width)
    windows = _windows(pieces, plan, grid, tile, whole + (rest > 0), scratch)
    piece = pieces.result(scratch, tile.items, tile.groups, every, start, stop)
    right = matrices[tile.groups]
    if whole + (rest > 0) < MERGED_BELOW and piece.shape[0] > 1:
        _merged(piece, windows, right, scratch)
    else:
        _by_signal(piece, windows, right, whole, scratch)
    pieces.finish(piece, tile.items, tile.groups, every, start, stop)


def _merged(piece: Array, windows: Array, right: Array, scratch: Scratch) -> None:
    """Few blocks in many signals: one product for each channel, whose result is put in order afterwards."""
    items, groups, blocks, window = windows.shape
    c_out, width = right.shape[1], right.shape[3]
    left = windows.transpose(1, 0, 2, 3).reshape(groups, 1, items * blocks, window)
    result = scratch.get("blocks", (groups, c_out, items * blocks, width), piece.dtype)
    np.matmul(left, right, out=result)
    signals = result.reshape(groups, c_out, items, blocks * width).transpose(2, 0, 1, 3)
    np.copyto(piece, signals[..., : piece.shape[-1]])


def _by_signal(piece: Array, windows: Array, right: Array, whole: int, scratch: Scratch) -> None:
    """Many blocks: one product for each signal, straight into the result but for a last block that is not whole."""
    width, blocks = right.shape[3], windows.shape[2]
    left = windows[:, :, None]
    n, g, c, t = piece.strides
    done = whole if t == piece.itemsize else 0
    if done:
        home = np.lib.stride_tricks.as_strided(piece, (*piece.shape[:3], done, width), (n, g, c, width * t, t))
        np.matmul(left[:, :, :, :done], right, out=home)
    if done < blocks:
        result = scratch.get("blocks", (*piece.shape[:3], blocks - done, width), piece.dtype)
        np.matmul(left[:, :, :, done:], right, out=result)
        signals = result.reshape(*piece.shape[:3], -1)
        np.copyto(piece[..., done * width :], signals[..., : piece.shape[-1] - done * width])


def _windows(pieces: Pieces, plan: CpuPlan, grid: RowGrid, tile: BlockTile, blocks: int, scratch: Scratch) -> Array:
    """The windows of a tile, (n, g, blocks, ci (B + span)), with g outermost in memory."""
    real, window = pieces.real, plan.block + grid.span
    groups, items = tile.groups.stop - tile.groups.start, real.planes * (tile.items.stop - tile.items.start)
    per_group = pieces.problem.c_in_group
    channels = slice(tile.groups.start * per_group, tile.groups.stop * per_group)
    length = blocks * plan.block + grid.span
    slab = scratch.get("slab", (items, groups * real.c_in, length), pieces.dtype)
    pieces.fill_inputs(slab, tile.items, channels, tile.rows.start - grid.lookback)
    n, c, i = slab.strides
    view = np.lib.stride_tricks.as_strided(
        slab, (items, groups, blocks, real.c_in, window), (n, c * real.c_in, i * plan.block, c, i)
    )
    out = scratch.get("windows", (groups, items, blocks, real.c_in, window), pieces.dtype)
    copy_runs(view.transpose(1, 0, 2, 3, 4), out)
    return out.reshape(groups, items, blocks, real.c_in * window).transpose(1, 0, 2, 3)
