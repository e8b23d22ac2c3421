# SPDX-License-Identifier: MIT
"""Files of measurements: where they lie, what is refused, that they are written whole."""

import json
import os
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cupy_convt import tunefile
from cupy_convt.core.device import PRESETS

H200 = PRESETS["h200"]
TIMES = {"(1, 2, 3) -> 4": {"gemm/rows": 1e-3, "fft/blocks64": 2e-3}}


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("CUPY_CONVT_CACHE_DIR", str(tmp_path / "cache"))
    tunefile.forget_loaded()
    yield tmp_path / "cache"
    tunefile.forget_loaded()


@pytest.mark.parametrize(
    ("environment", "system", "expected"),
    [
        ({}, "linux", "HOME/.cache/cupy_convt"),
        ({"XDG_CACHE_HOME": "/x"}, "linux", "/x/cupy_convt"),
        ({"XDG_CACHE_HOME": "relative"}, "linux", "HOME/.cache/cupy_convt"),
        ({"XDG_CACHE_HOME": "/x"}, "darwin", "HOME/Library/Caches/cupy_convt"),
        ({"LOCALAPPDATA": "/local"}, "win32", "/local/cupy_convt/Cache"),
        ({}, "win32", "HOME/AppData/Local/cupy_convt/Cache"),
        ({"CUPY_CONVT_CACHE_DIR": "/mine", "XDG_CACHE_HOME": "/x"}, "linux", "/mine"),
        ({"CUPY_CONVT_CACHE_DIR": ""}, "linux", "HOME/.cache/cupy_convt"),
    ],
)
def test_the_directory_follows_the_platform(
    environment: dict[str, str], system: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "home", lambda: Path("/home/someone"))
    assert tunefile.cache_directory(environment, system) == Path(expected.replace("HOME", "/home/someone"))


def test_what_is_saved_is_found_again(directory: Path) -> None:
    assert tunefile.tuned_for(H200) is None
    path = tunefile.save(H200, TIMES, {"numpy": "2"})
    assert path.parent == directory
    assert "h200-132" in path.name
    for _ in range(2):
        found = tunefile.tuned_for(H200)
        assert found is not None and found.classes == TIMES
        tunefile.forget_loaded()
    assert tunefile.tuned_for(PRESETS["a100"]) is None
    assert tunefile.tuned_for(replace(H200, multiprocessors=66)) is None


def test_classes_are_added_and_replaced() -> None:
    tunefile.save(H200, TIMES, {})
    tunefile.save(H200, {"other": {"a": 1.0}}, {})
    tunefile.save(H200, {"other": {"b": 2.0}}, {})
    found = tunefile.tuned_for(H200)
    assert found is not None and found.classes == {**TIMES, "other": {"b": 2.0}}


def test_reset_removes_the_file_once() -> None:
    path = tunefile.save(H200, TIMES, {})
    assert tunefile.reset(H200) == path
    assert not path.exists()
    assert tunefile.tuned_for(H200) is None
    assert tunefile.reset(H200) is None


FAULTS: dict[str, tuple[Any, str]] = {
    "not JSON": ("{", "Expecting property name"),
    "not text": (b"\xff\xfe\x00", "codec can't decode"),
    "deep": ("[" * 100_000, "recursion"),
    "a list": ([], "expected an object"),
    "old format": ({"format": 0}, "format: expected 1, got 0"),
    "other version": ({"version": "0.0.1"}, "version: expected"),
    "other device": ({"device": {"name": "T4"}}, "device: expected"),
    "no classes": ({"classes": None}, "classes: expected an object"),
    "no times": ({"classes": {"a": 3}}, "expected seconds > 0 by plan in 'a'"),
    "a negative time": ({"classes": {"a": {"gemm/rows": -1.0}}}, "expected seconds > 0"),
    "a time that is none": ({"classes": {"a": {"gemm/rows": True}}}, "expected seconds > 0"),
    "an endless time": ({"classes": {"a": {"gemm/rows": float("inf")}}}, "expected seconds > 0"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_bad_file_is_ignored_with_one_warning_and_replaced_by_the_next(fault: str) -> None:
    content, message = FAULTS[fault]
    path = tunefile.save(H200, TIMES, {})
    if isinstance(content, dict):
        content = json.dumps(json.loads(path.read_text()) | content)
    elif isinstance(content, list):
        content = json.dumps(content)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    tunefile.forget_loaded()
    with pytest.warns(RuntimeWarning) as caught:
        first = tunefile.tuned_for(H200)
    assert first is None
    assert tunefile.tuned_for(H200) is None
    assert len(caught) == 1
    text = str(caught[0].message)
    assert message in text and str(path) in text and "--reset" in text
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tunefile.save(H200, TIMES, {})
    tunefile.forget_loaded()
    found = tunefile.tuned_for(H200)
    assert found is not None and found.classes == TIMES


def test_a_write_that_fails_leaves_the_file_as_it_was(monkeypatch: pytest.MonkeyPatch, directory: Path) -> None:
    path = tunefile.save(H200, TIMES, {})
    before = path.read_text()

    def fail(*_: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="no space left"):
        tunefile.save(H200, {"b": {"c": 1.0}}, {})
    assert path.read_text() == before
    assert [p.name for p in directory.iterdir()] == [path.name]
    found = tunefile.tuned_for(H200)
    assert found is not None and found.classes == TIMES


@pytest.mark.skipif(sys.platform == "win32", reason="directories of POSIX")
def test_no_home_and_no_directory_are_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUPY_CONVT_CACHE_DIR", os.devnull)
    assert tunefile.tuned_for(H200) is None
    assert tunefile.reset(H200) is None

    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("CUPY_CONVT_CACHE_DIR")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    assert tunefile.tuned_for(H200) is None


def test_the_cpu_is_known_by_its_model() -> None:
    assert tunefile.identity(PRESETS["cpu"])["name"] != PRESETS["cpu"].name
    assert tunefile.identity(PRESETS["cpu"])["kind"] == "cpu"
