# SPDX-License-Identifier: MIT
"""Traffic of the implicit GEMM's kernels on full tiles, for every stride from 1 to 16, aligned rows and odd ones.

Shared wavefronts of loads and of stores are held to the fewest possible; sectors of x and of the result to the fewest
that hold what each tile needs of a row and what leaves it at once.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from cupy_convt.core import implicit_tiles, plan_hopper, plan_implicit
from cupy_convt.core.device import PRESETS
from cupy_convt.core.implicit_tiles import Tile, line, panel_taps, stage_pitch
from cupy_convt.core.launch import Launch, Plan
from cupy_convt.core.plan_hopper import HopperTile
from cupy_convt.core.problem import ITEM_BYTES, Problem
from tests import cases
from tests.emulated import EmulatorRuntime, make_engine, to_device
from tests.emulator.counters import LaunchStats

ONE = replace(PRESETS["h200"], multiprocessors=1)
STRIDES = range(1, 17)
#: Tiles for large problems: the first of each arithmetic. bfloat16 is as float16.
LARGE = [
    (dtype, next(tile for tile in tiles if tile.unit == unit))
    for dtype, tiles in implicit_tiles.TILES.items()
    for unit in dict.fromkeys(tile.unit for tile in tiles)
    if dtype != "bfloat16"
]
SMALL = [
    (dtype, tile)
    for dtype, tiles in implicit_tiles.TILES.items()
    for tile in tiles
    if dtype != "bfloat16" and (dtype, tile) not in LARGE
]
HOPPER = [(dtype, tile) for dtype in ("bfloat16", "float32") for tile in plan_hopper.TILES[dtype]]


def ids(tiles: list[tuple[str, Tile]]) -> list[str]:
    return [f"{dtype} {tile.variant}" for dtype, tile in tiles]


def full(dtype: str, tile: Tile, stride: int, odd: bool) -> Problem:
    """One row tile by two column tiles, eight chunks of channels by two taps of each phase.

    An odd problem has an odd number of inputs and, where the stride is odd, of samples; no run starts at a sector.
    """
    precision = "tf32" if tile.unit == "tf32" else None
    crop = stride // 2
    sizes = 1, 8 * 64 // ITEM_BYTES[dtype], 2 * tile.columns - 1, max(1, tile.rows // stride), 2 * stride, stride
    if not odd:
        return Problem(*sizes, x_dtype=dtype, weight_dtype=dtype, precision=precision)
    return Problem(*sizes, 1, 1, crop + 1, crop, x_dtype=dtype, weight_dtype=dtype, precision=precision)


def pitch_of(problem: Problem) -> int:
    """Elements from one row of x to the next: rows that are not odd start at sectors."""
    return problem.l_in if problem.p_left else problem.l_in + 1


def plan_of(problem: Problem, tile: Tile, parts: int) -> Plan:
    if isinstance(tile, HopperTile):
        plans = plan_hopper.candidates(problem, ONE, 1 << 40)
        return next(plan for plan in plans if plan.variant == tile.variant)
    return plan_implicit.plan_of(problem, tile, parts)


@cache
def counted(
    dtype: str, tile: Tile, stride: int, odd: bool, parts: int = 1, beta: float = 0.0
) -> tuple[tuple[Launch, LaunchStats], ...]:
    problem, runtime = replace(full(dtype, tile, stride, odd), beta=beta), EmulatorRuntime(counters=True)
    engine = make_engine()
    engine.runtime = runtime
    x, weight, _ = cases.operands(problem)
    rows = np.zeros((*x.shape[:2], pitch_of(problem)), x.dtype)
    rows[..., : x.shape[2]] = x
    out = runtime.empty(problem.out_shape, problem.out_dtype)
    if beta:
        out[...] = 1
        out.buffer.mark_written()
    engine.run(problem, plan_of(problem, tile, parts), to_device(rows)[..., : x.shape[2]], to_device(weight), None, out)
    assert all(stats.counted for _, stats in runtime.stats)
    return tuple(runtime.stats)


def sectors(pitch: int, item: int, rows: int, first: int, end: int) -> int:
    """Those that hold elements `first` to `end` of each of some rows."""
    starts = range(0, rows * pitch * item, pitch * item)
    return sum((row + end * item - 1) // 32 - (row + first * item) // 32 + 1 for row in starts)


def fewest_sectors(problem: Problem, tile: Tile) -> tuple[int, int]:
    """Sectors of x that hold what each tile needs, and of the result that hold what leaves each tile at once.

    One that holds the ends of two tiles counts for both.
    """
    columns, span, stride = line(problem), problem.phases.span, problem.stride
    staged = tile.staged if isinstance(tile, HopperTile) else tile
    first, end = columns.first_u, columns.first_u + columns.columns
    assert problem.batch == 1 and panel_taps(problem) == problem.phases.max_taps
    needed = [(max(0, u - span), min(problem.l_in, u + tile.columns)) for u in range(first, end, tile.columns)]
    left = [
        (max(0, u * stride - problem.p_left), min(problem.l_out, (u + staged.columns) * stride - problem.p_left))
        for u in range(first, end, staged.columns)
    ]
    return (
        sum(sectors(pitch_of(problem), ITEM_BYTES[problem.x_dtype], problem.c_in, *ends) for ends in needed),
        sum(sectors(problem.l_out, ITEM_BYTES[problem.out_dtype], problem.c_out, *ends) for ends in left),
    )


def ratios(problem: Problem, tile: Tile, launch: Launch, stats: LaunchStats) -> dict[str, float]:
    of_x, of_out = fewest_sectors(problem, tile)
    found = {
        "sectors loaded": stats.global_load.sectors / stats.global_load.sectors_min,
        "shared loads": stats.shared_load.wavefronts / max(1, stats.shared_load.wavefronts_min),
        "shared stores": stats.shared_store.wavefronts / max(1, stats.shared_store.wavefronts_min),
    }
    if launch.kernel != "implicit_finish":
        found["sectors of x"] = stats.argument(0).load_sectors / of_x
        if "parts" in launch.arguments[:4]:  # sums of one part
            found["sectors of sums"] = stats.global_store.sectors / stats.global_store.sectors_min
    if "out" in launch.arguments[:4]:
        found["sectors of out"] = stats.argument(launch.arguments.index("out")).store_sectors / of_out
    return found


def met_by_staging(dtype: str, tile: Tile, stride: int, odd: bool) -> float:
    """Shared wavefronts of the sums' staging over the fewest possible, from the layout's definition.

    Rows go in blocks of as many channels as fill the banks between the columns of one instruction. The channels that
    are left, fewer than a block, do not fill them: their phases would have to lie farther apart than there are any.
    Where warpgroups store two phases at once, so does every second block's first phase beside the last one before it.
    """
    problem = full(dtype, tile, stride, odd)
    staged = tile.staged if isinstance(tile, HopperTile) else tile
    item, rows = ITEM_BYTES[problem.accumulator], implicit_tiles.split(problem, tile)
    phases, banks = rows.phases, 128 // item
    at_once = tile.rows_at_once(phases, item)
    pitch, power = stage_pitch(problem, staged), min(phases & -phases, at_once)
    height, shared = at_once // power, banks // min(phases & -phases, banks)
    pad = at_once if phases % (2 * at_once) == 0 else 0
    order = [
        (block + channel, piece * power + phase)
        for block in range(0, rows.channels, height)
        for piece in range(phases // power)
        for channel in range(min(height, rows.channels - block))
        for phase in range(power)
    ]
    columns = [*range(4 if tile.products else 8)]
    if isinstance(tile, HopperTile):
        columns = [0, 2, 4, 6] if at_once == 4 else [0, 3, 5, 6]
    together = 8 if tile.products else at_once
    met = []
    for first in range(0, len(order), together):
        lanes = [(row, column) for row in order[first : first + together] for column in columns]
        if at_once == 16:  # two columns of the eight rows, and two of those beside them
            lanes = [(order[(first + 8 * (column > 4)) % len(order)], column) for column in columns]
            lanes = [((channel, phase + k), column) for (channel, phase), column in lanes for k in range(8)]
        places = [
            (channel * pitch + phase + column * phases + column // shared * pad) % banks
            for (channel, phase), column in lanes
        ]
        met.append(max(places.count(bank) for bank in set(places)))
    return sum(met) / len(met)


def most(dtype: str, tile: Tile, stride: int, odd: bool) -> dict[str, float]:
    """What the counts are held to."""
    # multiply-adds take x through registers, 32 samples side by side, which may start inside a sector
    through_registers = odd and ITEM_BYTES[dtype] == 4 and not tile.products
    limits = {
        "sectors loaded": 1.11 if through_registers else 1.1,
        "sectors of x": 1.0 if tile.products else 1.2 if through_registers else 1.1,
        "sectors of sums": 1.1,
        "sectors of out": 1.0,
        "shared loads": 1.1,
        "shared stores": 1.1,
    }
    phases = implicit_tiles.split(full(dtype, tile, stride, odd), tile).phases
    if phases % (2 * tile.rows_at_once(phases, ITEM_BYTES[dtype])) == 0:  # pieces of a run begin inside sectors
        limits["sectors of out"] = 1.06
    if not tile.products and met_by_staging(dtype, tile, stride, odd) > 1.35:  # channels that do not fill the banks
        limits["shared stores"] = 1.12
    return limits


def check(dtype: str, tile: Tile, odd: bool, parts: int = 1) -> None:
    for stride in STRIDES:
        limits = most(dtype, tile, stride, odd)
        for launch, stats in counted(dtype, tile, stride, odd, parts):
            if launch.kernel != "pack_weights":
                found = ratios(full(dtype, tile, stride, odd), tile, launch, stats)
                assert all(found[name] <= limits[name] for name in found), (stride, launch.kernel, found, limits)


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "tile"), LARGE, ids=ids(LARGE))
def test_large_tiles(dtype: str, tile: Tile) -> None:
    check(dtype, tile, False)


@pytest.mark.slow
@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize(("dtype", "tile"), LARGE, ids=ids(LARGE))
def test_large_tiles_of_odd_rows_and_in_parts(dtype: str, tile: Tile, parts: int) -> None:
    check(dtype, tile, True, parts)
    check(dtype, tile, False, parts)


@pytest.mark.slow
@pytest.mark.parametrize("odd", [False, True])
@pytest.mark.parametrize(("dtype", "tile"), SMALL + HOPPER, ids=ids(SMALL + HOPPER))
def test_small_tiles_and_those_of_warpgroups(dtype: str, tile: Tile, odd: bool) -> None:
    check(dtype, tile, odd)


def test_which_strides_meet_in_banks_when_sums_are_staged() -> None:
    """Those of a multiple of 8, and others as far as whole blocks of channels go."""
    for dtype, tile in LARGE + SMALL + HOPPER:
        for stride in STRIDES:
            met = met_by_staging(dtype, tile, stride, False)
            rows = implicit_tiles.split(full(dtype, tile, stride, False), tile)
            at_once = tile.rows_at_once(rows.phases, ITEM_BYTES[full(dtype, tile, stride, False).accumulator])
            block = at_once // min(rows.phases & -rows.phases, at_once)
            left = rows.channels % block * rows.phases  # rows of channels that are no whole block
            seams = rows.channels // block // 2 if tile.products and at_once == 4 else 0
            windows = -(-rows.channels * rows.phases // at_once)
            limit = 1 + 2 * ((left / at_once + 1 if left else 0) + seams) / windows
            assert 1 <= met <= limit, (tile, stride)


@pytest.mark.slow
@pytest.mark.parametrize("stride", [2, 3, 8])
@pytest.mark.parametrize("odd", [False, True], ids=["aligned", "odd"])
@pytest.mark.parametrize(("dtype", "tile"), LARGE + HOPPER, ids=ids(LARGE + HOPPER))
def test_what_was_there_is_read_as_it_is_written(dtype: str, tile: Tile, odd: bool, stride: int) -> None:
    for parts in (1,) if isinstance(tile, HopperTile) else (1, 2):
        launch, stats = counted(dtype, tile, stride, odd, parts, beta=0.5)[-1]
        traffic = stats.argument(launch.arguments.index("out"))
        assert traffic.load_sectors == traffic.store_sectors > 0
