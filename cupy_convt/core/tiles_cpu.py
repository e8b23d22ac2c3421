# SPDX-License-Identifier: MIT
"""How large the tiles of the CPU engine are: as large as a cache allows, and as many as keep every core busy.

And how many cores that is: few problems of a millisecond are worth two.
"""

from __future__ import annotations

from functools import lru_cache
from math import prod

from cupy_convt.core.problem import Problem, ceil_div
from cupy_convt.core.rows_cpu import RealShape, row_grid

#: Taps of one phase that one dense product covers; longer filters are summed over several products.
DENSE_TAPS = 32
#: Inputs, for each zero beyond their ends, from which it is worth being added up, so that all rows are alike.
PADDED_FROM = 16
#: Results that a dense product wants, so that a tile is worth its calls, and inputs that it may take for them.
LEAST_CELLS, MOST_INPUTS = 1 << 19, 1 << 19
#: Multiply-accumulates, sixteen of them for one, plus taps and results, below which a second thread does not pay:
#: about a millisecond and a half of work, where waking a thread takes 0.4 ms, as it does on a virtual machine.
PARALLEL_FROM = 3 << 19

#: Samples of a signal of which a part block is not worth a product of its own.
SHORT_SIGNAL = 1024


@lru_cache(maxsize=1024)
def threads(problem: Problem, cores: int) -> int:
    """Threads that a problem is worth."""
    arrays = prod(problem.weight_shape) + prod(problem.out_shape)
    return cores if problem.macs * problem.real_multiplies // 16 + arrays > PARALLEL_FROM else 1


def fit(size: int, *unit_sizes: tuple[int, int]) -> list[int]:
    """Tile extents, first dimension first, whose product stays near `size`; each is (extent, cost of one step)."""
    chosen = []
    for extent, unit in unit_sizes:
        step = max(1, min(extent, size // max(unit, 1)))
        step = ceil_div(extent, ceil_div(extent, step))
        chosen.append(step)
        size //= step * max(unit, 1)
    return chosen


def even_block(problem: Problem, rows: int, most: int) -> int:
    """Rows of a Toeplitz block: `most`, or a few less where that cuts a short signal into whole blocks."""
    if problem.l_out <= SHORT_SIGNAL and problem.l_out % problem.stride == 0:
        return next((block for block in range(most, most // 2, -1) if rows % block == 0), most)
    return most


def dense_tile(problem: Problem, variant: str, most_cells: int, workers: int) -> tuple[int, int, int, int]:
    """(batch_tile, channel_tile, row_tile, tap_parts) of a product of about `most_cells` results, a thousand columns.

    Where that many columns have few results there are more of them, and items in between.
    Few tiles are made as many as there are workers, so that none of them waits for the last one.
    """
    real, grid = RealShape.of(problem), row_grid(problem)
    parts = _tap_parts(problem, most_cells, workers) if variant == "rows" else 1
    if parts > 1:
        return 1, 1, grid.rows, parts
    taps = min(DENSE_TAPS, max(grid.max_taps, 1))
    kernel = min(problem.kernel_size, taps * grid.tap_step) * (real.c_out // problem.c_out_group)
    halo = (taps - 1) * grid.input_step
    wanted = max(min(1024, most_cells // kernel), 128 if variant == "rows" else 512, 8 * halo)
    wanted = max(wanted, min(LEAST_CELLS // (kernel * problem.c_out_group), MOST_INPUTS // real.c_in))
    wanted = max(min(wanted, most_cells // kernel), halo + 1)
    batches, channels = problem.batch, 1
    if problem.l_in + halo <= wanted:
        batches = ceil_div(problem.batch, max(wanted // (problem.l_in * real.planes), 1))
        row_tiles = 1
    else:
        row_tiles = ceil_div(grid.rows, max(wanted - halo, 1))

    def cells() -> int:
        columns = min(ceil_div(grid.rows, row_tiles) + halo, problem.l_in) * real.planes
        return columns * ceil_div(problem.batch, batches) * ceil_div(problem.c_out_group, channels) * kernel

    while cells() > most_cells and channels < problem.c_out_group:
        channels = min(max(channels + 1, channels * cells() // most_cells), problem.c_out_group)
    for _ in range(workers):
        total = batches * channels * row_tiles * problem.groups
        if total % workers == 0 or total >= 8 * workers:
            break
        if row_tiles == 1 and channels < problem.c_out_group:
            channels += 1
        elif row_tiles == 1 and batches < problem.batch:
            batches += 1
        elif grid.rows > 64 * row_tiles:
            row_tiles += 1
    tiles = (problem.batch, batches), (problem.c_out_group, channels), (grid.rows, row_tiles)
    batch_tile, channel_tile, row_tile = (ceil_div(extent, count) for extent, count in tiles)
    return batch_tile, channel_tile, row_tile, 1


def _tap_parts(problem: Problem, most_cells: int, workers: int) -> int:
    """Parts, one for each worker, of the taps of one channel that are more than its inputs; else one.

    BLAS copies both operands: a part of the taps has it copy x again, a part of the rows the weight.
    """
    real, parts = RealShape.of(problem), min(workers, row_grid(problem).max_taps)
    if problem.batch * real.planes * problem.groups * problem.c_out > 1 or problem.kernel_size <= problem.l_in:
        return 1
    cells = problem.l_in * ceil_div(problem.kernel_size, parts)
    return parts if parts > 1 and cells <= most_cells and threads(problem, workers) > 1 else 1
