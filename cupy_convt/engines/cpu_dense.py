# SPDX-License-Identifier: MIT
"""Dense layers: one product with the weight as it lies in memory, then overlap-add inside the cache.

    P[(co, j), i] = sum_ci w[ci, co, j] x[ci, i]          every tap of every input: no padding, no zeros
    y[co, q s + r] = bias[co] + sum_m P[(co, first_tap + m tap_step), q + lead - m input_step]

The weight (C_in, C_out/g, K) seen as a C_in x (C_out/g K) matrix is an operand of the product without being packed, and
ragged taps cost nothing. P has J numbers for each sample of the result; it never leaves the cache, because a tile has
few enough channels and rows. The two orientations differ in what lies side by side in P: "columns" has time (long
loops, a strided store; for small strides), "rows" has taps (loops as long as the stride; for large ones, where both
the reading and the writing are contiguous). A few rows of one channel are not cut, as BLAS would copy the weight
for each part; their taps are, and the sums of the parts are added up.

It wins wherever C_in/g is large: the additions are J for C_in J multiplications. It loses to the Toeplitz product for
few channels and to transforms for hundreds of taps a phase.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from cupy_convt.core.plan_cpu import CpuPlan
from cupy_convt.core.problem import Problem, ceil_div
from cupy_convt.core.rows_cpu import RowGrid, row_grid
from cupy_convt.core.tiles_cpu import DENSE_TAPS, PADDED_FROM
from cupy_convt.engines.cpu_arrays import Pieces, real_weight, residues_of
from cupy_convt.engines.cpu_threads import Array, Scratch, for_each

#: Inputs below which the items of a batch lie side by side in one product; longer ones have a product each.
SIDE_BY_SIDE_BELOW = 512


@dataclass(frozen=True)
class DenseTile:
    """Part of the result: items, one group, channels within it, rows."""

    items: slice
    group: int
    channels: slice
    rows: slice


def tiles(pieces: Pieces, plan: CpuPlan, grid: RowGrid) -> Iterator[DenseTile]:
    """Tiles of one product each, the channels of one piece of x one after the other."""
    problem = pieces.problem
    for n in range(0, problem.batch, plan.batch_tile):
        items = slice(n, min(n + plan.batch_tile, problem.batch))
        for q in range(0, grid.rows, plan.row_tile):
            rows = slice(q, min(q + plan.row_tile, grid.rows))
            for group in range(problem.groups):
                for c in range(0, problem.c_out_group, plan.channel_tile):
                    yield DenseTile(items, group, slice(c, min(c + plan.channel_tile, problem.c_out_group)), rows)


def run(pieces: Pieces, plan: CpuPlan, weight: Array, *, parallel: bool) -> None:
    """Compute every tile. `weight` is the real one, (C_in', C_out'/g, K), or the caller's, converted by tiles."""
    grid = row_grid(pieces.problem)
    if plan.tap_parts > 1:
        _run_parts(pieces, plan, weight, grid, parallel=parallel)
        return

    def work(tile: DenseTile, scratch: Scratch) -> None:
        area = _area(pieces.problem, tile)
        piece, bias = pieces.result(scratch, *area), _bias_on_the_way(pieces, plan, grid, tile)
        _sum_taps(pieces, plan, weight, grid, tile, slice(0, grid.max_taps), piece, scratch, bias)
        pieces.finish(piece, *area, biased=bias is not None)

    for_each(work, tiles(pieces, plan, grid), parallel=parallel, products=True)


def _run_parts(pieces: Pieces, plan: CpuPlan, weight: Array, grid: RowGrid, *, parallel: bool) -> None:
    """Compute the only tile in parts of the taps; whoever is last adds their sums up, always in the same order."""
    (tile,) = tiles(pieces, plan, grid)
    area, step = _area(pieces.problem, tile), ceil_div(grid.max_taps, plan.tap_parts)
    parts = [slice(first, min(first + step, grid.max_taps)) for first in range(0, grid.max_taps, step)]
    piece = pieces.result(Scratch(), *area)
    sums = [piece, *(np.empty_like(piece) for _ in parts[1:])]
    lock, left = threading.Lock(), set(range(len(parts)))

    def work(part: int, scratch: Scratch) -> None:
        _sum_taps(pieces, plan, weight, grid, tile, parts[part], sums[part], scratch)
        with lock:
            left.remove(part)
            last = not left
        if last:
            for others in sums[1:]:
                np.add(piece, others, out=piece)
            pieces.finish(piece, *area)

    for_each(work, range(len(parts)), parallel=parallel, products=True)


def _area(problem: Problem, tile: DenseTile) -> tuple[slice, slice, slice, int, int]:
    """Items, groups, channels and samples of a tile."""
    start, stop = tile.rows.start * problem.stride, min(tile.rows.stop * problem.stride, problem.l_out)
    return tile.items, slice(tile.group, tile.group + 1), tile.channels, start, stop


def _bias_on_the_way(pieces: Pieces, plan: CpuPlan, grid: RowGrid, tile: DenseTile) -> Array | None:
    """The bias (co, 1, 1) of a tile, where samples have one tap at most and loops are long: it saves a pass."""
    if grid.max_taps > 1 or plan.variant != "columns" or pieces.bias is None or len(pieces.bias) > 1:
        return None
    bias: Array = pieces.bias_of(slice(tile.group, tile.group + 1), tile.channels)[0, 0, :, None, None]
    return bias


def _sum_taps(
    pieces: Pieces,
    plan: CpuPlan,
    weight: Array,
    grid: RowGrid,
    tile: DenseTile,
    taps: slice,
    piece: Array,
    scratch: Scratch,
    bias: Array | None = None,
) -> None:
    """Write what taps m in `taps` of every phase, and the bias, add to a tile."""
    count = taps.stop - taps.start
    step = max(ceil_div(count, max(ceil_div(count, DENSE_TAPS), 1)), 1)
    for first in range(taps.start, max(taps.stop, taps.start + 1), step):
        part = slice(first, min(first + step, taps.stop))
        products, begins = _products_of_taps(pieces, plan, weight, grid, tile, part, scratch)
        start = None if first > taps.start else np.zeros((1, 1, 1), pieces.dtype) if bias is None else bias
        _add_taps(products, begins, piece[:, 0], grid, pieces.problem.stride, tile.rows, part, start)


def _products_of_taps(
    pieces: Pieces, plan: CpuPlan, weight: Array, grid: RowGrid, tile: DenseTile, taps: slice, scratch: Scratch
) -> tuple[Array | None, int]:
    """P (n, co, j, i) of taps m in `taps` of every phase, None where they reach no input, and its first input.

    Where x ends and is long, P goes on with zeros, so that all rows are added up alike.
    """
    problem = pieces.problem
    leads = [run.lead for run in grid.runs if run.taps] or [0]
    first = tile.rows.start + min(leads) - (taps.stop - 1) * grid.input_step
    stop = tile.rows.stop + max(leads) - taps.start * grid.input_step
    inputs = slice(max(first, 0), min(stop, problem.l_in))
    if inputs.start >= inputs.stop:
        return None, first
    every = slice(taps.start * grid.tap_step, min(taps.stop * grid.tap_step, problem.kernel_size))
    zeros = inputs.start - first, stop - inputs.stop
    length = inputs.stop - inputs.start
    if _side_by_side(pieces, plan, tile, length) or PADDED_FROM * sum(zeros) > length:
        zeros, first = (0, 0), inputs.start
    return _products(pieces, plan, weight, tile, every, inputs, zeros, scratch), first


def _side_by_side(pieces: Pieces, plan: CpuPlan, tile: DenseTile, length: int) -> bool:
    """Whether the items of a tile, each of so many inputs, share a product."""
    items = pieces.real.planes * (tile.items.stop - tile.items.start)
    return plan.variant == "columns" and items > 1 and length < SIDE_BY_SIDE_BELOW


def _add_taps(
    products: Array | None,
    first: int,
    target: Array,
    grid: RowGrid,
    stride: int,
    rows: slice,
    taps: slice,
    start: Array | None,
) -> None:
    """Add taps m in `taps` of every phase to the tile, or overwrite it with them and what sums start from."""
    for part in grid.runs:
        view = residues_of(target, part, stride)
        low, high = taps.start, min(taps.stop, part.taps)
        if products is None or low >= high:
            if start is not None:
                _fill(view, start)
            continue
        operands = []
        for m in range(low, high):
            tap = part.first_tap + (m - taps.start) * grid.tap_step
            shift = first - (part.lead - m * grid.input_step) - rows.start
            operands.append((products[:, :, tap : tap + part.count], shift))
        _overlap_add(view, operands, start)


def _fill(view: Array, start: Array) -> None:
    """Fill samples (n, co, count, rows) with numbers (co, 1, 1), in loops along the longer of the last two axes."""
    if view.shape[-2] > view.shape[-1]:
        view[...] = start
        return
    for residue in range(view.shape[-2]):
        view[..., residue, :] = start[..., 0]


def _products(
    pieces: Pieces,
    plan: CpuPlan,
    weight: Array,
    tile: DenseTile,
    taps: slice,
    inputs: slice,
    zeros: tuple[int, int],
    scratch: Scratch,
) -> Array:
    """P as (n, co, j, i), whatever its order in memory, with so many zeros before and after in i."""
    real, group = pieces.real, tile.group
    scale = real.c_out // pieces.problem.c_out_group
    c_out, kernel = tile.channels.stop - tile.channels.start, taps.stop - taps.start
    per_group = pieces.problem.c_in_group
    if weight.dtype == pieces.dtype:
        part = weight[
            group * real.c_in : (group + 1) * real.c_in, tile.channels.start * scale : tile.channels.stop * scale, taps
        ]
    else:
        part = real_weight(pieces.problem, weight[group * per_group : (group + 1) * per_group, tile.channels, taps])
    matrix = part.reshape(real.c_in, c_out * scale * kernel)
    channels = slice(group * per_group, (group + 1) * per_group)
    items, length = real.planes * (tile.items.stop - tile.items.start), inputs.stop - inputs.start
    width = c_out * scale * kernel
    if _side_by_side(pieces, plan, tile, length):
        side_by_side = scratch.get("columns", (real.c_in, items, length), pieces.dtype)
        if not scratch.holds("columns", (tile.items.start, group, inputs.start, side_by_side.shape)):
            pieces.fill_inputs(side_by_side.transpose(1, 0, 2), tile.items, channels, inputs.start)
        out = scratch.get("products", (width, items * length), pieces.dtype)
        np.matmul(matrix.T, side_by_side.reshape(real.c_in, items * length), out=out)
        return out.reshape(c_out * scale, kernel, items, length).transpose(2, 0, 1, 3)
    before, after = zeros[0], zeros[0] + length
    total = after + zeros[1]
    x = pieces.inputs(scratch, tile.items, channels, inputs.start, inputs.stop)
    if plan.variant == "columns":
        out = scratch.get("products", (items, width, total), pieces.dtype)
        np.matmul(matrix.T, x, out=out[..., before:after])
        out[..., :before], out[..., after:] = 0, 0
        return out.reshape(items, c_out * scale, kernel, total)
    out = scratch.get("products", (items, total, width), pieces.dtype)
    np.matmul(x.transpose(0, 2, 1), matrix, out=out[:, before:after])
    out[:, :before], out[:, after:] = 0, 0
    return out.reshape(items, total, c_out * scale, kernel).transpose(0, 2, 3, 1)


def _overlap_add(target: Array, operands: list[tuple[Array, int]], start: Array | None) -> None:
    """target[..., q] += the sum of each operand[..., q - shift] that has such an entry; operands are overwritten.

    Where sums start from numbers (co, 1, 1), the target is overwritten; they are zeros for several operands.
    Where all operands have such an entry, all but the last addition happen between them, whose loops are contiguous.
    """
    rows = target.shape[-1]
    low = min(max(max(shift for _, shift in operands), 0), rows)
    high = max(min(min(operand.shape[-1] + shift for operand, shift in operands), rows), low)
    if start is None:
        low = high = 0
    for begin, end in ((0, low), (high, rows)):
        if begin < end:
            edge = target[..., begin:end]
            _add_clipped(edge, operands, begin, overwrite=start is not None)
            if start is not None and len(operands) == 1:
                np.add(edge, start, out=edge)
    if start is None or low == high:
        return
    first, *others = [operand[..., low - shift : high - shift] for operand, shift in operands]
    inner = target[..., low:high]
    if not others:
        np.add(first, start, out=inner)  # copying zeros would follow the order of `inner`, with short loops
        return
    for other in others[:-1]:
        np.add(first, other, out=first)
    np.add(first, others[-1], out=inner)


def _add_clipped(target: Array, operands: list[tuple[Array, int]], offset: int, *, overwrite: bool) -> None:
    """The same for few rows near an end, which operands may have only some of; target begins at row `offset`."""
    rows = target.shape[-1]
    for operand, shift in operands:
        low, high = max(shift - offset, 0), min(operand.shape[-1] + shift - offset, rows)
        if low >= high:
            continue
        source = operand[..., low + offset - shift : high + offset - shift]
        if overwrite and (low, high) == (0, rows):
            np.copyto(target, source)
            overwrite = False
            continue
        if overwrite:
            target[...] = 0
            overwrite = False
        target[..., low:high] += source
    if overwrite:
        target[...] = 0
