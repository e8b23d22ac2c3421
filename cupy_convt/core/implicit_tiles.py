# SPDX-License-Identifier: MIT
"""Tiles of the implicit GEMM: compiled forms, how columns lie in a line and rows in tiles, shared memory.

Rows are (co, f): channel and phase, taps f, f + s/c, ... . Columns are (n, u), u counting inputs; phase f of column
u is sample u*s + f*d - p_left of the result.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import lcm

from cupy_convt.core.device import DeviceSpec
from cupy_convt.core.launch import Plan
from cupy_convt.core.problem import ITEM_BYTES, Problem, ceil_div

#: CT_HALO and CT_ROW_BYTES of kernels/implicit.cuh, and the bytes of channels in a row of the x tile.
HALO, ROW_BYTES, CHUNK_BYTES = 32, 80, 64
#: Rows of at least this many columns start at places whose addresses are multiples of 32 bytes.
_ALIGN_FROM, _ALIGN_TO = 512, 16
#: Bytes of sums of a block that adds up parts: 16 for each thread, so that many blocks share the reading.
_FINISH_BYTES = 4096


@dataclass(frozen=True)
class Tile:
    """A compiled form of the product: what a block computes, with how many threads.

    `products` is how many tensor-core products make up one of numbers; 0 stands for multiply-adds.
    """

    unit: str
    rows: int
    columns: int
    threads: int
    products: int = 0

    @property
    def kernel(self) -> str:
        """Its source."""
        return "implicit_gemm_mma" if self.products else "implicit_gemm"

    @property
    def variant(self) -> str:
        """Its name in plans."""
        return f"implicit/{self.unit}-{self.rows}x{self.columns}"

    @property
    def weight_tile_bytes(self) -> int:
        """Shared memory for tiles of weights: a ring of three, or two."""
        return (3 if self.products else 2) * CHUNK_BYTES * self.rows

    def rows_at_once(self, phases: int, item_bytes: int) -> int:
        """Rows of the sums, of so many phases, whose banks differ when shared memory takes them on their way out."""
        return 8 if self.products else 16 // item_bytes


#: Sides of tensor-core tiles for few columns, for few rows, and for few of both.
_SLIM = (64, 32), (32, 64), (32, 32)


def _fma(*sides: tuple[int, int]) -> tuple[Tile, ...]:
    return tuple(Tile("fma", rows, columns, 128) for rows, columns in sides)


def _mma(unit: str, products: int, *sides: tuple[int, int]) -> tuple[Tile, ...]:
    return tuple(Tile(unit, rows, columns, 2 * columns, products) for rows, columns in sides)


#: Tiles by dtype, for each kind of arithmetic the most economical first; the others are for products of few rows or
#: columns.
TILES = {
    "float16": _mma("mma", 1, (128, 128), (64, 64), *_SLIM),
    "bfloat16": _mma("mma", 1, (128, 128), (64, 64), *_SLIM),
    "float32": (
        *_mma("tf32", 1, (128, 128), (64, 64), *_SLIM),
        *_mma("3xtf32", 3, (128, 64), (64, 64), *_SLIM),
        *_fma((64, 128), (32, 64)),
    ),
    "float64": _fma((64, 64), (32, 32)),
    "complex64": _fma((64, 64), (32, 32)),
    "complex128": _fma((32, 64), (16, 32)),
}
#: Architecture from which mma.sync takes these operands.
TENSOR_CORES_FROM = 80


def tiles(problem: Problem, device: DeviceSpec) -> tuple[Tile, ...]:
    """Tiles that the device can run and the problem's precision allows.

    Three TF32 products are for devices where their error has been measured; one is for those who ask for it by name.
    """
    strict = ("3xtf32", "fma") if device.three_tf32 else ("fma",)
    allowed = {"ieee": ("fma",), "tf32": ("tf32", "fma")}.get(problem.precision or "", strict)
    found = TILES[problem.x_dtype]
    if problem.x_dtype == "float32":
        found = tuple(tile for tile in found if tile.unit in allowed)
    return tuple(tile for tile in found if not tile.products or device.architecture >= TENSOR_CORES_FROM)


def tile_of(problem: Problem, plan: Plan) -> Tile:
    """The tile that a plan of this method runs."""
    return next(tile for tile in TILES[problem.x_dtype] if tile.variant == plan.variant.split(" ")[0])


# ---- geometry -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Line:
    """Columns of one batch entry: u = first_u ... first_u + columns - 1, as kernels/implicit.cuh wants them."""

    first_u: int
    columns: int


def line(problem: Problem) -> Line:
    """Every u that has an output, and before it the inputs that are looked back to but are no outputs' newest.

    Zeros that a row looks back to before its first input may be the columns beyond the last input of the row before.
    """
    phases, span = problem.phases, problem.phases.span
    last_phase = (len(phases.active) - 1) * problem.dilation
    first = min(problem.p_left // problem.stride, ceil_div(problem.p_left - last_phase, problem.stride))
    last = (problem.p_left + problem.l_out - 1) // problem.stride
    looked_back = min(span, max(0, first))
    trailing_zeros = min(last - first + 1, max(0, last + 1 - problem.l_in))
    begin = first - looked_back - max(0, span - looked_back - trailing_zeros)
    if last + 1 - begin >= _ALIGN_FROM:
        begin = begin // _ALIGN_TO * _ALIGN_TO
        last += -(last + 1 - begin) % _ALIGN_TO if problem.batch > 1 else 0
    return Line(begin, last + 1 - begin)


@dataclass(frozen=True)
class Rows:
    """How rows (channel, phase) of a group fall into tiles: `channels` by `phases` of them in each."""

    channels: int
    phases: int
    channel_tiles: int
    phase_tiles: int

    @property
    def tiles(self) -> int:
        """Row tiles of one group."""
        return self.channel_tiles * self.phase_tiles


@lru_cache(maxsize=4096)
def _split(channels: int, phases: int, rows: int, item_bytes: int) -> Rows:
    best: tuple[float, Rows] | None = None
    least = ceil_div(phases, rows)
    for parts in range(least, min(phases, least + 3) + 1):
        width = ceil_div(phases, parts)
        height = min(channels, rows // width)
        split = Rows(height, width, ceil_div(channels, height), ceil_div(phases, width))
        # samples of one u are written in pieces: one that is not whole 32-byte sectors is written twice
        pieces = 0.0 if split.phase_tiles == 1 else 0.5 * 32 / (width * item_bytes)
        if best is None or split.tiles * (1 + pieces) < best[0]:
            best = split.tiles * (1 + pieces), split
    assert best is not None
    return best[1]


def split(problem: Problem, tile: Tile) -> Rows:
    """The split of a group's rows with the fewest tiles; all phases of a channel in one where that costs nothing."""
    item = ITEM_BYTES[problem.out_dtype]
    return _split(problem.c_out_group, len(problem.phases.active), tile.rows, item)


def chunks(problem: Problem) -> int:
    """Chunks of 64 bytes of input channels."""
    return ceil_div(problem.c_in_group * ITEM_BYTES[problem.x_dtype], CHUNK_BYTES)


def panel_taps(problem: Problem) -> int:
    """Taps that one x tile serves."""
    step = problem.phases.input_step
    return min(problem.phases.max_taps, HALO // step + 1)


def steps(problem: Problem) -> int:
    """Steps of the whole contraction: chunks of channels by taps, each one tile of weights."""
    return chunks(problem) * problem.phases.max_taps


def column_tiles(problem: Problem, tile: Tile) -> int:
    """Tiles of columns, over the whole batch."""
    return ceil_div(problem.batch * line(problem).columns, tile.columns)


def blocks(problem: Problem, tile: Tile) -> int:
    """Tiles of the result, which are blocks of a product whose contraction is in one part."""
    return problem.groups * split(problem, tile).tiles * column_tiles(problem, tile)


def in_runs(problem: Problem) -> bool:
    """Whether the phases of one u are consecutive samples, so that the result is written in runs."""
    return len(problem.phases.active) == problem.stride and problem.dilation * (problem.stride - 1) < problem.stride


def stage_pitch(problem: Problem, tile: Tile) -> int:
    """Elements between two channels of the sums on their way out, as kernels/implicit_stage.cuh lays them out.

    With one instruction a warp stores `at_once` rows of some columns: of consecutive phases `power`, the largest power
    of two in their number, and as many channels as that leaves, which have equal shares of the banks.
    """
    phases, item = split(problem, tile).phases, ITEM_BYTES[problem.accumulator]
    at_once, banks = tile.rows_at_once(phases, item), 128 // item
    power = min(phases & -phases, at_once)
    pad = at_once if phases % (2 * at_once) == 0 else 0
    run = tile.columns * phases
    least = run + run // lcm(phases, banks) * pad
    if power == at_once:
        return ceil_div(least, 16 // item) * (16 // item)
    skew = banks * power // at_once
    return least + (skew - least) % banks


def part_count(problem: Problem, tile: Tile) -> int:
    """Sums of one part of the contraction, those of tiles that are not full included."""
    rows = split(problem, tile)
    return blocks(problem, tile) * rows.channels * rows.phases * tile.columns


def finish_channels(problem: Problem, tile: Tile) -> int:
    """Channels of a tile that one block of implicit_finish adds up."""
    rows = split(problem, tile)
    run = rows.phases * tile.columns * ITEM_BYTES[problem.accumulator]
    return max(1, min(rows.channels, _FINISH_BYTES // run))


def x_unit_bytes(columns: int, threads: int, item_bytes: int) -> int:
    """Units of x on their way: what ct_x_rows in kernels/implicit_x.cuh keeps in shared memory."""
    sector, channels, teams = 32 // item_bytes, CHUNK_BYTES // item_bytes, threads // 8
    slots = (columns + HALO // 2 + 2 * sector - 2) // sector * 2
    return ceil_div(channels * ceil_div(slots, 8), teams) * threads * 16


def shared_bytes(problem: Problem, tile: Tile) -> int:
    """Dynamic shared memory of a block: tiles of the product, later the sums on their way out."""
    x_tile = (tile.columns + HALO) * ROW_BYTES
    item = ITEM_BYTES[problem.x_dtype]
    more = x_unit_bytes(tile.columns, tile.threads, item) if tile.products else x_tile
    sums = split(problem, tile).channels * stage_pitch(problem, tile) * ITEM_BYTES[problem.accumulator]
    return max(tile.weight_tile_bytes + x_tile + more, sums)
