# SPDX-License-Identifier: MIT
"""Blocks of rows as products with banded matrices: what is kept between calls, what is read, the bias."""

from dataclasses import replace

import numpy as np
import pytest

from cupy_convt.core.plan_cpu import CpuPlan, block_by_block
from cupy_convt.core.problem import Problem, ceil_div
from cupy_convt.core.rows_cpu import RealShape
from tests.test_cpu import AWKWARD, ENGINE, arguments, assert_close, empty, plans, run


def blocks(problem: Problem) -> list[CpuPlan]:
    return [plan for plan in plans(problem) if plan.block]


@pytest.mark.parametrize("name", ["depthwise", "short depthwise", "one sample", "several tiles"])
def test_weights_packed_by_tiles_give_the_same_bits(name: str) -> None:
    """Zeros beside the bands are kept between calls: those of other geometries, and other weights, leave no trace."""
    problem = AWKWARD[name]
    for seed, shift in ((0, 0), (1, 0), (2, 1), (3, 0), (4, -1)):
        shifted = replace(problem, p_left=problem.p_left + shift, p_right=problem.p_right - shift)
        x, weight, bias = arguments(shifted, seed)
        for plan in blocks(shifted):
            out = empty(shifted)
            ENGINE.run(shifted, plan, x, weight, bias, out, ENGINE.pack(shifted, plan, weight))
            assert out.tobytes() == run(shifted, plan, x, weight, bias).tobytes(), plan.name


def test_short_signals_of_a_batch_are_read_where_they_lie() -> None:
    """Products of x itself: what lies beside a signal in memory is not even multiplied by zero."""
    problem = Problem(5, 3, 20, 3, 4, 2, groups=3, p_left=1, p_right=1)
    x, weight, bias = arguments(problem)
    around = np.full((5, 3, 22), np.nan, x.dtype)
    around[..., 1:-1] = x
    chosen = blocks(problem)
    assert chosen
    for plan in chosen:
        assert block_by_block(RealShape.of(problem), problem.batch, ceil_div(20, plan.block))
        out = run(problem, plan, around[..., 1:-1], weight, bias)
        assert_close(problem, plan, out, x, weight, bias)
        without = run(problem, plan, np.asfortranarray(x), weight)
        assert_close(problem, plan, without, x, weight, np.zeros_like(bias))


@pytest.mark.parametrize("shape", [(1, 40), (1, 3000), (2, 700), (3, 33), (4, 33)])
def test_the_bias_of_blocks_is_added_once(shape: tuple[int, int]) -> None:
    for groups, outputs in ((3, 3), (3, 6), (1, 2)):
        problem = Problem(shape[0], 3, shape[1], outputs, 4, 2, groups=groups, has_bias=True)
        x, weight, bias = arguments(problem)
        for dtype in ("float32", "complex64"):
            mixed = replace(problem, x_dtype=dtype)
            values = x if dtype == "float32" else x + 1j * x[..., ::-1]
            offset = bias if dtype == "float32" else bias - 2j * bias
            for plan in blocks(mixed):
                got = run(mixed, plan, values, weight, offset)
                assert_close(mixed, plan, got, values, weight, offset)


@pytest.mark.parametrize("shape", [(1, 5), (1, 40), (2, 3000), (1, 70_000)])
@pytest.mark.parametrize("inputs", [1, 2])
def test_windows_of_x_and_of_a_padded_copy_give_the_same_bits(shape: tuple[int, int], inputs: int) -> None:
    for groups, kernel, padding in ((3, 4, 0), (2, 9, 4)):
        ends = {"p_left": padding, "p_right": padding}
        problem = Problem(shape[0], groups * inputs, shape[1], groups, kernel, 2, groups=groups, **ends)
        x, weight, bias = arguments(problem)
        apart = np.repeat(x, 2, axis=-1)[..., ::2]  # every second number: not x itself
        for plan in blocks(problem):
            out = run(problem, plan, x, weight, bias)
            assert_close(problem, plan, out, x, weight, bias)
            run(problem, plan, x + 1, weight, bias)  # what is kept from call to call is the same for all x
            assert out.tobytes() == run(problem, plan, apart, weight, bias).tobytes(), plan.name


def test_a_tap_that_is_no_number_stays_in_its_channel() -> None:
    problem = Problem(1, 6, 50, 6, 4, 2, groups=6)
    x, weight, bias = arguments(problem)
    weight[2, 0, 1], weight[4, 0, 3] = np.nan, np.inf
    with np.errstate(all="raise"):
        for plan in blocks(problem):
            for packed in (None, ENGINE.pack(problem, plan, weight)):
                out = empty(problem)
                ENGINE.run(problem, plan, x, weight, bias, out, packed)
                assert np.isfinite(out[:, [0, 1, 3, 5]]).all(), plan.name
                assert np.isnan(out[0, 2, 1:100:2]).all(), plan.name
                assert not np.isfinite(out[0, 4, 3:102:2]).any(), plan.name
