# SPDX-License-Identifier: MIT
"""Tiles of the weight streaming kernel: columns it keeps sums of, taps of a block, parts of the contraction."""

from __future__ import annotations

from cupy_convt.core.problem import ACCUMULATOR, ITEM_BYTES, Problem, ceil_div

#: CONVT_COLUMNS: inputs of a channel, over the whole batch.
COLUMNS = (1, 4, 16)
BLOCK = 256
#: Warps of a block, each with channels of its own; and the most channels of a block, whose inputs lie in shared memory.
WARPS, MOST_CHANNELS = 8, 256


def columns(problem: Problem) -> int:
    """Columns (n, i)."""
    return problem.batch * problem.l_in


def row(problem: Problem) -> int:
    """Taps (co, j) of one input channel, side by side in the weight."""
    return problem.c_out_group * problem.kernel_size


def element_tiles(problem: Problem) -> int:
    """Tiles of 512 bytes of a row."""
    return ceil_div(row(problem) * ITEM_BYTES[problem.weight_dtype], 512)


def parts(problem: Problem, channels: int) -> int:
    """Parts of the contraction, of so many input channels each."""
    return ceil_div(problem.c_in_group, channels)


def blocks(problem: Problem, channels: int) -> int:
    """Blocks of weight_stream."""
    return problem.groups * element_tiles(problem) * parts(problem, channels)


def shared_bytes(problem: Problem, channels: int, held: int) -> int:
    """Inputs of a block's channels in `held` columns; later the warps' sums, four columns at a time."""
    unit, sums = 16 // ITEM_BYTES[problem.weight_dtype], ITEM_BYTES[problem.accumulator]
    plane = 32 + 128 // sums // unit
    inputs = min(channels, problem.c_in_group) * held * ITEM_BYTES[ACCUMULATOR.get(problem.x_dtype, problem.x_dtype)]
    return max(inputs, WARPS * min(held, 4) * unit * plane * sums)
