# SPDX-License-Identifier: MIT
"""`cupy-convt tune` and `cupy-convt bench`."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from cupy_convt import api, bench, calls, cli, tunefile

LAYER = ("--x", "1,3,50", "--weight", "3,2,5", "--stride", "2")


@pytest.fixture(autouse=True)
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("CUPY_CONVT_CACHE_DIR", str(tmp_path / "cache"))
    tunefile.forget_loaded()
    yield tunefile.path_of(api.device_spec("cpu"))
    tunefile.forget_loaded()
    calls.forget_calls()


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Any:
    def call(*arguments: Any) -> tuple[int, str, str]:
        code = cli.main([str(a) for a in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def test_a_layer_is_measured_shown_explained_and_forgotten(run: Any, file: Path) -> None:
    assert run("tune", "--show")[:2] == (0, f"nothing is kept in {file}\n")
    code, out, err = run("tune", *LAYER, "--seconds", "0")
    assert (code, err) == (0, "")
    assert out.startswith("(1, 3, 45) -> 2 K=5 stride=2 dilation=1 groups=1 float32\n")
    assert out.endswith(f"saved in {file}\n")
    times = re.findall(r"^  (\S+) +[\d.]+ (?:ns|us|ms|s)$", out, re.MULTILINE)
    assert times == sorted(times, key=json.loads(file.read_text())["classes"][out.splitlines()[0]].__getitem__)
    shown = run("tune", "--show")[1]
    assert shown == f"{file}: 1 size classes\n" + out.rpartition("saved in")[0]
    assert "least tuned time" in run("explain", *LAYER)[1]
    assert run("tune", "--reset")[:2] == (0, f"removed {file}\n")
    assert not file.exists()
    assert run("tune", "--reset")[:2] == (0, f"nothing was kept in {file}\n")
    assert "least predicted time" in run("explain", *LAYER)[1]


def test_layers_of_a_file(run: Any, tmp_path: Path, file: Path) -> None:
    layers = [{"x_shape": [1, 3, length], "weight_shape": [3, 2, 5], "padding": "same"} for length in (30, 400)]
    path = tmp_path / "layers.json"
    path.write_text(json.dumps(layers))
    assert run("tune", "--problems", path, "--seconds", "0")[0] == 0
    assert len(json.loads(file.read_text())["classes"]) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("tune",), "expected --x and --weight, --problems, --show or --reset"),
        (("tune", "--x", "1,3,50"), "expected --x and --weight"),
        (("tune", "--show", "--reset"), "expected --show or --reset, got both"),
        (("tune", *LAYER, "--seconds", "-1"), "expected seconds >= 0, got '-1'"),
        (("tune", *LAYER, "--seconds", "nan"), "expected seconds >= 0, got 'nan'"),
        (("tune", *LAYER, "--problems", "none.json"), "--problems: expected no --x and --weight beside it"),
        (("tune", "--problems", "FILE"), "--problems: expected a JSON file, got"),
        (("tune", *LAYER, "--device", "h200"), "expected cpu, cuda or cuda:N, got 'h200'"),
        (("bench", "--rows", "nothing"), "--rows: expected a pattern among vocoder, first layer"),
    ],
)
def test_bad_usage(arguments: tuple[str, ...], message: str, run: Any, tmp_path: Path) -> None:
    (tmp_path / "bad").write_text("{")
    code, _, err = run(*(str(tmp_path / "bad") if a == "FILE" else a for a in arguments))
    assert code == 2
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("content", ["{}", "[3]", '[{"x_shape": [1, 3, 50]}]', '[{"x_shape": 3, "weight_shape": 4}]'])
def test_a_bad_file_of_layers(content: str, run: Any, tmp_path: Path) -> None:
    path = tmp_path / "layers.json"
    path.write_text(content)
    code, _, err = run("tune", "--problems", path)
    assert code == 2
    assert re.match(r"cupy-convt: error: (problems|--problems|x_shape): expected", err)


def test_a_layer_that_cannot_be(run: Any) -> None:
    code, _, err = run("tune", "--x", "1,4,50", "--weight", "3,2,5")
    assert (code, err) == (
        1,
        "cupy-convt: error: x: expected C_in = 3 channels as in weight of shape (3, 2, 5), got shape (1, 4, 50)\n",
    )


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = (
        bench.Row("few channels", (2, 3, 40), (3, 2, 6), 3, 1),
        bench.Row("one channel", (1, 1, 90), (1, 1, 9), 2, 4),
    )
    monkeypatch.setattr(bench, "ROWS", shapes)


def test_bench_times_ours_and_the_rivals_that_are_there(small: None, run: Any, tmp_path: Path) -> None:
    code, out, err = run("bench", "--seconds", "0", "--json", tmp_path / "times.json")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[1] == bench.HEAD
    assert [line[:24].strip() for line in lines[2:]] == ["few channels", "one channel"]
    data = json.loads((tmp_path / "times.json").read_text())
    first, second = data["rows"]
    assert set(first["seconds"]) == {"call", "prepared", "PyTorch"}
    assert set(second["seconds"]) == {"call", "prepared", "PyTorch", "SciPy"}
    assert all(0 < seconds < 10 for row in data["rows"] for seconds in row["seconds"].values())
    assert {"device", "python", "versions", "date"} <= set(data["environment"])
    best = min(second["seconds"][name] for name in ("PyTorch", "SciPy"))
    assert lines[3].endswith(f"{best / second['seconds']['call']:.2f}")
    assert [line[:24].strip() for line in run("bench", "--seconds", "0", "--rows", "one*")[1].splitlines()[2:]] == [
        "one channel"
    ]


def test_bench_without_rivals(small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "_rivals", lambda *_: {"PyTorch": None, "SciPy": None})
    result = bench.time_row(bench.ROWS[0], seconds=0.0)
    assert set(result["seconds"]) == {"call", "prepared"}
    assert bench.line(result).split()[-3:] == ["-", "-", "-"]


def test_the_rivals_compute_the_same(small: None) -> None:
    import numpy as np

    for row in bench.ROWS:
        rng = np.random.default_rng(0)
        x, weight = (rng.standard_normal(shape, dtype=np.float32) for shape in (row.x, row.weight))
        want = api.conv_transpose1d(x, weight, **row.geometry)
        rivals = bench._rivals(row, x, weight)
        assert rivals["PyTorch"] is not None
        np.testing.assert_allclose(rivals["PyTorch"]().numpy(), want, rtol=1e-4, atol=1e-4)
        if rivals["SciPy"] is not None:
            full = rivals["SciPy"]()[..., row.padding :][..., : want.shape[-1]]
            np.testing.assert_allclose(full, want, rtol=1e-4, atol=1e-4)
