# SPDX-License-Identifier: MIT
"""Bounds of rounding errors: they hold against wider arithmetic for every plan, also where loud and quiet stand side by
side, and are not so wide that they say nothing."""

from dataclasses import replace
from math import isinf, sqrt
from typing import Any

import numpy as np
import pytest

from cupy_convt.core import plan_fft
from cupy_convt.core.accuracy import NORMS, SUMS, ErrorBound, error_bound, gamma, transform_error, transform_length
from cupy_convt.core.device import PRESETS
from cupy_convt.core.dispatch import choose
from cupy_convt.core.problem import EPSILON, Problem, is_complex
from cupy_convt.core.transforms_cpu import FftForm, split_of
from cupy_convt.engines.cpu import CpuEngine
from cupy_convt.engines.cpu_transforms import complex_of, forward, inverse
from cupy_convt.engines.dtypes import named_dtype
from cupy_convt.explain import Explanation
from tests.emulated import make_engine, to_device, to_host
from tests.test_methods import values

ENGINE = CpuEngine()
H200 = PRESETS["h200"]
DTYPES = ("float32", "float64", "float16", "bfloat16", "complex64")


def with_dynamics(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> Any:
    """Noise whose level changes by 60 dB every few samples."""
    loud = np.arange(shape[-1]) // 97 % 2 == 0
    return (values(rng, shape, "complex128" if is_complex(dtype) else "float64") * np.where(loud, 1, 1e-3)).astype(
        named_dtype(dtype)
    )


def definition(problem: Problem, x: Any, weight: Any, bias: Any) -> Any:
    """The operator in the widest arithmetic there is: 64 bits of mantissa on x86."""
    wide: Any = np.clongdouble if is_complex(problem.out_dtype) else np.longdouble
    full = np.zeros((problem.batch, problem.c_out, problem.l_full), wide)
    reach = (problem.l_in - 1) * problem.stride + 1
    x, weight = x.astype(wide), weight.astype(wide)
    for ci in range(problem.c_in):
        first = ci // problem.c_in_group * problem.c_out_group
        for co in range(problem.c_out_group):
            for j in range(problem.kernel_size):
                start = j * problem.dilation
                full[:, first + co, start : start + reach : problem.stride] += x[:, ci] * weight[ci, co, j]
    y = full[..., problem.p_left : problem.p_left + problem.l_out]
    return y if bias is None else y + bias.astype(wide)[:, None]


def allowed(problem: Problem, bound: ErrorBound, x: Any, weight: Any, bias: Any, y: Any) -> Any:
    """The bound of every sample."""
    plain = replace(problem, x_dtype="float64", weight_dtype="float64")
    wide = [np.abs(a.astype("complex128")) for a in (x, weight)]
    size = None if bias is None else np.abs(bias.astype("complex128"))
    if bound.of == SUMS:
        scale = definition(plain, *wide, size)
    else:
        x_norm, w_norm = (np.sqrt((a**2).sum(-1)) for a in wide)
        x_norm = x_norm.reshape(problem.batch, problem.groups, -1)
        w_norm = w_norm.reshape(problem.groups, problem.c_in_group, -1)
        scale = np.einsum("ngc,gco->ngo", x_norm, w_norm).reshape(problem.batch, problem.c_out, 1)
        scale = scale + (0 if size is None else size[:, None])
    tiny = 2.0**-24 if problem.out_dtype == "float16" else 0.0
    return bound.factor * scale * (1 + 1e-3) + bound.rounding * (np.abs(y) + bound.factor * scale) + tiny


PROBLEMS = {
    "mono": Problem(1, 1, 700, 1, 130, 3, p_left=20, p_right=20, has_bias=True),
    "dense": Problem(2, 6, 120, 4, 24, 4, p_left=8, p_right=8, has_bias=True),
    "grouped": Problem(1, 4, 300, 4, 60, 2, 2, 2),
    "long taps": Problem(1, 1, 150, 1, 700, 1),
}


@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_errors_of_every_cpu_plan_stay_under_its_bound(name: str, dtype: str) -> None:
    problem, rng = replace(PROBLEMS[name], x_dtype=dtype, weight_dtype=dtype), np.random.default_rng(5)
    x, weight = with_dynamics(rng, problem.x_shape, dtype), with_dynamics(rng, problem.weight_shape, dtype)
    bias = values(rng, (problem.c_out,), dtype) if problem.has_bias else None
    want = definition(problem, x, weight, bias)
    for row in choose(problem, ENGINE.device()).ranking:
        assert row.plan is not None
        out = np.empty(problem.out_shape, named_dtype(dtype))
        ENGINE.run(problem, row.plan, x, weight, bias, out)
        error = np.abs(out.astype(want.dtype) - want)
        bound = error_bound(problem, row.plan)
        limit = allowed(problem, bound, x, weight, bias, want)
        assert (error <= limit).all(), f"{row.name}: {(error - limit).max()} over the bound"
        used = (error[limit > 0] / limit[limit > 0]).max()
        assert used > 1e-5, f"{row.name}: a bound that says nothing, {used} of it is used"


@pytest.mark.parametrize("dtype", ["float32", "float16", "complex64"])
def test_errors_of_gpu_plans_stay_under_their_bound(dtype: str) -> None:
    problem = Problem(1, 2, 150, 2, 24, 2, p_left=3, p_right=2, x_dtype=dtype, weight_dtype=dtype, has_bias=True)
    rng, engine = np.random.default_rng(6), make_engine()
    x, weight = with_dynamics(rng, problem.x_shape, dtype), with_dynamics(rng, problem.weight_shape, dtype)
    bias = values(rng, (problem.c_out,), dtype)
    want = definition(problem, x, weight, bias)
    for row in choose(problem, H200).ranking:
        if row.plan is None:
            continue
        out = engine.empty(problem.out_shape, dtype)
        engine.run(problem, row.plan, to_device(x), to_device(weight), to_device(bias), out)
        limit = allowed(problem, error_bound(problem, row.plan), x, weight, bias, want)
        assert (np.abs(to_host(out).astype(want.dtype) - want) <= limit).all(), row.name


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "complex64"])
def test_three_real_products_have_a_wider_bound_and_keep_it(dtype: str) -> None:
    problem = Problem(2, 4, 90, 3, 40, 2, p_left=3, p_right=2, x_dtype=dtype, weight_dtype=dtype, has_bias=True)
    rng, engine = np.random.default_rng(8), make_engine()
    x, weight = with_dynamics(rng, problem.x_shape, dtype), with_dynamics(rng, problem.weight_shape, dtype)
    bias = values(rng, (problem.c_out,), dtype)
    want = definition(problem, x, weight, bias)
    _, complex_products, planes = plan_fft.candidates(problem, H200, 1 << 28)
    bound, usual = error_bound(problem, planes), error_bound(problem, complex_products)
    assert bound.of == NORMS and usual.factor < bound.factor < 2 * usual.factor
    out = engine.empty(problem.out_shape, dtype)
    engine.run(problem, planes, to_device(x), to_device(weight), to_device(bias), out)
    limit = allowed(problem, bound, x, weight, bias, want)
    assert (np.abs(to_host(out).astype(want.dtype) - want) <= limit).all()
    rows = str(Explanation(choose(problem, H200))).splitlines()
    (row,) = [row for row in rows if "three-product matrices" in row]
    assert f"{bound.factor:.1e} n" in row


def test_what_three_real_products_may_do_to_a_complex_one() -> None:
    """(1 + sqrt(2)) |x||w| bounds the sizes of what either part is summed from; somewhere it is reached."""
    angles = np.linspace(0, np.pi / 2, 721)
    x, w = np.exp(1j * angles)[:, None], np.exp(1j * angles)
    first = np.abs(w.real) * (np.abs(x.real) + np.abs(x.imag))
    real = first + (np.abs(w.real) + np.abs(w.imag)) * np.abs(x.imag)
    imaginary = first + np.abs(x.real) * (np.abs(w.real) + np.abs(w.imag))
    for part in (real, imaginary):
        assert 0.999 * (1 + sqrt(2)) < part.max() <= (1 + sqrt(2)) * (1 + 1e-12)


@pytest.mark.parametrize("length", [64, 1000, 8192, 45 << 8])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_transforms_keep_their_bound(length: int, dtype: Any) -> None:
    rng, unit = np.random.default_rng(7), np.finfo(dtype).eps / 2
    x = (rng.standard_normal((4, length)) * np.where(np.arange(length) < length // 3, 1, 1e-3)).astype(dtype)
    form = FftForm("whole", length, split_of(length) if length >= 8192 else 0, 0, 0, length, 1)
    spectra = forward(x, form, -1, np.empty((4, form.bins), complex_of(dtype)))
    if dtype == np.float32 and not form.split:
        exact = np.fft.rfft(x.astype(np.float64))
        error = np.linalg.norm(spectra - exact, axis=-1) / np.linalg.norm(exact, axis=-1)
        assert (error < transform_error(length, unit)).all()
        assert (error > 1e-3 * transform_error(length, unit)).all()
    back = inverse(spectra.copy(), form, -1, np.empty_like(x))
    error = np.linalg.norm(back - x, axis=-1) / np.linalg.norm(x, axis=-1)
    assert (error < 2 * transform_error(length, unit)).all()


def test_what_bounds_depend_on() -> None:
    base = Problem(1, 4, 4000, 4, 64, 2)

    def of(problem: Problem, method: str, device: Any = PRESETS["cpu"]) -> ErrorBound:
        return error_bound(problem, choose(problem, device, method).plan)

    assert of(base, "direct").factor == pytest.approx(128 * 2.0**-24, rel=1e-4)
    assert of(base, "direct").of == SUMS and of(base, "fft").of == NORMS
    assert of(base, "direct").rounding == 2.0**-24
    wide = replace(base, x_dtype="float64", weight_dtype="float64")
    for method in ("direct", "fft"):
        assert of(wide, method).factor == pytest.approx(of(base, method).factor * 2.0**-29, rel=1e-2)
    half = replace(base, x_dtype="bfloat16", weight_dtype="bfloat16")
    assert of(half, "direct").factor == of(base, "direct").factor
    assert of(half, "direct").rounding == EPSILON["bfloat16"] / 2
    pair = replace(base, x_dtype="complex64", weight_dtype="complex64")
    assert of(pair, "direct").factor == pytest.approx(2 * sqrt(2) * of(base, "direct").factor, rel=1e-4)
    dense = replace(base, c_in=256, c_out=256)
    loose = of(replace(dense, precision="tf32"), "gemm", H200)
    assert 2.0**-10 < loose.factor < 2.0**-10 + 3 * of(dense, "gemm", H200).factor
    assert isinf(gamma(2.0**25, 2.0**-24))


def test_transform_length_is_found_in_every_plan() -> None:
    problem = Problem(2, 1, 60_000, 1, 700, 2)
    for device in (PRESETS["cpu"], H200):
        found = [row.plan for row in choose(problem, device).ranking if row.method == "fft" and row.plan is not None]
        assert found
        for plan in found:
            assert transform_length(plan) >= 700 // 2 and str(transform_length(plan)) in plan.variant
