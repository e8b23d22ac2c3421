# SPDX-License-Identifier: MIT
"""Direct method: sums over taps in the definition's own order, one launch, no workspace.

`stream` (kernels/direct_stream.cu) reads a tile of x once and writes rows as 16-byte runs; it wins when a group has few
channels, so that traffic and not arithmetic decides. `gather` (kernels/direct_gather.cu) takes anything: the oracle.
Both give the same bits for an output sample, whatever surrounds it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from cupy_convt.core.device import DeviceSpec
from cupy_convt.core.launch import (
    CUDA_TYPES,
    DTYPE_PAIRS,
    F64,
    GRID_LIMIT,
    I32,
    I64,
    Launch,
    Plan,
    Stride,
    Variant,
    epilogue,
)
from cupy_convt.core.problem import ACCUMULATOR, ITEM_BYTES, Problem, ceil_div

GATHER_BLOCK = 256
STREAM_BLOCK = 128
#: Residues of the output index that a thread of direct_stream computes (CONVT_R).
STREAM_RESIDUES = (1, 2, 3, 4, 5, 6, 8)
_STRIDES = (Stride("x", 0), Stride("x", 1), Stride("out", 0), Stride("out", 1))


def variants() -> tuple[Variant, ...]:
    """Every (kernel, defines) that a plan of this method can launch."""
    return tuple(
        [("direct_gather", _defines(*pair)) for pair in DTYPE_PAIRS]
        + [("direct_stream", (*_defines(*pair), ("CONVT_R", r))) for pair in DTYPE_PAIRS for r in STREAM_RESIDUES]
    )


def candidates(problem: Problem, device: DeviceSpec, workspace_limit: int) -> tuple[Plan, ...]:
    """The streaming plan, if its tables fit, and the gathering one; neither needs a workspace."""
    if why_not(problem, device):
        return ()
    tile = choose_tile(problem, device)
    return (*([] if tile is None else [_stream(problem, tile)]), _gather(problem))


def why_not(problem: Problem, device: DeviceSpec) -> str:
    """Why the method cannot take the problem; empty if it can."""
    if problem.operation != "forward":
        return f"no direct kernel for {problem.operation}"
    if problem.effective_kernel >= 2**31 or problem.stride >= 2**31:
        return "stride and dilation * (kernel_size - 1) must be below 2^31"
    return ""


def _defines(x_dtype: str, weight_dtype: str) -> tuple[tuple[str, str | int], ...]:
    return ("CONVT_X", CUDA_TYPES[x_dtype]), ("CONVT_W", CUDA_TYPES[weight_dtype])


# ---- gather ---------------------------------------------------------------------------------------------------------


def _gather(problem: Problem) -> Plan:
    rows, classes = problem.batch * problem.c_out, problem.phases
    # j*d = t (mod s) asks for the inverse of d/c modulo s/c
    inverse = pow(classes.input_step, -1, classes.tap_step) if classes.tap_step > 1 else 0
    rows_per_block = max(1, GATHER_BLOCK // problem.l_out)
    row_tiles = ceil_div(problem.l_out, GATHER_BLOCK)
    arguments = (
        *("x", "weight", "bias", "out", *_STRIDES, I64(rows), I64(problem.l_in), I64(problem.l_out)),
        *(I64(problem.p_left), I32(rows_per_block), I32(row_tiles)),
        *(I32(problem.c_out), I32(problem.c_in_group), I32(problem.c_out_group)),
        *(I32(problem.kernel_size), I32(problem.stride), I32(problem.dilation), I32(classes.tap_step), I32(inverse)),
        *(F64(1.0 / problem.c_out), F64(1.0 / problem.stride), F64(1.0 / classes.input_step)),
        *epilogue(problem),
    )
    grid = ceil_div(rows, rows_per_block) * row_tiles
    defines = _defines(problem.x_dtype, problem.weight_dtype)
    launch = Launch("direct_gather", defines, grid, GATHER_BLOCK, 0, arguments)
    return Plan("direct", "gather", (launch,) if rows else (), sum_order="taps")


# ---- stream ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Window:
    """Which inputs the residues of one q see: slot m of residue r is tap (r + origin + m*s) / d of x[q + top - m].

    `origin` = p_left - top*s lies in (-Q*s, 0], so that slot 0 is the newest input of any residue.
    """

    top: int
    origin: int
    windows: int


@dataclass(frozen=True)
class StreamTile:
    """What a block of direct_stream works on; `q_groups` groups of 16 bytes of x for each of `batch` rows."""

    residues: int
    q_groups: int
    residue_tile: int
    channel_tile: int
    batch: int
    window: Window
    shared_bytes: int
    traffic: float
    blocks: int


def group_length(problem: Problem) -> int:
    """Q: consecutive inputs in 16 bytes."""
    return 16 // ITEM_BYTES[problem.x_dtype]


def window(problem: Problem) -> Window:
    """The window of a problem, its top a multiple of Q where that costs no further group of slots.

    Then a tile starts at a multiple of 16 bytes of an aligned row, and its copy is whole 16-byte loads.
    """
    q, s = group_length(problem), problem.stride
    reach = (problem.kernel_size - 1) * problem.dilation
    top = (s - 1 + problem.p_left) // s

    def count(newest: int) -> int:
        return ceil_div((reach - (problem.p_left - newest * s)) // s + 1, q)

    aligned = ceil_div(top, q) * q
    if count(aligned) == count(top):
        top = aligned
    return Window(top, problem.p_left - top * s, count(top))


def residues_per_thread(problem: Problem) -> int:
    """CONVT_R: the stride itself, or what wastes least when its multiples cover the stride.

    A thread with few residues reads x more often; whole 16-byte units of results save bank conflicts.
    """
    unit = 16 // ITEM_BYTES[problem.out_dtype]

    def cost(r: int) -> float:
        whole = r == problem.stride or (r % unit == 0 and problem.stride % r == 0)
        return ceil_div(problem.stride, r) * r / problem.stride * (1 + 0.5 / r) - 0.1 * whole

    return min(STREAM_RESIDUES, key=cost)


def shared_bytes(problem: Problem, r: int, groups: int, residue_tile: int, channels: int, batch: int, w: Window) -> int:
    """Dynamic shared memory of a block: staged results, x tile, taps, masks and ranges, as the kernel lays them out."""
    q, chunks = group_length(problem), ceil_div(residue_tile, r)
    weight_bytes = ITEM_BYTES[ACCUMULATOR.get(problem.weight_dtype, problem.weight_dtype)]
    staged = ITEM_BYTES[problem.accumulator if problem.beta else problem.out_dtype]
    stage = ceil_div(batch * groups * q * residue_tile * staged, 128) * 128
    tile = batch * problem.c_in_group * (groups + w.windows) * 16
    taps = channels * problem.c_in_group * chunks * w.windows * ceil_div(q * r * weight_bytes, 16) * 16
    return stage + tile + taps + chunks * (w.windows + 1) * 8


def _tiles(problem: Problem, r: int) -> Iterator[tuple[int, int, int, int]]:
    """(q_groups, residue_tile, channel_tile, batch) worth a look."""
    row_groups = ceil_div(ceil_div(problem.l_out, problem.stride), group_length(problem))
    parts = [p for p in (2, 3, 4, 6, 8, 16, 32, 64, 128) if problem.stride // p >= 32]
    residue_tiles = {problem.stride, *(min(problem.stride, ceil_div(problem.stride, 8 * p) * 8) for p in parts)}
    channel_tiles = {ceil_div(problem.c_out_group, 2**i) for i in range(8)}
    for groups in sorted({min(row_groups, 2**i) for i in range(3, 10)}):
        batch = min(problem.batch, max(1, STREAM_BLOCK // groups)) if groups == row_groups else 1
        for residue_tile in residue_tiles:
            for channels in channel_tiles:
                yield groups, residue_tile, channels, batch


@lru_cache(maxsize=1024)
def choose_tile(problem: Problem, device: DeviceSpec) -> StreamTile | None:
    """The tile with the least predicted traffic time, or None if none fits in shared memory."""
    q, w, r = group_length(problem), window(problem), residues_per_thread(problem)
    if problem.effective_kernel + (q + 2) * problem.stride >= 2**30 or not problem.batch or w.windows > 4096:
        return None
    best: tuple[float, StreamTile] | None = None
    for groups, residue_tile, channels, batch in _tiles(problem, r):
        shared = shared_bytes(problem, r, groups, residue_tile, channels, batch, w)
        tile = _tile(problem, StreamTile(r, groups, residue_tile, channels, batch, w, shared, 0.0, 0))
        if shared > device.shared_bytes or tile.blocks > GRID_LIMIT:
            continue
        resident = max(1, min(16, device.shared_bytes // (shared + 1024)))
        # fewer than four blocks on a multiprocessor leave loads, sums and stores of one block unoverlapped
        idle = max(1.0, device.multiprocessors / tile.blocks) * max(1.0, (4 / resident) ** 0.5)
        score = tile.traffic * idle
        if best is None or score < best[0]:
            best = score, tile
    return best[1] if best else None


def _tile(problem: Problem, t: StreamTile) -> StreamTile:
    """`t` with its number of blocks and the bytes that they move."""
    q = group_length(problem)
    q_tiles = ceil_div(ceil_div(problem.l_out, problem.stride), t.q_groups * q)
    splits = ceil_div(problem.stride, t.residue_tile) * ceil_div(problem.c_out_group, t.channel_tile)
    rows = problem.groups * ceil_div(problem.batch, t.batch)
    blocks = splits * q_tiles * rows
    x_bytes = t.batch * problem.c_in_group * (t.q_groups + t.window.windows) * 16
    # every block reads its taps a second time to convert them, from cache
    weight_bytes = problem.c_in_group * t.channel_tile * problem.kernel_size * ITEM_BYTES[problem.weight_dtype]
    traffic = blocks * (x_bytes + 0.5 * weight_bytes * t.residue_tile / problem.stride) + problem.out_bytes
    return StreamTile(
        t.residues, t.q_groups, t.residue_tile, t.channel_tile, t.batch, t.window, t.shared_bytes, traffic, blocks
    )


def _stream(problem: Problem, tile: StreamTile) -> Plan:
    w, q_count = tile.window, ceil_div(problem.l_out, problem.stride)
    q_tiles = ceil_div(q_count, tile.q_groups * group_length(problem))
    arguments = (
        *("x", "weight", "bias", "out", *_STRIDES, I64(problem.l_in), I64(problem.l_out), I64(q_count), I64(w.top)),
        *(I32(problem.batch), I32(problem.c_in_group), I32(problem.c_out_group), I32(problem.kernel_size)),
        *(I32(problem.stride), I32(problem.dilation), I32(w.origin), I32(w.windows), I32(tile.q_groups)),
        *(I32(tile.residue_tile), I32(tile.channel_tile), I32(tile.batch)),
        *(I32(ceil_div(problem.stride, tile.residue_tile)), I32(ceil_div(problem.c_out_group, tile.channel_tile))),
        *(I32(q_tiles), I32(problem.groups), *epilogue(problem)),
    )
    items = tile.batch * tile.q_groups * ceil_div(tile.residue_tile, tile.residues)
    block = min(STREAM_BLOCK, ceil_div(items, 32) * 32)
    defines = (*_defines(problem.x_dtype, problem.weight_dtype), ("CONVT_R", tile.residues))
    launch = Launch("direct_stream", defines, tile.blocks, block, tile.shared_bytes, arguments)
    notes = (
        f"tile {tile.batch} x {tile.q_groups * group_length(problem)} inputs, {tile.residue_tile} of {problem.stride}"
        f" residues, {tile.channel_tile} of {problem.c_out_group} channels",
    )
    return Plan("direct", "stream", (launch,), notes=notes, sum_order="taps")
