# SPDX-License-Identifier: MIT
"""Plans of sub-pixel convolutions: where they are offered, in how much memory, and when they are chosen."""

from dataclasses import replace

import pytest

from cupy_convt.core.cost import packing_seconds
from cupy_convt.core.device import DeviceSpec, preset
from cupy_convt.core.dispatch import choose
from cupy_convt.core.plan_cpu import CpuPlan, candidates
from cupy_convt.core.problem import Problem

LIMIT = 256 << 20
CONVOLUTIONS = replace(preset("cpu"), convolutions=True)
BOTH = replace(CONVOLUTIONS, fp16=4e11)
DENSE = Problem(2, 12, 40, 10, 16, 8, p_left=4, p_right=4, has_bias=True)
HALF = replace(DENSE, x_dtype="bfloat16", weight_dtype="bfloat16")


def offered(problem: Problem, device: DeviceSpec = BOTH, limit: int = LIMIT) -> list[CpuPlan]:
    return [plan for plan in candidates(problem, device, limit) if plan.subpixel]


def names(problem: Problem, device: DeviceSpec) -> list[str]:
    return [plan.variant for plan in offered(problem, device)]


def test_offered_where_there_is_a_library_for_it() -> None:
    assert names(DENSE, CONVOLUTIONS) == names(DENSE, BOTH) == ["subpixel"]
    assert names(HALF, BOTH) == ["subpixel_bf16", "im2col_bf16"]
    assert not names(HALF, CONVOLUTIONS)
    assert not names(DENSE, preset("cpu")) and not names(HALF, preset("cpu"))
    for dtype in ("float16", "float64", "complex64"):
        assert not names(replace(DENSE, x_dtype=dtype, weight_dtype=dtype), BOTH)
    assert not names(replace(DENSE, x_dtype="complex64"), BOTH)


@pytest.mark.parametrize(
    "changes",
    [{"groups": 2}, {"dilation": 2}, {"kernel_size": 7}, {"kernel_size": 80}, {"p_left": 16}, {"p_left": -99}],
)
def test_not_offered_for_what_it_does_not_do_well(changes: dict[str, int]) -> None:
    assert not names(replace(DENSE, **changes), BOTH)


def test_a_plan_says_what_becomes_of_subnormal_numbers_and_of_memory() -> None:
    assert all("subnormal" in plan.notes[0] for plan in offered(HALF))
    for problem in (DENSE, HALF):
        assert all(("copies" in " ".join(plan.notes)) == (plan.packed_bytes > 0) for plan in offered(problem))


@pytest.mark.parametrize("limit", [1 << 16, 1 << 20, LIMIT])
def test_tiles_stay_below_the_limit(limit: int) -> None:
    for problem in (DENSE, HALF, replace(DENSE, l_in=100_000), replace(HALF, l_in=100_000)):
        for plan in offered(problem, limit=limit):
            assert plan.workspace_bytes <= limit, (problem, plan.name)


def test_a_graph_serves_every_batch_and_length() -> None:
    for problem in (DENSE, HALF):
        for plan, other in zip(offered(problem), offered(replace(problem, batch=7, l_in=99)), strict=True):
            assert plan.packing_key == other.packing_key
            assert (plan.packing_key == ()) == (plan.packed_bytes == 0) == plan.variant.startswith("im2col")


def test_a_kept_float32_weight_of_a_short_input_is_worth_a_graph() -> None:
    problem = Problem(1, 512, 87, 256, 16, 8, p_left=4, p_right=4, has_bias=True)
    assert choose(problem, BOTH, kept=True).plan.variant == "subpixel"
    assert choose(problem, BOTH).plan.variant != "subpixel"
    assert packing_seconds(problem, offered(problem)[0], BOTH) > 0.03


def test_a_bfloat16_weight_that_is_met_once_is_multiplied_as_it_lies() -> None:
    problem = replace(HALF, c_in=1024, c_out=1024, kernel_size=2, stride=2, l_in=125, p_left=0, p_right=0)
    assert choose(problem, BOTH, kept=True).plan.variant == "subpixel_bf16"
    assert choose(problem, BOTH).plan.variant == "im2col_bf16"
