# SPDX-License-Identifier: MIT
"""Banded matrices of taps: what cpu_toeplitz.py wants of the weight.

Row u of a block's window is the input q0 - lookback + u, which has tap j in the sample

    (u - lookback) s + j d - p_left

of the block. Many filters of few taps are put there by a product with zeros and ones, which takes half the time of
storing them one by one.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from cupy_convt.core.plan_cpu import CpuPlan
from cupy_convt.core.problem import Problem
from cupy_convt.core.rows_cpu import RealShape, RowGrid, row_grid
from cupy_convt.engines.cpu_threads import Array, Scratch

#: Samples of a block, and numbers in all, up to which a matrix of zeros and ones puts taps in their places.
_PLACED_WIDTH, _PLACED_SIZE = 24, 1 << 16


class Blocks(NamedTuple):
    """The sizes of a plan: the bands of a filter are (ci, window, width)."""

    grid: RowGrid
    groups: int
    c_in: int
    c_out: int
    window: int
    width: int

    def grouped(self, weight: Array) -> Array:
        """A real weight (C_in', C_out'/g, K) as (g, ci, co, K)."""
        return weight.reshape(self.groups, self.c_in, self.c_out, -1)

    def shape(self, groups: int) -> tuple[int, int, int, int]:
        """Of the matrices of so many groups."""
        return groups, self.c_out, self.c_in * self.window + 1, self.width


@lru_cache(maxsize=1024)
def blocks_of(problem: Problem, plan: CpuPlan) -> Blocks:
    """The sizes of a plan."""
    real, grid = RealShape.of(problem), row_grid(problem)
    window = plan.block + grid.span
    return Blocks(grid, problem.groups, real.c_in, real.c_out, window, plan.block * problem.stride)


def pack(problem: Problem, plan: CpuPlan, weight: Array) -> Array:
    """The banded matrices (g, co, ci (B + span) + 1, B s) of a real weight (C_in', C_out'/g, K), with a row of ones."""
    sizes = blocks_of(problem, plan)
    out = np.zeros(sizes.shape(problem.groups), weight.dtype)
    out[:, :, -1] = 1
    with np.errstate(invalid="ignore"):
        _fill_bands(problem, sizes, sizes.grouped(weight), out)
    return out


def packs_by_tile(problem: Problem, plan: CpuPlan) -> bool:
    """Whether every matrix is met by one tile, which then makes it where it is about to be read."""
    return plan.batch_tile >= problem.batch and plan.row_tile >= row_grid(problem).rows


def pack_tile(problem: Problem, sizes: Blocks, weight: Array, bias: Array | None, scratch: Scratch) -> Array:
    """The banded matrices of the weight (g, ci, co, K) of a tile, in working memory, with a row of the bias (g, co)."""
    pattern = sizes.width, problem.stride, problem.dilation, problem.kernel_size, problem.p_left % problem.stride
    out, new = scratch.zero_but("matrices", sizes.shape(weight.shape[0]), weight.dtype, (*pattern, bias is None))
    if bias is not None:
        out[:, :, -1] = bias[..., None]
    elif new:
        out[:, :, -1] = 1
    _fill_bands(problem, sizes, weight, out)
    return out


def _fill_bands(problem: Problem, sizes: Blocks, weight: Array, out: Array) -> None:
    """Write the taps of a weight (g, ci, co, j) into contiguous matrices that are zero elsewhere."""
    grid, stride, item = sizes.grid, problem.stride, out.itemsize
    groups, c_in, c_out, kernel = weight.shape
    if c_in == 1 and sizes.width <= _PLACED_WIDTH and kernel * sizes.window * sizes.width <= _PLACED_SIZE:
        first = -grid.lookback * stride - problem.p_left
        places = _places((kernel, sizes.window, sizes.width), first, stride, problem.dilation, out.dtype)
        home = out.reshape(groups * c_out, -1)[:, : places.shape[1]]
        np.matmul(weight.reshape(groups * c_out, kernel), places, out=home)
        return
    row = sizes.width * item
    matrix = sizes.window * row
    for phase in problem.phases.active:
        residue = (phase.residue - problem.p_left) % stride
        lead = (residue + problem.p_left - phase.residue) // stride + phase.offset
        taps = weight[..., phase.first_tap :: grid.tap_step].transpose(0, 2, 1, 3)[..., ::-1, None]
        oldest = lead + grid.lookback - (phase.taps - 1) * grid.input_step
        diagonal: Array = np.ndarray(
            (groups, c_out, c_in, phase.taps, sizes.width // stride),
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


@lru_cache(maxsize=64)
def _places(shape: tuple[int, int, int], first: int, stride: int, dilation: int, dtype: np.dtype[Any]) -> Array:
    """Zeros and ones (K, window width): where each tap is in bands (K, window, width), tap 0 of row 0 in `first`."""
    tap, row, sample = np.ogrid[: shape[0], : shape[1], : shape[2]]
    return np.asarray(first + row * stride + tap * dilation == sample, dtype).reshape(shape[0], -1)
