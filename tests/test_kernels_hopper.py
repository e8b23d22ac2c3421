# SPDX-License-Identifier: MIT
"""The implicit GEMM by warpgroups in the emulator's checking mode, against the reference loops.

Geometries, operands and tolerances are those of the other forms. Devices here have one to three multiprocessors, so
that small problems are waves of tiles: one block takes several in turn.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from cupy_convt.core import plan_hopper
from cupy_convt.core.device import PRESETS
from cupy_convt.core.launch import Launch, Plan
from cupy_convt.core.plan_hopper import KERNEL, TILES, HopperTile
from cupy_convt.core.problem import ITEM_BYTES, Problem
from cupy_convt.engines.cpu import reference
from cupy_convt.engines.source import kernel_source
from tests import cases
from tests import test_kernels_implicit as implicit
from tests.emulated import compiled, empty, make_engine, to_device, to_host
from tests.emulator.runner import EmuError, EmuModule
from tests.test_kernel_traffic_implicit import fewest_sectors
from tests.test_kernels_implicit import AWKWARD, operands, problem_of, run, tolerance
from tests.test_plan_implicit import problems

ONE, THREE = (replace(PRESETS["h200"], multiprocessors=count) for count in (1, 3))
#: Dtypes, and "tf32" for float32 operands rounded to TF32.
DTYPES = ("float16", "bfloat16", "tf32")
#: Where rows end inside the columns that leave at once, shorter and longer than what is worth a run of its own.
ROWS = {
    "rows of 23 columns": (9, 3, 22, 5, 4, 2, 1, 1, 1, 1),
    "rows of 24 columns": (9, 3, 23, 5, 4, 2, 1, 1, 1, 1),
    "rows of 41 columns": (7, 2, 40, 3, 10, 5, 1, 1, 3, 2),
    "long rows": (2, 3, 700, 5, 4, 2, 1, 1, 1, 1),
    "two groups of tiles": (3, 70, 250, 66, 5, 3, 1, 2, 1, 0),
}
GEOMETRIES = {**AWKWARD, **ROWS}


def candidates(problem: Problem, device: Any = ONE) -> tuple[Plan, ...]:
    """A plan for every tile."""
    plans = plan_hopper.candidates(problem, device, 1 << 30)
    assert len(plans) == len(TILES[problem.x_dtype]), plan_hopper.why_not(problem, device)
    return plans


def check(
    problem: Problem,
    device: Any = ONE,
    run: Callable[..., tuple[Any, Any]] = run,
    plans: tuple[Plan, ...] = (),
) -> None:
    """`plans`, or one for every tile."""
    x, weight, bias = operands(problem)
    want = reference(problem, x, weight, bias)
    limit = tolerance(problem, x, weight, bias, want)
    for plan in plans or candidates(problem, device):
        got, _ = run(problem, plan)
        error = np.abs(got.astype(want.dtype) - want)
        assert (error <= limit).all(), f"{plan.name} {problem}: {np.max(error / np.maximum(limit, 1e-300)):.2f}"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", GEOMETRIES)
def test_awkward_geometries(name: str, dtype: str) -> None:
    *sizes, p_left, p_right = GEOMETRIES[name]
    check(problem_of(dtype, *sizes, p_left=p_left, p_right=p_right))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", cases.GEOMETRIES)
def test_common_geometries(name: str, dtype: str) -> None:
    """Those that every method runs."""
    tf32 = dtype == "tf32"
    check(replace(cases.problem(name, "float32" if tf32 else dtype), precision="tf32" if tf32 else None))


@pytest.mark.slow
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
@given(problems(), st.sampled_from(DTYPES), st.booleans(), st.integers(1, 3), st.integers(0, 9))
def test_random_geometries(problem: Problem, dtype: str, biased: bool, multiprocessors: int, seed: int) -> None:
    """In random orders of warps, blocks and copies."""
    name, precision = ("float32", "tf32") if dtype == "tf32" else (dtype, None)
    problem = replace(problem, x_dtype=name, weight_dtype=name, precision=precision, has_bias=biased)
    assume(problem.l_out > 0 and problem.macs < 2_000_000)
    device = replace(ONE, multiprocessors=multiprocessors)
    order = {"sched": "random", "async_mode": "random", "block_order": "random", "seed": seed}
    plans = plan_hopper.candidates(problem, device, 1 << 30)
    assume(plans)
    check(problem, device, lambda p, plan: run(p, plan, **order), plans)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
def test_many_chunks_and_more_steps_than_the_rings_hold(dtype: str) -> None:
    """More than 8 steps wrap the ring of weights, 5 chunks that of x, and several tiles both."""
    channels = 5 * 64 // ITEM_BYTES["float32" if dtype == "tf32" else dtype] - 1
    check(problem_of(dtype, 1, channels, 200, 20, 5, 2, p_left=3, p_right=1))
    check(problem_of(dtype, 1, channels, 20, 5, 41, 1, p_left=20, p_right=20))


@pytest.mark.parametrize("dtype", DTYPES)
def test_blocks_share_the_tiles(dtype: str) -> None:
    """7 or more tiles on three multiprocessors: some blocks take one more than others."""
    problem = problem_of(dtype, 2, 20, 330, 100, 4, 2, groups=2, p_left=1, p_right=1)
    for plan in candidates(problem, THREE):
        (product,) = plan.steps
        assert isinstance(product, Launch) and product.grid == 3
    check(problem, THREE)


@pytest.mark.parametrize("activation", [("relu", 0.0), ("leaky_relu", 0.1), ("tanh", 0.0)])
def test_activations_follow_the_bias(activation: tuple[str, float]) -> None:
    for dtype in DTYPES:
        problem = problem_of(dtype, 1, 3, 30, 2, 4, 2, p_left=1, p_right=1, activation=activation)
        check(problem)
        check(replace(problem, dilation=2, has_bias=False))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
def test_public_layers(dtype: str) -> None:
    for problem in implicit.geometries(dtype):
        check(problem)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("length", [9, 60])
def test_rows_of_other_arrays(dtype: str, length: int) -> None:
    """x and out as slices of larger arrays, at addresses that are not multiples of 16 bytes."""
    problem = problem_of(dtype, 2, 3, length, 4, 4, 2, p_left=1, p_right=1)
    x, weight, bias = operands(problem)
    larger = np.zeros((2, 5, length + 3), x.dtype)
    larger[:, 1:4, 2 : length + 2] = x
    want = reference(problem, x, weight, bias)
    limit = tolerance(problem, x, weight, bias, want)
    for plan in candidates(problem):
        engine = make_engine()
        out = empty((2, 6, problem.l_out + 3), problem.out_dtype, shift=1)[:, 1:5, 1:-2]
        engine.run(problem, plan, to_device(larger)[:, 1:4, 2:-1], to_device(weight), to_device(bias), out)
        assert (np.abs(to_host(out).astype(want.dtype) - want) <= limit).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_order_of_execution_gives_the_same_bits(dtype: str) -> None:
    problem = problem_of(dtype, 2, 40, 290, 40, 4, 2, p_left=2, p_right=2)
    for plan in candidates(problem, THREE):
        plain, _ = run(problem, plan)
        for order in (
            {"block_order": "random", "sched": "random", "async_mode": "random", "seed": 3},
            {"sched": "prio", "async_mode": "eager", "seed": 1},
            {"sched": "desc", "async_mode": "late", "block_order": "desc"},
        ):
            other, _ = run(problem, plan, **order)
            assert plain.tobytes() == other.tobytes()


def test_the_batch_does_not_change_the_bits_of_an_item() -> None:
    problem = problem_of("bfloat16", 5, 40, 50, 40, 6, 2, p_left=2, p_right=2)
    x, weight, bias = operands(problem)
    for plan in candidates(problem):
        whole, _ = run(problem, plan)
        alone = replace(problem, batch=1)
        twin = next(other for other in candidates(alone) if other.sum_order == plan.sum_order)
        for n in range(problem.batch):
            engine = make_engine()
            out = engine.empty(alone.out_shape, "bfloat16")
            engine.run(alone, twin, to_device(x[n : n + 1]), to_device(weight), to_device(bias), out)
            assert to_host(out).tobytes() == whole[n : n + 1].tobytes()


def test_what_is_not_finite_stays_in_its_receptive_field() -> None:
    problem = problem_of("tf32", 1, 3, 9, 2, 4, 2, p_left=1, p_right=1)
    x, weight, bias = operands(problem)
    x[0, 1, 4], x[0, 2, 8] = np.inf, np.nan
    want = reference(problem, x, weight, bias)
    for plan in candidates(problem):
        engine = make_engine()
        out = engine.empty(problem.out_shape, "float32")
        engine.run(problem, plan, to_device(x), to_device(weight), to_device(bias), out)
        got = to_host(out)
        assert np.array_equal(np.isfinite(got), np.isfinite(want))
        assert np.array_equal(got[np.isinf(want)], want[np.isinf(want)])


def test_tf32_operands_are_rounded_not_cut() -> None:
    """Operands a hair below a TF32 number: cut, each would lose 2^-10 of itself."""
    problem = replace(problem_of("tf32", 1, 16, 40, 8, 1, 1), has_bias=False)
    below = np.nextafter(np.float32(1.5), np.float32(0))
    x, weight = np.full(problem.x_shape, below), np.full(problem.weight_shape, below)
    for plan in candidates(problem):
        engine = make_engine()
        out = engine.empty(problem.out_shape, "float32")
        engine.run(problem, plan, to_device(x), to_device(weight), None, out)
        assert (to_host(out) == 16 * 1.5**2).all()


#: Edits of the source, and what the checks then say.
BUGS = {
    "no proxy fence behind the stores of x": ("  fence_proxy_async();\n", "", "missing fence.proxy.async"),
    "x stored before its buffer is free": ("  ring.wait_empty();\n  rows", "  rows", "race: read by wgmma"),
    "units of x not waited for": ("  cp_async_wait<1>();\n", "", "cp.async"),
    "weights not waited for": ("        w.wait_full();\n", "", "shared"),
    "x not waited for": ("      x.wait_full();\n", "", "shared"),
    "buffers given back before the products are done": ("        wgmma_wait<1>();\n", "", "race"),
    "staging written while others read it": ("    bar_sync(1, CONSUMERS);  // nobody", "    // nobody", "race"),
    "staging read before it is written": ("    bar_sync(1, CONSUMERS);\n    ct_store", "    ct_store", "shared"),
}


@pytest.mark.slow
@pytest.mark.parametrize("bug", BUGS)
def test_the_checks_see_what_would_go_wrong(bug: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before, after, report = BUGS[bug]
    code = kernel_source(KERNEL)
    assert code.count(before) == 1
    problem = problem_of("bfloat16", 1, 200, 400, 40, 6, 2, p_left=2, p_right=2)
    plan = candidates(problem)[1]
    (product,) = plan.steps
    assert isinstance(product, Launch)
    wrong = EmuModule(code=code.replace(before, after), entries=[KERNEL], defines=dict(product.defines)).kernel(KERNEL)
    monkeypatch.setattr(
        "tests.emulated.compiled", lambda variant, *rest: wrong if variant[0] == KERNEL else compiled(variant, *rest)
    )
    with pytest.raises(EmuError, match=report):
        run(problem, plan)


FULL_TILES = [(dtype, tile) for dtype in ("bfloat16", "float32") for tile in TILES[dtype]]


@pytest.mark.slow
@pytest.mark.parametrize(("stride", "taps"), [(8, 16), (2, 4), (4, 8), (5, 10), (16, 32), (1, 3)])
@pytest.mark.parametrize(("dtype", "tile"), FULL_TILES, ids=[t.variant for _, t in FULL_TILES])
def test_traffic_of_full_tiles(dtype: str, tile: HopperTile, stride: int, taps: int) -> None:
    """One row tile, as many input channels as eight chunks. What wgmma and bulk copies read is not counted."""
    crop = (taps - stride) // 2
    sizes = (1, 8 * 64 // ITEM_BYTES[dtype], 2 * tile.columns, tile.rows // stride, taps, stride)
    problem = problem_of("tf32" if tile.unit == "tf32" else dtype, *sizes, p_left=crop, p_right=crop)
    plan = next(plan for plan in candidates(problem) if plan.variant == tile.variant)
    _, engine = run(problem, plan, counters=True)
    (pack, packed), (_, product) = engine.runtime.stats
    assert pack.kernel == "pack_weights"
    assert packed.counted and product.counted
    assert packed.global_store.sectors == packed.global_store.sectors_min
    for shared in (packed.shared_load, packed.shared_store):
        assert shared.wavefronts == shared.wavefronts_min
    assert product.global_load.sectors <= 1.1 * product.global_load.sectors_min
    assert product.global_store.sectors == fewest_sectors(problem, tile)[1]
    for shared in (product.shared_store, product.shared_load):
        assert shared.wavefronts <= 1.1 * shared.wavefronts_min
