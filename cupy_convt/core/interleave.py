# SPDX-License-Identifier: MIT
"""Launch geometry that kernels/interleave.cuh asks for: tiles of q by residues, and how taps meet the output."""

from __future__ import annotations

from dataclasses import dataclass

from cupy_convt.core.launch import GRID_LIMIT, I32, I64, Argument
from cupy_convt.core.problem import ITEM_BYTES, Problem, ceil_div

#: CT_TILE_Q, and the threads of a block.
TILE_Q = 128
BLOCK = 256
_STAGE_BYTES = 32 << 10


@dataclass(frozen=True)
class Interleave:
    """Blocks of an interleaving kernel over q_total values of q in each of `rows` rows."""

    residue_tile: int
    residue_tiles: int
    q_tiles: int
    grid: int
    shared_bytes: int

    @property
    def arguments(self) -> tuple[Argument, ...]:
        """(residue_tile, residue_tiles, q_tiles) as the kernels take them."""
        return I32(self.residue_tile), I32(self.residue_tiles), I32(self.q_tiles)


def interleave(problem: Problem, rows: int, q_total: int) -> Interleave:
    """Tiles of 128 q and as many residues as stage in 32 KiB; the whole stride if it fits, so that runs are long."""
    item = ITEM_BYTES[problem.accumulator if problem.beta else problem.out_dtype]
    most = _STAGE_BYTES // (TILE_Q * item)
    tiles = ceil_div(problem.stride, most)
    tile = ceil_div(problem.stride, tiles)
    q_tiles = ceil_div(q_total, TILE_Q)
    return Interleave(tile, tiles, q_tiles, rows * tiles * q_tiles, TILE_Q * tile * item)


def tap_arguments(problem: Problem) -> tuple[Argument, ...]:
    """(kernel_size, stride, dilation, tap_step, inverse of d/c modulo s/c)."""
    classes = problem.phases
    inverse = pow(classes.input_step, -1, classes.tap_step) if classes.tap_step > 1 else 0
    numbers = (problem.kernel_size, problem.stride, problem.dilation, classes.tap_step, inverse)
    return tuple(I32(n) for n in numbers)


def crop_arguments(problem: Problem) -> tuple[Argument, ...]:
    """p_left as (p_q, p_r): p_q * s + p_r with 0 <= p_r < s."""
    return I64(problem.p_left // problem.stride), I32(problem.p_left % problem.stride)


def q_count(problem: Problem) -> int:
    """Values of q = t // s in a row of the result."""
    return ceil_div(problem.l_out, problem.stride)


def why_not(problem: Problem) -> str:
    """Why the interleaving kernels cannot take a geometry; empty if they can."""
    if problem.stride * problem.phases.input_step >= 2**30 or problem.effective_kernel >= 2**30:
        return "the least common multiple of stride and dilation, and the kernel's reach, must be below 2^30"
    if problem.batch * problem.c_out * interleave(problem, 1, q_count(problem)).grid > GRID_LIMIT:
        return "more than 2^31 tiles"
    return ""
