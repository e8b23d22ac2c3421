# SPDX-License-Identifier: MIT
"""Fitting the constants of a cost model: recovery of known ones, what is read, what is written."""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import fit_cost, workloads
from benchmarks.fit_cost import Quality, Row
from cupy_convt.core import constants_cpu
from cupy_convt.core.device import PRESETS
from cupy_convt.core.dispatch import DEFAULT_WORKSPACE_LIMIT
from cupy_convt.core.plan_cpu import candidates
from cupy_convt.core.problem import Problem


@dataclass(frozen=True)
class Toy:
    call: float = 1e-5
    element: float = 1e-9
    unused: float = 3.0


def toy(sample: tuple[str, float], c: Toy) -> float:
    kind, size = sample
    return c.call + c.element * size * (1 if kind == "a" else 2)


TRUTH = Toy(4e-5, 2.5e-9, 8.0)


def toy_rows(noise: float = 0.0) -> list[Row]:
    rng = np.random.default_rng(0)
    rows = []
    for size in 10.0 ** np.arange(2, 8):
        plans = {"a/x": ("a", size), "b/y": ("b", size)}
        rows.append(Row(str(size), plans, {k: toy(p, TRUTH) * np.exp(noise * rng.normal()) for k, p in plans.items()}))
    return rows


def test_known_constants_are_found_and_those_without_influence_stay() -> None:
    found = fit_cost.fit(toy_rows(), Toy(), toy)
    assert found.call == pytest.approx(TRUTH.call, rel=0.05)
    assert found.element == pytest.approx(TRUTH.element, rel=0.05)
    assert found.unused == pytest.approx(3.0)


def test_one_odd_measurement_does_not_bend_the_rest() -> None:
    rows = toy_rows(noise=0.02)
    rows[3] = replace(rows[3], seconds={name: 50 * seconds for name, seconds in rows[3].seconds.items()})
    found = fit_cost.fit(rows, Toy(), toy)
    assert found.call == pytest.approx(TRUTH.call, rel=0.3)
    assert found.element == pytest.approx(TRUTH.element, rel=0.3)


def test_quality_is_regret_and_error() -> None:
    rows = [Row("r", {"a": ("a", 1e6), "b": ("b", 1e6)}, {"a": 4.0e-3, "b": 1.0e-3})] + toy_rows()
    quality = Quality.of(rows, TRUTH, toy)
    assert quality.regrets[-1] == pytest.approx(4.0)
    assert quality.regrets[0] == pytest.approx(1.0)
    text = str(quality)
    assert "regret median 1.000, 95th percentile 4.00, most 4.00" in text
    assert "within 2x: 100 %" in text


def test_constants_of_other_names_stay() -> None:
    found = fit_cost.fit(toy_rows(), Toy(), toy, only=("el", "un"))
    assert found.call == Toy().call
    assert found.element == pytest.approx(TRUTH.element, rel=0.2)


def test_held_out_rows_are_predicted_by_the_others() -> None:
    """A row unlike the others is predicted badly by constants that have not seen it, in either form of its weight."""
    rows = toy_rows()
    odd = {"a/x": ("a", 1e6), "b/y": ("b", 1e6)}
    rows += [Row(f"odd{kept}", odd, {"a/x": 1.0, "b/y": 0.5}) for kept in ("", fit_cost.KEPT)]
    unseen = fit_cost.held_out(rows, Toy(), toy, len(rows) - 1)
    assert len(unseen.regrets) == len(rows) and len(unseen.errors) == 2 * len(rows)
    assert unseen.regrets[-2:] == pytest.approx([2.0, 2.0])
    assert sum(error < 0.1 for error in unseen.errors) == 4
    assert sum(0.5 < error < 2 for error in unseen.errors) == len(unseen.errors) - 4


@pytest.mark.slow
def test_the_cpus_constants_are_found_from_its_own_predictions() -> None:
    """The real model on real layers: times made from changed constants lead back to predictions of those times."""
    device = PRESETS["cpu"]
    truth = replace(constants_cpu.FITTED, dense_rate=90e9, toeplitz_copy=3e-9, direct_element=2e-9, fft_output=2e-8)
    rows = []
    for layer in list(workloads.load())[::6]:
        problem = layer.problem("float32")
        found = candidates(problem, device, DEFAULT_WORKSPACE_LIMIT)
        for kept in (False, True):
            plans = {p.name: (problem, p, device, kept) for p in found}
            rows.append(Row(layer.name, plans, {n: fit_cost.cpu_seconds(s, truth) for n, s in plans.items()}))
    before = Quality.of(rows, constants_cpu.FITTED, fit_cost.cpu_seconds)
    after = Quality.of(rows, fit_cost.fit(rows, constants_cpu.FITTED, fit_cost.cpu_seconds), fit_cost.cpu_seconds)
    off = [np.sqrt(np.mean(np.log(quality.errors) ** 2)) for quality in (before, after)]
    assert off[1] < off[0] / 4
    assert after.regrets[-1] < 1.05


def results(tmp_path: Path, rows: list[dict[str, Any]]) -> Path:
    environment = {"cores": 2, "date": "2020-02-02", "cpu": "a CPU", "versions": {"numpy": "2", "scipy": "1"}}
    path = tmp_path / "some.json"
    path.write_text(json.dumps({"environment": environment, "rows": rows}))
    return path


def test_rows_are_read_by_name_or_by_their_fields_and_stale_ones_are_named(tmp_path: Path) -> None:
    problem = Problem(1, 4, 50, 3, 5, 2)
    layer = next(workloads.load())
    first = {"name": layer.name, "dtype": "float32", "problem": str(layer.problem("float32"))}
    rows = [
        {"name": "point", "fields": asdict(problem), "problem": str(problem), "plans_ms": {"direct/taps": 2, "old": 1}},
        {**first, "plans_ms": {"direct/taps": 9}, "kept_plans_ms": {"direct/taps": 7}},
        {**first, "problem": "another", "plans_ms": {"direct/taps": 9}},
        first,
    ]
    found, unused, environment = fit_cost.read(results(tmp_path, rows))
    assert [row.seconds["direct/taps"] for row in found] == pytest.approx([2e-3, 9e-3, 7e-3])
    assert found[0].plans["direct/taps"][0] == problem
    assert unused == [
        "point: no plan old any more",
        f"{layer.name}: measured as another, now {layer.problem('float32')}",
    ]
    source = fit_cost.provenance([Path("some.json")], environment)
    assert source == "some.json of 2020-02-02: a CPU, 2 cores, numpy 2, scipy 1"


def test_constants_are_written_where_they_live() -> None:
    text = Path(constants_cpu.__file__).read_text()
    assert isinstance(constants_cpu.PROVENANCE, str)
    changed = replace(constants_cpu.FITTED, fft_call=1.25e-3, dense_rate=98765432100.0)
    new = fit_cost.rewritten(text, changed, 'a "quoted" run')
    module: dict[str, Any] = {"__name__": constants_cpu.__name__}
    exec(compile(new, "constants_cpu.py", "exec", dont_inherit=True), module)
    assert module["PROVENANCE"] == 'a "quoted" run'
    for name, value in asdict(module["Constants"]()).items():
        assert value == pytest.approx(getattr(changed, name), rel=5e-3), name
    kept = [line for line in text.splitlines() if "float = " not in line and "PROVENANCE" not in line]
    assert [line for line in new.splitlines() if "float = " not in line and "PROVENANCE" not in line] == kept
    assert fit_cost.rewritten(new, changed, 'a "quoted" run') == new
    with pytest.raises(ValueError, match="expected the class Toy, got none"):
        fit_cost.rewritten(text, Toy(), "")
    with pytest.raises(ValueError, match="convert: expected one line of Constants, got 0"):
        fit_cost.rewritten("class Constants:\n    pass\n\n\nx = 1\n", changed, "")


def test_the_command_prints_old_and_new_and_writes_on_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    problem = Problem(1, 4, 5000, 3, 5, 2)
    device = PRESETS["cpu"]
    times = {
        plan.name: 2e3 * fit_cost.cpu_seconds((problem, plan, device, False), constants_cpu.FITTED)
        for plan in candidates(problem, device, DEFAULT_WORKSPACE_LIMIT)
    }
    rows = [{"name": "point", "fields": asdict(problem), "problem": str(problem), "plans_ms": times}]
    copy = tmp_path / "constants_cpu.py"
    copy.write_text(Path(constants_cpu.__file__).read_text())
    monkeypatch.setattr(fit_cost.inspect, "getsourcefile", lambda module: str(copy))
    path = results(tmp_path, rows)
    assert fit_cost.main([str(path)]) == 0
    assert copy.read_text() == Path(constants_cpu.__file__).read_text()
    out = capsys.readouterr().out
    assert "old: regret median 1.000" in out and "error 2.00x" in out and "new: " in out
    assert fit_cost.main([str(path), "--write"]) == 0
    assert 'PROVENANCE = "some.json of 2020-02-02: a CPU' in copy.read_text()
    assert fit_cost.main([str(results(tmp_path, []))]) == 1
