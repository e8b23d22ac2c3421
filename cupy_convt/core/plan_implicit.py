# SPDX-License-Identifier: MIT
"""Sub-pixel implicit GEMM: one matrix product over native (N, C, L) arrays, for dense layers.

    y[n,co,u*s + f*d - p_left] = bias[co] + sum_{ci,m} w[ci,co,f + m*s/c] x[n,ci,u - m*d/c]        c = gcd(s, d)

Rows are (co, f), columns (n, u), the contraction is (ci, m): no zero is multiplied but those of ragged taps and of
tiles that are not full, and neither x nor the result is ever copied or transposed in memory. The weight is packed once,
into tiles in the order in which the product reads them (kernels/pack_weights.cu).

Where the tiles of one item are fewer than the multiprocessors, the contraction is also cut into parts, each a block of
its own. Their sums meet in a workspace and are added in ascending order (kernels/implicit_finish.cu). The cut follows
from one item and the device, never from the batch, so two plans of one `sum_order` give an item the same bits.

Where s/c does not divide K, phases have fewer taps than J and the missing ones are zeros: there an infinity or NaN of x
reaches fewer than s*d/c samples beyond its receptive field. Three TF32 products turn an infinity into NaN.
"""

from __future__ import annotations

from dataclasses import replace

from cupy_convt.core.cost_implicit import contraction_parts
from cupy_convt.core.device import DeviceSpec
from cupy_convt.core.implicit_launch import pack, pack_blocks, pack_defines, packed_count, product_arguments, way_out
from cupy_convt.core.implicit_tiles import (
    TENSOR_CORES_FROM,
    TILES,
    Tile,
    blocks,
    column_tiles,
    finish_channels,
    line,
    part_count,
    shared_bytes,
    split,
    stage_pitch,
    steps,
    tiles,
)
from cupy_convt.core.launch import CUDA_TYPES, GRID_LIMIT, I32, I64, Argument, Launch, Plan, Stride, Variant, Workspace
from cupy_convt.core.problem import ITEM_BYTES, Problem, ceil_div

_FINISH_BLOCK = 256


def variants() -> tuple[Variant, ...]:
    """Every (kernel, defines) that a plan of this method can launch."""
    found = [(dtype, tile) for dtype, of_dtype in TILES.items() for tile in of_dtype]
    packs = [("pack_weights", pack_defines(dtype, tile, _order(tile))) for dtype, tile in found]
    products = [(tile.kernel, _defines(dtype, tile)) for dtype, tile in found]
    finishes = [("implicit_finish", _finish_defines(dtype, tile)) for dtype, tile in found]
    return tuple(dict.fromkeys(packs + products + finishes))


def _defines(dtype: str, tile: Tile) -> tuple[tuple[str, str | int], ...]:
    sides = ("CONVT_T", CUDA_TYPES[dtype]), ("CONVT_BM", tile.rows), ("CONVT_BN", tile.columns)
    return (*sides, ("CONVT_PRODUCTS", tile.products)) if tile.products else sides


def _order(tile: Tile) -> int:
    return int(tile.products > 0)


def _finish_defines(dtype: str, tile: Tile) -> tuple[tuple[str, str | int], ...]:
    return ("CONVT_T", CUDA_TYPES[dtype]), ("CONVT_BN", tile.columns)


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
    if max(blocks(problem, smallest), pack_blocks(problem, smallest)) > GRID_LIMIT:
        return "more than 2^31 tiles"
    return ""


def candidates(problem: Problem, device: DeviceSpec, workspace_limit: int) -> tuple[Plan, ...]:
    """Plans that fit the limit: one for each tile, one more with the contraction in parts where an item gains by it."""
    if not problem.batch or problem.l_out < 1 or why_not(problem, device):
        return ()
    plans = []
    for tile in tiles(problem, device):
        if shared_bytes(problem, tile) <= device.shared_bytes:
            plans += [plan_of(problem, tile, parts) for parts in sorted({1, item_parts(problem, tile, device)})]
    return tuple(plan for plan in plans if plan.workspace_bytes <= workspace_limit)


def item_parts(problem: Problem, tile: Tile, device: DeviceSpec) -> int:
    """Parts of the contraction: a function of one item of the batch, so that its bits are its own."""
    parts = contraction_parts(replace(problem, batch=1), tile, device)
    # implicit_finish has at most a block for each channel of a tile
    return parts if blocks(problem, tile) * max(parts, tile.rows) <= GRID_LIMIT else 1


def _product(problem: Problem, tile: Tile, parts: int) -> Launch:
    cut = I32(parts), I32(steps(problem) // parts)
    first = product_arguments(problem, tile, "out" if parts == 1 else "parts")
    arguments = (*first, *cut, *way_out(problem, stage_pitch(problem, tile)))
    shared, defines = shared_bytes(problem, tile), _defines(problem.x_dtype, tile)
    return Launch(tile.kernel, defines, blocks(problem, tile) * parts, tile.threads, shared, arguments)


def _finish(problem: Problem, tile: Tile, parts: int) -> Launch:
    rows, phases, columns = split(problem, tile), problem.phases, line(problem)
    channels = finish_channels(problem, tile)
    slices, run = ceil_div(rows.channels, channels), rows.phases * tile.columns
    numbers = (
        *(columns.columns, problem.batch, problem.c_out_group, len(phases.active), rows.channels, rows.phases),
        *(rows.phase_tiles, rows.tiles, column_tiles(problem, tile), parts, channels, slices),
    )
    arguments: tuple[Argument, ...] = (
        *("parts", "bias", "out", Stride("out", 0), Stride("out", 1)),
        *(I64(problem.l_out), I64(problem.p_left), I64(columns.first_u)),
        *(*(I32(n) for n in numbers), *way_out(problem, run)),
    )
    shared = channels * run * ITEM_BYTES[problem.accumulator]
    grid, defines = blocks(problem, tile) * slices, _finish_defines(problem.x_dtype, tile)
    return Launch("implicit_finish", defines, grid, _FINISH_BLOCK, shared, arguments)


def plan_of(problem: Problem, tile: Tile, parts: int) -> Plan:
    """The plan of a tile, its contraction in so many equal parts."""
    rows = split(problem, tile)
    packed = Workspace("tiles", packed_count(problem, tile), problem.weight_dtype)
    geometry = (problem.weight_shape, problem.groups, problem.stride, problem.dilation, problem.weight_dtype)
    notes: tuple[str, ...] = (
        f"{blocks(problem, tile)} tiles of {rows.channels} channels x {rows.phases} of {len(problem.phases.active)}"
        f" phases ({tile.rows} rows) by {tile.columns} columns",
    )
    order = tile.variant if tile.products else tile.unit
    suffix = ""
    launches: tuple[Launch, ...] = (_product(problem, tile, parts),)
    workspaces: tuple[Workspace, ...] = ()
    if parts > 1:
        launches += (_finish(problem, tile, parts),)
        workspaces = (Workspace("parts", parts * part_count(problem, tile), problem.accumulator),)
        notes += (f"contraction in {parts} parts of {steps(problem) // parts} steps",)
        order, suffix = f"{order} by {steps(problem) // parts}", f" in {parts} parts"
    return Plan(
        "gemm",
        tile.variant + suffix,
        launches,
        workspaces,
        packing_steps=(pack(problem, tile, _order(tile)),),
        packed=(packed,),
        packing_key=("implicit", tile.kernel, tile.rows, rows, *geometry),
        notes=notes,
        sum_order=order,
    )
