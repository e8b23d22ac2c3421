# SPDX-License-Identifier: MIT
"""Every kernel variant compiled by NVRTC for seven architectures, against the committed table of resources.

`python -m tests.test_kernels_nvrtc` compiles all of them and rewrites tests/resources.json and the table of
kernels/README.md. A new spill fails the tests; so does a variant that is not in the table.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import pytest

from cupy_convt.core import plan_direct, plan_fft, plan_fft_block, plan_gemm
from cupy_convt.core.launch import Variant
from cupy_convt.engines.source import kernel_directory, kernel_source, source_hash
from tests.emulator import nvrtc
from tests.emulator.build import cache_directory

pytestmark = pytest.mark.skipif(not nvrtc.available(), reason="no libnvrtc with headers")
ARCHITECTURES = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120")
TABLE = Path(__file__).parent / "resources.json"
README = kernel_directory() / "README.md"
#: Registers that another release of the compiler may need beyond the table's.
SLACK = 16
THREADS = 2

#: [registers, bytes spilled and stack, static shared bytes]
Row = list[int]


def variants() -> list[Variant]:
    planners = (plan_direct, plan_gemm, plan_fft, plan_fft_block)
    return list(dict.fromkeys(variant for planner in planners for variant in planner.variants()))


def label(variant: Variant) -> str:
    kernel, defines = variant
    return " ".join([kernel, *(f"{name.removeprefix('CONVT_')}={value}" for name, value in defines)])


def resources(variant: Variant, arch: str) -> Row:
    """Compile, or read what an earlier run of the same source and compiler found."""
    kernel, defines = variant
    code = kernel_source(kernel)
    key = source_hash(json.dumps([code, defines, arch, nvrtc.version(), nvrtc.OPTIONS]))
    kept = cache_directory() / "nvrtc" / f"{key}.json"
    if kept.exists():
        return list(json.loads(kept.read_text()))
    found = nvrtc.compile_kernel(code, kernel, dict(defines), arch)
    assert not found.warnings, found.warnings
    row = [found.registers, found.spill_stores + found.spill_loads + found.stack, found.shared]
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_text(json.dumps(row))
    return row


@cache
def committed() -> dict[str, dict[str, Row]]:
    return json.loads(TABLE.read_text())


def check(chosen: Iterable[Variant], arch: str) -> None:
    with ThreadPoolExecutor(THREADS) as pool:
        for variant, row in zip(chosen, pool.map(lambda v: resources(v, arch), chosen), strict=True):
            known = committed()[label(variant)][arch]
            assert row[1] <= known[1], f"{label(variant)} spills on {arch}: {row}, the table has {known}"
            assert row[0] <= known[0] + SLACK, f"{label(variant)} needs {row[0]} registers on {arch}, not {known[0]}"
            assert row[2] == known[2]


def test_the_table_has_every_variant_and_no_other() -> None:
    assert set(committed()) == {label(v) for v in variants()}
    assert all(tuple(rows) == ARCHITECTURES for rows in committed().values())


def test_nothing_spills() -> None:
    assert not {name: rows for name, rows in committed().items() if any(row[1] for row in rows.values())}


def test_some_variants_compile() -> None:
    chosen = [v for v in variants() if "float" in label(v).split("=")[1] and v[0] != "direct_stream"][:6]
    chosen += [v for v in variants() if label(v) == "direct_stream X=__half W=__half R=2"]
    check(chosen, "sm_90")


@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_variant_compiles_without_a_new_spill(arch: str) -> None:
    check(variants(), arch)


def test_the_readme_has_the_table() -> None:
    assert render(committed()) in README.read_text()


# ---- the table of kernels/README.md ---------------------------------------------------------------------------------

BEGIN, END = "<!-- resources -->", "<!-- /resources -->"


def render(table: dict[str, dict[str, Row]]) -> str:
    """Markdown between the markers: range of registers over a kernel's variants, for each architecture."""
    lines = [
        BEGIN,
        "| kernel | variants | " + " | ".join(ARCHITECTURES) + " | spilled |",
        "|---|---|" + "---|" * (len(ARCHITECTURES) + 1),
    ]
    for kernel in dict.fromkeys(name.split()[0] for name in table):
        rows = [rows for name, rows in table.items() if name.split()[0] == kernel]
        spans = []
        for arch in ARCHITECTURES:
            counts = [row[arch][0] for row in rows]
            spans.append(f"{min(counts)}-{max(counts)}" if min(counts) < max(counts) else f"{counts[0]}")
        spilled = max(row[1] for variant in rows for row in variant.values())
        lines.append(f"| `{kernel}` | {len(rows)} | {' | '.join(spans)} | {spilled} |")
    return "\n".join([*lines, END])


def main() -> None:
    """Rewrite the table and the README's part of it."""
    table: dict[str, dict[str, Row]] = {label(v): {} for v in variants()}
    with ThreadPoolExecutor(THREADS) as pool:
        for arch in ARCHITECTURES:
            for variant, row in zip(variants(), pool.map(lambda v, a=arch: resources(v, a), variants()), strict=True):
                table[label(variant)][arch] = row
            print(arch, "worst", max(table.items(), key=lambda item: item[1][arch][0])[0])
    entries = ",\n".join(f" {json.dumps(name)}: {json.dumps(rows)}" for name, rows in table.items())
    TABLE.write_text("{\n" + entries + "\n}\n")
    text = README.read_text()
    README.write_text(re.sub(f"{BEGIN}.*{END}", lambda _: render(table), text, flags=re.DOTALL))


if __name__ == "__main__":
    main()
