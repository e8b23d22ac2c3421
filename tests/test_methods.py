# SPDX-License-Identifier: MIT
"""Every plan of every method against the reference loops: 2,000 random geometries over all dtypes.

Tolerances come from arithmetic. Sums: |error| <= c eps sum|x||w|, with eps of the accumulator and c growing as the root
of the number of terms (the rounding errors of a sum are independent). Transforms: |error| <= c eps log2(M) sum ||x||
||w|| over the input channels, since their error is relative to the whole block. Both plus one rounding of the result.
"""

from dataclasses import replace
from math import log2, sqrt
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from cupy_convt import api
from cupy_convt.core.dispatch import choose
from cupy_convt.core.problem import DTYPES, EPSILON, Problem, is_complex
from cupy_convt.engines.cpu import CpuEngine, reference
from tests.emulated import make_engine, to_device, to_host

COMBINATIONS = [(dtype, dtype) for dtype in DTYPES] + [
    ("complex64", "float32"),
    ("float32", "complex64"),
    ("complex128", "float64"),
    ("float64", "complex128"),
]
EXAMPLES = 200  # for each of the ten combinations
ENGINE = CpuEngine()


@st.composite
def problems(draw: st.DrawFn) -> dict[str, Any]:
    groups = draw(st.sampled_from([1, 1, 1, 2, 3, 5]))
    long = draw(st.booleans())
    return {
        "batch": draw(st.integers(1, 3)),
        "c_in": groups * draw(st.integers(1, 4)),
        "c_out": groups * draw(st.integers(1, 4)),
        "l_in": draw(st.integers(1, 200 if long else 12)),
        "kernel_size": draw(st.integers(1, 70 if long else 9)),
        "stride": draw(st.integers(1, 9)),
        "dilation": draw(st.integers(1, 5)),
        "groups": groups,
        "p_left": draw(st.integers(-6, 40)),
        "p_right": draw(st.integers(-6, 40)),
        "has_bias": draw(st.booleans()),
        "activation": draw(st.sampled_from([None, None, ("relu", 0.0), ("leaky_relu", 0.1), ("tanh", 0.0)])),
    }


def values(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> Any:
    data: Any = rng.standard_normal(shape)
    if is_complex(dtype):
        data = data + 1j * rng.standard_normal(shape)
    return data.astype(api.to_dtype(dtype))


def magnitudes(problem: Problem, x: Any, weight: Any) -> tuple[Any, Any]:
    """sum |x||w| of every output sample, and sum ||x|| ||w|| of every (n, co)."""
    plain = replace(problem, x_dtype="float64", weight_dtype="float64", has_bias=False, activation=None)
    absolute = [
        np.abs(array.astype("complex128" if is_complex(array.dtype.name) else "float64")) for array in (x, weight)
    ]
    sums = reference(plain, *absolute)
    x_norm, w_norm = (np.sqrt((array**2).sum(-1)) for array in absolute)
    grouped = x_norm.reshape(problem.batch, problem.groups, -1), w_norm.reshape(problem.groups, problem.c_in_group, -1)
    norms = np.einsum("ngc,gco->ngo", *grouped).reshape(problem.batch, problem.c_out, 1)
    return sums, norms


def check(problem: Problem, plan: Any, out: Any, bias: Any, want: Any, sizes: tuple[Any, Any]) -> None:
    eps, rounding = EPSILON[problem.accumulator], EPSILON[problem.out_dtype] / 2
    terms = problem.c_in_group * problem.phases.max_taps
    if plan.method == "fft":
        points = problem.l_in + problem.phases.span
        tolerance = 4 * eps * (1 + log2(max(points, 2))) * sizes[1]
    elif plan.variant.startswith("winograd"):
        # products of sums of two x with sums of taps, whose parts may be larger than what is left of them
        tolerance = 4 * (4 + sqrt(terms)) * eps * sizes[1]
    else:
        tolerance = (4 + sqrt(terms)) * eps * sizes[0]
    error = np.abs(out.astype(want.dtype) - want)
    allowed = tolerance + (rounding + 4 * eps) * (np.abs(want) + tolerance) + 1e-30
    if problem.out_dtype == "float16":
        allowed = allowed + 2.0**-24  # subnormal spacing
    if bias is not None:
        allowed = allowed + eps * np.abs(bias.astype(want.dtype))[:, None]
    worst = np.nanargmax(np.where(np.isnan(error), np.inf, error / allowed))
    at = np.unravel_index(worst, error.shape)
    assert error[at] <= allowed[at], f"{plan.name} {problem}: error {error[at]} > {allowed[at]} at {at}"


def drawn(sizes: dict[str, Any], dtypes: tuple[str, str], seed: int) -> tuple[Problem, Any, Any, Any]:
    """A problem with a result, and its arrays."""
    problem = Problem(**sizes, x_dtype=dtypes[0], weight_dtype=dtypes[1])
    if is_complex(problem.out_dtype):
        problem = replace(problem, activation=None)
    assume(problem.l_out >= 1)
    rng = np.random.default_rng(seed)
    x, weight = values(rng, problem.x_shape, dtypes[0]), values(rng, problem.weight_shape, dtypes[1])
    return problem, x, weight, values(rng, (problem.c_out,), problem.out_dtype) if problem.has_bias else None


@pytest.mark.parametrize("dtypes", COMBINATIONS, ids="-".join)
@given(sizes=problems(), seed=st.integers(0, 2**32 - 1))
@settings(
    max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much]
)
def test_every_cpu_plan_agrees_with_the_reference(dtypes: tuple[str, str], sizes: dict[str, Any], seed: int) -> None:
    problem, x, weight, bias = drawn(sizes, dtypes, seed)
    want, bounds = reference(problem, x, weight, bias), magnitudes(problem, x, weight)
    plans = [row.plan for row in choose(problem, ENGINE.device()).ranking]
    assert {plan.method for plan in plans if plan is not None} == {"direct", "gemm", "fft"}
    for plan in plans:
        out = np.full(problem.out_shape, np.nan, api.to_dtype(problem.out_dtype))
        ENGINE.run(problem, plan, x, weight, bias, out)
        check(problem, plan, out, bias, want, bounds)


def check_gpu_plans(sizes: dict[str, Any], dtypes: tuple[str, str], seed: int, mode: str) -> None:
    problem, x, weight, bias = drawn(sizes, dtypes, seed)
    want, bounds = reference(problem, x, weight, bias), magnitudes(problem, x, weight)
    engine, arrays = make_engine(mode), [None if a is None else to_device(a) for a in (x, weight, bias)]
    for row in choose(problem, engine.device()).ranking:
        if row.plan is not None:
            out = engine.empty(problem.out_shape, problem.out_dtype)
            engine.run(problem, row.plan, *arrays, out)
            check(problem, row.plan, to_host(out), bias, want, bounds)


@pytest.mark.slow
@pytest.mark.parametrize("dtypes", COMBINATIONS, ids="-".join)
@given(sizes=problems(), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
def test_every_gpu_plan_agrees_with_the_reference(dtypes: tuple[str, str], sizes: dict[str, Any], seed: int) -> None:
    """Under all checks of the emulator."""
    check_gpu_plans(sizes, dtypes, seed, "check")


@pytest.mark.slow
@pytest.mark.parametrize("dtypes", COMBINATIONS, ids="-".join)
@given(sizes=problems(), seed=st.integers(0, 2**32 - 1))
@settings(
    max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much]
)
def test_many_gpu_plans_agree_with_the_reference(dtypes: tuple[str, str], sizes: dict[str, Any], seed: int) -> None:
    """Results alone, from the emulator's fast build."""
    check_gpu_plans(sizes, dtypes, seed, "fast")
