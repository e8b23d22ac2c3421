# SPDX-License-Identifier: MIT
"""Rounding errors of the tensor-core forms over long contractions, in the emulator.

The emulator sums the products of one instruction in float32, in k order. Hardware sums in another order and keeps other
bits, so a device has to be measured before `DeviceSpec.three_tf32` says that its three products stay within the bound.
"""

from __future__ import annotations

from dataclasses import replace
from math import sqrt

import numpy as np
import pytest

from cupy_convt.core import plan_implicit, plan_weight_stream
from cupy_convt.core.device import PRESETS
from cupy_convt.core.launch import Plan
from cupy_convt.core.problem import EPSILON, Problem
from cupy_convt.engines.cpu import reference
from tests import cases
from tests.emulated import make_engine, to_device, to_host

H200 = replace(PRESETS["h200"], three_tf32=True)
#: Terms C_in * J of a sum; J is 2, and 16 for the longest.
TERMS = {64: (32, 2), 512: (256, 2), 2048: (1024, 2), 4096: (256, 16)}


def problem_of(terms: int, dtype: str, length: int = 24, **rest: str) -> Problem:
    channels, taps = TERMS[terms]
    return Problem(
        1, channels, length, 3, 2 * taps, 2, p_left=taps, p_right=taps, x_dtype=dtype, weight_dtype=dtype, **rest
    )


def plan_of(problem: Problem, unit: str) -> Plan:
    """The plan of the smallest tile, its contraction in one part."""
    plans = plan_implicit.candidates(problem, H200, 1 << 30)
    return [plan for plan in plans if plan.variant.startswith(f"implicit/{unit}-") and not plan.workspaces][-1]


def run(problem: Problem, plan: Plan) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(result, what it should be, sum |x||w|), each as float64."""
    x, weight, _ = cases.operands(problem, seed=problem.c_in)
    engine = make_engine("fast")
    out = engine.empty(problem.out_shape, problem.out_dtype)
    engine.run(problem, plan, to_device(x), to_device(weight), None, out)
    wide = replace(problem, x_dtype="float64", weight_dtype="float64")
    exact, sizes = (reference(wide, *pair) for pair in ((x, weight), (np.abs(x), np.abs(weight))))
    return to_host(out).astype(np.float64), exact, sizes


@pytest.mark.parametrize("terms", TERMS)
def test_three_tf32_products_are_as_exact_as_float32(terms: int) -> None:
    problem = problem_of(terms, "float32")
    errors = {}
    for unit in ("3xtf32", "fma"):
        got, exact, sizes = run(problem, plan_of(problem, unit))
        error = np.abs(got - exact)
        assert (error <= (4 + sqrt(terms)) * EPSILON["float32"] * sizes).all(), unit
        errors[unit] = np.sqrt(np.mean(error**2)), error.max()
    assert errors["fma"][0] > 0
    for split, plain in zip(errors["3xtf32"], errors["fma"], strict=True):
        assert split <= 4 * plain, (split / plain, terms)


def test_one_tf32_product_is_not() -> None:
    """The test above can tell: operands rounded once to TF32 are a thousand times further off."""
    problem = problem_of(512, "float32", precision="tf32")
    got, exact, sizes = run(problem, plan_of(problem, "tf32"))
    error = np.abs(got - exact)
    assert (error <= 2.0**-10 * sizes).all()
    plain, _, _ = run(problem, plan_of(problem, "fma"))
    assert error.max() > 100 * np.abs(plain - exact).max()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("terms", TERMS)
def test_halves_are_within_one_rounding_of_float32_sums(terms: int, dtype: str) -> None:
    """Half a unit in the last place of the result, and what float32 sums of so many terms may be off."""
    few = problem_of(terms, dtype, 16)
    (stream,) = plan_weight_stream.candidates(few, H200, 1 << 30)
    wide = problem_of(terms, dtype)
    for problem, plan in ((wide, plan_of(wide, "mma")), (few, stream)):
        got, exact, sizes = run(problem, plan)
        sums = (4 + sqrt(terms)) * EPSILON["float32"] * sizes
        error = np.abs(got - exact)
        assert (error <= sums + EPSILON[dtype] / 2 * (np.abs(exact) + sums)).all(), plan.name
        # sums kept in halves would be off by more
        assert error.max() < EPSILON[dtype] * np.abs(exact).max()
