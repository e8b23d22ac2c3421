# SPDX-License-Identifier: MIT
"""Weight streaming: its kernels in the emulator's checking mode against the reference loops, its plans, its traffic."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from cupy_convt.core import cost_implicit, plan_implicit, plan_weight_stream, weight_tiles
from cupy_convt.core.device import PRESETS
from cupy_convt.core.launch import Launch, Plan
from cupy_convt.core.problem import ITEM_BYTES, Problem, is_complex
from cupy_convt.engines.cpu import reference
from tests import cases
from tests.emulated import empty, make_engine, to_device, to_host
from tests.plans import check_launches

H200 = PRESETS["h200"]
#: So few multiprocessors that a part has many channels.
SMALL = replace(H200, multiprocessors=3)
LAYERS = json.loads((Path(__file__).parent.parent / "benchmarks" / "layers.json").read_text())
#: (C_in, C_out, K, s, d, g, p_left, p_right); L_in is 1, 4, 5 and 16
GEOMETRIES = {
    "vocoder": (20, 6, 16, 8, 1, 1, 4, 4),
    "ragged, odd rows": (13, 7, 11, 5, 1, 1, 3, 1),
    "several tiles": (9, 33, 16, 8, 1, 1, 0, 0),
    "several tiles, odd rows": (9, 37, 15, 4, 1, 1, 0, 0),
    "groups": (18, 9, 6, 3, 1, 3, 2, 1),
    "K < s": (8, 2, 2, 5, 1, 1, 0, -3),
    "s = 1": (17, 5, 7, 1, 1, 1, 3, 3),
    "dilated, coprime": (8, 4, 7, 5, 3, 1, 2, 1),
    "dilated, common factor": (9, 4, 5, 4, 6, 1, 5, 3),
    "extended by zeros": (8, 2, 4, 3, 1, 1, -40, -25),
    "many taps": (8, 1, 400, 7, 1, 1, 60, 70),
    "one input channel": (1, 3, 9, 4, 1, 1, 1, 1),
    "many channels": (600, 2, 4, 2, 1, 1, 1, 1),
}


def problem_of(name: str, pair: tuple[str, str], batch: int, length: int, **rest: Any) -> Problem:
    c_in, c_out, k, s, d, g, left, right = GEOMETRIES[name]
    rest = {"has_bias": k % 2 == 0, **rest}
    return Problem(batch, c_in, length, c_out, k, s, d, g, left, right, *pair, **rest)


def plan_of(problem: Problem, device: Any = H200) -> Plan:
    (plan,) = plan_weight_stream.candidates(problem, device, 1 << 30)
    return plan


def run(problem: Problem, plan: Plan, arrays: tuple[Any, Any, Any], **options: Any) -> tuple[Any, Any]:
    """(result, engine) of one plan."""
    engine = make_engine(**options)
    x, weight, bias = (None if a is None else to_device(a) for a in arrays)
    out = engine.empty(problem.out_shape, problem.out_dtype)
    engine.run(problem, plan, x, weight, bias, out)
    return to_host(out), engine


def check(problem: Problem, device: Any = H200) -> None:
    plan = plan_of(problem, device)
    check_launches(plan, device)
    x, weight, bias = cases.operands(problem, seed=problem.l_in)
    got, _ = run(problem, plan, (x, weight, bias))
    want = cases.expected(problem, x, weight, bias)
    subnormal = 2.0**-25 if problem.out_dtype == "float16" else 0.0
    limit = cases.tolerance(problem, plan, x, weight, want) + subnormal
    assert (np.abs(got.astype(want.dtype) - want) <= limit).all(), problem


@pytest.mark.slow
@pytest.mark.parametrize("pair", cases.PAIRS, ids=cases.pair_id)
@pytest.mark.parametrize("name", GEOMETRIES)
def test_awkward_geometries(name: str, pair: tuple[str, str]) -> None:
    for batch, length in ((1, 1), (2, 2), (1, 5), (1, 16), (3, 5)):
        problem = problem_of(name, pair, batch, length)
        if problem.l_out > 0:
            check(problem)
            check(problem, SMALL)


@pytest.mark.parametrize("name", cases.GEOMETRIES)
@pytest.mark.parametrize("pair", cases.PAIRS, ids=cases.pair_id)
def test_the_common_geometries_cut_short(name: str, pair: tuple[str, str]) -> None:
    whole = cases.problem(name, *pair)
    batch = min(whole.batch, 2)
    for length in (3, 8):
        problem = replace(whole, batch=batch, l_in=length, p_right=whole.p_right - (whole.l_in - length) * whole.stride)
        kept = replace(whole, batch=batch, l_in=length)
        for cut in (problem, kept, replace(kept, p_left=0, p_right=0)):
            if cut.l_out > 0:
                check(cut)


@pytest.mark.slow
def test_public_layers_of_few_inputs() -> None:
    for layer in LAYERS:
        groups = min(layer["groups"], 2)
        c_in, c_out = (groups * min(c // layer["groups"], 3) for c in (layer["c_in"], layer["c_out"]))
        sizes = (1, c_in, 2, c_out, layer["k"], layer["stride"], layer["dilation"], groups)
        padding = layer["padding"], layer["padding"] - layer["output_padding"]
        for dtype in ("float32", "float16"):
            problem = Problem(*sizes, *padding, dtype, dtype, True)
            check(problem if problem.l_out > 0 else replace(problem, p_left=0, p_right=0))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_random_geometries(data: st.DataObject) -> None:
    def draw(low: int, high: int) -> int:
        return data.draw(st.integers(low, high))

    groups, batch, pair = draw(1, 3), draw(1, 3), data.draw(st.sampled_from(cases.PAIRS))
    activation = (
        None if is_complex(pair[0]) or is_complex(pair[1]) else data.draw(st.sampled_from([None, ("relu", 0.0)]))
    )
    problem = Problem(
        *(batch, groups * draw(1, 30), draw(1, 16 // batch), groups * draw(1, 12), draw(1, 40), draw(1, 9)),
        *(draw(1, 5), groups, draw(-9, 30), draw(-9, 30), *pair, data.draw(st.booleans()), activation),
    )
    assume(problem.l_out > 0)
    check(problem, data.draw(st.sampled_from([H200, SMALL])))


@pytest.mark.parametrize("pair", cases.PAIRS, ids=cases.pair_id)
def test_arrays_that_are_not_aligned(pair: tuple[str, str]) -> None:
    """x and out as slices of larger arrays, the weight one element past an aligned address."""
    problem = problem_of("vocoder", pair, 2, 3)
    x, weight, bias = cases.operands(problem)
    larger = np.zeros((2, problem.c_in + 2, 9), x.dtype)
    larger[:, 1:-1, 2:5] = x
    plan, engine = plan_of(problem), make_engine()
    shifted = empty(weight.shape, problem.weight_dtype, shift=1)
    engine.runtime.copy(weight, shifted)
    out = empty((2, problem.c_out + 2, problem.l_out + 3), problem.out_dtype, shift=1)[:, 1:-1, 1:-2]
    engine.run(problem, plan, to_device(larger)[:, 1:-1, 2:5], shifted, to_device(bias), out)
    want = cases.expected(problem, x, weight, bias)
    assert (np.abs(to_host(out).astype(want.dtype) - want) <= cases.tolerance(problem, plan, x, weight, want)).all()


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_bits_depend_neither_on_the_schedule_nor_on_the_batch(dtype: str) -> None:
    problem = problem_of("vocoder", (dtype, dtype), 3, 4, activation=("leaky_relu", 0.1))
    x, weight, bias = cases.operands(problem)
    for device in (H200, SMALL):
        plan = plan_of(problem, device)
        plain, _ = run(problem, plan, (x, weight, bias))
        shuffled, _ = run(problem, plan, (x, weight, bias), block_order="random", sched="random", seed=3)
        assert plain.tobytes() == shuffled.tobytes()
        alone = plan_of(replace(problem, batch=1), device)
        assert plan.sum_order == alone.sum_order
        assert plan.launches[0].variant != alone.launches[0].variant
        for n in range(3):
            item, _ = run(replace(problem, batch=1), alone, (x[n : n + 1], weight, bias))
            assert item.tobytes() == plain[n : n + 1].tobytes()


def test_what_is_not_finite_stays_in_its_receptive_field() -> None:
    problem = problem_of("ragged, odd rows", ("float32", "float32"), 1, 9)
    x, weight, bias = cases.operands(problem)
    x[0, 1, 4], x[0, 2, 8] = np.inf, np.nan
    want, (got, _) = reference(problem, x, weight, bias), run(problem, plan_of(problem), (x, weight, bias))
    assert np.isnan(want).any() and np.isinf(want).any()
    assert np.array_equal(np.isnan(got), np.isnan(want))
    assert np.array_equal(got[np.isinf(want)], want[np.isinf(want)])


@pytest.mark.parametrize("pair", cases.PAIRS, ids=cases.pair_id)
@pytest.mark.parametrize("length", [1, 4, 16])
def test_each_byte_of_the_weight_is_read_once(pair: tuple[str, str], length: int) -> None:
    problem = Problem(1, 96, length, 64, 16, 8, 1, 1, 4, 4, *pair)
    plan = plan_of(problem)
    _, engine = run(problem, plan, cases.operands(problem), counters=True)
    (_, product), (_, finish) = engine.runtime.stats
    assert product.counted and finish.counted
    weight = product.argument(1)
    assert weight.load_sectors * 32 == problem.weight_bytes
    loads = product.global_load.sectors - weight.load_sectors
    tiles = weight_tiles.element_tiles(problem)
    assert loads * 32 <= 1.1 * tiles * max(problem.x_bytes, 32 * problem.c_in if length == 16 else problem.x_bytes)
    assert product.global_store.sectors == product.global_store.sectors_min
    assert finish.global_store.sectors <= 1.1 * finish.global_store.sectors_min
    shared = product.shared_load, product.shared_store
    assert sum(s.wavefronts for s in shared) <= 1.1 * sum(s.wavefronts_min for s in shared)


def test_a_part_has_whole_rounds_of_the_warps_and_every_channel_is_in_one() -> None:
    for dtype in ("float32", "float16", "complex128"):
        for c_in in (1, 7, 64, 513, 2048):
            for c_out in (1, 32, 1024):
                problem = Problem(1, c_in, 4, c_out, 16, 8, x_dtype=dtype, weight_dtype=dtype)
                for device in (H200, SMALL, PRESETS["t4"]):
                    channels = cost_implicit.stream_channels(problem, device)
                    parts = weight_tiles.parts(problem, channels)
                    assert channels % weight_tiles.WARPS == 0 and (parts - 1) * channels < c_in <= parts * channels
                    product = plan_of(problem, device).steps[0]
                    assert isinstance(product, Launch) and product.shared_bytes <= 48 << 10


def test_what_it_does_not_take() -> None:
    problem = problem_of("vocoder", ("float32", "float32"), 2, 8)
    assert plan_weight_stream.why_not(problem, H200) == ""
    assert "16 inputs" in plan_weight_stream.why_not(replace(problem, batch=3), H200)
    assert "weight_grad" in plan_weight_stream.why_not(replace(problem, operation="weight_grad"), H200)
    assert "2^30" in plan_weight_stream.why_not(replace(problem, p_left=-(2**30)), H200)
    assert "2^30" in plan_weight_stream.why_not(replace(problem, dilation=2**27), H200)
    assert plan_weight_stream.candidates(replace(problem, batch=0), H200, 1 << 30) == ()
    assert plan_weight_stream.candidates(problem, H200, 1 << 10) == ()


def test_every_variant_has_a_plan() -> None:
    emitted = {
        launch.variant
        for pair in cases.PAIRS
        for length in (1, 4, 16)
        for launch in plan_of(problem_of("vocoder", pair, 1, length)).launches
    }
    assert emitted == set(plan_weight_stream.variants())


def test_predicted_time_of_a_frame_is_that_of_the_weight() -> None:
    problem = Problem(1, 2048, 1, 1024, 20, 10, p_left=5, p_right=5)
    reading = problem.weight_bytes / H200.bandwidth
    predicted = cost_implicit.stream_seconds(problem, plan_of(problem), H200) - 2 * H200.launch_seconds
    assert reading < predicted < 1.5 * reading
    tiled = min(cost_implicit.seconds(problem, p, H200) for p in plan_implicit.candidates(problem, H200, 1 << 30))
    assert predicted + 2 * H200.launch_seconds < tiled
    longer = [replace(problem, l_in=length) for length in (1, 4, 16)]
    times = [cost_implicit.stream_seconds(p, plan_of(p), H200) for p in longer]
    assert times == sorted(times)
    assert all(plan_of(p).workspaces[0].bytes < p.weight_bytes * 4 // ITEM_BYTES[p.weight_dtype] for p in longer)
