# SPDX-License-Identifier: MIT
"""The FFT method of the CPU engine at its own sizes: transforms in one step and in two, every form, memory, packing."""

import tracemalloc
from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import scipy.signal

import cupy_convt as ct
from cupy_convt.core.plan_cpu import CpuPlan, candidates
from cupy_convt.core.problem import DTYPES, EPSILON, Problem, is_complex
from cupy_convt.core.tiles_fft_cpu import filled
from cupy_convt.core.transforms_cpu import FftForm, split_of
from cupy_convt.engines import cpu_threads
from cupy_convt.engines.cpu import CpuEngine
from cupy_convt.engines.cpu_transforms import _in_place, _public, complex_of, forward, inverse
from tests.cases import GEOMETRIES, PAIRS, expected, operands, pair_id, tolerance
from tests.cases import problem as geometry
from tests.test_methods import values

ENGINE = CpuEngine()
LIMIT = 256 << 20

SIZES = {
    "whole": Problem(1, 1, 9000, 1, 9000),
    "causal": Problem(2, 3, 5000, 3, 5000, groups=3, p_right=4999),
    "one transform on all cores": Problem(1, 1, 150_000, 1, 120_000),
    "two phases": Problem(1, 1, 6000, 1, 20_001, 2, p_left=777),
    "three phases": Problem(1, 2, 20_000, 1, 9001, 3),
    "seven phases": Problem(1, 1, 3000, 1, 30_000, 7, p_left=11, p_right=5),
    "blocks": Problem(1, 1, 400_000, 1, 40_000),
    "blocks of a dense layer": Problem(2, 5, 3000, 6, 300, 2, p_left=150, p_right=150),
    "dilated taps": Problem(1, 1, 700, 1, 9000, 2, 3, p_left=1),
    "dilated gaps": Problem(1, 2, 900, 2, 4000, 4, 2, groups=2, p_left=2),
    "taps of a dense layer": Problem(2, 6, 70, 5, 3000, 2, p_left=31, p_right=-8),
    "taps, cropped": Problem(1, 1, 300, 1, 50_000, 3, p_left=40_000, p_right=5000),
    "taps, extended": Problem(1, 1, 300, 1, 20_000, p_left=-700, p_right=-900),
    "many outputs": Problem(1, 1, 500, 40, 4000),
}


def arguments(problem: Problem, seed: int = 0) -> tuple[Any, Any, Any]:
    rng = np.random.default_rng(seed)
    x, weight = values(rng, problem.x_shape, problem.x_dtype), values(rng, problem.weight_shape, problem.weight_dtype)
    return x, weight, values(rng, (problem.c_out,), problem.out_dtype)


def wanted(problem: Problem, x: Any, weight: Any, bias: Any) -> Any:
    """The operator in double precision, by transforms of the zero-stuffed signal."""
    wide = np.complex128 if is_complex(problem.out_dtype) else np.float64
    stuffed = np.zeros((problem.batch, problem.c_in, (problem.l_in - 1) * problem.stride + 1), wide)
    stuffed[..., :: problem.stride] = x
    taps = np.zeros((*weight.shape[:2], problem.effective_kernel), wide)
    taps[..., :: problem.dilation] = weight
    out = np.zeros(problem.out_shape, wide)
    first, stop = max(problem.p_left, 0), min(problem.p_left + problem.l_out, problem.l_full)
    for ci in range(problem.c_in):
        group = ci // problem.c_in_group
        channels = slice(group * problem.c_out_group, (group + 1) * problem.c_out_group)
        full = scipy.signal.fftconvolve(stuffed[:, ci, None], taps[None, ci], axes=-1)
        out[:, channels, first - problem.p_left : stop - problem.p_left] += full[..., first:stop]
    return out + bias.astype(wide)[:, None]


def run(problem: Problem, plan: CpuPlan, x: Any, weight: Any, bias: Any, packed: Any = None) -> Any:
    dtype = ml_dtypes.bfloat16 if problem.out_dtype == "bfloat16" else problem.out_dtype
    out = np.full(problem.out_shape, np.nan, dtype)
    ENGINE.run(problem, plan, x, weight, bias, out, packed)
    return out


def fft_plans(problem: Problem, limit: int = LIMIT) -> list[CpuPlan]:
    return [plan for plan in candidates(problem, ENGINE.device(), limit) if plan.method == "fft"]


def check(problem: Problem, plan: CpuPlan, got: Any, want: Any) -> None:
    """Errors in units of the result's root mean square, which random data give every window."""
    error = np.abs(got.astype(want.dtype) - want)
    allowed = 20 * EPSILON[problem.accumulator] * np.sqrt(np.mean(np.abs(want) ** 2))
    assert np.all(error <= allowed + EPSILON[problem.out_dtype] * np.abs(want)), f"{plan.name}: {error.max()}"


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("dtype", ["float32", "float64", "complex64", "bfloat16"])
def test_every_form_agrees(name: str, dtype: str) -> None:
    problem = replace(SIZES[name], x_dtype=dtype, weight_dtype=dtype)
    operands = arguments(problem)
    want = wanted(problem, *operands)
    for plan in fft_plans(problem):
        check(problem, plan, run(problem, plan, *operands), want)
        check(problem, plan, run(problem, plan, *operands, ENGINE.pack(problem, plan, operands[1])), want)


@pytest.mark.parametrize("name", GEOMETRIES)
@pytest.mark.parametrize("pair", PAIRS, ids=pair_id)
def test_every_geometry_of_the_suite(name: str, pair: tuple[str, str]) -> None:
    problem = geometry(name, *pair)
    x, weight, bias = operands(problem)
    want = expected(problem, x, weight, bias)
    for plan in fft_plans(problem):
        error = np.abs(run(problem, plan, x, weight, bias).astype(want.dtype) - want)
        assert np.all(error <= tolerance(problem, plan, x, weight, want)), plan.name


def test_the_sizes_reach_every_form_in_one_step_and_in_two() -> None:
    found = {(plan.fft.kind, plan.fft.split > 0) for problem in SIZES.values() for plan in fft_plans(problem)}
    assert found == {("whole", False), ("whole", True), ("blocks", False), ("blocks", True), ("taps", False)}


@pytest.mark.parametrize("kernel_size", [1, 2, 37, 1000, 16_383, 65_537, 262_144])
@pytest.mark.parametrize("dtype", DTYPES)
def test_any_number_of_taps(kernel_size: int, dtype: str) -> None:
    for length, stride in ((1, 3), (5000, 1)):
        problem = Problem(1, 1, length, 1, kernel_size, stride, x_dtype=dtype, weight_dtype=dtype)
        x, weight, bias = arguments(problem)
        want = wanted(problem, x, weight, bias)
        y = ct.conv_transpose1d(x, weight, bias, stride=stride, method="fft")
        assert y.dtype == x.dtype
        error = np.abs(y.astype(want.dtype) - want)
        allowed = 20 * EPSILON[problem.accumulator] * np.sqrt(np.mean(np.abs(want) ** 2) + 1)
        assert np.all(error <= allowed + EPSILON[dtype] * np.abs(want)), error.max()


@pytest.mark.parametrize("dtype", ["float32", "complex64", "float16"])
@pytest.mark.parametrize("has_bias", [True, False])
def test_samples_beyond_the_response_are_the_bias_exactly(dtype: str, has_bias: bool) -> None:
    for base in (Problem(2, 2, 300, 4, 700, 3, groups=2), Problem(1, 5, 60, 3, 900, 2), Problem(1, 1, 900, 1, 40, 4)):
        problem = replace(base, p_left=-50, p_right=-333, x_dtype=dtype, weight_dtype=dtype, has_bias=has_bias)
        x, weight, bias = arguments(problem)
        beyond = np.r_[:50, problem.l_out - 333 : problem.l_out]
        for plan in fft_plans(problem):
            y = run(problem, plan, x, weight, bias if has_bias else None)[..., beyond]
            assert (y == (bias[:, None] if has_bias else 0)).all(), plan.name


@pytest.mark.parametrize("limit", [0, 1 << 18, 4 << 20])
@pytest.mark.parametrize("name", ["blocks of a dense layer", "taps of a dense layer", "many outputs", "seven phases"])
def test_small_tiles_agree(name: str, limit: int) -> None:
    problem = replace(SIZES[name], batch=3)
    operands = arguments(problem)
    want = wanted(problem, *operands)
    for plan in fft_plans(problem, limit):
        check(problem, plan, run(problem, plan, *operands), want)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("axis", [-1, -2, -3])
@pytest.mark.parametrize("length", [8192, 45 << 8, 18432])
def test_two_steps_are_the_transform_in_another_order(length: int, axis: int, dtype: Any) -> None:
    form = FftForm("whole", length, split_of(length), 0, 0, length, 1)
    shape = [2, 2, 2]
    shape[axis] = length
    x = np.random.default_rng(2).standard_normal(shape).astype(dtype)
    shape[axis] = form.bins
    spectra = forward(x, form, axis, np.empty(shape, complex_of(dtype)))
    rows = form.split
    k = (np.arange(rows // 2 + 1)[:, None] + rows * np.arange(length // rows)).ravel()
    want = np.take(np.fft.fft(x.astype(np.float64), axis=axis), k % length, axis=axis)
    eps = np.finfo(dtype).eps
    assert np.abs(spectra - want).max() < 20 * eps * np.sqrt(length)
    back = inverse(spectra, form, axis, np.empty_like(x))
    assert np.abs(back - x).max() < 40 * eps


@pytest.mark.parametrize("functions", [_public, _in_place])
def test_real_transforms_write_where_they_are_told(functions: Any) -> None:
    forward_of, inverse_of = functions()
    x = np.random.default_rng(4).standard_normal((2, 3, 48)).astype(np.float32)
    home, back = np.full((2, 25, 6), np.nan, np.complex64), np.empty((2, 48, 3), np.float32)
    spectra = home[:, :, ::2].swapaxes(1, 2)
    forward_of(x, 2, spectra, 1)
    np.testing.assert_allclose(spectra, np.fft.rfft(x), atol=1e-5)
    assert np.isnan(home[:, :, 1::2]).all()
    inverse_of(spectra.swapaxes(1, 2), 1, back, 1)
    np.testing.assert_allclose(back, x.swapaxes(1, 2), atol=1e-6)


def test_lone_signals_fill_their_registers() -> None:
    form = FftForm("blocks", 4096, 0, 0, 100, 3996, 7)
    assert [filled(form, count, 4, True) for count in range(1, 8)] == [1, 4, 4, 4, 5, 8, 8]
    assert [filled(form, count, 8, True) for count in range(1, 5)] == [1, 2, 3, 4]
    assert filled(form, 7, 4, False) == filled(replace(form, split=64), 7, 4, True) == 7


def traced(problem: Problem, plan: CpuPlan) -> int:
    """Bytes that NumPy allocates at the peak of a run that starts with nothing kept."""
    operands = arguments(problem)
    out = np.empty(problem.out_shape, operands[0].dtype)
    cpu_threads._pool().shutdown()
    cpu_threads._pool.cache_clear()
    cpu_threads._local.__dict__.clear()
    tracemalloc.start()
    ENGINE.run(problem, plan, *operands, out)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


@pytest.mark.parametrize("limit", [6 << 20, 24 << 20])
@pytest.mark.parametrize(
    "problem",
    [
        Problem(1, 1, 1_000_000, 1, 4096, 4, has_bias=True),
        Problem(1, 1, 10_000, 1, 262_144, has_bias=True),
        Problem(8, 16, 6000, 16, 512, 2, groups=16, has_bias=True),
        Problem(4, 6, 20_000, 6, 600, 3, has_bias=True),
        Problem(2, 2, 100_000, 2, 2000, 2, x_dtype="complex64", weight_dtype="complex64", has_bias=True),
        Problem(16, 24, 4096, 24, 2048, groups=24, x_dtype="float16", weight_dtype="float16", has_bias=True),
    ],
    ids=["mono", "long taps", "depthwise", "dense", "complex", "half"],
)
def test_memory_beside_the_result_stays_under_the_limit(problem: Problem, limit: int) -> None:
    chosen = [plan for plan in fft_plans(problem, limit) if plan.workspace_bytes <= limit]
    assert chosen or limit < 24 << 20
    for plan in chosen:
        assert traced(problem, plan) <= plan.workspace_bytes + (1 << 18), plan.name


def test_spectra_serve_other_lengths_and_crops() -> None:
    base = Problem(1, 2, 9000, 2, 3000, 4, groups=2, p_left=100)
    x, weight, bias = arguments(base)
    kept = {plan.packing_key: ENGINE.pack(base, plan, weight) for plan in fft_plans(base)}
    served = 0
    for length, left in ((9000, 104), (8900, 100), (8700, 0), (5000, 1000)):
        problem = replace(base, l_in=length, p_left=left)
        for plan in fft_plans(problem):
            if plan.packing_key in kept:
                got = run(problem, plan, x[..., :length], weight, bias, kept[plan.packing_key])
                check(problem, plan, got, wanted(problem, x[..., :length], weight, bias))
                served += 1
    assert served >= 8
