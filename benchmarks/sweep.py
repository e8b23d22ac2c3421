# SPDX-License-Identifier: MIT
"""Time the methods over ranges of taps, channels, strides and lengths, to see where each begins to win.

    python -m benchmarks.sweep [--quick] [--map GLOB] --out benchmarks/results/sweep-cpu.json

A map varies two sizes and times, at each point, the plan of least predicted time of every method, unless it is
predicted to be hopeless. A curve varies the length of one layer and times PyTorch as well. `make report` draws them.
Points keep their problem's fields, so that `benchmarks.fit_cost` can use them too. For its sake the best plan of every
kind is timed (columns, toeplitz, blocks, ...): else a kind that is predicted too fast or too slow hides the others.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from benchmarks import rivals
from benchmarks.run import environment
from benchmarks.timing import interleaved
from benchmarks.workloads import Workload
from cupy_convt.core.dispatch import choose
from cupy_convt.engines.cpu import CpuEngine

#: A method predicted to take more than this many times the chosen one is not timed.
HOPELESS = 12.0
#: Multiply-accumulates of a point at most, those of PyTorch on a curve, and floats of x and result together.
MAX_MACS, MAX_TORCH_MACS, MAX_FLOATS = 10**9, 22 * 10**8, 1 << 25


def layer(*, taps: int, stride: int, length: int, channels: tuple[int, int] = (1, 1)) -> Workload:
    """A dense layer that keeps the inner L_in * s samples, as most layers do."""
    padding = max(taps - stride, 0) // 2
    return Workload("", "", 1, channels[0], length, channels[1], taps, stride, padding, 0, 1, 1, "float32")


@dataclass(frozen=True)
class Map:
    """Two axes and what lies at each point of them; `title` says what stays."""

    name: str
    title: str
    rows: tuple[str, tuple[int, ...]]
    columns: tuple[str, tuple[int, ...]]
    at: Callable[[int, int], Workload]


@dataclass(frozen=True)
class Curve:
    """A layer at several lengths."""

    name: str
    title: str
    lengths: tuple[int, ...]
    at: Callable[[int], Workload]


def _powers(first: int, last: int, factor: int) -> tuple[int, ...]:
    found = [first]
    while found[-1] * factor <= last:
        found.append(found[-1] * factor)
    return tuple(found)


MAPS = (
    Map(
        "taps-channels",
        "C channels in and out, stride 2, C * L_in = 65536",
        ("K", _powers(2, 4096, 2)),
        ("C", _powers(1, 256, 2)),
        lambda k, c: layer(taps=k, stride=2, length=65536 // c, channels=(c, c)),
    ),
    Map(
        "taps-stride",
        "one channel, 20000 inputs",
        ("K", _powers(4, 16384, 4)),
        ("s", (1, 2, 4, 8, 16, 64, 256)),
        lambda k, s: layer(taps=k, stride=s, length=20000),
    ),
    Map(
        "taps-length",
        "one channel, stride 4",
        ("K", _powers(8, 8192, 4)),
        ("L", _powers(64, 262144, 4)),
        lambda k, n: layer(taps=k, stride=4, length=n),
    ),
)
CURVES = (
    Curve(
        "vocoder",
        "512 to 256 channels, K 16, s 8",
        _powers(4, 1024, 4),
        lambda n: layer(taps=16, stride=8, length=n, channels=(512, 256)),
    ),
    Curve(
        "resampler", "one channel, K 81, s 4", _powers(256, 1048576, 4), lambda n: layer(taps=81, stride=4, length=n)
    ),
    Curve(
        "long filter",
        "one channel, K 4096, s 2",
        _powers(256, 262144, 4),
        lambda n: layer(taps=4096, stride=2, length=n),
    ),
)


def points(sweep: Map | Curve, *, quick: bool) -> Iterator[tuple[dict[str, int], Workload]]:
    """Coordinates and layer of every point that is not too large; every third value of an axis when `quick`."""
    step = 3 if quick else 1
    if isinstance(sweep, Curve):
        found = [({"L": n}, sweep.at(n)) for n in sweep.lengths[::step]]
    else:
        (row, rows), (column, columns) = sweep.rows, sweep.columns
        found = [({row: r, column: c}, sweep.at(r, c)) for r in rows[::step] for c in columns[::step]]
    for place, workload in found:
        problem = workload.problem()
        if problem.macs <= MAX_MACS * 8 and problem.x_bytes + problem.out_bytes <= 4 * MAX_FLOATS:
            yield place, workload


def time_point(place: dict[str, int], workload: Workload, *, torch: bool, quick: bool) -> dict[str, Any]:
    """The plan of each method that is worth it, and PyTorch; fastest runs in milliseconds."""
    engine, problem = CpuEngine(), workload.problem()
    choice, arrays = choose(problem, engine.device()), rivals.make_arrays(workload, "float32")
    plans: dict[str, Any] = {}
    kinds: dict[str, Any] = {}
    for row in choice.ranking:
        if row.plan is None or row.seconds is None or row.seconds > HOPELESS * choice.seconds:
            continue
        if row.plan.workspace_bytes <= choice.workspace_limit and (row.method == "fft" or problem.macs <= MAX_MACS):
            plans.setdefault(row.method, row.plan)
            kinds.setdefault(row.plan.name.rstrip("0123456789x"), row.plan)
    plans[choice.method] = choice.plan
    calls = {plan.name: rivals.planned(workload, arrays, plan) for plan in (*plans.values(), *kinds.values())}
    if torch and problem.macs <= MAX_TORCH_MACS:
        calls["torch"] = rivals.torch_call(workload, arrays, engine.device().multiprocessors)
    times = interleaved(calls, seconds=0.0 if quick else 0.1, rounds=1 if quick else 2, patience=1.0)
    milliseconds = {name: round(timing.median * 1e3, 6) for name, timing in times.items()}
    point: dict[str, Any] = {
        "place": place,
        "problem": str(problem),
        "fields": asdict(problem),
        "chosen": choice.plan.name,
        "methods": {method: plan.name for method, plan in plans.items()},
        "plans_ms": {name: ms for name, ms in milliseconds.items() if name != "torch"},
    }
    if "torch" in milliseconds:
        point["torch_ms"] = milliseconds["torch"]
    return point


def main() -> None:
    """Run the maps and curves and write the results after each."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sweep", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="every third value of each axis, one round")
    parser.add_argument("--map", default="*", help="maps and curves whose names match this pattern")
    parser.add_argument("--out", type=Path, required=True, help="results file")
    options = parser.parse_args()
    here = environment("benchmarks.sweep")
    rows: list[dict[str, Any]] = []
    for sweep in (*MAPS, *CURVES):
        if not fnmatchcase(sweep.name, options.map):
            continue
        for place, workload in points(sweep, quick=options.quick):
            point = time_point(place, workload, torch=isinstance(sweep, Curve), quick=options.quick)
            rows.append({"name": sweep.name, **point})
            print(sweep.name, place, point["plans_ms"], flush=True)
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps({"environment": here, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
