# SPDX-License-Identifier: MIT
"""The CPU engine beyond plain agreement with the reference: bits, strides, special values."""

from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cupy_convt.core.plan_cpu import CpuPlan, candidates
from cupy_convt.core.problem import DTYPES, EPSILON, Problem, is_complex
from cupy_convt.core.rows_cpu import row_grid
from cupy_convt.engines.cpu import CpuEngine, reference

ENGINE = CpuEngine()
LIMIT = 256 << 20
TOLERANCE = {"direct": 16.0, "gemm": 16.0, "fft": 64.0}

AWKWARD = {
    "one input": Problem(2, 3, 1, 4, 7, 3),
    "one tap": Problem(2, 3, 50, 4, 1, 1),
    "fewer taps than stride": Problem(2, 4, 33, 6, 2, 5, groups=2, p_right=-3),
    "crop of many rows": Problem(1, 2, 400, 2, 9, 4, p_left=1001, p_right=333),
    "nothing but bias": Problem(2, 2, 3, 2, 3, 2, p_left=-40, p_right=40 + 5),
    "zeros on both sides": Problem(1, 2, 17, 3, 5, 3, p_left=-50, p_right=-51),
    "one sample": Problem(1, 2, 100, 2, 31, 7, p_left=300, p_right=723 - 300),
    "residues without taps": Problem(2, 2, 65, 2, 6, 6, 4),
    "dilation beyond the input": Problem(1, 2, 3, 2, 4, 2, 31),
    "more taps than one product has": Problem(1, 3, 70, 2, 300, 2),
    "filter longer than the input": Problem(2, 1, 20, 1, 5000, 3, p_left=7),
    "depthwise": Problem(2, 24, 130, 24, 12, 2, groups=24, p_left=5, p_right=5),
    "short depthwise": Problem(6, 12, 21, 12, 6, 3, groups=12, p_left=2, p_right=1),
    "short, each channel to two": Problem(5, 3, 37, 6, 9, 2, 3, groups=3, p_left=-70, p_right=4),
    "large stride": Problem(2, 20, 9, 1, 1024, 256, p_left=128, p_right=128),
    "several tiles": Problem(3, 8, 3001, 5, 8, 4, p_left=2, p_right=2),
}


def draw(shape: tuple[int, ...], dtype: str, seed: int) -> Any:
    rng = np.random.default_rng(seed)
    values: Any = rng.standard_normal(shape)
    if is_complex(dtype):
        values = values + 1j * rng.standard_normal(shape)
    return values.astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)


def arguments(problem: Problem, seed: int = 0) -> tuple[Any, Any, Any]:
    return (
        draw(problem.x_shape, problem.x_dtype, seed),
        draw(problem.weight_shape, problem.weight_dtype, seed + 1),
        draw((problem.c_out,), problem.out_dtype, seed + 2),
    )


def empty(problem: Problem) -> Any:
    return np.full(
        problem.out_shape, np.nan, ml_dtypes.bfloat16 if problem.out_dtype == "bfloat16" else problem.out_dtype
    )


def run(problem: Problem, plan: CpuPlan, x: Any, weight: Any, bias: Any = None) -> Any:
    out = empty(problem)
    ENGINE.run(problem, plan, x, weight, bias, out)
    return out


def plans(problem: Problem, limit: int = LIMIT) -> tuple[CpuPlan, ...]:
    return candidates(problem, ENGINE.device(), limit)


def direct(problem: Problem, limit: int = LIMIT) -> CpuPlan:
    return next(plan for plan in plans(problem, limit) if plan.method == "direct")


def assert_close(problem: Problem, plan: CpuPlan, got: Any, x: Any, weight: Any, bias: Any) -> None:
    """Error against the largest possible sum of the call, in units of the accumulator, plus one rounding."""
    want = reference(problem, x, weight, bias)
    bound = np.abs(x.astype("c16")).max() * np.abs(weight.astype("c16")).sum((0, 2)).max() + 4
    allowed = TOLERANCE[plan.method] * EPSILON[problem.accumulator] * bound
    allowed += EPSILON[problem.out_dtype] * (np.abs(want) + 1)
    wide = got.astype(want.dtype)
    assert np.all(np.abs(wide - want) <= allowed), (
        f"{plan.name} {problem}: {np.abs(wide - want).max()} > {allowed.max()}"
    )


@pytest.mark.parametrize("name", AWKWARD)
@pytest.mark.parametrize("dtype", DTYPES)
def test_awkward_geometries(name: str, dtype: str) -> None:
    problem = replace(AWKWARD[name], x_dtype=dtype, weight_dtype=dtype)
    if dtype not in ("float32", "complex64") and problem.kernel_size > 1000:
        pytest.skip("same code as float32")
    x, weight, bias = arguments(problem)
    for plan in plans(problem):
        assert_close(problem, plan, run(problem, plan, x, weight, bias), x, weight, bias)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["several tiles", "depthwise", "residues without taps", "large stride"])
@pytest.mark.parametrize("limit", [0, 1 << 16, 1 << 20])
def test_small_tiles_agree(name: str, limit: int) -> None:
    problem = AWKWARD[name]
    x, weight, bias = arguments(problem)
    for plan in plans(problem, limit):
        assert_close(problem, plan, run(problem, plan, x, weight, bias), x, weight, bias)


@pytest.mark.parametrize("dtypes", [("float32", "float32"), ("bfloat16", "bfloat16"), ("complex64", "float32")])
@pytest.mark.parametrize(("items", "rows"), [(1, 700), (2, 700), (3, 300), (3, 3001)])
def test_dense_tiles_agree(items: int, rows: int, dtypes: tuple[str, str]) -> None:
    """Items side by side in one product, or one after the other where they are long; some rows or all of them."""
    problem = replace(AWKWARD["several tiles"], x_dtype=dtypes[0], weight_dtype=dtypes[1])
    x, weight, bias = arguments(problem)
    for plan in plans(problem):
        if plan.variant in ("columns", "rows"):
            cut = replace(plan, batch_tile=items, row_tile=rows)
            assert_close(problem, cut, run(problem, cut, x, weight, bias), x, weight, bias)


@pytest.mark.parametrize("dtypes", [("float32", "float32"), ("bfloat16", "bfloat16"), ("complex64", "float32")])
@pytest.mark.parametrize(
    "problem",
    [
        Problem(3, 16, 300, 6, 3, 5, groups=2, p_left=-4, p_right=-9),  # samples of the bias alone, at both ends too
        Problem(2, 16, 300, 6, 3, 4, dilation=7, p_left=3, p_right=2),
        Problem(1, 16, 300, 6, 4, 4, p_left=5),
    ],
)
def test_a_bias_is_added_once_where_samples_have_one_tap(problem: Problem, dtypes: tuple[str, str]) -> None:
    problem = replace(problem, x_dtype=dtypes[0], weight_dtype=dtypes[1])
    x, weight, bias = arguments(problem)
    assert problem.phases.max_taps == 1
    for plan in plans(problem):
        for cut in (plan, replace(plan, row_tile=64)) if plan.variant in ("columns", "rows") else ():
            assert_close(problem, cut, run(problem, cut, x, weight, bias), x, weight, bias)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "complex64"])
@pytest.mark.parametrize("parts", [2, 3, 5])
@pytest.mark.parametrize(
    "problem",
    [
        Problem(1, 96, 50, 1, 250, 60, p_left=20, p_right=-7),  # the last phases have a tap less
        Problem(1, 64, 40, 1, 400, 10, dilation=3),  # several products for each part
        Problem(1, 64, 40, 1, 70, 16, p_left=-30, p_right=-90),  # rows that no tap reaches
    ],
    ids=str,
)
def test_parts_of_the_taps_agree(problem: Problem, parts: int, dtype: str) -> None:
    problem = replace(problem, x_dtype=dtype, weight_dtype=dtype)
    x, weight, bias = arguments(problem)
    (plan,) = (plan for plan in plans(problem) if plan.variant == "rows")
    cut = replace(plan, row_tile=problem.l_out, tap_parts=parts)
    got = run(problem, cut, x, weight, bias)
    assert_close(problem, cut, got, x, weight, bias)
    assert all((run(problem, cut, x, weight, bias) == got).all() for _ in range(5))


@pytest.mark.parametrize("dtypes", [("float32", "float32"), ("bfloat16", "bfloat16"), ("complex64", "float32")])
def test_any_strides(dtypes: tuple[str, str]) -> None:
    problem = Problem(2, 6, 90, 4, 9, 4, groups=2, p_left=3, p_right=2, x_dtype=dtypes[0], weight_dtype=dtypes[1])
    x, weight, bias = arguments(problem)
    wide = draw((2, 6, 180), dtypes[0], 3)
    views = [
        x[:, :, ::-1].copy()[:, :, ::-1],
        np.ascontiguousarray(x.transpose(2, 1, 0)).transpose(2, 1, 0),
        np.broadcast_to(x[:1, :1], x.shape),
        wide[:, ::-1, ::2],
    ]
    for view in views:
        view.flags.writeable = False
        for plan in plans(problem):
            plain = run(problem, plan, view.copy(), weight, bias)
            backing = np.full((problem.c_out, problem.l_out, 5), 7, plain.dtype)
            out = backing.transpose(2, 0, 1)[3:1:-1]
            ENGINE.run(problem, plan, view, np.asfortranarray(weight), bias, out)
            assert_close(problem, plan, out, view, weight, bias)
            assert (backing[:, :, [0, 1, 4]] == plain.dtype.type(7)).all(), plan.name
            if plan.method == "direct":
                assert out.tobytes() == plain.tobytes()


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_direct_bits_depend_on_the_receptive_field_only(data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from(["float32", "float16", "bfloat16", "float64", "complex64"]))
    groups = data.draw(st.sampled_from([1, 3]))
    problem = Problem(
        3,
        groups * data.draw(st.integers(1, 3)),
        data.draw(st.integers(40, 300)),
        groups * 2,
        data.draw(st.integers(1, 20)),
        data.draw(st.integers(1, 5)),
        data.draw(st.integers(1, 4)),
        groups,
        x_dtype=dtype,
        weight_dtype=dtype,
    )
    x, weight, bias = arguments(problem, data.draw(st.integers(0, 99)))
    x[:, :, data.draw(st.integers(0, 39)) :: 7] = 0
    whole = run(problem, direct(problem), x, weight, bias)
    item = replace(problem, batch=1)
    assert whole[1:2].tobytes() == run(item, direct(item), x[1:2], weight, bias).tobytes()
    tiny = direct(problem, 0)
    assert whole.tobytes() == run(problem, tiny, x, weight, bias).tobytes()
    left, length = data.draw(st.integers(0, problem.l_out - 1)), data.draw(st.integers(1, 90))
    stop = min(left + length, problem.l_out)
    crop = replace(problem, p_left=left, p_right=problem.l_full - stop)
    assert whole[..., left:stop].tobytes() == run(crop, direct(crop), x, weight, bias).tobytes()
    first = max((left - problem.effective_kernel) // problem.stride, 0)
    last = min(stop // problem.stride + 1, problem.l_in)
    if first < last:
        part = replace(problem, l_in=last - first)
        start = left - first * problem.stride
        part = replace(part, p_left=start, p_right=part.l_full - start - (stop - left))
        assert whole[..., left:stop].tobytes() == run(part, direct(part), x[..., first:last], weight, bias).tobytes()


def test_direct_never_gives_a_negative_zero_sum() -> None:
    problem = Problem(1, 1, 3, 1, 1)
    zero = np.zeros((1, 1, 3), np.float32)
    for bias in (None, np.array([-0.0], np.float32)):
        out = run(problem, direct(problem), -zero, np.ones((1, 1, 1), np.float32), bias)
        assert not np.signbit(out).any()


@pytest.mark.parametrize("dtypes", [("float32", "float32"), ("complex64", "complex64"), ("float16", "float16")])
@pytest.mark.parametrize(("kernel", "stride", "dilation"), [(4, 2, 1), (7, 3, 1), (5, 2, 3), (9, 4, 2), (6, 1, 1)])
@pytest.mark.parametrize("length", [1, 2, 3])
def test_fewer_inputs_than_taps_have_the_bits_of_many(
    length: int, kernel: int, stride: int, dilation: int, dtypes: tuple[str, str]
) -> None:
    """Loops along taps and along time add up in one order: behind few inputs, zeros change nothing."""
    few = Problem(2, 6, length, 4, kernel, stride, dilation, 2, 1, 0, *dtypes, has_bias=True)
    many = replace(few, l_in=40)
    assert row_grid(few).max_taps == row_grid(many).max_taps
    x, weight, bias = arguments(few, seed=kernel)
    longer = np.zeros(many.x_shape, x.dtype)
    longer[..., :length] = x
    got, want = run(few, direct(few), x, weight, bias), run(many, direct(many), longer, weight, bias)
    np.testing.assert_array_equal(got.view(np.uint8), want[..., : few.l_out].copy().view(np.uint8))
    assert_close(few, direct(few), got, x, weight, bias)


def test_special_values_stay_in_their_row() -> None:
    problem = Problem(2, 2, 500, 2, 9, 4, groups=2, p_left=2)
    x, weight, bias = arguments(problem)
    clean = run(problem, direct(problem), x, weight, bias)
    x[0, 1, 250] = np.nan
    field = slice(250 * 4 - 2, 250 * 4 - 2 + 9)
    for plan in plans(problem):
        out = run(problem, plan, x, weight, bias)
        assert np.isnan(out[0, 1, field]).all(), plan.name
        rest = np.isfinite(out)
        assert rest[1].all() and rest[0, 0].all(), plan.name
        if plan.method == "direct":
            rest[0, 1, field] = True
            assert rest.all()
            assert (np.delete(out[0, 1], np.r_[field]) == np.delete(clean[0, 1], np.r_[field])).all()


@pytest.mark.parametrize("activation", [("relu", 0.0), ("leaky_relu", 0.1), ("leaky_relu", 3.0), ("tanh", 0.0)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_activation(activation: tuple[str, float], dtype: str) -> None:
    plain = Problem(2, 4, 100, 4, 8, 4, p_left=2, p_right=2, x_dtype=dtype, weight_dtype=dtype)
    problem = replace(plain, activation=activation)
    x, weight, bias = arguments(problem)
    want = reference(plain, x, weight, bias)
    name, slope = activation
    want = np.tanh(want) if name == "tanh" else np.where(want > 0, want, want * (slope if name != "relu" else 0))
    for plan in plans(problem):
        got = run(problem, plan, x, weight, bias).astype(np.float64)
        assert np.abs(got - want).max() < (3e-2 if dtype == "bfloat16" else 1e-5) * np.abs(want).max(), plan.name


def test_packed_weights_serve_any_length() -> None:
    base = Problem(2, 2, 700, 2, 33, 4, groups=2, p_left=16, p_right=16)
    x, weight, bias = arguments(base)
    kept = {plan.packing_key: ENGINE.pack(base, plan, weight) for plan in plans(base) if plan.packing_key}
    served = 0
    for length in (1, 3, 90, 699):
        problem = replace(base, batch=1, l_in=length, p_left=16 + 8 * (length > 90))
        for plan in plans(problem):
            if plan.packing_key in kept:
                out = empty(problem)
                ENGINE.run(problem, plan, x[:1, :, :length], weight, bias, out, kept[plan.packing_key])
                assert_close(problem, plan, out, x[:1, :, :length], weight, bias)
                served += 1
    assert served > 8


def test_empty_batch() -> None:
    problem = Problem(0, 2, 5, 3, 4, 2)
    x, weight, bias = arguments(problem)
    for plan in plans(problem):
        assert run(problem, plan, x, weight, bias).shape == (0, 3, problem.l_out)
