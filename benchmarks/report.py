# SPDX-License-Identifier: MIT
"""Turn committed results into the tables and plots of README.md, benchmarks/README.md and benchmarks/CROSSOVER.md.

    python -m benchmarks.report            exit code 1 when a document differs from its results
    python -m benchmarks.report --write    write the documents

Everything between `<!-- table:NAME -->` and `<!-- /table:NAME -->` is generated.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import re
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import crossover

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PLOT, CROSSOVER = RESULTS / "cpu.svg", RESULTS / "crossover.svg"
KINDS = ("one channel", "depthwise", "dense", "long taps")
RIVALS = {
    "torch": "PyTorch",
    "torch fold": "PyTorch product and fold",
    "onnxruntime": "ONNX Runtime",
    "upfirdn": "scipy.signal.upfirdn",
    "fftconvolve": "fftconvolve",
    "oaconvolve": "oaconvolve",
}
#: Those that work on the zero-stuffed signal.
STUFFED = ("fftconvolve", "oaconvolve")

Row = dict[str, Any]


def load(name: str) -> dict[str, Any]:
    """A results file.

    Raises:
        FileNotFoundError: it has not been measured yet.
    """
    data: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return data


def _ratios(rows: list[Row], rival: str) -> list[float]:
    return sorted(row["rivals"][rival]["ratio"] for row in rows if rival in row["rivals"])


def present(rows: list[Row]) -> dict[str, str]:
    """The rivals that were timed in some row: name and title."""
    return {name: title for name, title in RIVALS.items() if any(name in row["rivals"] for row in rows)}


def _stride(row: Row) -> int:
    found = re.search(r"stride=(\d+)", row["problem"])
    return int(found[1]) if found else 1


def _ratio(row: Row, rival: str) -> str:
    """The ratio to a rival; in brackets what a rival on the zero-stuffed signal would have left without the zeros."""
    if rival not in row["rivals"]:
        return "-"
    ratio = row["rivals"][rival]["ratio"]
    return f"{ratio:.2f}" + (f" ({ratio / _stride(row):.2g})" if rival in STUFFED else "")


def _digits(value: float) -> str:
    return f"{value:.2g}" if value < 10 else f"{value:.0f}"


def _span(ratios: list[float]) -> str:
    if not ratios:
        return "-"
    return f"{_digits(ratios[0])} / **{_digits(statistics.median(ratios))}** / {_digits(ratios[-1])}"


def _provenance(data: dict[str, Any]) -> str:
    environment = data["environment"]
    versions = ", ".join(f"{name} {number}" for name, number in environment["versions"].items() if number != "absent")
    text = (
        f"{environment['cpu']}, {environment['cores']} cores, Python {environment['python']}, {versions}; "
        f"{environment['date']}; `{environment['command'].strip()}`"
    )
    later = [
        f"{len(run['rows'])} rows again on {run['date']} by `{run['command']}`" for run in environment.get("later", [])
    ]
    return "; ".join([text, *later])


def own_rows(data: dict[str, Any]) -> list[Row]:
    """The rows in the dtype that their model uses."""
    return [row for row in data["rows"] if row["own_dtype"]]


def summary_table(data: dict[str, Any]) -> str:
    """Ratios by kind of row: how many times faster than each rival."""
    rows = own_rows(data)
    titles = present(rows)
    lines = [
        "Times faster than each rival, its median time over ours: least / **median** / most over the rows of a kind",
        "(below 1: slower).",
        "",
        "| rows | " + " | ".join(titles.values()) + " |",
        "|---|" + "---|" * len(titles),
    ]
    for kind in KINDS:
        chosen = [row for row in rows if row["kind"] == kind]
        cells = " | ".join(_span(_ratios(chosen, rival)) for rival in titles)
        lines.append(f"| {len(chosen)} {kind} | {cells} |")
    losing = sorted((row["ratio"], row["name"]) for row in rows if row["ratio"] < 1)
    text = ", ".join(f"{name} ({_digits(ratio)})" for ratio, name in losing)
    lines += ["", f"Slower than a rival: {text}." if losing else "No row is slower than a rival."]
    lines += ["", f"Measured on {_provenance(data)}."]
    return "\n".join(lines)


def full_table(data: dict[str, Any]) -> str:
    """Every row: what ran, its time and spread, and the ratio to each rival."""
    titles = present(data["rows"])
    lines = [
        "| row | dtype | chosen | ms | spread | prepared | "
        + " | ".join(titles.values())
        + " | PyTorch, prepared | PyTorch, fastest runs | largest difference |",
        "|---|---|---|---|---|---|" + "---|" * (len(titles) + 3),
    ]
    for row in data["rows"]:
        ours = row["ours"]
        spread = ours["iqr_ms"] / ours["median_ms"]
        cells = [
            row["name"] + (f" ({row['scaled']})" if row["scaled"] else ""),
            row["dtype"],
            row["chosen"],
            f"{ours['median_ms']:.3g}",
            f"{100 * spread:.0f} %",
            f"{ours['median_ms'] / row['prepared']['median_ms']:.2f}",
            *(_ratio(row, name) for name in titles),
            f"{row['prepared']['ratio']:.2f}",
            f"{row['rivals']['torch']['fastest_ratio']:.2f}",
            f"{max(rival['error'] for rival in row['rivals'].values()):.0e}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    if any(name in titles for name in STUFFED):
        lines += ["", "fftconvolve and oaconvolve get the zero-stuffed signal; in brackets, their time divided by s."]
    if "host_us" in data["environment"]:
        lines += ["", _host(data["environment"]["host_us"])]
    if any("regret" in row for row in data["rows"]):
        within = [row for row in data["rows"] if 0.5 <= row["predicted_ms"] / row["ours"]["median_ms"] <= 2]
        lines += [
            "",
            "Regret of the chooser (its plan's time over that of the best method, in the same run): "
            f"{_regret(data['rows'], 'regret')}; of prepared operators {_regret(data['rows'], 'kept_regret')}. "
            "Over the best of all plans of all methods: "
            f"{_regret(data['rows'], 'plan_regret')}; prepared {_regret(data['rows'], 'kept_plan_regret')}. "
            f"Predictions within a factor of 2: {100 * len(within) / len(data['rows']):.0f} % of the rows.",
        ]
    return "\n".join(lines)


def _regret(rows: list[Row], field: str) -> str:
    found = sorted(row[field] for row in rows if field in row)
    high = found[min(math.ceil(0.95 * len(found)), len(found)) - 1]
    return f"median {statistics.median(found):.2f}, 95th percentile {high:.2f}, largest {found[-1]:.2f}"


def _host(costs: dict[str, dict[str, float]]) -> str:
    """One sentence about the host's path."""
    kinds = [kind for kind in next(iter(costs.values())) if kind != "launches"]
    parts = [f"{name} {', '.join(f'{costs[name][kind]:.1f}' for kind in kinds)}" for name in costs]
    return f"Python before the launch on the GPU path, launches stubbed ({', '.join(kinds)}), us: {'; '.join(parts)}."


def draw(data: dict[str, Any], path: Path) -> None:
    """Ratio to PyTorch of every row, by kind, on a logarithmic axis; the file names the results it was drawn from."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "cupy_convt"
    from matplotlib import pyplot
    from matplotlib.ticker import FuncFormatter

    figure, axes = pyplot.subplots(figsize=(8, 3.2), layout="constrained")
    first = 0
    for kind in KINDS:
        ratios = _ratios([row for row in own_rows(data) if row["kind"] == kind], "torch")
        positions = range(first, first + len(ratios))
        axes.bar(positions, [ratio - 1 for ratio in ratios], bottom=1, label=f"{kind} ({len(ratios)})", width=0.85)
        first += len(ratios) + 1
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}x"))
    axes.set_xticks([])
    axes.set_ylabel("times faster than PyTorch")
    axes.set_xlabel(f"{len(own_rows(data))} layers of public models, sorted within their kind")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, metadata={"Date": None, "Description": fingerprint(data)})
    pyplot.close(figure)


def fingerprint(data: dict[str, Any]) -> str:
    """Identifies the figures a plot was drawn from."""
    return hashlib.sha256(json.dumps(data["rows"], sort_keys=True).encode()).hexdigest()


def _crossover(data: dict[str, Any], path: Path) -> None:
    crossover.draw(data, path, fingerprint(data))


def _sweep() -> dict[str, Any] | None:
    return load("sweep-cpu") if (RESULTS / "sweep-cpu.json").exists() else None


#: The documents' parts: file, results, what makes the text of them.
SECTIONS: dict[str, tuple[Path, Callable[[], str]]] = {
    "cpu": (ROOT / "README.md", lambda: summary_table(load("cpu"))),
    "cpu-rows": (ROOT / "benchmarks" / "README.md", lambda: full_table(load("cpu"))),
    "crossover": (ROOT / "benchmarks" / "CROSSOVER.md", lambda: crossover.page(_sweep())),
}


def plots() -> list[tuple[Path, dict[str, Any], Callable[[dict[str, Any], Path], None]]]:
    """The plots of what has been measured: file, results, what draws it."""
    sweep = _sweep()
    return [(PLOT, load("cpu"), draw)] + ([(CROSSOVER, sweep, _crossover)] if sweep is not None else [])


def rendered(name: str) -> tuple[Path, str, str]:
    """A document, its text, and what the text should be."""
    path, table = SECTIONS[name]
    text = path.read_text()
    pattern = re.compile(rf"(<!-- table:{name} -->\n).*?(<!-- /table:{name} -->)", re.S)
    if not pattern.search(text):
        raise ValueError(f"{path.name}: expected the markers of table:{name}, got none")
    return path, text, pattern.sub(lambda match: match[1] + table() + "\n" + match[2], text)


def main(argv: list[str] | None = None) -> int:
    """Check or write; the exit code says whether everything agrees."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--write", action="store_true", help="write the documents instead of checking them")
    write = parser.parse_args(argv).write
    stale = []
    for name in SECTIONS:
        path, text, wanted = rendered(name)
        if text != wanted:
            stale.append(f"{path.name} (table:{name})")
            if write:
                path.write_text(wanted)
    for path, data, make in plots():
        if not path.exists() or fingerprint(data) not in path.read_text():
            stale.append(path.name)
            if write:
                make(data, path)
    if stale:
        print(("written: " if write else "differs from its results, run with --write: ") + ", ".join(stale))
    return 1 if stale and not write else 0


if __name__ == "__main__":
    sys.exit(main())
