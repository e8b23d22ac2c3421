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

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from cupy_convt.core.plan_cpu import MERGED_BELOW, CpuPlan, block_by_block
from cupy_convt.core.problem import Problem, ceil_div
from cupy_convt.core.rows_cpu import RowGrid, row_grid
from cupy_convt.core.tiles_cpu import SHORT_SIGNAL
from cupy_convt.engines.cpu_arrays import Pieces, copy_runs_between
from cupy_convt.engines.cpu_threads import Array, Scratch, for_each
from cupy_convt.engines.cpu_toeplitz_pack import Blocks, blocks_of, pack_tile

#: Blocks of a tile beyond the ends of x, up to which windows are copied from x itself, and of those one by one.
MOST_ENDS = 4


class BlockTile(NamedTuple):
    """Part of the result: items, groups (and their channels of x), rows that are whole blocks (and their samples).

    `first` is the first input of the first window, `low` to `high` are the blocks whose windows lie in x, `ends` are
    the others: the block, and from where to where in its window x goes.
    """

    items: slice
    groups: slice
    channels: slice
    rows: slice
    start: int
    stop: int
    blocks: int
    first: int
    low: int
    high: int
    ends: tuple[tuple[int, int, int], ...]


@lru_cache(maxsize=64)
def tiles(problem: Problem, plan: CpuPlan) -> tuple[BlockTile, ...]:
    """Tiles; the last one of a signal may reach beyond its end."""
    found = []
    for n in range(0, problem.batch, plan.batch_tile):
        items = slice(n, min(n + plan.batch_tile, problem.batch))
        for g in range(0, problem.groups, plan.group_tile):
            groups = slice(g, min(g + plan.group_tile, problem.groups))
            for q in range(0, row_grid(problem).rows, plan.row_tile):
                found.append(_tile_of(problem, plan, items, groups, q))
    return tuple(found)


def _tile_of(problem: Problem, plan: CpuPlan, items: slice, groups: slice, first_row: int) -> BlockTile:
    sizes, step, l_in = blocks_of(problem, plan), plan.block, problem.l_in
    rows = slice(first_row, min(first_row + plan.row_tile, sizes.grid.rows))
    start, stop = rows.start * problem.stride, min(rows.stop * problem.stride, problem.l_out)
    blocks, first = ceil_div(stop - start, sizes.width), rows.start - sizes.grid.lookback
    low = min(ceil_div(max(-first, 0), step), blocks)
    high = min(max((l_in - sizes.window - first) // step + 1, low), blocks)
    ends = []
    for block in (*range(low), *range(high, blocks)):
        before, until = -(first + block * step), l_in - first - block * step
        ends.append((block, max(before, 0), max(min(until, sizes.window), 0)))
    channels = slice(groups.start * problem.c_in_group, groups.stop * problem.c_in_group)
    return BlockTile(items, groups, channels, rows, start, stop, blocks, first, low, high, tuple(ends))


def run(pieces: Pieces, plan: CpuPlan, operand: Array, *, packed: bool, parallel: bool) -> None:
    """Compute every tile with the matrices that `pack` made or, not `packed`, from the real weight, by tiles."""
    sizes = blocks_of(pieces.problem, plan)
    weight = operand if packed else sizes.grouped(operand)

    def work(tile: BlockTile, scratch: Scratch) -> None:
        _tile(pieces, plan, weight[tile.groups], packed, sizes, tile, scratch)

    for_each(work, tiles(pieces.problem, plan), parallel=parallel, products=True)


def _tile(
    pieces: Pieces, plan: CpuPlan, weight: Array, packed: bool, sizes: Blocks, tile: BlockTile, scratch: Scratch
) -> None:
    """Compute a tile. The product adds the bias of a lone output channel.

    Matrices that are made for one call have a row of it, which windows meet with ones; to others, which have the ones,
    windows bring it.
    """
    every = slice(0, pieces.problem.c_out_group)
    piece = pieces.result(scratch, tile.items, tile.groups, every, tile.start, tile.stop)
    apart = block_by_block(pieces.real, piece.shape[0], tile.blocks) and piece.strides[-1] == piece.itemsize
    lone = None if apart or sizes.c_out > 1 or pieces.bias is None else pieces.bias[:, tile.groups]
    row = None if packed or lone is None or len(lone) > 1 else lone[0]
    right = weight if packed else pack_tile(pieces.problem, sizes, weight, row, scratch)
    if apart:
        _block_by_block(pieces, plan, right, sizes.grid, tile, piece, scratch)
    else:
        windows = _windows(pieces, plan, sizes, tile, lone if row is None else 1, scratch)
        multiply = _merged if tile.blocks < MERGED_BELOW and piece.shape[0] > 1 else _by_signal
        multiply(piece, windows, right[:, :, : windows.shape[-1]], scratch)
    pieces.finish(piece, tile.items, tile.groups, every, tile.start, tile.stop, biased=lone is not None)


def _block_by_block(
    pieces: Pieces, plan: CpuPlan, right: Array, grid: RowGrid, tile: BlockTile, piece: Array, scratch: Scratch
) -> None:
    """Few blocks in many signals of one channel: one product for each block, from x straight into the result."""
    problem, width = pieces.problem, right.shape[3]
    first = max(tile.first, 0)
    last = max(min(tile.rows.stop + grid.lookahead, problem.l_in), first)
    inputs = pieces.inputs(scratch, tile.items, tile.channels, first, last)
    if inputs.strides[-1] != inputs.itemsize:
        inputs = np.ascontiguousarray(inputs)
    left, home = inputs.transpose(1, 0, 2)[:, None], piece.transpose(1, 2, 0, 3)
    for begin in range(0, piece.shape[-1], width):
        samples = home[..., begin : begin + width]
        oldest = tile.first + begin // problem.stride
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
    pieces: Pieces, plan: CpuPlan, sizes: Blocks, tile: BlockTile, behind: Array | int | None, scratch: Scratch
) -> Array:
    """The windows of a tile, (n, g, blocks, ci (B + span)), with g outermost in memory, and what is `behind` them.

    That is 1, the bias (planes of n, g, 1), or nothing.
    """
    groups, items = tile.groups.stop - tile.groups.start, pieces.real.planes * (tile.items.stop - tile.items.start)
    inputs, step, x = sizes.c_in * sizes.window, plan.block, pieces.x
    in_place = pieces.plain_x and x.flags.c_contiguous and len(tile.ends) <= MOST_ENDS
    shape, whole = (groups, items, tile.blocks, inputs + (behind is not None)), plan.row_tile >= sizes.grid.rows
    if in_place and whole:  # what is beyond the ends of x, zero, stays from call to call, and so do ones
        pattern = tile.first, step, sizes.window, x.shape[-1], isinstance(behind, int)
        out, new = scratch.zero_but("whole windows", shape, pieces.dtype, pattern)
    else:
        out, new = scratch.get("windows", shape, pieces.dtype), True
    if in_place:
        begin = tile.items.start * x.strides[0] + tile.channels.start * x.strides[1] + tile.first * x.itemsize
        _copy_inputs(x, begin, step, out, sizes, slice(tile.low, tile.high), 0, sizes.window)
        for block, low, high in tile.ends:
            if not whole:
                out[:, :, block, :inputs] = 0
            _copy_inputs(x, begin, step, out, sizes, slice(block, block + 1), low, high)
    else:
        slab = scratch.get("slab", (items, groups * sizes.c_in, (tile.blocks - 1) * step + sizes.window), pieces.dtype)
        pieces.fill_inputs(slab, tile.items, tile.channels, tile.first)
        _copy_inputs(slab, 0, step, out, sizes, slice(0, tile.blocks), 0, sizes.window)
    if isinstance(behind, np.ndarray):
        by_plane = out[..., inputs].reshape(groups, len(behind), -1, tile.blocks)
        by_plane[...] = behind.transpose(1, 0, 2)[..., None]
    elif behind is not None and new:
        out[..., inputs] = behind
    return out.transpose(1, 0, 2, 3)


def _copy_inputs(
    source: Array, begin: int, step: int, windows: Array, sizes: Blocks, blocks: slice, low: int, high: int
) -> None:
    """Copy the inputs low <= i < high of the windows (g, n, blocks, ci i ..) of some blocks.

    The first of all windows begins at a byte of the source (n, c, i), the others so many inputs apart.
    """
    if blocks.start >= blocks.stop or low >= high:
        return
    n, c, item = source.strides
    of_g, of_n, of_block, _ = windows.strides
    shape = *windows.shape[:2], blocks.stop - blocks.start, sizes.c_in
    first = begin + (blocks.start * step + low) * item
    home = blocks.start * of_block + low * item
    copy_runs_between(
        (shape, high - low),
        (source, first, (c * sizes.c_in, n, step * item, c)),
        (windows, home, (of_g, of_n, of_block, sizes.window * item)),
    )
