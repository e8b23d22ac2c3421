# SPDX-License-Identifier: MIT
"""The sub-pixel implicit GEMM by warpgroups of sm_90a: halves, and float32 with precision "tf32".

The formula, the rows and the columns are those of core/plan_implicit.py, and so is what is said there of infinities.
The kernel fills a multiprocessor with one block, which takes one tile after the other, so it is for problems of about
a wave of tiles and more.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from cupy_convt.core.device import DeviceSpec
from cupy_convt.core.implicit_launch import pack, pack_blocks, pack_defines, packed_count, product_arguments, way_out
from cupy_convt.core.implicit_tiles import CHUNK_BYTES, HALO, Tile, column_tiles, line, split, stage_pitch, x_unit_bytes
from cupy_convt.core.launch import CUDA_TYPES, GRID_LIMIT, I32, Launch, Plan, Variant, Workspace
from cupy_convt.core.problem import ITEM_BYTES, Problem, ceil_div

#: The architecture that has these instructions; its successors have others.
ARCHITECTURE = 90
#: Tiles for each multiprocessor below which there is no plan.
LEAST_WAVE = 0.75
KERNEL = "implicit_gemm_wgmma"
#: CONVT_ROW_MAJOR of pack_weights.
_ORDER = 2
# W_STAGES and X_STAGES of the kernel, its barriers, and the threads of its two producer warpgroups
_WEIGHT_STAGES, _INPUT_STAGES, _BARRIER_BYTES, _PRODUCERS = 8, 2, 256, 256


@dataclass(frozen=True)
class HopperTile(Tile):
    """A compiled form: 64 rows for each consumer warpgroup, by `columns`."""

    @property
    def kernel(self) -> str:
        """Its source."""
        return KERNEL

    @property
    def variant(self) -> str:
        """Its name in plans."""
        return f"hopper/{self.unit}-{self.rows}x{self.columns}"

    @property
    def weight_tile_bytes(self) -> int:
        """Shared memory of the ring of weight tiles."""
        return _WEIGHT_STAGES * CHUNK_BYTES * self.rows

    @property
    def operand_bytes(self) -> int:
        """Shared memory in front of the staging area: both rings, their barriers, units of two x tiles on their way."""
        places, item = self.columns + HALO, 4 if self.unit == "tf32" else 2
        units = 2 * x_unit_bytes(self.columns, places, item)
        return self.weight_tile_bytes + _INPUT_STAGES * CHUNK_BYTES * places + units + _BARRIER_BYTES

    def rows_at_once(self, phases: int, item_bytes: int) -> int:
        """Rows of the sums whose banks differ on their way out: ct_gmma_at_once in kernels/implicit.cuh."""
        return 16 if phases % 16 == 0 else 4 if phases % 2 and phases > 8 else 8

    @property
    def staged(self) -> HopperTile:
        """The columns that leave at once: all or half."""
        return replace(self, columns=self.columns // 2 if self.columns % 128 else 128)


def _tiles(unit: str) -> tuple[HopperTile, ...]:
    sides = (128, 192), (128, 128), (64, 192)
    return tuple(HopperTile(unit, rows, columns, 2 * rows + _PRODUCERS, 1) for rows, columns in sides)


#: Tiles by dtype.
TILES = {"float16": _tiles("wgmma"), "bfloat16": _tiles("wgmma"), "float32": _tiles("tf32")}


def variants() -> tuple[Variant, ...]:
    """Every (kernel, defines) that a plan of this method can launch."""
    found = [(dtype, tile) for dtype, of_dtype in TILES.items() for tile in of_dtype]
    packs = [("pack_weights", pack_defines(dtype, tile, _ORDER)) for dtype, tile in found]
    return tuple(dict.fromkeys(packs + [(KERNEL, _defines(dtype, tile)) for dtype, tile in found]))


def _defines(dtype: str, tile: HopperTile) -> tuple[tuple[str, str | int], ...]:
    return ("CONVT_T", CUDA_TYPES[dtype]), ("CONVT_BM", tile.rows), ("CONVT_BN", tile.columns)


# ---- plans ----------------------------------------------------------------------------------------------------------


def why_not(problem: Problem, device: DeviceSpec) -> str:
    """Why no tile can take the problem; empty if one can."""
    if device.architecture != ARCHITECTURE:
        return "warpgroup products need sm_90"
    if not device.own_instructions:
        return "warpgroup products need a CUDA compiler that takes sm_90a, such as that of CUDA 12.9"
    if problem.operation != "forward":
        return f"no warpgroup kernel for {problem.operation}"
    if problem.x_dtype != problem.weight_dtype:
        return "warpgroup products take x and weight of one dtype"
    if problem.x_dtype not in TILES or (problem.x_dtype == "float32" and problem.precision != "tf32"):
        return 'warpgroup products take halves, and float32 with precision="tf32"'
    if problem.stride * problem.phases.input_step >= 2**23 or problem.effective_kernel >= 2**29:
        return "stride * dilation must be below 2^23 and the kernel's reach below 2^29"
    if line(problem).columns >= 2**29 or problem.batch >= 2**30:
        return "rows of 2^29 columns"
    return "" if _usable(problem, device) else "fewer tiles than multiprocessors, or more than 2^31"


def candidates(problem: Problem, device: DeviceSpec, workspace_limit: int) -> tuple[Plan, ...]:
    """One plan for each tile of which there is about a wave, and whose packed weights fit the limit."""
    if not problem.batch or problem.l_out < 1 or why_not(problem, device):
        return ()
    plans = (_plan(problem, tile, device) for tile in _usable(problem, device))
    return tuple(plan for plan in plans if plan.workspace_bytes <= workspace_limit)


def tile_of(problem: Problem, plan: Plan) -> HopperTile:
    """The tile that a plan of this method runs."""
    return next(tile for tile in TILES[problem.x_dtype] if tile.variant == plan.variant)


def tile_count(problem: Problem, tile: HopperTile) -> int:
    """Tiles of the result."""
    return problem.groups * split(problem, tile).tiles * column_tiles(problem, tile)


def shared_bytes(problem: Problem, tile: HopperTile) -> int:
    """Dynamic shared memory of a block: rings of operands, and apart from them the sums on their way out."""
    sums = split(problem, tile).channels * stage_pitch(problem, tile.staged)
    return tile.operand_bytes + sums * ITEM_BYTES[problem.accumulator]


def _usable(problem: Problem, device: DeviceSpec) -> tuple[HopperTile, ...]:
    def fits(tile: HopperTile) -> bool:
        count = tile_count(problem, tile)
        wave = LEAST_WAVE * device.multiprocessors <= count <= GRID_LIMIT and pack_blocks(problem, tile) <= GRID_LIMIT
        return wave and shared_bytes(problem, tile) <= device.shared_bytes

    return tuple(tile for tile in TILES[problem.x_dtype] if fits(tile))


def _product(problem: Problem, tile: HopperTile, device: DeviceSpec) -> Launch:
    count, shared = tile_count(problem, tile), shared_bytes(problem, tile)
    first, last = product_arguments(problem, tile, "out"), way_out(problem, stage_pitch(problem, tile.staged))
    arguments = (*first, I32(count), *last)
    grid = min(count, device.multiprocessors)
    return Launch(KERNEL, _defines(problem.x_dtype, tile), grid, tile.threads, shared, arguments)


def _plan(problem: Problem, tile: HopperTile, device: DeviceSpec) -> Plan:
    rows = split(problem, tile)
    geometry = (problem.weight_shape, problem.groups, problem.stride, problem.dilation, problem.weight_dtype)
    tiles = tile_count(problem, tile)
    notes = (
        f"{tiles} tiles of {rows.channels} channels x {rows.phases} of {len(problem.phases.active)} phases"
        f" ({tile.rows} rows) by {tile.columns} columns, {ceil_div(tiles, device.multiprocessors)} a block",
    )
    return Plan(
        "gemm",
        tile.variant,
        (_product(problem, tile, device),),
        packing_steps=(pack(problem, tile, _ORDER),),
        packed=(Workspace("tiles", packed_count(problem, tile), problem.weight_dtype),),
        packing_key=("hopper", tile.rows, rows, *geometry),
        notes=notes,
        sum_order=tile.variant,
    )
