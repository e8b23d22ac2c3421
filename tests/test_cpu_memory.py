# SPDX-License-Identifier: MIT
"""What runs of the CPU engine allocate beside their result."""

import tracemalloc

import pytest

from cupy_convt.core.dispatch import choose
from cupy_convt.core.plan_cpu import CpuPlan
from cupy_convt.core.problem import Problem
from cupy_convt.engines import cpu_openvino_graphs, cpu_threads
from tests.test_cpu import ENGINE, arguments, assert_close, empty, plans, run


def traced(problem: Problem, plan: CpuPlan) -> int:
    """Bytes that a run allocates at its peak."""
    x, weight, bias = arguments(problem)
    out = empty(problem)
    forget_scratch()
    if plan.subpixel:
        cpu_openvino_graphs._library()  # what its import allocates is not the run's
    tracemalloc.start()
    ENGINE.run(problem, plan, x, weight, bias, out)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def forget_scratch() -> None:
    cpu_threads._pool().shutdown()
    cpu_threads._pool.cache_clear()
    cpu_threads._local.__dict__.clear()


@pytest.mark.slow
@pytest.mark.parametrize("limit", [4 << 20, 16 << 20])
@pytest.mark.parametrize(
    "problem",
    [
        Problem(1, 1, 700_000, 1, 81, 4, has_bias=True),
        Problem(40, 32, 4000, 16, 8, 4, has_bias=True),
        Problem(2, 4, 200_000, 2, 16, 4, x_dtype="complex64", weight_dtype="float32", has_bias=True),
        Problem(2, 64, 40_000, 64, 4, 2, groups=64, x_dtype="float16", weight_dtype="float16", has_bias=True),
        Problem(20, 64, 3, 64, 8000, 5, 2, 64, has_bias=True),
        Problem(2000, 32, 20, 64, 3, 1, has_bias=True),
        Problem(1000, 32, 20, 64, 6, 2, x_dtype="complex64", weight_dtype="float32", has_bias=True),
        Problem(40, 32, 4000, 16, 8, 4, has_bias=True, beta=0.5),
        Problem(2, 64, 40_000, 64, 4, 2, groups=64, x_dtype="float16", weight_dtype="float16", beta=1.0),
    ],
    ids=["mono", "dense", "mixed", "depthwise half", "few inputs", "short", "short mixed", "added", "half added"],
)
def test_memory_beside_the_result_stays_under_the_limit(problem: Problem, limit: int) -> None:
    chosen = [plan for plan in plans(problem, limit) if plan.workspace_bytes <= limit]
    assert {plan.method for plan in chosen} >= {"direct", "gemm"}
    for plan in chosen:
        slow = problem.macs > 3e8 and plan.method == "direct"
        if not slow:
            assert traced(problem, plan) <= limit + (1 << 18), plan.name


@pytest.mark.slow
def test_memory_of_a_result_of_two_gigabytes() -> None:
    problem = Problem(1, 1, (1 << 29) // 4, 1, 81, 4, p_left=40, p_right=37, has_bias=True)
    assert problem.out_bytes == 2 << 30
    limit = 64 << 20
    plan = next(plan for plan in plans(problem, limit) if plan.name == "gemm/toeplitz16")
    assert traced(problem, plan) <= limit


@pytest.mark.slow
@pytest.mark.parametrize("dtypes", [("float16", "float16"), ("bfloat16", "bfloat16"), ("float32", "complex64")])
def test_a_limit_below_the_converted_weight_is_kept(dtypes: tuple[str, str]) -> None:
    """A weight whose float32 copy alone exceeds the limit is converted a tile at a time."""
    problem = Problem(1, 256, 20, 128, 16, 8, has_bias=True, x_dtype=dtypes[0], weight_dtype=dtypes[1])
    limit = 1 << 20
    plan = choose(problem, ENGINE.device(), "auto", limit).plan
    assert isinstance(plan, CpuPlan)
    fitting = [plan for plan in plans(problem, limit) if plan.workspace_bytes <= limit]
    assert {plan.variant for plan in fitting} >= {"columns", "rows"}
    x, weight, bias = arguments(problem, 5)
    for plan in (plan for plan in fitting if plan.method == "gemm"):
        assert traced(problem, plan) <= limit + (1 << 18)
        assert_close(problem, plan, run(problem, plan, x, weight, bias), x, weight, bias)
