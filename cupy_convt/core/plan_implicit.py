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
from cupy_convt.core.implicit_tiles import (
    CHUNK_BYTES,
    TENSOR_CORES_FROM,
    TILES,
    Tile,
    blocks,
    chunks,
    column_tiles,
    finish_channels,
    in_runs,
    line,
    panel_taps,
    part_count,
    shared_bytes,
    split,
    stage_pitch,
    steps,
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
from cupy_convt.core.problem import ITEM_BYTES, Problem, ceil_div

_PACK_BLOCK = _FINISH_BLOCK = 256


def variants() -> tuple[Variant, ...]:
    """Every (kernel, defines) that a plan of this method can launch."""
    found = [(dtype, tile) for dtype, of_dtype in TILES.items() for tile in of_dtype]
    packs = [("pack_weights", _pack_defines(dtype, tile)) for dtype, tile in found]
    products = [(tile.kernel, _defines(dtype, tile)) for dtype, tile in found]
    finishes = [("implicit_finish", _finish_defines(dtype, tile)) for dtype, tile in found]
    return tuple(dict.fromkeys(packs + products + finishes))


def _defines(dtype: str, tile: Tile) -> tuple[tuple[str, str | int], ...]:
    sides = ("CONVT_T", CUDA_TYPES[dtype]), ("CONVT_BM", tile.rows), ("CONVT_BN", tile.columns)
    return (*sides, ("CONVT_PRODUCTS", tile.products)) if tile.products else sides


def _pack_defines(dtype: str, tile: Tile) -> tuple[tuple[str, str | int], ...]:
    row_major = int(tile.products > 0)
    return ("CONVT_T", CUDA_TYPES[dtype]), ("CONVT_BM", tile.rows), ("CONVT_ROW_MAJOR", row_major)


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
    if max(blocks(problem, smallest), _pack_blocks(problem, smallest)) > GRID_LIMIT:
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


def _product(problem: Problem, tile: Tile, parts: int) -> Launch:
    rows, phases, columns = split(problem, tile), problem.phases, line(problem)
    numbers = (
        *(columns.columns, problem.batch, problem.c_in_group, problem.c_out_group, chunks(problem), phases.max_taps),
        *(panel_taps(problem), phases.input_step, len(phases.active), rows.channels, rows.phases, rows.phase_tiles),
        *(rows.tiles, column_tiles(problem, tile), parts, steps(problem) // parts),
    )
    out = "out" if parts == 1 else "parts"
    strides = (Stride("x", 0), Stride("x", 1), Stride("out", 0), Stride("out", 1))
    lengths = (I64(problem.l_in), I64(problem.l_out), I64(problem.p_left), I64(columns.first_u))
    integers = tuple(I32(n) for n in numbers)
    arguments: tuple[Argument, ...] = (
        "x",
        "tiles",
        "bias",
        out,
        *strides,
        *lengths,
        *integers,
        *_way_out(problem, stage_pitch(problem, tile)),
    )
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
        *(*(I32(n) for n in numbers), *_way_out(problem, run)),
    )
    shared = channels * run * ITEM_BYTES[problem.accumulator]
    grid, defines = blocks(problem, tile) * slices, _finish_defines(problem.x_dtype, tile)
    return Launch("implicit_finish", defines, grid, _FINISH_BLOCK, shared, arguments)


def _way_out(problem: Problem, pitch: int) -> tuple[Argument, ...]:
    """What the product and implicit_finish end their lists with: which sample a row and a column are, the epilogue."""
    phases = problem.phases
    inverse = pow(phases.input_step, -1, phases.tap_step) if phases.tap_step > 1 else 0
    taps = (problem.kernel_size, problem.stride, problem.dilation, phases.tap_step, inverse)
    numbers = (*taps, int(in_runs(problem)), pitch)
    return (*(I32(n) for n in numbers), *epilogue(problem))


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
        packing_steps=(_pack(problem, tile),),
        packed=(packed,),
        packing_key=("implicit", tile.kernel, tile.rows, rows, *geometry),
        notes=notes,
        sum_order=order,
    )
