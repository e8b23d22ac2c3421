# SPDX-License-Identifier: MIT
"""The check build must find every planted bug, and say what it is."""

import pytest

from tests.emulator.planted import BUGS, CLEAN, NUMBERS, Bug, find


@pytest.mark.parametrize("bug", [pytest.param(b, id=b.name.replace(" ", "-")) for b in BUGS])
def test_check_build_names_the_bug(bug: Bug):
    found = find(bug.run, mode="check")
    assert found is not None, "not found"
    assert bug.diagnosis in found


def test_most_bugs_are_diagnosed_and_not_only_visible_in_the_numbers():
    assert sum(b.diagnosis == NUMBERS for b in BUGS) <= 7


@pytest.mark.parametrize("order", [dict(), dict(sched="prio", seed=1, async_mode="eager", block_order="desc"),
                                   dict(sched="random", seed=7, async_mode="random", preempt=50)])  # fmt: skip
@pytest.mark.parametrize("name", CLEAN)
def test_no_false_alarm_on_the_same_kernels_without_a_bug(name, order):
    assert find(CLEAN[name], mode="check", **order) is None
