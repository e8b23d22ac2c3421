# SPDX-License-Identifier: MIT
"""Launches that all forms of the implicit GEMM share: arguments as kernels/implicit.cuh has them, packed weights."""

from __future__ import annotations

from cupy_convt.core.implicit_tiles import (
    CHUNK_BYTES,
    Tile,
    chunks,
    column_tiles,
    in_runs,
    line,
    panel_taps,
    split,
)
from cupy_convt.core.launch import CUDA_TYPES, I32, I64, Argument, Launch, Stride, epilogue
from cupy_convt.core.problem import ITEM_BYTES, Problem

_PACK_BLOCK = 256


def product_arguments(problem: Problem, tile: Tile, out: str) -> tuple[Argument, ...]:
    """CT_PRODUCT_PARAMETERS: what the products take first."""
    rows, phases, columns = split(problem, tile), problem.phases, line(problem)
    numbers = (
        *(columns.columns, problem.batch, problem.c_in_group, problem.c_out_group, chunks(problem), phases.max_taps),
        *(panel_taps(problem), phases.input_step, len(phases.active), rows.channels, rows.phases, rows.phase_tiles),
        *(rows.tiles, column_tiles(problem, tile)),
    )
    strides = (Stride("x", 0), Stride("x", 1), Stride("out", 0), Stride("out", 1))
    lengths = (I64(problem.l_in), I64(problem.l_out), I64(problem.p_left), I64(columns.first_u))
    return ("x", "tiles", "bias", out, *strides, *lengths, *(I32(n) for n in numbers))


def way_out(problem: Problem, pitch: int) -> tuple[Argument, ...]:
    """CT_WAY_OUT_PARAMETERS, what they and implicit_finish take last; `pitch` elements between two staged channels."""
    phases = problem.phases
    inverse = pow(phases.input_step, -1, phases.tap_step) if phases.tap_step > 1 else 0
    taps = (problem.kernel_size, problem.stride, problem.dilation, phases.tap_step, inverse)
    return (*(I32(n) for n in (*taps, int(in_runs(problem)), pitch)), *epilogue(problem))


def pack_defines(dtype: str, tile: Tile, order: int) -> tuple[tuple[str, str | int], ...]:
    """Defines of pack_weights; `order` is its CONVT_ROW_MAJOR."""
    return ("CONVT_T", CUDA_TYPES[dtype]), ("CONVT_BM", tile.rows), ("CONVT_ROW_MAJOR", order)


def pack(problem: Problem, tile: Tile, order: int) -> Launch:
    """The launch that leaves the weight in tiles."""
    rows, phases = split(problem, tile), problem.phases
    numbers = (
        *(problem.c_in_group, problem.c_out_group, problem.kernel_size, phases.tap_step, phases.max_taps),
        *(len(phases.active), rows.channels, rows.phases, rows.channel_tiles, rows.phase_tiles, chunks(problem)),
    )
    arguments: tuple[Argument, ...] = ("weight", "tiles", *(I32(n) for n in numbers))
    defines = pack_defines(problem.weight_dtype, tile, order)
    return Launch("pack_weights", defines, pack_blocks(problem, tile), _PACK_BLOCK, 0, arguments)


def pack_blocks(problem: Problem, tile: Tile) -> int:
    """Blocks of that launch."""
    return problem.groups * split(problem, tile).tiles * chunks(problem)


def packed_count(problem: Problem, tile: Tile) -> int:
    """Elements of the packed weight."""
    channels = CHUNK_BYTES // ITEM_BYTES[problem.weight_dtype]
    return pack_blocks(problem, tile) * problem.phases.max_taps * channels * tile.rows
