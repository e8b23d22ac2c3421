# SPDX-License-Identifier: MIT
"""Size classes, and how measurements correct predictions."""

from dataclasses import replace
from itertools import pairwise
from math import sqrt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cupy_convt.core.device import PRESETS
from cupy_convt.core.dispatch import choose
from cupy_convt.core.problem import Problem
from cupy_convt.core.size_class import Corrections, Tuned, middle, representative, size_class

LAYER = Problem(1, 64, 900, 32, 8, 4, p_left=2, p_right=2, has_bias=True)


@given(st.integers(1, 10**9))
def test_a_size_is_within_a_fourth_root_of_two_of_its_class(size: int) -> None:
    assert abs(middle(size) - size) <= (2**0.25 - 1) * size + 0.5
    assert middle(middle(size)) == middle(size)


def test_classes_are_powers_of_the_root_of_two() -> None:
    assert [middle(n) for n in (1, 2, 3, 4, 5, 6, 7, 8, 9, 10)] == [1, 2, 3, 4, 6, 6, 8, 8, 8, 11]
    found = sorted({middle(n) for n in range(1000, 9000)})
    assert all(b / a == pytest.approx(sqrt(2), rel=1e-3) for a, b in pairwise(found))


@pytest.mark.parametrize(
    "changes",
    [{"c_in": 65}, {"c_out": 31}, {"kernel_size": 9}, {"stride": 5}, {"dilation": 2}, {"groups": 2}, {"batch": 2},
     {"l_in": 1400}, {"precision": "tf32"}, {"x_dtype": "complex64"}, {"weight_dtype": "complex64"}],
    ids=str,
)  # fmt: skip
def test_what_a_time_depends_on_is_in_the_class(changes: dict) -> None:
    assert size_class(replace(LAYER, **changes)) != size_class(LAYER)


def test_lengths_crops_and_epilogues_of_one_class() -> None:
    for changes in ({"l_in": 905}, {"p_left": 9}, {"has_bias": False}, {"activation": ("relu", 0.0)}):
        assert size_class(replace(LAYER, **changes)) == size_class(LAYER)
    assert representative(LAYER).l_in == middle(900)
    short = Problem(1, 1, 23, 1, 2, 1, p_left=12, p_right=11)
    assert short.l_out == 1
    assert representative(short).l_out >= 1


def test_corrections_fall_back_from_plan_to_method_to_everything() -> None:
    found = Corrections.of(
        {"gemm/a": 2.0, "gemm/b": 8.0, "fft/c": 3.0, "gone": 1.0}, {"gemm/a": 1, "gemm/b": 1, "fft/c": 1}
    )
    assert found is not None
    assert found.factor("gemm", "gemm/a") == 2.0
    assert found.factor("gemm", "gemm/new") == pytest.approx(4.0)
    assert found.factor("direct", "direct/x") == pytest.approx(48 ** (1 / 3))
    assert Corrections.of({"gone": 1.0}, {"gemm/a": 1.0}) is None


@pytest.mark.parametrize("device", ["cpu", "h200"])
def test_what_was_measured_decides_for_the_whole_class_and_for_no_other(device: str) -> None:
    spec = PRESETS[device]
    plain = choose(LAYER, spec)
    names = [row.name for row in choose(representative(LAYER), spec).ranking if row.plan is not None]
    slowest = next(name for name in reversed(names) if name.startswith("direct"))
    tuned = Tuned({size_class(LAYER): {name: 1e-9 if name == slowest else 1e-3 for name in names}})
    for l_in in (870, 900, 1000):
        choice = choose(replace(LAYER, l_in=l_in), spec, tuned=tuned)
        assert choice.method == "direct"
        assert choice.ranking[0].reason == "least tuned time"
        assert all(row.reason.startswith("tuned ") for row in choice.ranking[1:] if row.plan is not None)
    other = replace(LAYER, l_in=2000)
    assert choose(other, spec, tuned=tuned) == choose(other, spec)
    assert choose(LAYER, spec) == plain
    assert choose(replace(LAYER, batch=4), spec, batch_invariant=True, tuned=tuned).method == "direct"


def test_measurements_that_agree_with_the_predictions_change_nothing() -> None:
    spec = PRESETS["cpu"]
    predicted = {row.name: row.seconds for row in choose(representative(LAYER), spec, kept=True).ranking if row.seconds}
    tuned = Tuned({size_class(LAYER): {name: 3 * seconds for name, seconds in predicted.items()}})
    with_it, without = choose(LAYER, spec, tuned=tuned, kept=True), choose(LAYER, spec, kept=True)
    assert with_it.plan == without.plan
    assert with_it.seconds == pytest.approx(3 * without.seconds)
