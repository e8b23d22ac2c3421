# SPDX-License-Identifier: MIT
"""What is chosen for every public layer on every preset device, as a file: a change of a cost shows as a difference.

python -m tests.test_choices [DEVICE ...]      writes tests/choices.json anew; review it with `git diff`
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks import workloads
from cupy_convt.core.device import PRESETS
from cupy_convt.core.dispatch import choose

GOLDEN = Path(__file__).with_name("choices.json")
Choices = dict[str, str]


def chosen(device: str) -> Choices:
    """Plan of every layer, in its own dtype and at its full size, and of a prepared operator where that is another."""
    found = {}
    for layer in workloads.load(full=True):
        once, kept = (choose(layer.problem(), PRESETS[device], kept=kept).plan.name for kept in (False, True))
        found[layer.name] = once if once == kept else f"{once}, prepared {kept}"
    return found


def differences(device: str, was: Choices, now: Choices) -> list[str]:
    """One line for each layer whose plan is another one."""
    rows = [(name, was.get(name, "no such layer"), now.get(name, "no such layer")) for name in was | now]
    return [f"{device:8s} {name}: {before} -> {after}" for name, before, after in rows if before != after]


@pytest.mark.parametrize("device", PRESETS)
def test_choices_are_those_of_the_file(device: str) -> None:
    golden: dict[str, Choices] = json.loads(GOLDEN.read_text())
    assert list(golden) == list(PRESETS)
    changed = differences(device, golden[device], chosen(device))
    assert not changed, "\n".join(["choices differ (was -> is); python -m tests.test_choices writes them", *changed])


def test_a_difference_names_the_row_and_both_plans() -> None:
    was, now = {"same": "a/b", "moved": "a/b", "gone": "a/b"}, {"same": "a/b", "moved": "fft/c", "new": "a/b"}
    assert differences("t4", was, now) == [
        "t4       moved: a/b -> fft/c",
        "t4       gone: a/b -> no such layer",
        "t4       new: no such layer -> a/b",
    ]


if __name__ == "__main__":
    kept = json.loads(GOLDEN.read_text())
    wanted = sys.argv[1:] or list(PRESETS)
    anew = {device: chosen(device) if device in wanted else kept[device] for device in PRESETS}
    GOLDEN.write_text(json.dumps(anew, indent=1) + "\n")
