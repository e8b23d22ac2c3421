# SPDX-License-Identifier: MIT
"""Kernel sources as text: includes spliced once, line numbers kept, found in a checkout and in an installed wheel."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from cupy_convt.engines.source import flatten, kernel_directory, kernel_source, source_hash

ROOT = Path(__file__).parents[1]
STEMS = sorted(path.stem for path in (ROOT / "kernels").glob("*.cu"))


def test_a_checkout_uses_its_own_kernels() -> None:
    assert kernel_directory() == ROOT / "kernels"


@pytest.mark.parametrize("stem", STEMS)
def test_sources_are_whole(stem: str) -> None:
    source = kernel_source(stem)
    assert '#include "' not in source.replace('#include "cuda_emu.h"', "")
    assert source.count(f"\n{stem}(") + source.count(f" {stem}(") == 1
    assert source.count("typedef unsigned short u16;") == 1


def test_includes_are_spliced_once_and_lines_keep_their_numbers(tmp_path: Path) -> None:
    (tmp_path / "a.cuh").write_text("#pragma once\nint a;\n")
    (tmp_path / "b.cuh").write_text('#include "a.cuh"\nint b;\n')
    (tmp_path / "k.cu").write_text('#include "a.cuh"\n#include "b.cuh"\n#include "elsewhere.h"\nint k;\n')
    lines = flatten(tmp_path / "k.cu").split("\n")
    assert [line for line in lines if line.startswith("int")] == ["int a;", "int b;", "int k;"]
    assert '#include "elsewhere.h"' in lines
    number, name = 0, ""
    for line in lines:
        if line.startswith("#line"):
            number, name = int(line.split()[1]) - 1, line.split('"')[1]
            continue
        number += 1
        if line.startswith("int"):
            original = (tmp_path / name).read_text().split("\n")
            assert original[number - 1] == line


def test_an_include_directory_comes_before_kernels(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "common.cuh").write_text("int mine;\n")
    (tmp_path / "k.cu").write_text('#include "common.cuh"\n')
    assert "int mine;" in flatten(tmp_path / "k.cu", [other])
    assert "typedef unsigned int u32;" in flatten(tmp_path / "k.cu")


def test_hash_follows_the_text() -> None:
    assert source_hash("a") == source_hash("a") != source_hash("b")


@pytest.mark.slow
def test_the_wheel_ships_kernels_types_and_licence(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(tmp_path),
    ]
    subprocess.run([*command, str(ROOT)], check=True, capture_output=True, text=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        archive.extractall(tmp_path / "site")
    for path in (ROOT / "kernels").glob("*.cu*"):
        assert f"cupy_convt/kernels/{path.name}" in names
    assert "cupy_convt/py.typed" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert not any(name.startswith(("tests/", "benchmarks/", "kernels/")) for name in names)
    code = (
        "import cupy_convt.engines.source as s; print(s.kernel_directory(), len(s.kernel_source('direct_gather')) > 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path / "site", check=True, capture_output=True, text=True
    )
    assert done.stdout.split() == [str(tmp_path / "site" / "cupy_convt" / "kernels"), "True"]
