# SPDX-License-Identifier: MIT
"""The table of what the kernels of the implicit GEMM and of weight streaming cost is whole, right, and within limits.

`python -m tests.test_resources_implicit` rewrites it.
"""

from __future__ import annotations

import pytest

from cupy_convt.core.launch import CUDA_TYPES
from tests.emulator import nvrtc
from tests.forms_implicit import (
    README,
    architectures,
    blocks_per_multiprocessor,
    committed,
    counted,
    counted_on_odd_rows,
    forms,
    inner_share,
    loops,
    products,
    registers,
    render,
    variants,
    write,
)
from tests.test_kernels_nvrtc import label

needs_compiler = pytest.mark.skipif(not nvrtc.available(), reason="no libnvrtc with headers")


@needs_compiler
def test_the_table_has_every_variant_and_no_other() -> None:
    assert set(committed()["registers"]) == {label(v) for v in variants()}
    for variant in variants():
        assert tuple(committed()["registers"][label(variant)]) == architectures(variant)
    assert set(committed()["products"]) == {label(v) for v in products()}
    assert set(committed()["forms"]) == {f"{form.kernel} {form.name}" for form in forms()}
    assert set(committed()["odd rows"]) == {f"{form.kernel} {form.name}" for form in forms() if form.tile}


def test_the_readme_has_the_table() -> None:
    assert render(committed()) in README.read_text()


def test_no_form_moves_a_tenth_more_than_it_must() -> None:
    for name, (sectors, conflicts) in committed()["forms"].items():
        assert 1 <= sectors <= 1.1, name
        assert conflicts <= 1.1, name
    for name, (sectors, conflicts) in committed()["odd rows"].items():
        assert 1 <= sectors <= 1.1, name
        assert conflicts <= 1.1, name


@pytest.mark.slow
def test_the_counters_do_not_drift() -> None:
    for form in forms():
        assert list(counted(form)) == committed()["forms"][f"{form.kernel} {form.name}"], form.name
        if form.tile:
            assert list(counted_on_odd_rows(form)) == committed()["odd rows"][f"{form.kernel} {form.name}"], form.name


def test_some_counters_do_not_drift() -> None:
    for form in forms():
        if form.name.startswith("float64"):
            assert list(counted(form)) == committed()["forms"][f"{form.kernel} {form.name}"], form.name


@pytest.mark.slow
@needs_compiler
def test_nothing_spills_and_registers_do_not_drift() -> None:
    found = {label(variant): registers(variant) for variant in variants()}
    if committed()["nvrtc"] == list(nvrtc.version()):
        assert found == committed()["registers"]
        assert {label(variant): inner_share(variant) for variant in products()} == committed()["products"]


def test_blocks_of_a_multiprocessor() -> None:
    assert blocks_per_multiprocessor("sm_80", 32, 256, 0) == 8  # threads
    assert blocks_per_multiprocessor("sm_80", 128, 256, 0) == 2  # registers
    assert blocks_per_multiprocessor("sm_90", 168, 128, 0) == 3
    assert blocks_per_multiprocessor("sm_80", 32, 64, 40 << 10) == 4  # shared memory
    assert blocks_per_multiprocessor("sm_90", 16, 32, 0) == 32


def test_loops_are_read_from_ptx() -> None:
    lines = [
        "$L1:",
        "mov.u32 %r1, 0;",
        "$L2:",
        "fma.rn.f32 %f1, %f2, %f3, %f1;",
        "@%p1 bra $L2;",
        "@!%p2 bra $L1;",
        "ret;",
    ]
    assert list(loops(lines)) == [["fma.rn.f32", "bra"], ["fma.rn.f32", "bra", "bra"]]
    assert set(CUDA_TYPES) >= {form.problem.x_dtype for form in forms()}


if __name__ == "__main__":
    write()
