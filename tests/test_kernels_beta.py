# SPDX-License-Identifier: MIT
"""What a result held before: every kernel that writes one adds beta times it, in the emulator's checking mode.

Everywhere else kernels get a result that was never written, which the emulator refuses to read.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from cupy_convt.core import (
    plan_direct,
    plan_fft,
    plan_fft_block,
    plan_gemm,
    plan_hopper,
    plan_implicit,
    plan_weight_stream,
)
from cupy_convt.core.device import PRESETS
from cupy_convt.core.launch import Plan
from cupy_convt.core.problem import Problem
from tests import cases
from tests import test_kernels_hopper as hopper
from tests.cases import GEOMETRIES, PAIRS, pair_id
from tests.emulated import EmulatedArray, empty, make_engine, to_device, to_host

LIMIT = 256 << 20
H200 = replace(PRESETS["h200"], three_tf32=True)
#: So small that few tiles are waves of them.
ONE = replace(H200, multiprocessors=1)
PLANNERS = (plan_direct, plan_implicit, plan_weight_stream, plan_gemm, plan_fft, plan_fft_block)
#: Run by the fast subset as well.
FAST = {("ragged", ("float32", "float32")), ("depthwise", ("float16", "float16")), ("dilated", ("float32", "float32"))}


def weighted(name: str, pair: tuple[str, str], beta: float) -> Problem:
    return replace(cases.problem(name, *pair), beta=beta)


def plans(p: Problem) -> list[Plan]:
    found = [plan for planner in PLANNERS for plan in planner.candidates(p, H200, LIMIT)]
    return found + list(plan_hopper.candidates(p, ONE, LIMIT))


def held(p: Problem, shift: int = 0) -> tuple[EmulatedArray, np.ndarray]:
    """A result with values in it, on the device and on the host."""
    old = cases.values(np.random.default_rng(9), p.out_shape, p.out_dtype)
    out = empty(p.out_shape, p.out_dtype, shift)
    out[...] = old
    assert out.buffer is not None
    out.buffer.mark_written()
    return out, old


def check(p: Problem, plan: Plan, shift: int = 0) -> None:
    x, weight, bias = cases.operands(p)
    out, old = held(p, shift)
    make_engine().run(p, plan, to_device(x), to_device(weight), None if bias is None else to_device(bias), out)
    limit, wanted = cases.blended(p, plan, x, weight, bias, old)
    excess = np.abs(to_host(out).astype(wanted.dtype) - wanted) / limit
    assert excess.max() <= 1, f"{plan.name} on {p}: {excess.max():.2f} times the tolerance"


@pytest.mark.parametrize(
    ("name", "pair"),
    [
        pytest.param(name, pair, marks=() if (name, pair) in FAST else pytest.mark.slow, id=f"{name}-{pair_id(pair)}")
        for name in GEOMETRIES
        for pair in PAIRS
    ],
)
def test_beta_times_what_was_there_is_added(name: str, pair: tuple[str, str]) -> None:
    p = weighted(name, pair, -0.75)
    for plan in plans(p):
        check(p, plan)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ragged", "depthwise", "prime", "stride six", "short rows"])
@pytest.mark.parametrize("pair", [("float32", "float32"), ("float16", "float16")], ids=pair_id)
def test_results_that_start_anywhere(name: str, pair: tuple[str, str]) -> None:
    p = weighted(name, pair, 1.0)
    for plan in plans(p):
        for shift in (1, 3):
            check(p, plan, shift)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", hopper.DTYPES)
@pytest.mark.parametrize("name", hopper.ROWS)
def test_ways_out_of_the_products(name: str, dtype: str) -> None:
    """Rows long enough for a loop of their own, from and to samples that begin no sector."""
    *sizes, p_left, p_right = hopper.ROWS[name]
    p = replace(hopper.problem_of(dtype, *sizes, p_left=p_left, p_right=p_right), beta=0.5)
    products = [plan for plan in plan_implicit.candidates(p, H200, LIMIT) if plan.method == "gemm"]
    for plan in products + list(plan_hopper.candidates(p, ONE, LIMIT)):
        for shift in (0, 1):
            check(p, plan, shift)
