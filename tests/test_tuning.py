# SPDX-License-Identifier: MIT
"""Measured choices: what is measured and kept, on the CPU engine and, with a timer of the test, on the GPU's."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cupy_convt as ct
from cupy_convt import api, calls, tunefile, tuning
from cupy_convt.core.dispatch import choose
from cupy_convt.core.launch import Launch, Plan
from cupy_convt.core.problem import Problem
from cupy_convt.core.size_class import representative, size_class
from cupy_convt.engines import engine_of
from tests import emulated

SMALL = {"x_shape": (1, 3, 50), "weight_shape": (3, 2, 5), "stride": 2}
PROBLEM = Problem(1, 3, 50, 2, 5, 2)


@pytest.fixture(autouse=True)
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("CUPY_CONVT_CACHE_DIR", str(tmp_path))
    tunefile.forget_loaded()
    calls.forget_calls()
    yield tunefile.path_of(api.device_spec("cpu"))
    tunefile.forget_loaded()
    calls.forget_calls()


def test_the_cpu_is_measured_and_remembered(file: Path) -> None:
    told: list[str] = []
    measured = ct.tune([SMALL, {**SMALL, "x_shape": (1, 3, 52)}], seconds=0.0, report=lambda key, _: told.append(key))
    key = size_class(PROBLEM)
    assert list(measured) == told == [key]
    device = api.device_spec("cpu")
    plans = {row.name for row in choose(representative(PROBLEM), device).ranking}
    assert set(measured[key]) <= plans
    assert choose(representative(PROBLEM), device).plan.name in measured[key]
    assert all(0 < seconds < 10 for seconds in measured[key].values())
    assert json.loads(file.read_text())["classes"] == measured
    tunefile.forget_loaded()  # as another process would
    rows = [row for row in ct.explain((1, 3, 50), (3, 2, 5), stride=2).candidates if row.seconds]
    assert rows[0].reason == "least tuned time"


def test_calls_follow_the_measurements_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight = np.ones((1, 3, 50), "float32"), np.ones((3, 2, 5), "float32")
    operator = ct.prepare(weight, stride=2)
    want = operator(x)
    device = api.device_spec("cpu")
    assert [problem for problem in calls.problems_met(device)] == [PROBLEM]
    usual = choose(PROBLEM, device).plan.name
    names = [row.name for row in choose(representative(PROBLEM), device).ranking]
    other = next(name for name in names if name.partition("/")[0] != usual.partition("/")[0])
    tunefile.save(device, {size_class(PROBLEM): {name: 1e-9 if name == other else 1.0 for name in names}}, {})
    ran: list[str] = []
    bind = type(engine_of("numpy")).bind
    monkeypatch.setattr(
        type(engine_of("numpy")), "bind", lambda self, p, plan, *a: ran.append(plan.method) or bind(self, p, plan, *a)
    )
    np.testing.assert_allclose(operator(x), want, rtol=1e-5, atol=1e-5)
    assert ran == [other.partition("/")[0]]
    tunefile.reset(device)
    np.testing.assert_array_equal(operator(x), want)
    assert ran == [other.partition("/")[0], usual.partition("/")[0]]


def test_tune_without_problems_takes_those_that_were_met() -> None:
    with pytest.raises(ValueError, match="problems: expected at least one, got none"):
        ct.tune(seconds=0.0)
    ct.conv_transpose1d(np.ones((3, 50), "float32"), np.ones((3, 2, 5), "float32"), stride=2)
    ct.conv_transpose1d(np.ones((0, 3, 50), "float32"), np.ones((3, 2, 5), "float32"), stride=2)
    assert list(ct.tune(seconds=0.0)) == [size_class(PROBLEM)]
    assert not calls.problems_met(api.device_spec("cpu"))


def test_one_item_is_measured_where_the_batch_must_not_matter() -> None:
    many = {**SMALL, "x_shape": (5, 3, 50), "batch_invariant": True}
    assert list(ct.tune([many], seconds=0.0)) == [size_class(PROBLEM)]
    x, weight = np.ones((5, 3, 50), "float32"), np.ones((3, 2, 5), "float32")
    ct.conv_transpose1d(x, weight, stride=2, method="gemm", batch_invariant=True)
    assert calls.problems_met(api.device_spec("cpu")) == [PROBLEM]


@pytest.mark.parametrize(
    ("problem", "error", "message"),
    [
        ("layer", TypeError, "expected mappings of arguments, got str"),
        ({"x_shape": (1, 3, 50)}, TypeError, "expected the argument weight_shape, got x_shape"),
        ({**SMALL, "strides": 2}, TypeError, "expected the arguments of explain, got x_shape, weight_shape"),
        ({**SMALL, "x_shape": "1,3,50"}, TypeError, "x_shape: expected a sequence of ints, got '1,3,50'"),
        ({**SMALL, "weight_shape": (3, 2, 5.0)}, TypeError, "weight_shape: expected an int, got 5.0"),
        ({**SMALL, "stride": 2.0}, TypeError, "stride: expected an int"),
        ({**SMALL, "x_shape": (1, 4, 50)}, ValueError, "x: expected C_in = 3"),
        ({**SMALL, "dtype": "int8"}, TypeError, "x: expected a dtype among"),
    ],
)
def test_bad_problems_are_refused_before_anything_is_measured(
    problem: Any, error: type[Exception], message: str, file: Path
) -> None:
    for call in (lambda: ct.tune([SMALL, problem]), lambda: ct.precompile([problem], device="cpu")):
        with pytest.raises(error, match=message):
            call()
    assert not file.exists()


def clock(costs: dict[str, float], running: list[str]) -> Callable[[Callable[[], object]], float]:
    """A timer that says what the test wants of whatever ran."""

    def seconds(call: Callable[[], object]) -> float:
        running.clear()
        call()
        return costs[running[0]]

    return seconds


def test_the_median_of_calls_that_take_turns() -> None:
    order: list[str] = []
    times = {
        "a": iter([9.0, 1.0, 5.0, 2.0, 3.0, 4.0]),
        "b": iter([9.0] + [2.0] * 5),
        "slow": iter([1.0, 6.0]),
    }
    calls = {name: (lambda name=name: order.append(name)) for name in times}

    def timer(call: Callable[[], object]) -> float:
        call()
        return next(times[order[-1]])

    assert tuning.interleaved(calls, timer, 0.0) == {"a": 3.0, "b": 2.0, "slow": 6.0}
    assert order[6:] == ["a", "b"] * (tuning.ROUNDS - 1)


def test_a_call_without_memory_is_left_out() -> None:
    def fail() -> None:
        raise MemoryError

    assert list(tuning.interleaved({"a": fail, "b": lambda: None}, lambda call: (call(), 1.0)[1], 0.0)) == ["b"]
    assert tuning.interleaved({"a": fail}, lambda call: (call(), 1.0)[1], 0.0) == {}


def test_gpu_plans_are_measured_with_their_weight_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the emulator, whose times mean nothing, by a timer of the test."""
    engine = emulated.make_engine()
    problem = Problem(2, 20, 9, 3, 6, 3)
    running: list[str] = []
    packed: list[str] = []
    bind, pack = type(engine).bind, type(engine).pack

    def named(self: Any, problem: Problem, plan: Plan, *layouts: Any) -> Callable[..., None]:
        run = bind(self, problem, plan, *layouts)
        return lambda *arrays: running.append(plan.name) or run(*arrays)

    monkeypatch.setattr(type(engine), "bind", named)
    monkeypatch.setattr(
        type(engine), "pack", lambda self, p, plan, w: packed.append(plan.name) or pack(self, p, plan, w)
    )
    rows = choose(representative(problem), engine.device()).ranking
    costs = {row.name: 1e-3 * (1 + i) for i, row in enumerate(reversed(rows))}
    measured = tuning.measure_all(engine, [problem], seconds=0.0, timer=clock(costs, running))[size_class(problem)]
    assert len(measured) >= 2
    assert measured == {name: costs[name] for name in measured}
    with_weights = {row.name for row in rows if row.plan is not None and row.plan.packing_key}
    assert sorted(packed) == sorted(with_weights & set(measured))


def test_precompile_makes_everything_that_a_plan_needs_and_runs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engine_of("emulated")
    asked: list[Any] = []
    monkeypatch.setattr(type(engine.runtime), "ready", lambda self, step: asked.append(step))
    for refused in ("kernel", "fft", "gemm"):
        monkeypatch.setattr(type(engine.runtime), refused, None)
    monkeypatch.setattr(tuning, "on_device", emulator_as_device)
    ct.precompile([{"x_shape": (1, 1, 5000), "weight_shape": (1, 1, 900), "stride": 2, "method": "fft"}])
    plan = choose(Problem(1, 1, 5000, 1, 900, 2), engine.device(), "fft").plan
    assert isinstance(plan, Plan)
    assert set(asked) == {*plan.steps, *plan.packing_steps}
    assert any(isinstance(step, Launch) for step in asked)
    ct.precompile([{"x_shape": (0, 1, 5000), "weight_shape": (1, 1, 9)}])
    monkeypatch.undo()
    ct.precompile([SMALL], device="cpu")


class emulator_as_device:
    """Stands in for tuning.on_device: the emulator as the current device."""

    def __init__(self, device: Any) -> None:
        pass

    def __enter__(self) -> Any:
        return engine_of("emulated")

    def __exit__(self, *error: object) -> None:
        pass
