# SPDX-License-Identifier: MIT
"""Fit the constants of the CPU's cost model to committed times.

    python -m benchmarks.fit_cost [RESULTS.json ...]           prints old and new error, and what would change
    python -m benchmarks.fit_cost [RESULTS.json ...] --write   writes the constants to their file, with their source
    python -m benchmarks.fit_cost [RESULTS.json ...] --folds 5   how well layers are predicted that the fit has not seen
    python -m benchmarks.fit_cost [RESULTS.json ...] --only dense,rows   leaves constants of other prefixes as they are

Results are those of `benchmarks.run --plans-only` or `--all-methods`, and of `benchmarks.sweep`. Least squares on the
logarithm of the times: a factor of two is as bad for a microsecond as for a second. Plans near the best one of their
row count most, since the choice is among them, and layers more than points of a sweep; every constant is drawn gently
to its old value, so one that no row depends on stays.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import json
import math
import re
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import least_squares

from benchmarks import workloads
from cupy_convt.core import constants_cpu, cost_cpu
from cupy_convt.core.device import PRESETS
from cupy_convt.core.dispatch import DEFAULT_WORKSPACE_LIMIT
from cupy_convt.core.plan_cpu import candidates
from cupy_convt.core.problem import Problem

RESULTS = [Path(__file__).with_name("results") / name for name in ("cpu-plans.json", "sweep-cpu.json")]
#: How often a row of a real layer counts, beside one of a sweep.
LAYER_WEIGHT = 9.0
#: How hard an old value holds on: as hard as so many samples that are off by a factor of e.
PRIOR = 0.1
#: Errors beyond about this factor's logarithm count linearly: one odd measurement must not bend the rest.
ODD = 0.3

#: The end of the name of a row whose weight was kept.
KEPT = ", kept"

#: Seconds of a sample under some constants.
Model = Callable[[Any, Any], float]


@dataclass(frozen=True)
class Row:
    """Measured seconds of the plans of one problem; `plans` are what the model is asked about."""

    name: str
    plans: dict[str, Any]
    seconds: dict[str, float]
    weight: float = 1.0

    @property
    def layer(self) -> str:
        """What it has in common with the rows of other dtypes and of kept weights."""
        return self.name.removesuffix(KEPT)


def read(path: Path) -> tuple[list[Row], list[str], dict[str, Any]]:
    """Rows of a results file, what in it could not be used, and its environment."""
    data = json.loads(path.read_text())
    device = replace(PRESETS["cpu"], multiprocessors=data["environment"]["cores"])
    if data["environment"]["versions"].get("openvino", "absent") != "absent":
        device = replace(device, fp16=2 * device.fp32, convolutions=True)
    layers = {layer.name: layer for layer in workloads.load()}
    rows: list[Row] = []
    unused: list[str] = []
    for row in data["rows"]:
        if "plans_ms" not in row:
            continue
        problem = Problem(**row["fields"]) if "fields" in row else layers[row["name"]].problem(row["dtype"])
        if str(problem) != row["problem"]:
            unused.append(f"{row['name']}: measured as {row['problem']}, now {problem}")
            continue
        found = {plan.name: plan for plan in candidates(problem, device, DEFAULT_WORKSPACE_LIMIT)}
        for field, kept in (("plans_ms", False), ("kept_plans_ms", True)):
            times = row.get(field, {})
            unused += [f"{row['name']}: no plan {name} any more" for name in times if name not in found]
            measured = {name: ms * 1e-3 for name, ms in times.items() if name in found}
            if measured:
                plans = {name: (problem, found[name], device, kept) for name in measured}
                weight = 1.0 if "fields" in row else LAYER_WEIGHT
                rows.append(Row(row["name"] + KEPT * kept, plans, measured, weight))
    return rows, unused, data["environment"]


def cpu_seconds(sample: Any, constants: Any) -> float:
    """The CPU's model of a call that packs the weight, or of one whose weight is kept packed."""
    problem, plan, device, kept = sample
    packing = 0.0 if kept else cost_cpu.packing_seconds(problem, plan, device, constants)
    return cost_cpu.seconds(problem, plan, device, constants) + packing


def fit(rows: Sequence[Row], start: Any, model: Model, only: tuple[str, ...] = ("",)) -> Any:
    """Constants of the class of `start`, a dataclass of positive floats, that fit the rows.

    Those whose names do not begin with one of `only` stay.
    """
    names = [field.name for field in dataclasses.fields(start) if field.name.startswith(only)]
    samples = [(row.plans[name], time, weight) for row in rows for name, time, weight in _weighted(row)]
    times = np.log([time for _, time, _ in samples])
    weights = np.array([weight for _, _, weight in samples])

    def constants(logarithms: Any) -> Any:
        changed = zip(names, logarithms, strict=True)
        return replace(start, **{name: getattr(start, name) * math.exp(change) for name, change in changed})

    def residuals(logarithms: Any) -> Any:
        found = constants(logarithms)
        predicted = np.log([model(sample, found) for sample, _, _ in samples])
        return np.concatenate([weights * (predicted - times), math.sqrt(PRIOR) * logarithms])

    limit = math.log(100)
    solved = least_squares(
        residuals,
        np.zeros(len(names)),
        bounds=(-limit, limit),
        loss="soft_l1",
        f_scale=ODD,
        diff_step=np.full(len(names), 1e-4),
    )
    return constants(solved.x)


def _weighted(row: Row) -> Iterable[tuple[str, float, float]]:
    """Name, seconds and weight of each sample of a row."""
    best = min(row.seconds.values())
    return [(name, time, math.sqrt(row.weight * best / time)) for name, time in row.seconds.items()]


def held_out(rows: Sequence[Row], start: Any, model: Model, folds: int) -> Quality:
    """How well every row is predicted by constants that are fitted without it: its layer, or its point of a sweep.

    `start`, to which a constant stays near that no other row depends on, may have seen it.
    """
    names = list(dict.fromkeys(row.layer for row in rows))
    parts = []
    for fold in range(folds):
        unseen = set(names[fold::folds])
        constants = fit([row for row in rows if row.layer not in unseen], start, model)
        parts.append(Quality.of([row for row in rows if row.layer in unseen], constants, model))
    return Quality(
        sorted(regret for part in parts for regret in part.regrets),
        [error for part in parts for error in part.errors],
        [error for part in parts for error in part.chosen_errors],
    )


@dataclass(frozen=True)
class Quality:
    """How well constants do: regret of the choice, errors of all samples and of the chosen ones, as factors."""

    regrets: list[float]
    errors: list[float]
    chosen_errors: list[float]

    @staticmethod
    def of(rows: Sequence[Row], constants: Any, model: Model) -> Quality:
        """Of some constants on some rows."""
        regrets, errors, chosen_errors = [], [], []
        for row in rows:
            predicted = {name: model(sample, constants) for name, sample in row.plans.items()}
            chosen = min(predicted, key=predicted.__getitem__)
            regrets.append(row.seconds[chosen] / min(row.seconds.values()))
            ratios = {name: predicted[name] / row.seconds[name] for name in predicted}
            errors += list(ratios.values())
            chosen_errors.append(ratios[chosen])
        return Quality(sorted(regrets), errors, chosen_errors)

    def __str__(self) -> str:
        late = self.regrets[min(math.ceil(0.95 * len(self.regrets)), len(self.regrets)) - 1]
        off = math.exp(math.sqrt(statistics.fmean(math.log(error) ** 2 for error in self.errors)))
        within = sum(0.5 <= error <= 2 for error in self.chosen_errors) / len(self.chosen_errors)
        return (
            f"regret median {statistics.median(self.regrets):.3f}, 95th percentile {late:.2f}, most "
            f"{self.regrets[-1]:.2f}; error {off:.2f}x (root mean square), chosen plans within 2x: {100 * within:.0f} %"
        )


def provenance(paths: Sequence[Path], environment: dict[str, Any]) -> str:
    """What the constants are from."""
    versions = ", ".join(f"{name} {environment['versions'][name]}" for name in ("numpy", "scipy"))
    files = ", ".join(path.name for path in paths)
    return f"{files} of {environment['date']}: {environment['cpu']}, {environment['cores']} cores, {versions}"


def rewritten(text: str, constants: Any, source: str) -> str:
    """The text of a module with new defaults in the dataclass of `constants` and a new PROVENANCE.

    Raises:
        ValueError: the module has no such class, field or PROVENANCE.
    """
    name = type(constants).__name__
    body = re.search(rf"^class {name}\b.*?(?=^\S)", text, re.MULTILINE | re.DOTALL)
    if body is None:
        raise ValueError(f"expected the class {name}, got none")
    new = body[0]
    for field in dataclasses.fields(constants):
        pattern = rf"^(    {field.name}: float = )\S+$"
        new, count = re.subn(pattern, rf"\g<1>{float(getattr(constants, field.name)):.3g}", new, flags=re.MULTILINE)
        if count != 1:
            raise ValueError(f"{field.name}: expected one line of {name}, got {count}")
    text = text[: body.start()] + new + text[body.end() :]
    text, count = re.subn(r"^PROVENANCE = \(?.*?\)?$", lambda _: f"PROVENANCE = {json.dumps(source)}", text, flags=re.M)
    if count != 1:
        raise ValueError(f"expected one PROVENANCE, got {count}")
    return text


def main(argv: Sequence[str] | None = None) -> int:
    """Fit, print, and write if asked to."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fit_cost", description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "results", nargs="*", type=Path, default=RESULTS, help="results files (cpu-plans.json, sweep-cpu.json)"
    )
    parser.add_argument("--write", action="store_true", help="write the constants to their file")
    parser.add_argument("--only", default="", help="beginnings, between commas, of the constants to fit; others stay")
    parser.add_argument("--folds", type=int, default=0, help="leave each of so many parts of the layers out once")
    options = parser.parse_args(argv)
    rows: list[Row] = []
    environment: dict[str, Any] = {}
    for path in options.results:
        found, unused, environment = read(path)
        rows += found
        for line in unused:
            print(f"not used: {line}")
    if not rows:
        print("expected rows with plans_ms (benchmarks.run --all-methods), got none", file=sys.stderr)
        return 1
    old = constants_cpu.FITTED
    new = fit(rows, old, cpu_seconds, tuple(options.only.split(",")))
    print(f"{len(rows)} rows, {sum(len(row.seconds) for row in rows)} times")
    if options.folds:
        print(f"unseen: {held_out(rows, old, cpu_seconds, options.folds)}")
    print(f"old: {Quality.of(rows, old, cpu_seconds)}")
    print(f"new: {Quality.of(rows, new, cpu_seconds)}")
    for field in dataclasses.fields(new):
        before, after = getattr(old, field.name), getattr(new, field.name)
        print(f"  {field.name:24s} {before:10.3g} -> {after:10.3g}" + (" " if abs(after / before - 1) < 0.1 else " *"))
    if options.write:
        path = Path(inspect.getsourcefile(constants_cpu) or "")
        path.write_text(rewritten(path.read_text(), new, provenance(options.results, environment)))
        print(f"written: {path.name}; regenerate tests/choices.json with python -m tests.test_choices")
    return 0


if __name__ == "__main__":
    sys.exit(main())
