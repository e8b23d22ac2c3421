# SPDX-License-Identifier: MIT
"""Sub-pixel implicit GEMM: one matrix product over native (N, C, L) arrays, for dense layers.

    y[n,co,u*s + f*d - p_left] = bias[co] + sum_{ci,m} w[ci,co,f + m*s/c] x[n,ci,u - m*d/c]        c = gcd(s, d)

Rows are (co, f), columns (n, u), the contraction is (ci, m): no zero is multiplied but those of ragged taps and of
tiles that are not full, and neither x nor the result is ever copied or transposed in memory. The weight is packed once,
into tiles in the order in which the product reads them (kernels/pack_weights.cu).

Where s/c does not divide K, phases have fewer taps than J and the missing ones are zeros: there an infinity or NaN of x
reaches fewer than s*d/c samples beyond its receptive field. Three TF32 products turn an infinity into NaN.
"""

from __future__ import annotations

from cupy_convt.core.device import DeviceSpec
from cupy_convt.core.implicit_tiles import (
    CHUNK_BYTES,
    TENSOR_CORES_FROM,
    TILES,
    Tile,
    blocks,
    chunks,
    column_tiles,
    in_runs,
    line,
    panel_taps,
    shared_bytes,
    split,
    stage_pitch,
    tiles,
)
from cupy_convt.core.launch import (
    CUDA_TYPES,
    GRID_LIMIT,
    I32,
    I64,
    Argument,
    Launch,
    Plan,
    Stride,
    Variant,
    Workspace,
    epilogue,
)
from cupy_convt.core.problem import ITEM_BYTES, Problem

_PACK_BLOCK = 256


def variants() -> tuple[Variant, ...]:
    """Every (kernel, defines) that a plan of this method can launch."""
    found = [(dtype, tile) for dtype, of_dtype in TILES.items() for tile in of_dtype]
    packs = [("pack_weights", _pack_defines(dtype, tile)) for dtype, tile in found]
    return tuple(dict.fromkeys(packs + [(tile.kernel, _defines(dtype, tile)) for dtype, tile in found]))


def _defines(dtype: str, tile: Tile) -> tuple[tuple[str, str | int], ...]:
    sides = ("CONVT_T", CUDA_TYPES[dtype]), ("CONVT_BM", tile.rows), ("CONVT_BN", tile.columns)
    return (*sides, ("CONVT_PRODUCTS", tile.products)) if tile.products else sides


def _pack_defines(dtype: str, tile: Tile) -> tuple[tuple[str, str | int], ...]:
    row_major = int(tile.products > 0)
    return ("CONVT_T", CUDA_TYPES[dtype]), ("CONVT_BM", tile.rows), ("CONVT_ROW_MAJOR", row_major)


# ---- plans ----------------------------------------------------------------------------------------------------------


def why_not(problem: Problem, device: DeviceSpec) -> str:
    """Why the method cannot take the problem; empty if it can."""
    if problem.operation != "forward":
        return f"no implicit GEMM kernel for {problem.operation}"
    if problem.x_dtype != problem.weight_dtype:
        return "implicit GEMM takes x and weight of one dtype"
    usable = tiles(problem, device)
    if not usable:
        return f"implicit GEMM of {problem.x_dtype} needs the tensor cores of sm_{TENSOR_CORES_FROM}"
    if problem.stride * problem.phases.input_step >= 2**23 or problem.effective_kernel >= 2**29:
        return "stride * dilation must be below 2^23 and the kernel's reach below 2^29"
    if line(problem).columns >= 2**29 or problem.batch >= 2**30:
        return "rows of 2^29 columns"
    smallest = usable[-1]
    if max(blocks(problem, smallest), _pack_blocks(problem, smallest)) > GRID_LIMIT:
        return "more than 2^31 tiles"
    return ""


def candidates(problem: Problem, device: DeviceSpec, workspace_limit: int) -> tuple[Plan, ...]:
    """One plan for each tile whose packed weights fit the limit."""
    if not problem.batch or problem.l_out < 1 or why_not(problem, device):
        return ()
    fitting = (tile for tile in tiles(problem, device) if shared_bytes(problem, tile) <= device.shared_bytes)
    plans = (_plan(problem, tile) for tile in fitting)
    return tuple(plan for plan in plans if plan.workspace_bytes <= workspace_limit)


def tile_of(problem: Problem, plan: Plan) -> Tile:
    """The tile that a plan of this method runs."""
    return next(tile for tile in TILES[problem.x_dtype] if tile.variant == plan.variant)


def packed_count(problem: Problem, tile: Tile) -> int:
    """Elements of the packed weight."""
    channels = CHUNK_BYTES // ITEM_BYTES[problem.weight_dtype]
    return _pack_blocks(problem, tile) * problem.phases.max_taps * channels * tile.rows


def _pack_blocks(problem: Problem, tile: Tile) -> int:
    return problem.groups * split(problem, tile).tiles * chunks(problem)


def _pack(problem: Problem, tile: Tile) -> Launch:
    rows, phases = split(problem, tile), problem.phases
    numbers = (
        *(problem.c_in_group, problem.c_out_group, problem.kernel_size, phases.tap_step, phases.max_taps),
        *(len(phases.active), rows.channels, rows.phases, rows.channel_tiles, rows.phase_tiles, chunks(problem)),
    )
    arguments: tuple[Argument, ...] = ("weight", "tiles", *(I32(n) for n in numbers))
    defines = _pack_defines(problem.weight_dtype, tile)
    return Launch("pack_weights", defines, _pack_blocks(problem, tile), _PACK_BLOCK, 0, arguments)


def _product(problem: Problem, tile: Tile) -> Launch:
    rows, phases, columns = split(problem, tile), problem.phases, line(problem)
    inverse = pow(phases.input_step, -1, phases.tap_step) if phases.tap_step > 1 else 0
    numbers = (
        *(columns.columns, problem.batch, problem.c_in_group, problem.c_out_group, chunks(problem), phases.max_taps),
        *(panel_taps(problem), phases.input_step, len(phases.active), rows.channels, rows.phases, rows.phase_tiles),
        *(rows.tiles, column_tiles(problem, tile), problem.kernel_size, problem.stride, problem.dilation),
        *(phases.tap_step, inverse, int(in_runs(problem)), stage_pitch(problem, tile)),
    )
    strides = (Stride("x", 0), Stride("x", 1), Stride("out", 0), Stride("out", 1))
    lengths = (I64(problem.l_in), I64(problem.l_out), I64(problem.p_left), I64(columns.first_u))
    integers = tuple(I32(n) for n in numbers)
    arguments: tuple[Argument, ...] = ("x", "tiles", "bias", "out", *strides, *lengths, *integers, *epilogue(problem))
    shared, defines = shared_bytes(problem, tile), _defines(problem.x_dtype, tile)
    return Launch(tile.kernel, defines, blocks(problem, tile), tile.threads, shared, arguments)


def _plan(problem: Problem, tile: Tile) -> Plan:
    rows = split(problem, tile)
    packed = Workspace("tiles", packed_count(problem, tile), problem.weight_dtype)
    geometry = (problem.weight_shape, problem.groups, problem.stride, problem.dilation, problem.weight_dtype)
    notes = (
        f"{blocks(problem, tile)} tiles of {rows.channels} channels x {rows.phases} of {len(problem.phases.active)}"
        f" phases ({tile.rows} rows) by {tile.columns} columns",
    )
    return Plan(
        "gemm",
        tile.variant,
        (_product(problem, tile),),
        packing_steps=(_pack(problem, tile),),
        packed=(packed,),
        packing_key=("implicit", tile.kernel, tile.rows, rows, *geometry),
        notes=notes,
        sum_order=tile.variant if tile.products else tile.unit,
    )
