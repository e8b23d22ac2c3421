# SPDX-License-Identifier: MIT
"""Crossover maps and time-against-size curves from the results of benchmarks.sweep: as text, and drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.sweep import CURVES, MAPS, Curve, Map

Row = dict[str, Any]
LETTERS = {"direct": "D", "gemm": "G", "fft": "F"}
COLORS = {"direct": "#4c72b0", "gemm": "#dd8452", "fft": "#55a868"}
#: From this regret on a cell of a map says so.
NOTABLE = 1.1
SWEEPS: tuple[Map | Curve, ...] = (*MAPS, *CURVES)


def best(row: Row) -> str:
    """The method whose plan was fastest."""
    methods: dict[str, str] = row["methods"]
    return min(methods, key=lambda method: row["plans_ms"][methods[method]])


def regret(row: Row) -> float:
    """Time of the chosen plan over that of the fastest."""
    return float(row["plans_ms"][row["chosen"]] / min(row["plans_ms"].values()))


def _cell(row: Row | None) -> str:
    if row is None:
        return ""
    letter = LETTERS[best(row)]
    return f"{letter} ({regret(row):.2g})" if regret(row) >= NOTABLE else letter


def _map_text(sweep: Map, rows: list[Row]) -> list[str]:
    (down, _), (across, _) = sweep.rows, sweep.columns
    cells = {(row["place"][down], row["place"][across]): row for row in rows}
    columns = sorted({key[1] for key in cells})
    lines = [
        f"### {down} and {across}: {sweep.title}",
        "",
        f"| {down} \\ {across} | " + " | ".join(map(str, columns)) + " |",
    ]
    lines.append("|---|" + "---|" * len(columns))
    for taps in sorted({key[0] for key in cells}):
        lines.append(f"| {taps} | " + " | ".join(_cell(cells.get((taps, column))) for column in columns) + " |")
    return [*lines, ""]


def _curve_text(sweep: Curve, rows: list[Row]) -> list[str]:
    lines = [
        f"### {sweep.name}: {sweep.title}",
        "",
        "| L_in | direct | gemm | fft | PyTorch | chosen |",
        "|---|---|---|---|---|---|",
    ]
    for row in sorted(rows, key=lambda row: int(row["place"]["L"])):
        times = [row["plans_ms"].get(row["methods"].get(method)) for method in LETTERS] + [row.get("torch_ms")]
        cells = ["-" if ms is None else f"{ms:.3g}" for ms in times]
        lines.append(f"| {row['place']['L']} | " + " | ".join(cells) + f" | {row['chosen']} |")
    return [*lines, ""]


def page(data: dict[str, Any] | None) -> str:
    """The generated part of CROSSOVER.md."""
    if data is None:
        return "Not yet measured."
    lines = [
        "Letters name the method whose best predicted plan ran fastest: D direct, G gemm, F fft. A number in brackets:",
        'so many times longer ran the plan that `method="auto"` takes (from 1.1 on). Curves are in milliseconds.',
        "",
        "![crossover maps and curves](results/crossover.svg)",
        "",
    ]
    for sweep in SWEEPS:
        rows = [row for row in data["rows"] if row["name"] == sweep.name]
        if rows:
            lines += _map_text(sweep, rows) if isinstance(sweep, Map) else _curve_text(sweep, rows)
    regrets = sorted(regret(row) for row in data["rows"])
    environment = data["environment"]
    lines += [
        f"Regret over all {len(regrets)} points: median {regrets[len(regrets) // 2]:.2f}, most {regrets[-1]:.2f}.",
        "",
        f"Measured on {environment['cpu']}, {environment['cores']} cores; {environment['date']}; "
        f"`{environment['command'].strip()}`.",
    ]
    return "\n".join(lines)


def draw(data: dict[str, Any], path: Path, fingerprint: str) -> None:
    """Maps above, curves below, in one SVG that names the results it was drawn from."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "cupy_convt"
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 3, figsize=(11, 7), layout="constrained")
    for index, sweep in enumerate(SWEEPS):
        rows = [row for row in data["rows"] if row["name"] == sweep.name]
        panel = axes[index // 3, index % 3]
        panel.set_title(f"{sweep.name}\n{sweep.title}", fontsize=8)
        if not rows:
            panel.set_axis_off()
        elif isinstance(sweep, Map):
            _draw_map(panel, sweep, rows)
        else:
            _draw_curve(panel, rows)
    figure.savefig(path, metadata={"Date": None, "Description": fingerprint})
    pyplot.close(figure)


def _draw_map(panel: Any, sweep: Map, rows: list[Row]) -> None:
    (down, _), (across, _) = sweep.rows, sweep.columns
    for method, color in COLORS.items():
        won = [row for row in rows if best(row) == method]
        places = [[row["place"][axis] for row in won] for axis in (across, down)]
        panel.scatter(*places, c=color, marker="s", s=40, label=method)
    missed = [row for row in rows if regret(row) >= NOTABLE]
    places = [[row["place"][axis] for row in missed] for axis in (across, down)]
    panel.scatter(*places, c="black", marker="x", s=16, linewidths=0.8, label="auto took another")
    panel.set_xscale("log", base=2)
    panel.set_yscale("log", base=2)
    panel.set_xlabel(across)
    panel.set_ylabel(down)
    panel.legend(fontsize=6, loc="lower right")


def _draw_curve(panel: Any, rows: list[Row]) -> None:
    rows = sorted(rows, key=lambda row: int(row["place"]["L"]))
    for method, color in COLORS.items():
        timed = [row for row in rows if method in row["methods"]]
        times = [row["plans_ms"][row["methods"][method]] for row in timed]
        panel.plot([row["place"]["L"] for row in timed], times, color=color, marker=".", label=method)
    timed = [row for row in rows if "torch_ms" in row]
    lengths, times = [row["place"]["L"] for row in timed], [row["torch_ms"] for row in timed]
    panel.plot(lengths, times, color="gray", linestyle="--", marker=".", label="PyTorch")
    panel.set_xscale("log")
    panel.set_yscale("log")
    panel.set_xlabel("L_in")
    panel.set_ylabel("ms")
    panel.legend(fontsize=6)
