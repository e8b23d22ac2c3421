# SPDX-License-Identifier: MIT
"""The host's path of a call with every launch stubbed: what it does, that it does it once, and what undoes that."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

import cupy_convt as ct
from benchmarks import host
from cupy_convt import api, calls, prepared, tunefile
from cupy_convt.core import dispatch
from cupy_convt.core.launch import Launch
from cupy_convt.core.problem import Problem
from cupy_convt.engines import bound, runtime

RUNTIME = host.RUNTIME


@pytest.fixture(autouse=True)
def nothing_remembered() -> Iterator[None]:
    calls.forget_calls()
    yield
    calls.forget_calls()


def arrays(name: str) -> tuple[Any, Any, dict[str, Any]]:
    x_shape, weight_shape, arguments = host.LAYERS[name]
    return RUNTIME.empty(x_shape, "float32"), RUNTIME.empty(weight_shape, "float32"), arguments


def decisions() -> int:
    return calls.decided.cache_info().misses


# ---- the second call ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given_out", [False, True])
@pytest.mark.parametrize("way", ["call", "prepared"])
@pytest.mark.parametrize("name", host.LAYERS)
def test_a_second_call_plans_nothing_packs_nothing_again_and_binds_nothing(
    name: str, way: str, given_out: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, weight, arguments = arrays(name)
    operator = ct.prepare(weight, **arguments)
    out = RUNTIME.fresh(operator(x).shape, "float32") if given_out else None

    def call() -> Any:
        if way == "prepared":
            return operator(x, out=out)
        return ct.conv_transpose1d(x, weight, out=out, **arguments)

    first = call()
    refused = [
        *((dispatch, "_timed"), (dispatch, "choose"), (calls, "make_problem"), (calls, "chosen"), (calls, "tuned_for")),
        *((api, "make_geometry"), (prepared, "make_problem"), (bound.Bound, "__init__")),
        *((runtime.BoundPlan, "__init__"), (runtime.GpuEngine, "pack"), (host.IdleRuntime, "kernel")),
        *((host.IdleRuntime, "scalar"), (host.IdleRuntime, "contiguous"), (host.IdleRuntime, "mark")),
    ]
    for owner, function in refused:
        monkeypatch.setattr(owner, function, None)
    before, decided = RUNTIME.launches, decisions()
    assert call() is (out if given_out else first)
    monkeypatch.undo()
    assert decisions() == decided
    problem = next(problem for problem in calls.problems_met(RUNTIME.spec) if problem.x_shape == x.shape)
    choice = dispatch.choose(problem, RUNTIME.spec, kept=way == "prepared")
    steps = choice.plan.steps + (choice.plan.packing_steps if way == "call" else ())
    assert RUNTIME.launches - before == len(steps)


def test_a_call_without_a_prepared_weight_sees_it_change() -> None:
    x, weight = np.ones((1, 1, 3000), "float32"), np.ones((1, 1, 700), "float32")
    for method in ("direct", "gemm", "fft"):
        first = ct.conv_transpose1d(x, weight, stride=2, method=method)
        weight *= 2
        np.testing.assert_allclose(ct.conv_transpose1d(x, weight, stride=2, method=method), 2 * first, rtol=1e-4)


# ---- what makes a call another one ----------------------------------------------------------------------------------


def test_what_decides_is_what_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight, arguments = arrays("depthwise")
    bias = RUNTIME.empty((512,), "float32")
    out = RUNTIME.fresh(ct.conv_transpose1d(x, weight, **arguments).shape, "float32")
    wide = RUNTIME.empty((1, 512, 500), "float32")
    half = [RUNTIME.empty(array.shape, "float16") for array in (x, weight)]
    strided = RUNTIME.empty((1, 512, 1600), "float32")[..., :800]
    calls_made: dict[str, Any] = {
        "the same": lambda: ct.conv_transpose1d(x, weight, **arguments),
        "another geometry": lambda: ct.conv_transpose1d(x, weight, **arguments, output_padding=1),
        "another method": lambda: ct.conv_transpose1d(x, weight, **arguments, method="direct"),
        "another precision": lambda: ct.conv_transpose1d(x, weight, **arguments, precision="ieee"),
        "any batch": lambda: ct.conv_transpose1d(x, weight, **arguments, batch_invariant=True),
        "a crop": lambda: ct.conv_transpose1d(x, weight, **arguments, crop=(1, 0)),
        "an activation": lambda: ct.conv_transpose1d(x, weight, **arguments, activation="relu"),
        "an output size": lambda: ct.conv_transpose1d(x, weight, **arguments, output_size=801),
        "other strides of x": lambda: ct.conv_transpose1d(wide[..., :400], weight, **arguments),
        "another length": lambda: ct.conv_transpose1d(wide, weight, **arguments),
        "no batch": lambda: ct.conv_transpose1d(x[0], weight, **arguments),
        "another dtype": lambda: ct.conv_transpose1d(*half, **arguments),
        "other strides of the weight": lambda: ct.conv_transpose1d(x, weight[..., ::-1], **arguments),
        "a bias": lambda: ct.conv_transpose1d(x, weight, bias, **arguments),
        "other strides of the bias": lambda: ct.conv_transpose1d(x, weight, bias[::-1], **arguments),
        "a result": lambda: ct.conv_transpose1d(x, weight, **arguments, out=out),
        "other strides of the result": lambda: ct.conv_transpose1d(x, weight, **arguments, out=strided),
        "a prepared weight": lambda: ct.prepare(weight, **arguments)(x),
    }
    before = decisions()
    for what, call in calls_made.items():
        call()
        added = decisions() - before
        assert added == (what != "the same"), what
        call()
        assert decisions() - before == added, what
        before += added
    for limit in (1 << 20, 1 << 21):
        with ct.workspace_limit(limit):
            calls_made["the same"]()
            calls_made["the same"]()
    monkeypatch.setenv("CUPY_CONVT_WORKSPACE_LIMIT", str(1 << 22))
    calls_made["the same"]()
    assert decisions() - before == 3
    monkeypatch.setattr(host.IdleRuntime, "home", lambda self, *arrays: 1)
    calls_made["the same"]()
    assert decisions() - before == 4


def test_every_change_of_measurements_makes_calls_choose_anew() -> None:
    x, weight, arguments = arrays("depthwise")

    def decided_again() -> bool:
        before = calls.decided.cache_info().hits
        ct.conv_transpose1d(x, weight, **arguments)
        return calls.decided.cache_info().hits == before

    assert decided_again() and not decided_again()
    for change in (tunefile.forget_loaded, calls.forget_calls, lambda: tunefile.reset(RUNTIME.spec)):
        change()
        assert decided_again() and not decided_again()


def test_what_was_decided_while_all_was_forgotten_is_not_met_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another thread's decision by old measurements is remembered after they have changed."""
    x, weight, arguments = arrays("depthwise")
    original = calls.chosen

    def chosen_meanwhile(*given: Any, **options: Any) -> Any:
        choice = original(*given, **options)
        calls.forget_calls()
        return choice

    monkeypatch.setattr(calls, "chosen", chosen_meanwhile)
    ct.conv_transpose1d(x, weight, **arguments)
    monkeypatch.undo()
    before = decisions()
    ct.conv_transpose1d(x, weight, **arguments)
    assert decisions() == before + 1


@pytest.mark.parametrize(
    ("first", "then"),
    [
        ({"stride": 1}, {"stride": True}),
        ({"stride": 1}, {"stride": 1.0}),
        ({"stride": 1}, {"stride": np.float64(1)}),
        ({"stride": (1,)}, {"stride": (1.0,)}),
        ({"stride": (1,)}, {"stride": (True,)}),
        ({"stride": [1]}, {"stride": [1.0]}),
        ({"stride": 1}, {"stride": ((1,),)}),
        ({"padding": "same"}, {"padding": ("same",)}),
        ({"groups": 1}, {"groups": (1,)}),
        ({"crop": (1, 0)}, {"crop": (True, 0)}),
        ({"crop": (1, 0)}, {"crop": (1.0, 0)}),
        ({"activation": None}, {"activation": (None, None)}),
        ({"activation": ("leaky_relu", 1.0)}, {"activation": ("leaky_relu", "1.0")}),
        ({"batch_invariant": False}, {"batch_invariant": 0}),
        ({"output_size": 11}, {"output_size": 11.0}),
        ({"output_size": (11,)}, {"output_size": (11.0,)}),
    ],
    ids=str,
)
def test_what_equals_an_argument_of_another_type_is_still_refused(first: dict[str, Any], then: dict[str, Any]) -> None:
    x, weight = np.ones((1, 2, 9), "float32"), np.ones((2, 3, 3), "float32")
    ct.conv_transpose1d(x, weight, **first)
    with pytest.raises((TypeError, ValueError)) as refused:
        ct.conv_transpose1d(x, weight, **then)
    with pytest.raises(refused.type) as again:
        ct.explain(x.shape, weight.shape, **then)
    assert str(again.value) == str(refused.value)


def test_sequences_of_one_and_integers_of_numpy_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight = np.ones((1, 2, 9), "float32"), np.ones((2, 3, 3), "float32")
    ways: list[dict[str, Any]] = [
        {"stride": (2,), "padding": [1]},
        {"stride": np.int64(2), "padding": (1,)},
        {"crop": (2, 1), "dilation": (2,)},
        {"activation": ("leaky_relu", 0.1)},
    ]
    wanted = [ct.conv_transpose1d(x, weight, **way) for way in ways]
    monkeypatch.setattr(api, "make_geometry", None)
    for way, want in zip(ways, wanted, strict=True):
        np.testing.assert_array_equal(ct.conv_transpose1d(x, weight, **way), want)


# ---- what is looked at in every call --------------------------------------------------------------------------------


def test_arrays_that_are_elsewhere_are_refused_whatever_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight, arguments = arrays("depthwise")
    operator = ct.prepare(weight, **arguments)
    operator(x)
    monkeypatch.setattr(host.IdleRuntime, "home", lambda self, *arrays: None)
    monkeypatch.setattr(host.IdleRuntime, "complaint", lambda self, name, array: f"{name}: expected another device")
    for call in (lambda: operator(x), lambda: ct.conv_transpose1d(x, weight, **arguments)):
        with pytest.raises(TypeError, match="x: expected another device"):
            call()


def test_a_result_that_overlaps_or_is_read_only_is_refused_whatever_is_remembered() -> None:
    memory = np.zeros(4000, "float32")
    x, weight = memory[:9].reshape(1, 1, 9), np.ones((1, 1, 3), "float32")
    out = memory[2000:2011].reshape(1, 1, 11)
    for target in (out, memory[20:31].reshape(1, 1, 11)):
        ct.conv_transpose1d(x, weight, out=target)
    with pytest.raises(ValueError, match="out: expected an array that shares no memory with x"):
        ct.conv_transpose1d(x, weight, out=memory[5:16].reshape(1, 1, 11))
    out.flags.writeable = False
    with pytest.raises(ValueError, match="out: expected a writeable array"):
        ct.conv_transpose1d(x, weight, out=out)


def test_strides_reach_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight, arguments = arrays("depthwise")
    seen: list[list[Any]] = []

    def kernel(self: Any, launch: Launch) -> Any:
        return lambda found: seen.append([value for value in found if isinstance(value, np.int64)])

    monkeypatch.setattr(host.IdleRuntime, "kernel", kernel)
    operator = ct.prepare(weight, **arguments)
    for _ in range(2):
        operator(x)
        operator(RUNTIME.empty((1, 512, 1000), "float32")[..., 8:408])
    assert [found[:2] for found in seen] == [[512 * 400, 400], [512 * 1000, 1000]] * 2


# ---- memory and threads ---------------------------------------------------------------------------------------------


def test_what_is_remembered_is_bounded() -> None:
    assert calls.decided.cache_parameters()["maxsize"] == calls.CALLS
    assert api._plain_geometry.cache_parameters()["maxsize"] is not None
    for length in range(3 * calls.CALLS // 2):
        calls._remember(RUNTIME.spec, Problem(1, 1, 1 + length, 1, 3))
    met = calls.problems_met(RUNTIME.spec)
    assert len(met) == calls.CALLS
    assert met[-1].l_in == 3 * calls.CALLS // 2


def test_a_prepared_operator_keeps_few_forms_of_its_weight() -> None:
    operator = ct.prepare(np.ones((1, 1, 64), "float32"), stride=2, method="fft")
    for length in range(50, 1 << 16, 3000):
        operator(np.ones((1, 1, length), "float32"))
    assert 2 <= len(operator._kept) <= prepared._FORMS


def test_what_a_weight_is_converted_to_is_kept() -> None:
    weight, bias = np.ones((2, 2, 3), ">f4"), np.ones(2, "complex64")
    operator = ct.prepare(weight, bias, method="direct")
    x = np.ones((1, 2, 9), "float32")
    first = operator(x)
    np.testing.assert_array_equal(first, ct.conv_transpose1d(x, weight, bias, method="direct"))
    kept = dict(operator._kept)
    np.testing.assert_array_equal(operator(x), first)
    assert sum(key[0] == "weight" for key in kept) == 1
    assert all(operator._kept[key] is form for key, form in kept.items())
    assert operator.weight is weight


def test_threads_with_limits_of_their_own_share_an_operator() -> None:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((3, 2, 31), dtype=np.float32)
    operator = ct.prepare(weight, stride=3)
    inputs = [rng.standard_normal((2, 3, length), dtype=np.float32) for length in (40, 400, 3000)]
    wanted = [ct.reference(x, weight, stride=3) for x in inputs]

    def work(number: int) -> None:
        for turn in range(20):
            index = (number + turn) % len(inputs)
            with ct.workspace_limit(1 << (18 + number % 3)):
                for y in (operator(inputs[index]), ct.conv_transpose1d(inputs[index], weight, stride=3)):
                    np.testing.assert_allclose(y, wanted[index], rtol=1e-4, atol=1e-4)
            if turn % 7 == number % 7:
                calls.forget_calls()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))


# ---- the benchmark --------------------------------------------------------------------------------------------------


def test_the_cost_is_reported_for_every_kind_of_call() -> None:
    found = host.host_cost(seconds=0.0)
    assert set(found) == set(host.LAYERS)
    for costs in found.values():
        assert set(costs) == {"call", "prepared", "prepared, out=", "launches"}
        assert all(0 < value < 1e5 for value in costs.values())


def test_the_cost_with_arrays_of_cupy_is_of_the_same_launches() -> None:
    pytest.importorskip("cupy", exc_type=ImportError)
    with host.stubbed_cupy() as runtime:
        found = host.host_cost(runtime, seconds=0.0)
    launches = {name: costs["launches"] for name, costs in host.host_cost(seconds=0.0).items()}
    assert {name: costs["launches"] for name, costs in found.items()} == launches
