# SPDX-License-Identifier: MIT
"""What the kernels of the implicit GEMM and of weight streaming cost: compiled, and counted by the emulator.

`write` compiles every variant for every architecture, runs every form of the README's table on one geometry of full
tiles, and rewrites tests/resources_implicit.json and that table of kernels/README.md.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from cupy_convt.core import plan_hopper, plan_implicit, plan_weight_stream
from cupy_convt.core.device import PRESETS
from cupy_convt.core.implicit_tiles import TILES, Tile
from cupy_convt.core.launch import Launch, Plan, Variant
from cupy_convt.core.problem import ITEM_BYTES, Problem
from cupy_convt.core.weight_tiles import COLUMNS
from cupy_convt.engines.source import kernel_directory, kernel_source
from tests import cases
from tests import test_kernel_traffic_implicit as traffic
from tests.emulated import EmulatorRuntime, make_engine, to_device
from tests.emulator import nvrtc
from tests.emulator.counters import LaunchStats
from tests.test_kernels_nvrtc import ARCHITECTURES, label, resources

H200 = replace(PRESETS["h200"], three_tf32=True)
#: A device that cuts every contraction into parts.
PARTS = replace(H200, launch_seconds=0.0)
ONE = replace(H200, multiprocessors=1)
#: Strides whose traffic on odd rows the table shows the most of.
ODD_STRIDES = 1, 3, 9, 11, 16
TABLE = Path(__file__).parent / "resources_implicit.json"
#: Written by tests/test_plan_hopper.py.
HOPPER = json.loads((TABLE.parent / "resources_hopper.json").read_text())["resources"]
README = kernel_directory() / "README.md"
BEGIN, END = "<!-- implicit -->", "<!-- /implicit -->"


# ---- compiled -------------------------------------------------------------------------------------------------------


def variants() -> list[Variant]:
    return [*plan_implicit.variants(), *plan_weight_stream.variants()]


def architectures(variant: Variant) -> tuple[str, ...]:
    first = "sm_80" if variant[0] == "implicit_gemm_mma" else ARCHITECTURES[0]
    return ARCHITECTURES[ARCHITECTURES.index(first) :]


def registers(variant: Variant) -> dict[str, int]:
    """By architecture; a spill is an error."""
    found = {arch: resources(variant, arch) for arch in architectures(variant)}
    assert not any(row[1] for row in found.values()), f"{label(variant)} spills: {found}"
    return {arch: row[0] for arch, row in found.items()}


_INSTRUCTION = re.compile(r"(?:@!?%p\d+\s+)?([a-z][\w.:]*)\s")
_BRANCH = re.compile(r"(?:@!?%p\d+\s+)?bra(?:\.uni)?\s+(\$L\w+)")


def loops(lines: list[str]) -> Iterator[list[str]]:
    """The instructions from a label to a branch back to it, but moves between registers, of which none are left."""
    labels = {line[:-1]: number for number, line in enumerate(lines) if re.fullmatch(r"\$L\w+:", line)}
    for number, line in enumerate(lines):
        branch = _BRANCH.match(line)
        start = labels.get(branch[1]) if branch else None
        if start is not None and start < number:
            found = (_INSTRUCTION.match(line) for line in lines[start : number + 1])
            yield [match[1] for match in found if match and not match[1].startswith("mov")]


def inner_share(variant: Variant) -> float:
    """Products (wgmma, mma.sync, else fma) among the PTX instructions of the loop that has the largest part of them."""
    arch = "sm_90a" if variant[0] == plan_hopper.KERNEL else "sm_80"
    text = nvrtc.compile_ptx(kernel_source(variant[0]), variant[0], dict(variant[1]), arch)
    lines = [line.strip() for line in text[text.index(".entry") :].split("\n")]
    product = next(name for name in ("wgmma.mma_async", "mma.sync", "fma.rn") if name in text)
    shares = [sum(name.startswith(product) for name in loop) / len(loop) for loop in loops(lines) if len(loop) > 8]
    return round(max(shares), 2)


#: Registers and warps of a multiprocessor, most blocks, shared memory, what the system keeps of it for each block.
_MULTIPROCESSOR = {"sm_80": (65536, 64, 32, 164 << 10, 1024), "sm_90": (65536, 64, 32, 228 << 10, 1024)}


def blocks_per_multiprocessor(arch: str, registers: int, threads: int, shared: int) -> int:
    """Blocks that registers (given to warps by 256), threads and shared memory leave room for."""
    file, warps, most, memory, kept = _MULTIPROCESSOR[arch]
    by_registers = file // (-(-registers * 32 // 256) * 256) // 4 * 4  # warps, shared evenly by four schedulers
    return min(most, min(by_registers, warps) // (threads // 32), memory // (shared + kept))


# ---- counted --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Form:
    """A row of the table: a kernel of a plan for a problem of full tiles."""

    name: str
    problem: Problem
    plan: Plan
    kernel: str
    tile: Tile | None = None

    @property
    def launch(self) -> Launch:
        return next(launch for launch in self.plan.launches if launch.kernel == self.kernel)


def _full(dtype: str, tile: Tile) -> Problem:
    """One row tile by two column tiles and eight chunks of channels."""
    stride = 8
    sizes = 1, 8 * 64 // ITEM_BYTES[dtype], 2 * tile.columns - 1, tile.rows // stride, 2 * stride, stride
    precision = "tf32" if tile.unit == "tf32" else None
    return Problem(*sizes, x_dtype=dtype, weight_dtype=dtype, precision=precision)


@cache
def forms() -> tuple[Form, ...]:
    found = []
    for dtype in ("float16", "float32", "float64", "complex64", "complex128"):
        for tile in TILES[dtype]:
            problem = _full(dtype, tile)
            plans = plan_implicit.candidates(problem, PARTS, 1 << 40)
            plan = next(plan for plan in plans if plan.variant == tile.variant)
            name = f"{dtype} {tile.unit} {tile.rows}x{tile.columns}"
            found.append(Form(name, problem, plan, tile.kernel, tile))
            if tile == TILES[dtype][0]:
                split = next(plan for plan in plans if plan.variant.startswith(tile.variant + " "))
                found.append(Form(f"{dtype}, sums of {tile.columns} columns", problem, split, "implicit_finish", tile))
    for dtype in ("float16", "float32"):
        for tile in plan_hopper.TILES[dtype]:
            problem = _full(dtype, tile)
            plans = plan_hopper.candidates(problem, ONE, 1 << 40)
            plan = next(plan for plan in plans if plan.variant == tile.variant)
            found.append(Form(f"{dtype} {tile.unit} {tile.rows}x{tile.columns}", problem, plan, tile.kernel, tile))
    for dtype in ("float16", "float32", "float64", "complex64", "complex128"):
        for count in COLUMNS:
            sizes = 1, 96, count, 64, 16, 8
            problem = Problem(*sizes, x_dtype=dtype, weight_dtype=dtype)
            (plan,) = plan_weight_stream.candidates(problem, H200, 1 << 40)
            found.append(Form(f"{dtype}, {count} column{'s' * (count > 1)}", problem, plan, "weight_stream"))
            if count == 4:
                found.append(Form(dtype, problem, plan, "weight_stream_finish"))
    return tuple(found)


def counted(form: Form) -> tuple[float, float]:
    """(sectors, wavefronts) over the fewest possible of the form's kernel. Rows of x start at multiples of 32 bytes."""
    runtime = EmulatorRuntime(counters=True)
    engine = make_engine()
    engine.runtime = runtime
    x, weight, bias = cases.operands(form.problem)
    pitch = -(-x.shape[2] // 16) * 16 if form.problem.l_in > max(COLUMNS) else x.shape[2]
    rows = np.zeros((*x.shape[:2], pitch), x.dtype)
    rows[..., : x.shape[2]] = x
    out = runtime.empty(form.problem.out_shape, form.problem.out_dtype)
    engine.run(form.problem, form.plan, to_device(rows)[..., : x.shape[2]], to_device(weight), bias, out)
    stats = next(stats for launch, stats in runtime.stats if launch.kernel == form.kernel)
    assert stats.counted
    return _sectors(stats), _wavefronts(stats)


def counted_on_odd_rows(form: Form) -> tuple[float, float]:
    """The most of either over some strides."""
    assert form.tile
    parts = 2 if form.kernel == "implicit_finish" else 1
    found = [
        (_sectors(stats), _wavefronts(stats))
        for stride in ODD_STRIDES
        for launch, stats in traffic.counted(form.problem.x_dtype, form.tile, stride, True, parts)
        if launch.kernel == form.kernel
    ]
    return max(row[0] for row in found), max(row[1] for row in found)


def _sectors(stats: LaunchStats) -> float:
    directions = stats.global_load, stats.global_store
    return round(sum(d.sectors for d in directions) / sum(d.sectors_min for d in directions), 3)


def _wavefronts(stats: LaunchStats) -> float:
    directions = stats.shared_load, stats.shared_store
    return round(sum(d.wavefronts for d in directions) / max(1, sum(d.wavefronts_min for d in directions)), 3)


# ---- the table ------------------------------------------------------------------------------------------------------


@cache
def committed() -> dict[str, Any]:
    return json.loads(TABLE.read_text())


def render(table: dict[str, Any]) -> str:
    """Markdown between the markers."""
    lines = [
        BEGIN,
        "| kernel | form | threads | registers sm_80, sm_90 | shared bytes | blocks sm_80, sm_90 | products | sectors |"
        " conflicts |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for form in forms():
        launch, key = form.launch, f"{form.kernel} {form.name}"
        of_variant = table["registers"].get(label(launch.variant)) or {"sm_90": HOPPER[label(launch.variant)][0]}
        held = {arch: of_variant[arch] for arch in _MULTIPROCESSOR if arch in of_variant}
        room = [
            blocks_per_multiprocessor(arch, count, launch.block, launch.shared_bytes) for arch, count in held.items()
        ]
        share = table["products"].get(label(launch.variant))
        shown = "" if share is None else f"{share:.0%}"
        pair, blocks = (", ".join(["-"] * (2 - len(held)) + list(map(str, n))) for n in (held.values(), room))
        counts = [table["forms"][key]] + ([table["odd rows"][key]] if form.tile else [])
        sectors = ", ".join(f"{row[0]:.2f}" for row in counts)
        conflicts = ", ".join(f"{row[1]:.2f}" for row in counts if row[1])
        lines.append(
            f"| `{form.kernel}` | {form.name} | {launch.block} | {pair} | {launch.shared_bytes} | {blocks} | {shown} |"
            f" {sectors} | {conflicts} |"
        )
    return "\n".join([*lines, END])


def products() -> list[Variant]:
    """Variants of which the share of products is told: those of the table that have an inner loop of them."""
    kernels = "implicit_gemm", "implicit_gemm_mma", plan_hopper.KERNEL, "weight_stream"
    return list(dict.fromkeys(form.launch.variant for form in forms() if form.kernel in kernels))


def write() -> None:
    """Rewrite the table and the README's part of it."""
    table = {
        "nvrtc": list(nvrtc.version()),
        "forms": {f"{form.kernel} {form.name}": counted(form) for form in forms()},
        "odd rows": {f"{form.kernel} {form.name}": counted_on_odd_rows(form) for form in forms() if form.tile},
        "products": {label(variant): inner_share(variant) for variant in products()},
        "registers": {label(variant): registers(variant) for variant in variants()},
    }
    entries = [
        f" {json.dumps(key)}: {json.dumps(part)}"
        if isinstance(part, list)
        else f" {json.dumps(key)}: {{\n"
        + ",\n".join(f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in part.items())
        + "\n }"
        for key, part in table.items()
    ]
    TABLE.write_text("{\n" + ",\n".join(entries) + "\n}\n")
    text = README.read_text()
    README.write_text(re.sub(f"{BEGIN}.*{END}", lambda _: render(json.loads(TABLE.read_text())), text, flags=re.DOTALL))
