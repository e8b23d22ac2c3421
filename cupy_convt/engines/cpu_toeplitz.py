# SPDX-License-Identifier: MIT
"""Few channels: blocks of rows as one product with a banded matrix of taps.

A block of B rows (B s samples) of one output channel depends on the B + span inputs around it, linearly and always in
the same way, so all blocks of a signal are one product

    (blocks x (B + span) C_in/g)  @  ((B + span) C_in/g x B s)

whose result is the signal itself, in order: nothing is interleaved afterwards. The left operand is made by copying
windows, (B + span)/(B s) numbers for each sample of the result, with the bias of a lone output channel as one more,
which meets ones. Few blocks of many signals are a product each: their windows are x itself. The right operand is almost
all zeros for long blocks: (B + span)/J multiplications for each useful one. BLAS does a hundred of them in the time of
one strided store, so this beats everything else from one channel to a dozen (depthwise layers are batches of such
products), up to some hundred taps for each phase, where transforms take over.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from cupy_convt.core.plan_cpu import MERGED_BELOW, CpuPlan, block_by_block
from cupy_convt.core.problem import Problem, ceil_div
from cupy_convt.core.rows_cpu import RealShape, RowGrid, row_grid
from cupy_convt.engines.cpu_arrays import Pieces, copy_runs
from cupy_convt.engines.cpu_threads import Array, Scratch, for_each


def pack(problem: Problem, plan: CpuPlan, weight: Array) -> Array:
    """The banded matrices (g, co, ci (B + span) + 1, B s) of a real weight (C_in', C_out'/g, K), with a row of ones."""
    out = np.zeros(_matrices(problem, plan, problem.groups), weight.dtype)
    out[:, :, -1] = 1
    _fill_bands(problem, plan, _grouped(problem, weight), out)
    return out


def packs_by_tile(problem: Problem, plan: CpuPlan) -> bool:
    """Whether every matrix is met by one tile, which then makes it where it is about to be read."""
    return plan.batch_tile >= problem.batch and plan.row_tile >= row_grid(problem).rows


def _matrices(problem: Problem, plan: CpuPlan, groups: int) -> tuple[int, ...]:
    real = RealShape.of(problem)
    return groups, real.c_out, real.c_in * (plan.block + row_grid(problem).span) + 1, plan.block * problem.stride


def _grouped(problem: Problem, weight: Array) -> Array:
    real = RealShape.of(problem)
    return weight.reshape(problem.groups, real.c_in, real.c_out, problem.kernel_size)


def _fill_bands(problem: Problem, plan: CpuPlan, weight: Array, out: Array) -> None:
    """Write the taps of a weight (g, ci, co, j) into matrices that are zero elsewhere.

    Row u of a block's window is the input q0 - lookback + u; the sample r of its row b has tap m at
    u = b + lead - m input_step + lookback.
    """
    grid, stride, item = row_grid(problem), problem.stride, out.itemsize
    groups, c_in, c_out = weight.shape[:3]
    row = plan.block * stride * item
    matrix = (plan.block + grid.span) * row
    for phase in problem.phases.active:
        residue = (phase.residue - problem.p_left) % stride
        lead = (residue + problem.p_left - phase.residue) // stride + phase.offset
        taps = weight[..., phase.first_tap :: grid.tap_step].transpose(0, 2, 1, 3)[..., ::-1, None]
        oldest = lead + grid.lookback - (phase.taps - 1) * grid.input_step
        diagonal: Array = np.ndarray(
            (groups, c_out, c_in, phase.taps, plan.block),
            out.dtype,
            out,
            oldest * row + residue * item,
            (*out.strides[:2], matrix, row * grid.input_step, row + stride * item),
        )
        if phase.taps > groups * c_out * c_in:
            diagonal[...] = taps
            continue
        for tap in range(phase.taps):  # longer loops: many filters of few taps
            diagonal[..., tap, :] = taps[..., tap, :]


#: Samples of a signal of which a part block is not worth a product of its own.
SHORT_SIGNAL = 1024


class BlockTile(NamedTuple):
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


def run(pieces: Pieces, plan: CpuPlan, operand: Array, *, packed: bool, parallel: bool) -> None:
    """Compute every tile with the matrices that `pack` made or, not `packed`, from the real weight, by tiles."""
    problem, grid = pieces.problem, row_grid(pieces.problem)
    weight = operand if packed else _grouped(problem, operand)
    pattern = plan.block, problem.stride, problem.dilation, problem.kernel_size, problem.p_left % problem.stride

    def work(tile: BlockTile, scratch: Scratch) -> None:
        matrices = weight[tile.groups]
        if not packed:
            taps, shape = matrices, _matrices(problem, plan, tile.groups.stop - tile.groups.start)
            matrices, new = scratch.zero_but("matrices", shape, pieces.dtype, pattern)
            if new:
                matrices[:, :, -1] = 1
            _fill_bands(problem, plan, taps, matrices)
        _tile(pieces, plan, matrices, grid, tile, scratch)

    for_each(work, tiles(pieces, plan, grid), parallel=parallel, products=True)


def _tile(pieces: Pieces, plan: CpuPlan, right: Array, grid: RowGrid, tile: BlockTile, scratch: Scratch) -> None:
    problem = pieces.problem
    start, stop = tile.rows.start * problem.stride, min(tile.rows.stop * problem.stride, problem.l_out)
    every = slice(0, problem.c_out_group)
    blocks = ceil_div(stop - start, plan.block * problem.stride)
    piece = pieces.result(scratch, tile.items, tile.groups, every, start, stop)
    biased = False
    if block_by_block(pieces.real, piece.shape[0], blocks) and piece.strides[-1] == piece.itemsize:
        _block_by_block(pieces, plan, right, grid, tile, piece, scratch)
    else:
        biased = pieces.bias is not None and pieces.real.c_out == 1
        windows = _windows(pieces, plan, grid, tile, blocks, biased, scratch)
        multiply = _merged if blocks < MERGED_BELOW and piece.shape[0] > 1 else _by_signal
        multiply(piece, windows, right[:, :, : windows.shape[-1]], scratch)
    pieces.finish(piece, tile.items, tile.groups, every, start, stop, biased=biased)


def _block_by_block(
    pieces: Pieces, plan: CpuPlan, right: Array, grid: RowGrid, tile: BlockTile, piece: Array, scratch: Scratch
) -> None:
    """Few blocks in many signals of one channel: one product for each block, from x straight into the result."""
    problem, width = pieces.problem, right.shape[3]
    channels = slice(tile.groups.start * problem.c_in_group, tile.groups.stop * problem.c_in_group)
    first = max(tile.rows.start - grid.lookback, 0)
    last = max(min(tile.rows.stop + grid.lookahead, problem.l_in), first)
    inputs = pieces.inputs(scratch, tile.items, channels, first, last)
    if inputs.strides[-1] != inputs.itemsize:
        inputs = np.ascontiguousarray(inputs)
    left, home = inputs.transpose(1, 0, 2)[:, None], piece.transpose(1, 2, 0, 3)
    for begin in range(0, piece.shape[-1], width):
        samples = home[..., begin : begin + width]
        oldest = tile.rows.start - grid.lookback + begin // problem.stride
        low, high = max(oldest, first), min(oldest + plan.block + grid.span, last)
        if low >= high:
            samples[...] = 0
            continue
        matrix = right[:, :, low - oldest : high - oldest, : samples.shape[-1]]
        np.matmul(left[..., low - first : high - first], matrix, out=samples)


def _merged(piece: Array, windows: Array, right: Array, scratch: Scratch) -> None:
    """Few blocks in some signals: one product for each channel, whose result is put in order afterwards."""
    items, groups, blocks, window = windows.shape
    c_out, width = right.shape[1], right.shape[3]
    left = windows.transpose(1, 0, 2, 3).reshape(groups, 1, items * blocks, window)
    result = scratch.get("blocks", (groups, c_out, items * blocks, width), piece.dtype)
    np.matmul(left, right, out=result)
    signals = result.reshape(groups, c_out, items, blocks * width).transpose(2, 0, 1, 3)
    np.copyto(piece, signals[..., : piece.shape[-1]])


def _by_signal(piece: Array, windows: Array, right: Array, scratch: Scratch) -> None:
    """Many blocks: one product for each signal; of long ones the whole blocks straight into the result."""
    width, blocks, length = right.shape[3], windows.shape[2], piece.shape[-1]
    left, straight = windows[:, :, None], piece.strides[-1] == piece.itemsize
    whole = length // width if straight and (length % width == 0 or length > SHORT_SIGNAL) else 0
    if whole:
        home = piece[..., : whole * width].reshape(*piece.shape[:3], whole, width)  # a view
        np.matmul(left[:, :, :, :whole], right, out=home)
    if whole < blocks:
        result = scratch.get("blocks", (*piece.shape[:3], blocks - whole, width), piece.dtype)
        np.matmul(left[:, :, :, whole:], right, out=result)
        signals = result.reshape(*piece.shape[:3], -1)
        np.copyto(piece[..., whole * width :], signals[..., : length - whole * width])


def _windows(
    pieces: Pieces, plan: CpuPlan, grid: RowGrid, tile: BlockTile, blocks: int, biased: bool, scratch: Scratch
) -> Array:
    """The windows of a tile, (n, g, blocks, ci (B + span)), with g outermost in memory; `biased`: the bias behind."""
    real, window = pieces.real, plan.block + grid.span
    groups, items = tile.groups.stop - tile.groups.start, real.planes * (tile.items.stop - tile.items.start)
    per_group = pieces.problem.c_in_group
    channels = slice(tile.groups.start * per_group, tile.groups.stop * per_group)
    length = blocks * plan.block + grid.span
    slab = scratch.get("slab", (items, groups * real.c_in, length), pieces.dtype)
    pieces.fill_inputs(slab, tile.items, channels, tile.rows.start - grid.lookback)
    n, c, i = slab.strides
    shape = groups, items, blocks, real.c_in, window
    view: Array = np.ndarray(shape, slab.dtype, slab, 0, (c * real.c_in, n, i * plan.block, c, i))
    inputs = real.c_in * window
    out = scratch.get("windows", (groups, items, blocks, inputs + biased), pieces.dtype)
    copy_runs(view, out[..., :inputs].reshape(shape))
    if biased:
        bias = pieces.bias_of(tile.groups, slice(0, 1))
        by_plane = out[..., inputs].reshape(groups, bias.shape[0], -1, blocks)
        by_plane[...] = bias.transpose(1, 0, 2)[..., None]
    return out.transpose(1, 0, 2, 3)
