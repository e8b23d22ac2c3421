# SPDX-License-Identifier: MIT
"""The documents say what the committed results say."""

from pathlib import Path
from typing import Any

import pytest

from benchmarks import report


@pytest.mark.parametrize("name", report.SECTIONS)
def test_documents_agree_with_the_results(name: str) -> None:
    path, text, wanted = report.rendered(name)
    assert text == wanted, f"{path.name}: run python -m benchmarks.report --write"


def test_the_plots_were_drawn_from_the_results() -> None:
    for path, data, _ in report.plots():
        assert report.fingerprint(data) in path.read_text(), path.name


def row(name: str, ratio: float, **changes: Any) -> dict[str, Any]:
    return {
        "name": name,
        "kind": "dense",
        "dtype": "float32",
        "own_dtype": True,
        "scaled": "",
        "chosen": "gemm/rows",
        "ours": {"median_ms": 2.0, "iqr_ms": 0.1},
        "prepared": {"median_ms": 1.0, "ratio": 2 * ratio},
        "rivals": {"torch": {"ratio": ratio, "fastest_ratio": ratio + 1, "error": 1e-6}},
        "ratio": ratio,
        "predicted_ms": 2.0,
    } | changes


ENVIRONMENT = {
    "cpu": "a CPU",
    "cores": 2,
    "python": "3",
    "versions": {"numpy": "2", "x": "absent"},
    "date": "today",
    "command": "c",
}


def test_losing_rows_are_named() -> None:
    data = {"environment": ENVIRONMENT, "rows": [row("good", 3.0), row("bad", 0.8), row("other", 0.5, own_dtype=False)]}
    text = report.summary_table(data)
    assert "Slower than a rival: bad (0.8)." in text
    assert "0.8 / **1.9** / 3" in text
    assert "numpy 2; today; `c`" in text
    data["rows"] = [row("good", 3.0)]
    assert "No row is slower than a rival." in report.summary_table(data)


def test_every_row_and_the_regret_are_in_the_full_table() -> None:
    others = {"kept_regret": 2.0, "plan_regret": 3.0, "kept_plan_regret": 4.0}
    rows = [row(f"r{i}", 2.0, regret=1 + i / 10, predicted_ms=1.5 if i else 9.0, **others) for i in range(4)]
    text = report.full_table({"environment": ENVIRONMENT, "rows": rows})
    assert all(f"| r{i} |" in text for i in range(4))
    assert "median 1.15, 95th percentile 1.30, largest 1.30; of prepared operators median 2.00" in text
    assert "of all methods: median 3.00, 95th percentile 3.00, largest 3.00; prepared median 4.00" in text
    assert "Predictions within a factor of 2: 75 %" in text


def test_a_stale_plot_is_drawn_again(tmp_path: Path) -> None:
    data = {"environment": ENVIRONMENT, "rows": [row("good", 3.0), row("bad", 0.8)]}
    report.draw(data, tmp_path / "plot.svg")
    assert report.fingerprint(data) in (tmp_path / "plot.svg").read_text()


def test_rivals_have_columns_where_they_were_timed() -> None:
    rows = [row("a", 3.0, problem="(1, 1, 9) -> (1, 1, 36) K=5 stride=4 crop=(0, 0) float32"), row("b", 2.0)]
    rows[0]["rivals"]["oaconvolve"] = {"ratio": 10.0, "fastest_ratio": 9.0, "error": 2e-6}
    costs = {"dense": {"call": 9.04, "prepared": 5.0, "launches": 1}}
    text = report.full_table({"environment": {**ENVIRONMENT, "host_us": costs}, "rows": rows})
    head, _, first, second = text.splitlines()[:4]
    assert head.endswith("| PyTorch | oaconvolve | PyTorch, prepared | PyTorch, fastest runs | largest difference |")
    assert first.endswith("| 3.00 | 10.00 (2.5) | 6.00 | 4.00 | 2e-06 |")
    assert second.endswith("| 2.00 | - | 4.00 | 3.00 | 1e-06 |")
    assert "their time divided by s" in text
    assert "launches stubbed (call, prepared), us: dense 9.0, 5.0." in text
    assert "| rows | PyTorch | oaconvolve |" in report.summary_table({"environment": ENVIRONMENT, "rows": rows})
