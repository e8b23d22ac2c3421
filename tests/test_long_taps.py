# SPDX-License-Identifier: MIT
"""method="fft" from one tap to 262144 on both engines, GPU plans in the emulator's checking mode: against transforms of
the zero-stuffed signal in double precision, within the bounds of core/accuracy.py; and memory within the limit."""

from __future__ import annotations

import weakref
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from cupy_convt.core import plan_fft, plan_fft_block
from cupy_convt.core.accuracy import error_bound
from cupy_convt.core.device import PRESETS
from cupy_convt.core.launch import Fft
from cupy_convt.core.problem import EPSILON, Problem
from cupy_convt.engines.runtime import GpuEngine
from tests.cases import PAIRS, operands, pair_id
from tests.emulated import EmulatedArray, EmulatorRuntime, empty, make_engine, to_device, to_host
from tests.test_accuracy import allowed
from tests.test_cpu_fft import fft_plans, run, traced, wanted

H200, LIMIT = PRESETS["h200"], 256 << 20
#: A prime beside each.
TAPS = [1, 2, 3, 5, 4096, 4099, 65_536, 65_537, 262_144, 262_147]
#: Several channels, windows shorter than the signal, a crop, dilation: each with thousands of taps.
SHAPES = {
    "overlap-save": Problem(1, 1, 60_000, 1, 4096, 2, has_bias=True),
    "dense": Problem(2, 3, 20, 3, 4099, 5, p_left=1000, p_right=7, has_bias=True),
    "groups, dilated": Problem(2, 4, 60, 2, 4099, 2, 3, groups=2, p_left=-5, p_right=4000),
}


def gpu_plans(problem: Problem, limit: int = LIMIT) -> list[Any]:
    return [plan for planner in (plan_fft_block, plan_fft) for plan in planner.candidates(problem, H200, limit)]


def check(problem: Problem, plan: Any, y: Any, x: Any, weight: Any, bias: Any, want: Any) -> None:
    limit = allowed(problem, error_bound(problem, plan), x, weight, bias, want)
    if EPSILON[problem.accumulator] < 1e-10:
        limit = 2 * limit  # what it is compared with has errors of the same size
    error = np.abs(y.astype(want.dtype) - want)
    assert (error <= limit).all(), f"{plan.name} on {problem}: {(error - limit).max()} over the bound"


def check_all(problem: Problem) -> None:
    """Every plan by transforms of both engines."""
    x, weight, bias = operands(problem)
    want = wanted(problem, x, weight, np.zeros(problem.c_out) if bias is None else bias)
    given = [None if a is None else to_device(a) for a in (x, weight, bias)]
    plans = gpu_plans(problem)
    assert plans
    for plan in plans:
        out = empty(problem.out_shape, problem.out_dtype)
        make_engine().run(problem, plan, *given, out)
        check(problem, plan, to_host(out), x, weight, bias, want)
    for plan in fft_plans(problem):
        check(problem, plan, run(problem, plan, x, weight, bias), x, weight, bias, want)


@pytest.mark.slow
@pytest.mark.parametrize("taps", TAPS)
@pytest.mark.parametrize("stride", [1, 2, 5])
def test_any_number_of_taps(taps: int, stride: int) -> None:
    check_all(Problem(1, 1, 150, 1, taps, stride, has_bias=taps % 2 == 1))


@pytest.mark.slow
@pytest.mark.parametrize("taps", [65_536, 262_147])
@pytest.mark.parametrize("pair", PAIRS, ids=pair_id)
def test_every_dtype_with_long_taps(taps: int, pair: tuple[str, str]) -> None:
    check_all(Problem(1, 1, 90, 1, taps, 5, p_left=3, x_dtype=pair[0], weight_dtype=pair[1], has_bias=True))


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("dtype", ["float32", pytest.param("complex128", marks=pytest.mark.slow)])
def test_shapes_with_long_taps(name: str, dtype: str) -> None:
    check_all(replace(SHAPES[name], x_dtype=dtype, weight_dtype=dtype))


def test_the_shapes_reach_every_form() -> None:
    found = {plan.variant.rstrip("0123456789") for p in SHAPES.values() for plan in gpu_plans(p)}
    whole = {f"{form}one block of " for form in ("", "matrices, ", "three-product matrices, ")}
    assert found == whole | {"overlap-save of ", "fused block of "}


class Living(EmulatorRuntime):
    """Counts the bytes that are allocated and not yet let go."""

    living = peak = 0

    def empty(self, shape: tuple[int, ...], dtype: str) -> EmulatedArray:
        found = super().empty(shape, dtype)
        self._count(found.nbytes)
        weakref.finalize(found, self._count, -found.nbytes)
        return found

    def _count(self, nbytes: int) -> None:
        self.living += nbytes
        self.peak = max(self.peak, self.living)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("problem", "limit"),
    [
        (Problem(5, 1, 50, 1, 262_144, 2), 8 << 20),
        (Problem(4, 3, 20, 4, 8011, 5, x_dtype="complex64", weight_dtype="complex64"), 5 << 19),
    ],
    ids=["mono", "dense"],
)
def test_memory_of_long_taps_stays_under_the_limit(problem: Problem, limit: int) -> None:
    x, weight, _ = operands(problem)
    want = wanted(problem, x, weight, np.zeros(problem.c_out))
    tiled = 0
    for whole, plan in zip(gpu_plans(problem), gpu_plans(problem, limit), strict=True):
        tiled += len(plan.steps) > len(whole.steps)
        assert plan.workspace_bytes <= limit < whole.workspace_bytes
        runtime, out = Living(), empty(problem.out_shape, problem.out_dtype)
        GpuEngine(runtime).run(problem, plan, to_device(x), to_device(weight), None, out)
        check(problem, plan, to_host(out), x, weight, None, want)
        # the library's own memory is not the runtime's
        transforms = [step.batch * step.length for step in plan.steps if isinstance(step, Fft)]
        assert 4 * max(transforms) <= plan.library_bytes
        assert runtime.living == 0
        assert runtime.peak + plan.library_bytes <= plan.workspace_bytes
    assert tiled
    chosen = [plan for plan in fft_plans(problem, 24 << 20) if plan.workspace_bytes <= 24 << 20]
    assert chosen
    for plan in chosen:
        assert traced(replace(problem, has_bias=True), plan) <= plan.workspace_bytes + (1 << 18), plan.name
