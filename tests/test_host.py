# SPDX-License-Identifier: MIT
"""The host's path of a call with every launch stubbed: what it does, and that it does it once."""

import pytest

import cupy_convt as ct
from benchmarks import host
from cupy_convt import prepared
from cupy_convt.core import dispatch
from cupy_convt.core.launch import F64, I32, Launch
from cupy_convt.engines import runtime


@pytest.mark.parametrize("name", host.LAYERS)
def test_a_second_call_plans_nothing_packs_nothing_and_converts_no_scalar(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    x_shape, weight_shape, arguments = host.LAYERS[name]
    x, weight = (host.RUNTIME.empty(shape, "float32") for shape in (x_shape, weight_shape))
    operator = ct.prepare(weight, **arguments)
    prepared.forget_calls()
    operator(x)
    packing = (runtime.GpuEngine, "pack")
    for module, function in ((dispatch, "_timed"), (prepared, "make_problem"), (runtime, "_bind"), packing):
        monkeypatch.setattr(module, function, None)
    before = host.RUNTIME.launches
    operator(x)
    assert host.RUNTIME.launches > before
    (call,) = [call for call in prepared._calls.values() if call.problem.x_shape == x_shape]
    assert call.choice is not None
    assert host.RUNTIME.launches - before == len(call.choice.plan.steps)


def test_the_cost_is_reported_for_every_kind_of_call() -> None:
    found = host.host_cost(seconds=0.0)
    assert set(found) == set(host.LAYERS)
    for costs in found.values():
        assert set(costs) == {"call", "prepared", "prepared, out=", "launches"}
        assert all(0 < value < 1e5 for value in costs.values())


def test_a_launch_that_took_the_place_of_another_in_memory_gets_its_own_scalars() -> None:
    for value in range(3 * runtime._BOUND_LAUNCHES // 2):
        launch = Launch("k", (), 1, 32, 0, ("x", I32(value), F64(0.5)))
        resolved = runtime._arguments(launch, {"x": None})
        assert resolved == [None, value, 0.5]
    assert len(runtime._bound) <= runtime._BOUND_LAUNCHES
