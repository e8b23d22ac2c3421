# SPDX-License-Identifier: MIT
"""Mutation run: one textual change at a time in the prototype kernels, positions enumerated, none chosen by hand.

`python -m tests.emulator.mutate [--cap N] [--jobs J] [--only NAME] [--out FILE]` tries every operator swap and every
deletion of a barrier, wait or fence. Each mutant runs in the fast build (one order), the check build (two orders) and,
if the fast build missed it, in the fast build over many orders. Prints the counts and the survivors; takes minutes.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

from .planted import RUNS, find, manual, mma, shared, source, sweep, tf32, tma
from .runner import CompileError

OPERATORS = [
    (r" < ", " <= "), (r" >= ", " > "), (r" == ", " != "), (r" && ", " || "), (r" \+ ", " - "), (r" - ", " + "),
    (r" \* ", " + "), (r" % ", " / "), (r" & ", " | "),
]  # fmt: skip
DELETIONS = [
    r"__syncthreads\(\);", r"cp_async_commit\(\);", r"cp_async_wait<[^>]*>\(\);", r"fence_proxy_async\(\);",
    r"mbar_\w+\([^;]*\);", r"wgmma_\w+(?:<\d>)?\(\);", r"reg_fence\(acc\);",
]  # fmt: skip
BATCH = 20  # mutants of one child process; a child that dies or hangs costs only the mutant it was on
TIMEOUT = 10  # CPU seconds of one launch


@dataclass(frozen=True)
class Target:
    """A kernel: from `start` to `end` of its file's flattened text, and the geometries that every mutant runs on."""

    prototype: str
    start: str
    end: str | None
    runs: tuple[Callable[..., None], ...]


TARGETS = {
    "mma16": Target("mma", "convt_mma16(", "// fp32 storage", (
        partial(mma, shape=(2, 70, 70, 20, 8, 4, 2)), partial(mma, shape=(1, 33, 41, 9, 5, 3, 1)),
        partial(mma, shape=(1, 97, 130, 7, 2, 2, 0), dtype="f16"), partial(mma, shape=(1, 70, 33, 3, 16, 4, 6)))),
    "tf32": Target("tf32", "convt_tf32(", None, (
        partial(tf32, shape=(2, 35, 70, 20, 8, 4, 2)), partial(tf32, shape=(1, 40, 41, 9, 2, 3, 0)),
        partial(tf32, shape=(1, 33, 33, 3, 16, 4, 6)))),
    "shared": Target("shared", "convt_smem_f32(", None, (
        partial(shared, shape=(2, 6, 150, 3, 4, 2, 1)), partial(shared, shape=(1, 3, 40, 2, 7, 3, 2)))),
    "tma": Target("tma", "convt_wgmma_tma(", "// 2. Shared", (
        partial(tma, shape=(2, 200, 136, 20, 8, 4, 2)), partial(tma, shape=(1, 70, 48, 9, 5, 3, 1)))),
    "manual": Target("manual", "convt_wgmma_manual(", None, (
        partial(manual, shape=(2, 130, 70, 20, 8, 4, 2)), partial(manual, shape=(1, 71, 41, 9, 5, 3, 1)),
        partial(manual, shape=(1, 131, 70, 20, 5, 2, 1), swizzle=0),
        partial(manual, shape=(1, 33, 41, 9, 2, 2, 0), swizzle=0))),
}  # fmt: skip


@dataclass(frozen=True)
class Mutant:
    """One change, and what found it: None is nothing, an empty status is not run yet."""

    target: str
    number: int
    change: str
    line: str
    status: str = ""
    fast: str | None = None
    swept: str | None = None
    check: str | None = None

    @property
    def survives(self) -> bool:
        return self.status == "ok" and not (self.swept or self.check)


def mutants(name: str) -> list[tuple[Mutant, str]]:
    """Every mutant of a target with its source text."""
    target = TARGETS[name]
    text = source(RUNS[target.prototype][1])
    start = text.index("{", text.index(target.start))
    end = text.index(target.end, start) if target.end else len(text)
    body = text[start:end]
    code = re.sub(r"//[^\n]*", lambda m: " " * len(m[0]), body)  # same offsets, no comments
    changes = [(m, new, f"{old.strip()} -> {new.strip()}") for old, new in OPERATORS for m in re.finditer(old, code)]
    changes += [(m, ";", f"delete {m[0]}") for old in DELETIONS for m in re.finditer(old, code)]
    found = []
    for number, (match, new, label) in enumerate(changes):
        line = code[code.rfind("\n", 0, match.start()) + 1 : (code + "\n").index("\n", match.start())].strip()
        changed = body[: match.start()] + new + body[match.end() :]
        found.append((Mutant(name, number, label, line), text[:start] + changed + text[end:]))
    return found


def chosen(names: list[str], cap: int | None) -> list[tuple[Mutant, str]]:
    """All deletions and a reproducible sample of the rest, at most `cap` of a target."""
    generator, todo = random.Random(0), []
    for name in names:
        everything = mutants(name)
        keep = [m for m in everything if m[0].change.startswith("delete")]
        rest = [m for m in everything if not m[0].change.startswith("delete")]
        generator.shuffle(rest)
        todo += keep + rest[: None if cap is None else max(0, cap - len(keep))]
    return todo


def first_finding(runs: tuple[Callable[..., None], ...], **options) -> str | None:
    return next((found for run in runs if (found := find(run, timeout=TIMEOUT, **options))), None)


def try_mutant(mutant: Mutant, code: str) -> Mutant:
    runs = TARGETS[mutant.target].runs
    skewed = dict(sched="prio", seed=1, async_mode="eager")
    try:
        fast = first_finding(runs, mode="fast", code=code)
        check = first_finding(runs, mode="check", code=code) or first_finding(runs, mode="check", code=code, **skewed)
        swept = fast or next((found for run in runs if (found := sweep(run, code=code, timeout=TIMEOUT))), None)
    except CompileError:
        return replace(mutant, status="does not compile")
    except Exception as error:  # a mutant may break the host side too
        return replace(mutant, status=f"error: {error!r}"[:120])
    return replace(mutant, status="ok", fast=fast, swept=swept, check=check)


def work(arguments: argparse.Namespace) -> None:
    """Child process: mutants first..last, one JSON line each, preceded by its index."""
    first, last, path = arguments.worker
    todo = chosen(arguments.only, arguments.cap)
    with open(path, "a") as log:
        for i in range(int(first), int(last)):
            print(json.dumps(i), file=log, flush=True)
            print(json.dumps(asdict(try_mutant(*todo[i]))), file=log, flush=True)


def drive(lane: int, arguments: argparse.Namespace, todo: list[tuple[Mutant, str]], path: Path) -> None:
    """One of several threads, each with one child process at a time."""
    path.touch()
    command = [sys.executable, "-m", "tests.emulator.mutate", "--only", *arguments.only]
    command += [] if arguments.cap is None else ["--cap", str(arguments.cap)]
    for low in range(lane * BATCH, len(todo), arguments.jobs * BATCH):
        i, high = low, min(len(todo), low + BATCH)
        while i < high:
            worker = [*command, "--worker", str(i), str(high), str(path)]
            try:
                status = subprocess.run(worker, timeout=600, stdout=subprocess.DEVNULL).returncode
            except subprocess.TimeoutExpired:
                status = -1
            if status == 0:
                break
            started = [line for line in path.read_text().splitlines() if line.isdigit()]
            i = int(started[-1]) if started else i
            lost = replace(todo[i][0], status=f"error: process ended with {status}")
            with path.open("a") as log:
                print(json.dumps(asdict(lost)), file=log)
            i += 1


def report(results: list[Mutant]) -> str:
    lines = []
    for name in [*TARGETS, "all"]:
        valid = [m for m in results if m.status == "ok" and name in (m.target, "all")]
        if not valid:
            continue
        counts = {way: sum(bool(getattr(m, way)) for m in valid) for way in ("fast", "swept", "check")}
        numbers_only = sum(bool(m.check) and m.check.startswith("wrong result") for m in valid)
        lines.append(
            f"{name:8s} valid {len(valid):4d}  fast {counts['fast']:4d}  swept {counts['swept']:4d}"
            f"  check {counts['check']:4d}, of these by numbers alone {numbers_only}"
        )
    survivors = [m for m in results if m.survives]
    lines.append(f"\n{len(survivors)} survivors")
    lines += [f"  {m.target:8s} {m.change:34s} | {m.line[:140]}" for m in survivors]
    invalid = [m for m in results if m.status != "ok"]
    lines.append(f"\n{len(invalid)} not run")
    lines += [f"  {m.target:8s} {m.change:34s} | {m.status}" for m in invalid]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cap", type=int, help="mutants of one kernel, all deletions first (default: all)")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--only", nargs="*", default=list(TARGETS), choices=list(TARGETS), help="kernels")
    parser.add_argument("--out", type=Path, help="write every result as JSON")
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        work(arguments)
        return 0
    todo = chosen(arguments.only, arguments.cap)
    print(f"{len(todo)} mutants", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        paths = [Path(scratch, f"{lane}.jsonl") for lane in range(arguments.jobs)]
        threads = [
            threading.Thread(target=drive, args=(lane, arguments, todo, path)) for lane, path in enumerate(paths)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        lines = [line for path in paths for line in path.read_text().splitlines() if not line.isdigit()]
    results = [Mutant(**json.loads(line)) for line in lines]
    print(report(results))
    if arguments.out:
        arguments.out.write_text(json.dumps([asdict(m) for m in results], indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
