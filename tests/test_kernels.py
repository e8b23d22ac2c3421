# SPDX-License-Identifier: MIT
"""Every kernel variant a planner can emit, run by the emulator's checking build against the definition."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from cupy_convt.core import fft_tiles, plan_direct, plan_fft, plan_gemm
from cupy_convt.core.device import PRESETS
from cupy_convt.core.launch import Plan
from cupy_convt.core.problem import Problem
from cupy_convt.engines.runtime import GpuEngine
from tests import cases
from tests.cases import GEOMETRIES, PAIRS, pair_id, problem
from tests.emulated import EmulatedArray, EmulatorRuntime, empty, make_engine, to_device, to_host

H200 = PRESETS["h200"]
SMALL = replace(H200, name="two multiprocessors", multiprocessors=2)
LIMIT = 256 << 20
PLANNERS = (plan_direct, plan_gemm, plan_fft)
FAST_PAIRS = {("float32", "float32"), ("float16", "float16"), ("complex64", "float32")}


def plans(p: Problem, device=H200, limit: int = LIMIT) -> list[Plan]:
    return [plan for planner in PLANNERS for plan in planner.candidates(p, device, limit)]


def run(p: Problem, plan: Plan, engine: GpuEngine | None = None, seed: int = 0, shift: int = 0) -> np.ndarray:
    """The plan's result; `shift` elements put x and out off their alignment."""
    engine = engine or make_engine()
    x, weight, bias = cases.operands(p, seed)
    source = empty(p.x_shape, p.x_dtype, shift)
    source[...] = x
    source.buffer.mark_written()
    out = empty(p.out_shape, p.out_dtype, shift)
    engine.run(p, plan, source, to_device(weight), None if bias is None else to_device(bias), out)
    return to_host(out)


def check(p: Problem, plan: Plan, y: np.ndarray, seed: int = 0) -> None:
    x, weight, bias = cases.operands(p, seed)
    wanted = cases.expected(p, x, weight, bias)
    error = np.abs(y.astype(wanted.dtype) - wanted)
    excess = error / cases.tolerance(p, plan, x, weight, wanted)
    assert excess.max() <= 1, f"{plan.name} on {p}: {excess.max():.2f} times the tolerance"


@pytest.mark.parametrize("name", GEOMETRIES)
@pytest.mark.parametrize(
    "pair", [pytest.param(p, marks=() if p in FAST_PAIRS else pytest.mark.slow) for p in PAIRS], ids=pair_id
)
def test_every_plan_gives_the_definition(name: str, pair: tuple[str, str]) -> None:
    p = problem(name, *pair)
    for plan in plans(p):
        check(p, plan, run(p, plan))


@pytest.mark.parametrize("name", GEOMETRIES)
def test_direct_plans_agree_to_the_bit(name: str) -> None:
    for pair in (("float32", "float32"), ("bfloat16", "bfloat16"), ("float64", "complex128")):
        p = problem(name, *pair)
        results = [run(p, plan) for device in (H200, SMALL) for plan in plan_direct.candidates(p, device, LIMIT)]
        assert len(results) == 4
        for other in results[1:]:
            np.testing.assert_array_equal(results[0].view(np.uint8), other.view(np.uint8))


def test_the_cases_reach_every_variant() -> None:
    launched = {
        launch.variant
        for pair in PAIRS
        for name in GEOMETRIES
        for device in (H200, SMALL)
        for plan in plans(problem(name, *pair), device)
        for launch in plan.launches
    }
    declared = [variant for planner in PLANNERS for variant in planner.variants()]
    assert len(declared) == len(set(declared))
    assert launched == set(declared)


@pytest.mark.parametrize("name", ["ragged", "depthwise", "prime", "stride six", "short rows"])
def test_misaligned_rows(name: str) -> None:
    for pair in (("float32", "float32"), ("float16", "float16")):
        p = problem(name, *pair)
        for plan in plans(p):
            for shift in (1, 3):
                check(p, plan, run(p, plan, shift=shift))


@pytest.mark.parametrize("options", [{"sched": "desc"}, {"sched": "random", "seed": 3}, {"block_order": "desc"}])
def test_any_schedule(options: dict[str, object]) -> None:
    p = problem("ragged")
    for plan in plans(p):
        check(p, plan, run(p, plan, make_engine(**options)))


def strided(p: Problem) -> dict[str, tuple[EmulatedArray, np.ndarray]]:
    """x as views of device memory, with its values."""
    n, c, length = p.x_shape
    rng = np.random.default_rng(5)
    wide = to_device(cases.values(rng, (n + 1, c + 2, length + 5), p.x_dtype))
    turned = to_device(cases.values(rng, (n, length, c), p.x_dtype))
    one = to_device(cases.values(rng, (1, 1, length), p.x_dtype))
    views = {
        "slice": wide[1:, 1:-1, 2:-3],
        "reversed channels": wide[:n, c - 1 :: -1, :length],
        "reversed time": wide[:n, :c, length - 1 :: -1],
        "time not contiguous": turned.transpose(0, 2, 1),
        "broadcast": np.lib.stride_tricks.as_strided(one, p.x_shape, (0, 0, one.strides[2]), subok=True),
    }
    assert all(view.shape == p.x_shape for view in views.values())
    return {name: (view, np.array(view, subok=False)) for name, view in views.items()}


@pytest.mark.parametrize("name", ["ragged", "dilated"])
def test_strided_inputs_and_outputs(name: str) -> None:
    p = replace(problem(name), activation=None)
    _, weight, bias = cases.operands(p)
    for kind, (x, host) in strided(p).items():
        for plan in plans(p):
            wide = empty(
                (p.batch, p.l_out, p.c_out + 1) if "time" in kind else (p.batch, p.c_out, p.l_out + 3), p.out_dtype
            )
            out = wide.transpose(0, 2, 1)[:, 1:] if "time" in kind else wide[:, ::-1, 2:-1]
            make_engine().run(p, plan, x, to_device(weight), None if bias is None else to_device(bias), out)
            wanted = cases.expected(p, host, weight, bias)
            error = np.abs(to_host(out) - wanted)
            assert (error <= cases.tolerance(p, plan, host, weight, wanted)).all(), (kind, plan.name)


def test_a_contiguous_time_axis_is_not_copied() -> None:
    p = problem("ragged")
    x, _ = strided(p)["slice"]
    _, weight, bias = cases.operands(p)
    runtime = EmulatorRuntime()
    copied: list[object] = []
    runtime.contiguous = lambda a: copied.append(a) or a if not a.flags.c_contiguous else a  # type: ignore[func-returns-value,method-assign]
    for plan in plans(p):
        GpuEngine(runtime).run(p, plan, x, to_device(weight), to_device(bias), empty(p.out_shape, p.out_dtype))
    assert not copied


def test_no_sample_knows_its_batch_its_crop_or_its_length() -> None:
    p = replace(problem("depthwise"), p_left=0, p_right=0, batch=3)
    x, weight, _ = cases.operands(p)
    whole = {plan.variant: direct(p, plan, x, weight) for plan in plan_direct.candidates(p, H200, LIMIT)}
    single = replace(p, batch=1)
    cropped = replace(p, p_left=37, p_right=41)
    shorter = replace(p, l_in=64)
    final = 64 * p.stride  # samples that no later input reaches
    for device in (H200, SMALL):
        for plan in plan_direct.candidates(single, device, LIMIT):
            np.testing.assert_array_equal(direct(single, plan, x[1:2], weight)[0], whole[plan.variant][1])
        for plan in plan_direct.candidates(cropped, device, LIMIT):
            np.testing.assert_array_equal(direct(cropped, plan, x, weight), whole[plan.variant][:, :, 37:-41])
        for plan in plan_direct.candidates(shorter, device, LIMIT):
            got = direct(shorter, plan, x[:, :, :64], weight)
            np.testing.assert_array_equal(got[:, :, :final], whole[plan.variant][:, :, :final])


def direct(p: Problem, plan: Plan, x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    out = empty(p.out_shape, p.out_dtype)
    make_engine().run(p, plan, to_device(x), to_device(weight), None, out)
    return to_host(out)


@pytest.mark.parametrize("name", ["ragged", "fir", "dilated", "stride seven", "stride eight"])
@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_direct_keeps_a_nan_inside_its_receptive_field(name: str, poison: float) -> None:
    p = replace(problem(name), activation=None)
    x, weight, bias = cases.operands(p)
    clean = cases.expected(p, x, weight, bias)
    at = min(5, p.l_in - 1)
    x[0, 0, at] = poison
    touched = np.zeros(p.out_shape, bool)
    times = at * p.stride + np.arange(p.kernel_size) * p.dilation - p.p_left
    touched[0, : p.c_out_group, times[(times >= 0) & (times < p.l_out)]] = True
    for device in (H200, SMALL):
        for plan in plan_direct.candidates(p, device, LIMIT):
            out = empty(p.out_shape, p.out_dtype)
            arrays = to_device(x), to_device(weight), None if bias is None else to_device(bias)
            make_engine().run(p, plan, *arrays, out)
            y = to_host(out)
            np.testing.assert_array_equal(~np.isfinite(y), touched)
            np.testing.assert_allclose(y[~touched], clean[~touched], rtol=1e-4, atol=1e-4)


def test_workspace_limits_change_the_tiles_and_not_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_gemm, "LEAST_BUDGET", 1)
    monkeypatch.setattr(fft_tiles, "LEAST_BUDGET", 1)
    for name in ("ragged", "depthwise", "common factor", "long filter"):
        for pair in (("float32", "float32"), ("float32", "complex64"), ("complex64", "float32")):
            p = problem(name, *pair)
            for planner in (plan_gemm, plan_fft):
                lengths = set()
                for limit in (1 << 28, 1 << 14, 1 << 10):
                    for plan in planner.candidates(p, H200, limit):
                        lengths.add(len(plan.steps))
                        check(p, plan, run(p, plan))
                assert len(lengths) > 1


def test_packed_weights_are_used_again() -> None:
    p = problem("long filter")
    (plan,) = plan_fft.candidates(p, H200, LIMIT)
    engine = make_engine()
    x, weight, bias = cases.operands(p)
    packed = engine.pack(p, plan, to_device(weight))
    out = empty(p.out_shape, p.out_dtype)
    nothing = to_device(np.zeros_like(weight))
    engine.run(p, plan, to_device(x), nothing, None if bias is None else to_device(bias), out, packed)
    check(p, plan, to_host(out))


def test_an_empty_batch_launches_nothing() -> None:
    p = replace(problem("ragged"), batch=0)
    for plan in plans(p):
        engine = make_engine()
        x, weight, bias = cases.operands(p)
        engine.run(p, plan, to_device(x), to_device(weight), to_device(bias), empty(p.out_shape, p.out_dtype))
        assert not engine.runtime.stats  # type: ignore[attr-defined]
