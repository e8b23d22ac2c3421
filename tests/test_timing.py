# SPDX-License-Identifier: MIT
"""The timing protocol, by a clock that only the calls advance."""

from collections.abc import Callable
from types import SimpleNamespace

import pytest

from benchmarks import timing
from benchmarks.run import _contenders, _of_methods, command


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds

    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=lambda: now[0], sleep=sleep))
    return now


def lasting(clock: list[float], *seconds: float) -> Callable[[], None]:
    """A call of these lengths, over and over."""
    left = list(seconds)

    def call() -> None:
        clock[0] += left[0]
        left.append(left.pop(0))

    return call


def test_medians_of_calls_in_turns(clock: list[float]) -> None:
    calls = {"a": lasting(clock, 0.5, 1.0, 3.0), "b": lasting(clock, 0.25)}
    times = timing.interleaved(calls, rounds=6, seconds=0.0, patience=1000.0)
    assert times["b"] == timing.Timing(0.25, 0.25, 0.25, 0.25, 6)
    assert times["a"].runs == 6 and times["a"].minimum == 0.5


def test_calls_out_of_the_running_take_no_more_turns(clock: list[float]) -> None:
    calls = {"slow": lasting(clock, 2.0), "near": lasting(clock, 1.1), "fast": lasting(clock, 1.0)}
    times = timing.interleaved(
        calls,
        rounds=9,
        seconds=0.0,
        patience=1000.0,
        contenders=lambda medians: {n for n in medians if medians[n] < 1.5},
    )
    assert {name: found.runs for name, found in times.items()} == {"slow": timing.SCREENING, "near": 9, "fast": 9}


def test_a_call_that_takes_too_long_is_timed_once(clock: list[float]) -> None:
    times = timing.interleaved({"long": lasting(clock, 30.0), "short": lasting(clock, 1.0)}, patience=40.0)
    assert times["long"].runs == 1 and times["short"].runs > 1


def test_contenders_are_near_the_best_of_one_of_their_groups() -> None:
    times = {("a", False): 1.0, ("b", False): 1.3, ("c", False): 9.0, ("c", True): 0.5}
    assert _contenders(times, [[("a", False), ("b", False), ("c", False)]]) == {("a", False), ("b", False)}
    assert _contenders(times, [[("a", False), ("c", False)], [("a", False), ("c", True)]]) == {
        ("a", False),
        ("c", True),
    }


def test_a_method_stands_for_the_plan_it_would_run() -> None:
    ranking = [("gemm", "gemm/b"), ("gemm", "gemm/a"), ("fft", "fft/slow"), ("fft", "fft/a"), ("direct", "direct/taps")]
    choice = SimpleNamespace(ranking=[SimpleNamespace(method=method, name=name) for method, name in ranking])
    times = {"gemm/a": 1.0, "gemm/b": 2.0, "fft/slow": 3.0, "fft/a": 0.5}
    assert _of_methods(choice, times) == [2.0, 3.0]  # type: ignore[arg-type]


def test_the_command_is_kept_without_the_place_of_its_results() -> None:
    assert command("benchmarks.run", ["--quick", "--out", "there.json", "--rows", "a*"]) == (
        "python -m benchmarks.run --quick --rows a*"
    )
    assert command("benchmarks.sweep", []) == "python -m benchmarks.sweep"
