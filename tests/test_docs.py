# SPDX-License-Identifier: MIT
"""README blocks and docstrings run, on the CPU engine."""

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest

import cupy_convt

ROOT = Path(__file__).parents[1]
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
MODULES = [
    m.name
    for m in pkgutil.walk_packages(cupy_convt.__path__, "cupy_convt.")
    if not m.name.endswith(("__main__", "gpu"))
]


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.splitlines()[-1][:40])
def test_readme_block_runs(block: str) -> None:
    exec(compile(block, "README.md", "exec"), {})


def test_readme_has_blocks() -> None:
    assert len(BLOCKS) >= 2


@pytest.mark.parametrize("name", ["cupy_convt", *MODULES])
def test_docstrings(name: str) -> None:
    module = importlib.import_module(name)
    assert doctest.testmod(module).failed == 0


def test_the_public_functions_have_examples() -> None:
    finder = doctest.DocTestFinder()
    for name in ("conv_transpose1d", "explain", "output_length", "ConvTranspose1d", "upsample"):
        assert any(test.examples for test in finder.find(getattr(cupy_convt, name), name)), name
