# SPDX-License-Identifier: MIT
"""Results added to what `out` holds: what is read and when, what is refused, and every plan of the CPU engine."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

import cupy_convt as ct
from cupy_convt.core.launch import DTYPE_PAIRS
from cupy_convt.core.plan_cpu import candidates
from cupy_convt.core.problem import EPSILON, Problem
from cupy_convt.engines.cpu import reference
from tests.emulated import to_device
from tests.test_cpu import AWKWARD, ENGINE, TOLERANCE, arguments, draw, plans

RNG = np.random.default_rng(5)
X, W, B, OLD = (RNG.standard_normal(shape).astype("f") for shape in ((2, 4, 9), (4, 3, 5), (6,), (2, 6, 27)))
GEOMETRY: dict[str, Any] = {"stride": 3, "groups": 2, "padding": 1}
NEW = ct.conv_transpose1d(X, W, B, **GEOMETRY)


def call(**changes: Any) -> Any:
    return ct.conv_transpose1d(X, W, B, **(GEOMETRY | changes))


@pytest.mark.parametrize("beta", [1, -0.5, np.float32(0.25), np.int64(2), Fraction(1, 3)])
@pytest.mark.parametrize("method", ["direct", "gemm", "fft"])
def test_what_out_held_is_added(method: str, beta: Any) -> None:
    out = OLD.copy()
    assert call(out=out, beta=beta, method=method) is out
    np.testing.assert_allclose(out, NEW + float(beta) * OLD, atol=1e-5)


def test_the_activation_comes_first() -> None:
    out = OLD.copy()
    call(out=out, beta=1, activation="relu")
    np.testing.assert_allclose(out, np.maximum(NEW, 0) + OLD, atol=1e-5)
    assert out.min() < 0


@pytest.mark.parametrize("beta", [0, 0.0, -0.0])
def test_without_beta_out_is_not_read(beta: float) -> None:
    out = np.full_like(OLD, np.nan)
    np.testing.assert_array_equal(call(out=out, beta=beta), NEW)


def test_halves_are_rounded_once() -> None:
    """1 + 2^-11 - 1: half of it is lost where the sum is rounded before the rest is added."""
    x, w = np.array([[[2.0**-11]]], np.float16), np.ones((1, 1, 1), np.float16)
    bias = np.ones(1, np.float16)
    out = np.full((1, 1, 1), -1, np.float16)
    assert ct.conv_transpose1d(x, w, bias, out=out, beta=1).item() == 2.0**-11


@pytest.mark.parametrize(
    ("beta", "error", "message"),
    [
        ("1", TypeError, "beta: expected a real number, got '1' of type str"),
        (True, TypeError, "beta: expected a real number, got True of type bool"),
        (1j, TypeError, "beta: expected a real number, got 1j of type complex"),
        (None, TypeError, "beta: expected a real number, got None of type NoneType"),
        (math.nan, ValueError, "beta: expected a finite number, got nan"),
        (-math.inf, ValueError, "beta: expected a finite number, got -inf"),
    ],
)
def test_what_is_no_factor_is_refused(beta: Any, error: type[Exception], message: str) -> None:
    prepared = ct.prepare(W, B, **GEOMETRY)
    for run in (call, lambda **rest: prepared(X, **rest)):
        out = OLD.copy()
        with pytest.raises(error, match=message):
            run(out=out, beta=beta)
        np.testing.assert_array_equal(out, OLD)


def test_there_must_be_something_to_add() -> None:
    with pytest.raises(ValueError, match=r"beta: expected 0 without out, got 1\.0"):
        call(beta=1)
    with pytest.raises(ValueError, match=r"beta: expected 0 without out, got 2\.0"):
        ct.prepare(W, B, **GEOMETRY)(X, beta=2)


def test_a_prepared_operator_may_add_or_not() -> None:
    prepared = ct.prepare(W, B, **GEOMETRY)
    out = OLD.copy()
    for beta, wanted in ((1, NEW + OLD), (0.5, 1.5 * NEW + 0.5 * OLD), (0, NEW), (True, None)):
        if wanted is None:
            with pytest.raises(TypeError, match="beta: expected a real number"):  # although 1 has been met
                prepared(X, out, beta=beta)
        else:
            np.testing.assert_allclose(prepared(X, out, beta=beta), wanted, atol=2e-5)
    longer = np.ones((2, 6, 29), np.float32)
    prepared(X, longer, output_size=29, beta=-1)
    np.testing.assert_allclose(longer, prepared(X, output_size=29) - 1, atol=1e-5)


def test_items_one_by_one_and_rows_without_batch() -> None:
    out = OLD.copy()
    call(out=out, beta=2, batch_invariant=True, method="gemm")
    np.testing.assert_allclose(out, NEW + 2 * OLD, atol=1e-5)
    row = OLD[1].copy()
    ct.conv_transpose1d(X[1], W, B, **GEOMETRY, out=row, beta=2)
    np.testing.assert_allclose(row, NEW[1] + 2 * OLD[1], atol=1e-5)


@pytest.mark.parametrize("method", ["direct", "gemm", "fft"])
def test_results_of_any_strides(method: str) -> None:
    """On a device, results that are copied home bring what was there with them."""
    for device in (np.array, to_device):
        wide = device(np.repeat(OLD.transpose(2, 0, 1), 2, axis=1))
        out = wide[::-1, ::2].transpose(1, 2, 0)
        before = np.array(out, subok=False)
        x, weight, bias = map(device, (X, W, B))
        ct.conv_transpose1d(x, weight, bias, **GEOMETRY, out=out, beta=0.5, method=method)
        np.testing.assert_allclose(np.array(out, subok=False), NEW + 0.5 * before, atol=1e-5)
        np.testing.assert_array_equal(np.array(wide, subok=False)[:, 1::2], OLD.transpose(2, 0, 1))


def test_explanations_count_what_is_read() -> None:
    plain, added = (ct.explain((2, 4, 9), (4, 3, 5), **GEOMETRY, beta=beta) for beta in (0, 0.5))
    assert added.as_dict()["bytes"] == plain.as_dict()["bytes"] + OLD.nbytes
    assert "beta=0.5" in str(added)
    assert "beta" not in str(plain)


@pytest.mark.parametrize("name", AWKWARD)
@pytest.mark.parametrize("dtypes", DTYPE_PAIRS, ids="-".join)
def test_every_plan_of_the_cpu_engine(name: str, dtypes: tuple[str, str]) -> None:
    p = replace(AWKWARD[name], x_dtype=dtypes[0], weight_dtype=dtypes[1], beta=-1.5)
    if dtypes[0] not in ("float32", "bfloat16", "complex64") and p.kernel_size > 1000:
        pytest.skip("same code as the others")
    x, weight, bias = arguments(p)
    old = draw(p.out_shape, p.out_dtype, 9)
    want = reference(p, x, weight, bias) + p.beta * old.astype("c16" if "complex" in p.out_dtype else "f8")
    bound = np.abs(x.astype("c16")).max() * np.abs(weight.astype("c16")).sum((0, 2)).max() + 12
    for plan in plans(p):
        assert not plan.subpixel
        out = old.copy()
        ENGINE.run(p, plan, x, weight, bias, out)
        allowed = TOLERANCE[plan.method] * EPSILON[p.accumulator] * bound
        if p.accumulator != p.out_dtype:
            allowed = allowed + EPSILON[p.out_dtype] / 2 * np.abs(want) + 2.0**-25
        assert np.all(np.abs(out.astype(want.dtype) - want) <= allowed), plan.name


def test_what_a_compiled_graph_cannot_add_is_left_to_others() -> None:
    p = Problem(1, 64, 90, 64, 4, 2, x_dtype="bfloat16", weight_dtype="bfloat16", has_bias=True)
    device = replace(ENGINE.device(), convolutions=True, fp16=1e12)
    assert any(plan.subpixel for plan in candidates(p, device, 1 << 28))
    assert not any(plan.subpixel for plan in candidates(replace(p, beta=1.0), device, 1 << 28))
