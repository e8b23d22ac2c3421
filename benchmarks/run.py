# SPDX-License-Identifier: MIT
"""Time this library on the CPU against PyTorch and SciPy.

    python -m benchmarks.run [--rows GLOB,...] [--quick] [--all-methods | --plans-only] [--out FILE]

Every row is timed as a user would call it, conv_transpose1d(x, weight, bias, ...), nothing prepared; `prepared` is a
column of its own. Half rows are timed in their own dtype and in float32. --all-methods also times every plan the
chooser could have taken, which is what its regrets are computed from: against the best of the methods that can be asked
for by name, and against the best of all plans. --plans-only times nothing else, for fit_cost.
"""

from __future__ import annotations

import argparse
import datetime
import json
import multiprocessing
import platform
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import rivals, workloads
from benchmarks.host import host_cost
from benchmarks.timing import Timing, interleaved
from cupy_convt.core.dispatch import Choice, choose
from cupy_convt.core.plan_cpu import CpuPlan
from cupy_convt.engines.cpu import CpuEngine

#: Plans predicted to take more than this many times the chosen one are not timed.
HOPELESS = 4.0
#: Plans this many times slower than the fastest in the first rounds are not timed in the later ones, of which there are
#: as many as it takes to tell the others apart on a shared machine.
NEAR = 1.4
PLAN_ROUNDS = {"seconds": 0.2, "rounds": 9}

Key = tuple[str, bool]


def environment(module: str = "benchmarks.run") -> dict[str, Any]:
    """What the figures depend on."""
    model = platform.processor()
    flags: list[str] = []
    info = Path("/proc/cpuinfo")
    if info.exists():
        fields = dict(line.split(":", 1) for line in info.read_text().splitlines() if ":" in line)
        stripped = {key.strip(): value.strip() for key, value in fields.items()}
        model = stripped.get("model name", model)
        flags = [flag for flag in stripped.get("flags", "").split() if flag.startswith(("avx512", "avx2", "amx"))]
    return {
        "cpu": model,
        "cpu_flags": flags,
        "cores": CpuEngine().device().multiprocessors,
        "python": platform.python_version(),
        "versions": {
            name: _version(name)
            for name in ("numpy", "scipy", "torch", "onnxruntime", "openvino", "ml_dtypes", "cupy-convt")
        },
        "date": datetime.date.today().isoformat(),
        "command": command(module, sys.argv[1:]),
        "protocol": "calls in turns, medians; see benchmarks/timing.py",
        "host_us": host_cost(),
        "cores_at_hand": round(cores_at_hand(), 2),
        "bounds": {
            "macs": workloads.MAX_MACS,
            "bytes": workloads.MAX_BYTES,
            "column_bytes": workloads.MAX_COLUMN_BYTES,
        },
    }


def command(module: str, arguments: Sequence[str]) -> str:
    """The command that repeats a run, without the place of its results, which is the reader's own."""
    parts = list(arguments)
    if "--out" in parts:
        del parts[parts.index("--out") : parts.index("--out") + 2]
    return " ".join(["python", "-m", module, *parts])


def cores_at_hand(seconds: float = 0.3) -> float:
    """How many cores one busy process for each of them gets: fewer than there are on a shared or throttled host."""
    count = CpuEngine().device().multiprocessors
    with multiprocessing.get_context("spawn").Pool(count) as pool:
        return sum(pool.map(_busy_share, [seconds] * count, chunksize=1))


def _busy_share(seconds: float) -> float:
    start, used = time.perf_counter(), time.process_time()
    while time.perf_counter() - start < seconds:
        pass
    return (time.process_time() - used) / (time.perf_counter() - start)


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "absent"


def time_row(workload: workloads.Workload, dtype: str, budget: dict[str, Any], *, all_methods: bool) -> dict[str, Any]:
    """One row in one dtype."""
    arrays = rivals.make_arrays(workload, dtype)
    problem, device = workload.problem(dtype), CpuEngine().device()
    choice = choose(problem, device)
    calls: dict[str, rivals.Call] = {"ours": rivals.ours(workload, arrays)}
    calls |= rivals.every_rival(workload, arrays, device.multiprocessors)
    calls["prepared"] = rivals.prepared(workload, arrays)
    errors = {name: _error(calls["ours"](), calls[name]()) for name in calls if name not in ("ours", "prepared")}
    timings = interleaved(calls, **budget)
    row = _row(workload, dtype, choice.plan.name, timings, errors)
    row["predicted_ms"] = round(choice.seconds * 1e3, 5)
    if all_methods:
        row |= time_plans(workload, arrays, budget)
    return row


def time_plans(workload: workloads.Workload, arrays: rivals.Arrays, budget: dict[str, Any]) -> dict[str, Any]:
    """Milliseconds of plans that are not hopeless, packing the weight and with a kept one; what the choice lost."""
    problem, device = workload.problem(arrays.x.dtype.name), CpuEngine().device()
    choices = {kept: choose(problem, device, kept=kept) for kept in (False, True)}
    plans: dict[bool, dict[str, CpuPlan]] = {False: {}, True: {}}
    for kept, choice in choices.items():
        for row in choice.ranking:
            worth = row.seconds is not None and row.seconds <= HOPELESS * choice.seconds
            if worth and isinstance(row.plan, CpuPlan) and row.plan.workspace_bytes <= choice.workspace_limit:
                plans[kept][row.name] = row.plan
    # a plan that packs nothing is the same call either way
    keys = {(name, kept and bool(plan.packing_key)): plan for kept in plans for name, plan in plans[kept].items()}
    calls = {key: rivals.planned(workload, arrays, plan, kept=key[1]) for key, plan in keys.items()}
    groups = [[(name, kept and bool(plan.packing_key)) for name, plan in plans[kept].items()] for kept in plans]
    timings = interleaved(calls, **budget | PLAN_ROUNDS, contenders=lambda times: _contenders(times, groups))
    times = {key: round(timing.median * 1e3, 5) for key, timing in timings.items()}
    found: dict[str, Any] = {}
    for kept, field in ((False, ""), (True, "kept_")):
        measured = {name: times[name, kept and bool(plan.packing_key)] for name, plan in plans[kept].items()}
        found[f"{field}plans_ms"] = measured
        mine = measured[choices[kept].plan.name]
        found[f"{field}regret"] = round(mine / min(_of_methods(choices[kept], measured)), 4)
        found[f"{field}plan_regret"] = round(mine / min(measured.values()), 4)
    return found


def _of_methods(choice: Choice, times: Mapping[str, float]) -> list[float]:
    """Times of the plans that each method, named, would run: the first of each in the ranking."""
    first: dict[str, str] = {}
    for row in choice.ranking:
        if row.name in times:
            first.setdefault(row.method, row.name)
    return [times[name] for name in first.values()]


def _contenders(times: Mapping[Key, float], groups: Sequence[Sequence[Key]]) -> set[Key]:
    """Plans that are near the fastest of a group they are in."""
    return {key for group in groups for key in group if times[key] <= NEAR * min(times[other] for other in group)}


def _error(ours: rivals.Array, theirs: rivals.Array) -> float:
    """Largest difference, in units of the rival's root mean square."""
    wide, other = ours.astype(np.float64), theirs.astype(np.float64)
    return float(np.abs(wide - other).max() / max(float(np.sqrt(np.mean(other**2))), 1e-30))


def _row(
    workload: workloads.Workload, dtype: str, chosen: str, timings: dict[str, Timing], errors: dict[str, float]
) -> dict[str, Any]:
    mine = timings["ours"]
    row: dict[str, Any] = {
        "name": workload.name,
        "kind": workload.kind,
        "category": workload.category,
        "dtype": dtype,
        "own_dtype": dtype == workload.dtype,
        "scaled": workload.scaled,
        "problem": str(workload.problem(dtype)),
        "chosen": chosen,
        "gflops": round(workload.problem(dtype).flops / mine.median / 1e9, 2),
        "ours": mine.as_dict(),
    }
    kept = timings["prepared"]
    row["prepared"] = kept.as_dict() | {"ratio": round(timings["torch"].median / kept.median, 3)}
    row["rivals"] = {
        name: timings[name].as_dict()
        | {
            "ratio": round(timings[name].median / mine.median, 3),
            "fastest_ratio": round(timings[name].minimum / mine.minimum, 3),
            "error": error,
        }
        for name, error in errors.items()
    }
    row["ratio"] = min(rival["ratio"] for rival in row["rivals"].values())
    return row


def summarise(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Ratios of every kind of row to each rival, and the quantiles of the chooser's regret."""
    summary: dict[str, Any] = {}
    for kind in sorted({row["kind"] for row in rows}):
        chosen = [row for row in rows if row["kind"] == kind]
        names = sorted({name for row in chosen for name in row["rivals"]})
        ratios = {n: [row["rivals"][n]["ratio"] for row in chosen if n in row["rivals"]] for n in names}
        ratios["torch, prepared"] = [row["prepared"]["ratio"] for row in chosen]
        summary[kind] = {
            name: {
                "rows": len(values),
                "least": min(values),
                "median": round(statistics.median(values), 3),
                "geometric_mean": round(statistics.geometric_mean(values), 3),
            }
            for name, values in ratios.items()
        }
    for field in ("regret", "kept_regret", "plan_regret", "kept_plan_regret"):
        regrets = [row[field] for row in rows if field in row]
        if regrets:
            median, high = np.quantile(regrets, [0.5, 0.95])
            summary[field] = {"median": float(median), "p95": float(high), "max": max(regrets)}
    return summary


def main() -> None:
    """Run the rows and write, or print, the results."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__.split("\n")[0])
    parser.add_argument("--rows", default="*", help="rows whose names match one of these patterns, comma between")
    parser.add_argument("--quick", action="store_true", help="two seconds for a row, and three rounds of slow calls")
    plans = parser.add_mutually_exclusive_group()
    plans.add_argument("--all-methods", action="store_true", help="time every plan too, for the chooser's regret")
    plans.add_argument("--plans-only", action="store_true", help="time every plan and nothing else")
    parser.add_argument("--out", type=Path, help="results file; its other rows are kept")
    options = parser.parse_args()
    here, rows = environment(), []
    budget: dict[str, Any] = {"seconds": 2.0, "rounds": 3, "patience": 5.0} if options.quick else {}
    for workload in workloads.load(options.rows):
        for dtype in dict.fromkeys((workload.dtype, "float32")):
            if options.plans_only:
                row: dict[str, Any] = {"name": workload.name, "dtype": dtype, "problem": str(workload.problem(dtype))}
                rows.append(row | time_plans(workload, rivals.make_arrays(workload, dtype), budget))
                print(json.dumps(rows[-1]), flush=True)
                continue
            row = time_row(workload, dtype, budget, all_methods=options.all_methods)
            rows.append(row)
            print(f"{row['name']:34} {dtype:9} {row['chosen']:18} {row['ours']['median_ms']:10.3f} ms", end="")
            print("".join(f"  {name} {rival['ratio']:.2f}x" for name, rival in row["rivals"].items()), flush=True)
            if options.out:
                _write(options.out, here, rows)
    if options.plans_only:
        if options.out:
            options.out.write_text(json.dumps({"environment": here, "rows": rows}, indent=1) + "\n")
        return
    print(json.dumps(summarise(rows), indent=1))


def _write(path: Path, here: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """Replace the rows that were run in a results file; one that keeps other rows names this run as a later one."""
    old: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"environment": here, "rows": []}
    done = {(row["name"], row["dtype"]) for row in rows}
    kept = [row for row in old["rows"] if (row["name"], row["dtype"]) not in done]
    environment: dict[str, Any] = here
    if kept:
        environment = old["environment"]
        later = {name: here[name] for name in ("command", "date")} | {"rows": sorted({row["name"] for row in rows})}
        before = [run for run in environment.get("later", []) if run["command"] != here["command"]]
        environment = environment | {"later": [*before, later]}
    order = {workload.name: index for index, workload in enumerate(workloads.load())}
    merged = sorted(kept + rows, key=lambda row: order[row["name"]])
    results = {"environment": environment, "summary": summarise(merged), "rows": merged}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
