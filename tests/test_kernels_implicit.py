# SPDX-License-Identifier: MIT
"""The kernels of the implicit GEMM in the emulator's checking mode, against the reference loops.

Tolerance from arithmetic: |error| <= (4 + sqrt(terms)) eps sum|x||w| with eps of the accumulator, plus one rounding;
one TF32 product adds the rounding of its operands. Three of them must meet the float32 bound.
"""

import json
from dataclasses import replace
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from cupy_convt.core import plan_implicit
from cupy_convt.core.device import PRESETS
from cupy_convt.core.implicit_tiles import TILES, Tile, steps, tile_of
from cupy_convt.core.launch import Plan
from cupy_convt.core.problem import EPSILON, ITEM_BYTES, Problem, is_complex
from cupy_convt.engines.cpu import reference
from cupy_convt.engines.dtypes import named_dtype
from tests import cases
from tests.emulated import empty, make_engine, to_device, to_host
from tests.test_kernel_traffic_implicit import fewest_sectors
from tests.test_plan_implicit import problems

H200 = replace(PRESETS["h200"], three_tf32=True)
LAYERS = json.loads((Path(__file__).parent.parent / "benchmarks" / "layers.json").read_text())
#: Dtypes, and "tf32" for float32 operands rounded to TF32.
DTYPES = (*TILES, "tf32")
DTYPE_OF = {"tf32": "float32"}


def values(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> Any:
    data: Any = rng.standard_normal(shape)
    if is_complex(dtype):
        data = data + 1j * rng.standard_normal(shape)
    return data.astype(named_dtype(dtype))


def operands(problem: Problem) -> tuple[Any, Any, Any]:
    rng = np.random.default_rng(problem.l_in)
    bias = values(rng, (problem.c_out,), problem.out_dtype) if problem.has_bias else None
    return values(rng, problem.x_shape, problem.x_dtype), values(rng, problem.weight_shape, problem.weight_dtype), bias


def tolerance(problem: Problem, x: Any, weight: Any, bias: Any, want: Any) -> Any:
    plain = replace(problem, x_dtype="float64", weight_dtype="float64", activation=None)
    wide = want.dtype
    sizes = reference(plain, *(None if a is None else np.abs(a.astype(wide)) for a in (x, weight, bias)))
    terms = problem.c_in_group * problem.phases.max_taps
    rounding = EPSILON[problem.out_dtype] / 2 if problem.accumulator != problem.out_dtype else 0.0
    product = 2.0**-10 if problem.precision == "tf32" else 0.0
    subnormal = 2.0**-25 if problem.out_dtype == "float16" else 0.0
    return ((4 + sqrt(terms)) * EPSILON[problem.accumulator] + product) * sizes + rounding * np.abs(want) + subnormal


def candidates(problem: Problem) -> list[Plan]:
    """The plans of the arithmetic that is asked for."""
    plans = plan_implicit.candidates(problem, H200, 1 << 30)
    assert plans, plan_implicit.why_not(problem, H200)
    return [plan for plan in plans if problem.precision != "tf32" or "/tf32" in plan.variant]


def run(problem: Problem, plan: Plan, **options: Any) -> tuple[Any, Any]:
    """(result, engine) of one plan."""
    engine = make_engine(**options)
    x, weight, bias = (None if a is None else to_device(a) for a in operands(problem))
    out = engine.empty(problem.out_shape, problem.out_dtype)
    engine.run(problem, plan, x, weight, bias, out)
    return to_host(out), engine


def check(problem: Problem, plans: list[Plan] | None = None) -> None:
    x, weight, bias = operands(problem)
    want = reference(problem, x, weight, bias)
    limit = tolerance(problem, x, weight, bias, want)
    for plan in candidates(problem) if plans is None else plans:
        got, _ = run(problem, plan)
        error = np.abs(got.astype(want.dtype) - want)
        assert (error <= limit).all(), f"{plan.name} {problem}: {np.max(error / np.maximum(limit, 1e-300)):.2f}"


def problem_of(dtype: str, *sizes: int, **rest: Any) -> Problem:
    if dtype in DTYPE_OF:
        return problem_of(DTYPE_OF[dtype], *sizes, precision=dtype, **rest)
    return Problem(*sizes, x_dtype=dtype, weight_dtype=dtype, **{"has_bias": True, **rest})


#: (N, C_in, L_in, C_out, K, s, d, g, p_left, p_right)
AWKWARD = {
    "halved crop": (2, 5, 7, 6, 4, 2, 1, 1, 1, 1),
    "one input": (3, 17, 1, 3, 5, 3, 1, 1, 1, 0),
    "primes, ragged taps": (2, 13, 11, 7, 11, 5, 1, 1, 3, 1),
    "groups": (2, 6, 13, 9, 6, 3, 1, 3, 2, 1),
    "K < s": (2, 3, 9, 2, 2, 5, 1, 1, 0, -3),
    "K < s, many rows": (1, 3, 5, 40, 3, 7, 1, 1, 2, 2),
    "s = 1": (2, 4, 40, 5, 7, 1, 1, 1, 3, 3),
    "dilated, coprime": (2, 3, 31, 4, 5, 2, 3, 1, 4, 2),
    "dilated, common factor": (2, 3, 15, 4, 5, 4, 6, 1, 5, 3),
    "dilated by the stride": (1, 3, 21, 4, 3, 4, 4, 1, 2, 0),
    "dilated beyond the halo": (2, 3, 60, 2, 4, 1, 37, 1, 30, 30),
    "taps beyond the halo": (1, 2, 50, 2, 141, 3, 1, 1, 60, 70),
    "output padding": (2, 4, 9, 3, 5, 4, 1, 1, 2, -1),
    "extended by zeros": (2, 3, 6, 2, 4, 3, 1, 1, -40, -25),
    "cut to the middle": (3, 3, 90, 2, 9, 2, 1, 1, 71, 63),
    "cut to the end": (2, 3, 20, 2, 40, 2, 1, 1, 52, 0),
    "more phases than rows": (1, 2, 3, 2, 200, 97, 1, 1, 40, 40),
    "K < s, phases in several tiles": (2, 2, 3, 2, 150, 160, 1, 1, 5, 5),
    "dilated, phases in several tiles": (1, 2, 3, 2, 150, 149, 7, 1, 40, 40),
    "rows of many short entries": (67, 2, 2, 3, 4, 2, 1, 1, 1, 1),
    "several tiles": (2, 18, 150, 33, 4, 2, 1, 1, 1, 1),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", AWKWARD)
def test_awkward_geometries(name: str, dtype: str):
    *sizes, p_left, p_right = AWKWARD[name]
    check(problem_of(dtype, *sizes, p_left=p_left, p_right=p_right))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", cases.GEOMETRIES)
def test_common_geometries(name: str, dtype: str):
    """Those that every method runs, in one part and in parts."""
    problem = cases.problem(name, DTYPE_OF.get(dtype, dtype))
    problem = replace(problem, precision="tf32" if dtype == "tf32" else None)
    check(problem, candidates(problem) + in_parts(problem, 1))


def in_parts(problem: Problem, cuts: int = 3) -> list[Plan]:
    """The plans whose contraction is cut: into the least, a middling, the greatest number of parts (`cuts` of them)."""
    whole = steps(problem)
    counts = [parts for parts in range(2, whole + 1) if whole % parts == 0]
    chosen = sorted({counts[0], counts[len(counts) // 2], counts[-1]}) if counts else []
    found = dict.fromkeys(tile_of(problem, plan) for plan in candidates(problem))
    return [plan_implicit.plan_of(problem, tile, parts) for tile in found for parts in chosen[:cuts]]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", AWKWARD)
def test_awkward_geometries_in_parts(name: str, dtype: str):
    """Input channels of two chunks and one of a third: parts begin and end inside chunks and inside panels."""
    n, _, length, c_out, *rest, groups, p_left, p_right = AWKWARD[name]
    channels = groups * (128 // ITEM_BYTES[DTYPE_OF.get(dtype, dtype)] + 1)
    problem = problem_of(dtype, n, channels, length, c_out, *rest, groups, p_left=p_left, p_right=p_right)
    plans = in_parts(problem)
    assert {tile_of(problem, plan) for plan in plans} == {tile_of(problem, plan) for plan in candidates(problem)}
    check(problem, plans)


@pytest.mark.slow
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
@given(problems(), st.booleans(), st.sampled_from([None, ("leaky_relu", 0.1)]), st.sampled_from([None, "tf32"]))
def test_random_geometries(problem: Problem, biased: bool, activation: tuple[str, float] | None, precision: str | None):
    assume(problem.l_out > 0 and problem.macs < 300_000)
    problem = replace(problem, has_bias=biased, activation=None if is_complex(problem.x_dtype) else activation)
    problem = replace(problem, precision=precision if problem.x_dtype == "float32" else None)
    check(problem, candidates(problem) + in_parts(problem))


def test_bits_of_an_item_do_not_depend_on_the_batch():
    """The cut follows from an item: alone, or anywhere in a batch, it gets the same bits from plans of one order."""
    problem = problem_of("float32", 3, 65, 9, 7, 6, 2, p_left=2, p_right=1)
    alone = replace(problem, batch=1)
    x, weight, bias = operands(problem)
    engine = make_engine()

    def result(problem: Problem, plan: Plan, x: Any) -> Any:
        out = engine.empty(problem.out_shape, "float32")
        engine.run(problem, plan, to_device(x), to_device(weight), to_device(bias), out)
        return to_host(out)

    for plan in candidates(problem) + in_parts(problem):
        twins = [other for other in candidates(alone) + in_parts(alone) if other.sum_order == plan.sum_order]
        assert plan.sum_order and twins
        together = result(problem, plan, x)
        for twin in twins:
            for n in range(problem.batch):
                assert np.array_equal(together[n : n + 1], result(alone, twin, x[n : n + 1])), (plan.name, twin.name)


@pytest.mark.parametrize("activation", [("relu", 0.0), ("leaky_relu", 0.1), ("tanh", 0.0)])
def test_activations_follow_the_bias(activation: tuple[str, float]):
    for dtype in DTYPES:
        if not is_complex(dtype):
            problem = problem_of(dtype, 1, 3, 9, 2, 4, 2, p_left=1, p_right=1, activation=activation)
            check(problem)
            check(replace(problem, dilation=2, has_bias=False))


def cut(layer: dict[str, Any], dtype: str) -> Problem:
    """A public layer with few channels and inputs, its geometry kept."""
    groups = min(layer["groups"], 2)
    channels = [groups * min(c // layer["groups"], 3) for c in (layer["c_in"], layer["c_out"])]
    stride, padding = layer["stride"], layer["padding"]
    reach = layer["dilation"] * (layer["k"] - 1) + 1
    length = min(layer["l_in"], 3 + 2 * padding // stride)
    right = padding - layer["output_padding"]
    while (length - 1) * stride + reach - padding - right < 1:
        length += 1
    sizes = (min(layer["n"], 2), channels[0], length, channels[1], layer["k"], stride, layer["dilation"], groups)
    return problem_of(dtype, *sizes, p_left=padding, p_right=right)


def geometries(dtype: str) -> list[Problem]:
    """Every layer but the long filters, which are no dense layers: J > 64 taps of a phase."""
    cuts = dict.fromkeys(cut(layer, dtype) for layer in LAYERS)
    return [problem for problem in cuts if problem.phases.max_taps <= 64]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "tf32"])
def test_public_layers(dtype: str):
    for problem in geometries(dtype):
        check(problem)
        check(problem, in_parts(problem, 1))


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_of_other_arrays(dtype: str):
    """x and out as slices of larger arrays, at addresses that are not multiples of 16 bytes."""
    problem = problem_of(dtype, 2, 3, 9, 4, 4, 2, p_left=1, p_right=1)
    x, weight, bias = operands(problem)
    larger = np.zeros((2, 5, 12), x.dtype)
    larger[:, 1:4, 2:11] = x
    for plan in candidates(problem) + in_parts(problem):
        engine = make_engine()
        out = empty((2, 6, problem.l_out + 3), problem.out_dtype, shift=1)[:, 1:5, 1:-2]
        engine.run(problem, plan, to_device(larger)[:, 1:4, 2:11], to_device(weight), to_device(bias), out)
        want = reference(problem, x, weight, bias)
        assert (np.abs(to_host(out).astype(want.dtype) - want) <= tolerance(problem, x, weight, bias, want)).all()


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_order_of_execution_gives_the_same_bits(dtype: str):
    problem = problem_of(dtype, 2, 18, 40, 20, 6, 2, p_left=2, p_right=2)
    for plan in candidates(problem) + in_parts(problem):
        plain, _ = run(problem, plan)
        shuffled, _ = run(problem, plan, block_order="random", sched="random", async_mode="random", seed=3)
        assert plain.tobytes() == shuffled.tobytes()


def test_what_is_not_finite_stays_in_its_receptive_field():
    problem = problem_of("float32", 1, 3, 9, 2, 4, 2, p_left=1, p_right=1)
    x, weight, bias = operands(problem)
    x[0, 1, 4], x[0, 2, 8] = np.inf, np.nan
    want = reference(problem, x, weight, bias)
    assert np.isinf(want).sum() == 8
    for plan in candidates(problem):
        engine = make_engine()
        out = engine.empty(problem.out_shape, "float32")
        engine.run(problem, plan, to_device(x), to_device(weight), to_device(bias), out)
        got = to_host(out)
        assert np.array_equal(np.isfinite(got), np.isfinite(want))
        assert "3xtf32" in plan.variant or np.array_equal(got[np.isinf(want)], want[np.isinf(want)])


FULL_TILES = [
    (dtype, next(tile for tile in tiles if tile.unit == unit))
    for dtype, tiles in TILES.items()
    for unit in dict.fromkeys(tile.unit for tile in tiles)
]


@pytest.mark.parametrize(("stride", "taps"), [(8, 16), (2, 4), (4, 8), (5, 10), (16, 32), (1, 3)])
@pytest.mark.parametrize(("dtype", "tile"), FULL_TILES, ids=[f"{d} {t.unit}" for d, t in FULL_TILES])
def test_traffic_of_full_tiles(dtype: str, tile: Tile, stride: int, taps: int):
    """One row tile, as many input channels as eight chunks."""
    crop = (taps - stride) // 2
    channels = 8 * 64 // ITEM_BYTES[dtype]
    sizes = (1, channels, 2 * tile.columns, tile.rows // stride, taps, stride)
    problem = problem_of("tf32" if tile.unit == "tf32" else dtype, *sizes, p_left=crop, p_right=crop)
    plan = next(plan for plan in candidates(problem) if plan.variant == tile.variant)
    _, engine = run(problem, plan, counters=True)
    (pack, packed), (_, product) = engine.runtime.stats
    assert pack.kernel == "pack_weights"
    assert packed.counted and product.counted
    assert packed.global_store.sectors == packed.global_store.sectors_min
    assert product.global_load.sectors <= 1.1 * product.global_load.sectors_min
    assert product.global_store.sectors <= 1.06 * fewest_sectors(problem, tile)[1]
    for stats in (packed, product):
        for shared in (stats.shared_load, stats.shared_store):
            assert shared.wavefronts <= 1.1 * shared.wavefronts_min
