# SPDX-License-Identifier: MIT
"""The sweeps: which points they have, what is kept of one, how maps and curves are told and drawn."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import crossover, fit_cost, sweep
from cupy_convt.core.problem import Problem


@pytest.mark.parametrize("which", crossover.SWEEPS, ids=lambda s: s.name)
def test_points_stay_within_bounds_and_along_their_axes(which: Any) -> None:
    found = list(sweep.points(which, quick=False))
    assert len(found) >= 5
    assert len({tuple(place.items()) for place, _ in found}) == len(found)
    for place, workload in found:
        problem = workload.problem()
        assert problem.macs <= 8 * sweep.MAX_MACS
        assert problem.l_out >= 1
        values = {"K": problem.kernel_size, "C": problem.c_in, "s": problem.stride, "L": problem.l_in}
        assert all(values[name] == value for name, value in place.items())
    assert len(list(sweep.points(which, quick=True))) < len(found)


def test_a_point_keeps_what_the_fit_and_the_page_need(tmp_path: Path) -> None:
    point = sweep.time_point({"L": 40}, sweep.layer(taps=8, stride=4, length=40), torch=True, quick=True)
    assert set(point["plans_ms"]) >= set(point["methods"].values())
    assert {name.rstrip("0123456789x") for name in point["plans_ms"]} >= {
        "direct/taps",
        "gemm/toeplitz",
        "gemm/columns",
    }
    assert point["chosen"] in point["plans_ms"]
    assert point["torch_ms"] > 0
    assert Problem(**json.loads(json.dumps(point["fields"]))) == Problem(**point["fields"])
    environment = {"cores": 2, "date": "d", "cpu": "c", "versions": {}}
    path = tmp_path / "sweep.json"
    path.write_text(json.dumps({"environment": environment, "rows": [{"name": "resampler", **point}]}))
    (row,), unused, _ = fit_cost.read(path)
    assert not unused
    assert set(row.seconds) == set(point["plans_ms"])


def point(place: dict[str, int], chosen: str, **milliseconds: float) -> dict[str, Any]:
    plans = {f"{method}/x": time for method, time in milliseconds.items() if method != "torch"}
    found = {
        "place": place,
        "chosen": f"{chosen}/x",
        "methods": {name.partition("/")[0]: name for name in plans},
        "plans_ms": plans,
    }
    return found | ({"torch_ms": milliseconds["torch"]} if "torch" in milliseconds else {})


ROWS = [
    {"name": "taps-stride", **point({"K": 4, "s": 1}, "direct", direct=1.0, gemm=2.0)},
    {"name": "taps-stride", **point({"K": 16, "s": 2}, "gemm", gemm=3.0, fft=2.0)},
    {"name": "taps-stride", **point({"K": 16, "s": 1}, "gemm", gemm=2.1, fft=2.0)},
    {"name": "resampler", **point({"L": 1024}, "fft", direct=4.0, fft=2.5, torch=9.75)},
    {"name": "resampler", **point({"L": 256}, "fft", fft=0.5)},
]
DATA = {
    "environment": {"cpu": "a CPU", "cores": 2, "date": "today", "command": "python -m benchmarks.sweep --out x"},
    "rows": ROWS,
}


def test_the_page_names_the_fastest_method_and_where_auto_lost() -> None:
    lines = crossover.page(DATA).splitlines()
    assert lines[lines.index("| K \\ s | 1 | 2 |") + 2 :][:2] == ["| 4 | D |  |", "| 16 | F | F (1.5) |"]
    start = lines.index("| L_in | direct | gemm | fft | PyTorch | chosen |")
    assert lines[start + 2 :][:2] == ["| 256 | - | - | 0.5 | - | fft/x |", "| 1024 | 4 | - | 2.5 | 9.75 | fft/x |"]
    assert "Regret over all 5 points: median 1.00, most 1.50." in lines
    assert lines[-1] == "Measured on a CPU, 2 cores; today; `python -m benchmarks.sweep --out x`."
    assert not any("vocoder" in line for line in lines)
    assert crossover.page(None) == "Not yet measured."


def test_the_drawing_names_its_results(tmp_path: Path) -> None:
    path = tmp_path / "crossover.svg"
    crossover.draw(DATA, path, "a fingerprint")
    text = path.read_text()
    assert "a fingerprint" in text
    before = path.read_bytes()
    crossover.draw(DATA, path, "a fingerprint")
    assert path.read_bytes() == before
