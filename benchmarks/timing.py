# SPDX-License-Identifier: MIT
"""How the CPU is timed: one protocol, in one function.

All calls of a row take turns, so that what else the machine does meets each of them alike. A turn is a pause, a run
that is not counted, and runs for TURN_SECONDS. The pause lets the threads of the call before go to sleep (OpenMP's and
OpenBLAS's spin on the cores for milliseconds after their work is done), the uncounted run wakes the caller's own.
Every second round goes backwards: on a virtual machine a call on two cores is up to a quarter slower after the turn of
one that left a core idle, so nobody may always come after the same one.
Rounds go on until `seconds` have passed and `rounds` have been made, but not beyond `patience` seconds; a call slower
than a quarter of that is timed by its first run alone. Where only the fastest calls matter, the others may drop out
after SCREENING rounds, which leaves more of them for those between which it is close.

Medians are compared. Fastest runs are kept beside them: far below the median, they say the machine was not quiet.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass
from typing import TypeVar

K = TypeVar("K")
#: Pause before a call's turn, and how long a turn of a short call lasts.
SETTLE_SECONDS = 0.02
TURN_SECONDS = 0.02
#: Rounds that every call takes part in.
SCREENING = 2


@dataclass(frozen=True)
class Timing:
    """Seconds of one call: median, quartiles, fastest, and how often it ran."""

    median: float
    lower: float
    upper: float
    minimum: float
    runs: int

    @property
    def spread(self) -> float:
        """Interquartile range over the median."""
        return (self.upper - self.lower) / self.median

    def as_dict(self) -> dict[str, float]:
        """What goes into a results file, in milliseconds."""
        return {
            "median_ms": round(self.median * 1e3, 5),
            "iqr_ms": round((self.upper - self.lower) * 1e3, 5),
            "min_ms": round(self.minimum * 1e3, 5),
            "runs": self.runs,
        }


def summarise(samples: list[float]) -> Timing:
    """Median and quartiles of a list of seconds."""
    if len(samples) < 2:
        return Timing(samples[0], samples[0], samples[0], samples[0], len(samples))
    lower, median, upper = statistics.quantiles(samples, n=4, method="inclusive")
    return Timing(median, lower, upper, min(samples), len(samples))


def interleaved(
    calls: Mapping[K, Callable[[], object]],
    *,
    seconds: float = 0.6,
    rounds: int = 5,
    patience: float = 10.0,
    contenders: Callable[[Mapping[K, float]], Container[K]] | None = None,
) -> dict[K, Timing]:
    """Time every call, in turns; after SCREENING rounds those only that `contenders` picks by their medians so far."""
    first = {name: _once(call) for name, call in calls.items()}
    samples: dict[K, list[float]] = {name: [] for name in calls}
    quick = {name: call for name, call in calls.items() if first[name] < patience / 4}
    began, done = time.perf_counter(), 0
    while quick and (done < rounds or time.perf_counter() - began < seconds):
        for name, call in list(quick.items())[:: -1 if done % 2 else 1]:
            samples[name] += _turn(call)
        done += 1
        if contenders is not None and done >= SCREENING:
            left = contenders({name: summarise(samples[name] or [first[name]]).median for name in calls})
            quick = {name: call for name, call in quick.items() if name in left}
        if time.perf_counter() - began > patience:
            break
    return {name: summarise(samples[name] or [first[name]]) for name in calls}


def _turn(call: Callable[[], object]) -> list[float]:
    """Seconds of several runs of one call, after a pause and a run that is not counted."""
    time.sleep(SETTLE_SECONDS)
    repeats = int(TURN_SECONDS / max(_once(call), 1e-6))
    return [_once(call) for _ in range(min(max(repeats, 1), 20))]


def _once(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
