# SPDX-License-Identifier: MIT
"""Predicted seconds of an implicit GEMM plan: the slowest of arithmetic, memory and cache, over waves of blocks.

And of its form for few inputs, which reads the weight as it lies (plan_weight_stream).

Version 1: the shares below are estimates from instruction counts, not fits to measurements. Every formula but those of
`contraction_parts` and `stream_channels`, which count whole waves, is continuous in the sizes, so a new length never
flips the choice by more than its neighbours do.
"""

from __future__ import annotations

from cupy_convt.core.device import DeviceSpec
from cupy_convt.core.implicit_tiles import (
    CHUNK_BYTES,
    HALO,
    TILES,
    Tile,
    blocks,
    chunks,
    panel_taps,
    part_count,
    shared_bytes,
    steps,
    tile_of,
)
from cupy_convt.core.launch import Launch, Plan
from cupy_convt.core.problem import ITEM_BYTES, Problem, ceil_div
from cupy_convt.core.weight_tiles import MOST_CHANNELS, WARPS, columns, element_tiles, parts, row

#: Share of the multiply-add peak: in the inner loop 10 of 11 instructions of a full tile are multiply-adds, in a small
#: one 2 of 3; barriers and the first and last steps of a tile take the rest.
_FMA, _FMA_SMALL = 0.75, 0.5
#: Share of the tensor-core peak, by rows of the tile: x is transposed on its way, mma.sync itself reaches two thirds of
#: the peak on sm_90, and a warp loads 6 fragments for 16 products, 4 for 8 or 3 for 4.
_MMA = {128: 0.5, 64: 0.35, 32: 0.25}
#: The same beside 32 columns, whose x tile is half halo.
_MMA_HALO = 0.85
#: Share of the copy bandwidth, and how much faster than memory the cache serves tiles that several blocks read.
_BANDWIDTH, _CACHE = 0.85, 2.5
#: Instruction slots for a sample on its way through shared memory.
_SAMPLE_SLOTS = 12.0
#: Loss where shared memory holds one block only, so that nothing else runs while it waits at a barrier.
_ALONE = 1.2
#: Seconds that a finishing kernel takes for one more part: the loads of eight are on their way at a time.
_ADDING = 1e-7
#: weight_stream: share of the multiply-add peak, blocks on a multiprocessor that it takes to fill the bandwidth, and
#: seconds in which the sums of a block's warps meet.
_STREAM_FMA, _STREAM_BLOCKS, _MEETING = 0.5, 2.0, 4e-7
#: Blocks on a multiprocessor beyond which more parts of a contraction are not considered.
_MOST_BLOCKS = 4
#: Least seconds of a step of one block: a barrier, and what it takes to come from shared memory through the arithmetic.
_STEP = 2e-7
#: Part of a wave that is idle on average while the last blocks finish.
_TAIL = 0.5


def seconds(problem: Problem, plan: Plan, device: DeviceSpec) -> float:
    """Predicted time of one call, without packing the weight."""
    tile = tile_of(problem, plan)
    product = plan.steps[0]
    assert isinstance(product, Launch)
    count = blocks(problem, tile)
    arithmetic = count * tile_flops(problem, tile) / _rate(problem, tile, device)
    samples = product.grid * tile.rows * tile.columns * 2 * _SAMPLE_SLOTS / device.fp32
    taps = problem.phases.max_taps
    weight_tiles = count * chunks(problem) * taps * CHUNK_BYTES * tile.rows
    panels = chunks(problem) * taps / panel_taps(problem)
    x_tiles = count * panels * CHUNK_BYTES * (tile.columns + min(HALO, problem.phases.span))
    cache = (weight_tiles + x_tiles) / (device.bandwidth * _CACHE)
    packed = sum(buffer.bytes for buffer in plan.packed)
    # packed weights that do not stay in the cache come from memory again for every wave of columns
    again = max(0.0, 1 - device.cache_bytes / (2 * packed)) * weight_tiles / (2 * device.multiprocessors)
    memory = (problem.x_bytes + packed + again + problem.out_bytes) / (device.bandwidth * _BANDWIDTH)
    alone = device.shared_bytes < 2 * (shared_bytes(problem, tile) + 1024)
    busy = max((arithmetic + samples) * (_ALONE if alone else 1.0), cache, memory)
    waves = product.grid / device.multiprocessors
    # sums of parts are written, and soon after read, by blocks that fill the device
    parts = product.grid // count
    finish = 2 * sum(w.bytes for w in plan.workspaces) / (device.bandwidth * _CACHE) + _ADDING * (parts - 1)
    overhead = len(plan.steps) * device.launch_seconds
    block = steps(problem) // parts * _STEP
    return overhead + finish + max(block, busy * max(1.0, 1 / waves) * (1 + _TAIL / max(1.0, waves)))


def contraction_parts(problem: Problem, tile: Tile, device: DeviceSpec) -> int:
    """Into how many parts to cut the contraction of a product of fewer tiles than multiprocessors.

    The score of a number of parts is the time of the multiprocessor that gets most blocks, arithmetic or its share of
    the bandwidth for weights, whichever is more, and that of the sums' way through the workspace. Whole waves count:
    parts that fill the last one win over fewer that leave it half empty, until their bytes cost more. Parts are equal,
    so that the product counts to a launch argument: registers are scarce.
    """
    tiles, whole = blocks(problem, tile), steps(problem)
    if tiles >= device.multiprocessors:
        return 1
    arithmetic = tile_flops(problem, tile) / (_rate(problem, tile, device) / device.multiprocessors)
    weights = whole * CHUNK_BYTES * tile.rows / (device.bandwidth * _BANDWIDTH / device.multiprocessors)
    samples = tile.rows * tile.columns * 2 * _SAMPLE_SLOTS / (device.fp32 / device.multiprocessors)
    sums = 2 * part_count(problem, tile) * ITEM_BYTES[problem.accumulator] / (device.bandwidth * _CACHE)

    def score(parts: int) -> float:
        each = ceil_div(tiles * parts, device.multiprocessors)
        block = max(arithmetic, weights) / parts + samples
        # one block on a multiprocessor leaves it idle at every barrier
        alone = max(block * _ALONE, whole // parts * _STEP)
        finish = parts * (sums + _ADDING) + device.launch_seconds if parts > 1 else 0.0
        return max(each * block, alone) + finish

    most = ceil_div(_MOST_BLOCKS * device.multiprocessors, tiles)
    return min((parts for parts in range(1, min(most, whole) + 1) if whole % parts == 0), key=score)


def tile_flops(problem: Problem, tile: Tile) -> float:
    """Real operations of one block, those on padding included."""
    depth = chunks(problem) * CHUNK_BYTES // ITEM_BYTES[problem.x_dtype] * problem.phases.max_taps
    return 2.0 * tile.rows * tile.columns * depth * problem.real_multiplies


def _rate(problem: Problem, tile: Tile, device: DeviceSpec) -> float:
    if tile.products:
        share = _MMA[tile.rows] * (_MMA_HALO if tile.columns == HALO else 1.0)
        return (device.fp16 if tile.unit == "mma" else device.tf32 / tile.products) * share
    small = tile != next(other for other in TILES[problem.x_dtype] if other.unit == tile.unit)
    return device.peak(problem.accumulator) * (_FMA_SMALL if small else _FMA)


# ---- weight streaming -----------------------------------------------------------------------------------------------


def stream_seconds(problem: Problem, plan: Plan, device: DeviceSpec) -> float:
    """Predicted time of reading the weight once, and of putting the sums in their places."""
    product = plan.steps[0]
    assert isinstance(product, Launch)
    held = dict(product.defines)["CONVT_COLUMNS"]
    arithmetic = problem.weight_bytes / ITEM_BYTES[problem.weight_dtype] * 2 * int(held) * problem.real_multiplies
    busy = max(
        (problem.weight_bytes + problem.x_bytes) / (device.bandwidth * _BANDWIDTH),
        arithmetic / (device.peak(problem.accumulator) * _STREAM_FMA),
    )
    count = product.grid // (problem.groups * element_tiles(problem))
    sums = 2 * sum(w.bytes for w in plan.workspaces) / (device.bandwidth * _CACHE) + _ADDING * count
    waves = product.grid / device.multiprocessors
    overhead = len(plan.steps) * device.launch_seconds
    return overhead + sums + problem.out_bytes / device.bandwidth + busy * max(1.0, _STREAM_BLOCKS / waves)


def stream_channels(problem: Problem, device: DeviceSpec) -> int:
    """Input channels of one part of the contraction of weight_stream.

    The score of a number of channels is the time of the multiprocessor that gets most blocks, for its share of the
    weight at its share of the bandwidth and the meeting of the warps' sums, and that of all sums through the workspace.
    """
    tiles = problem.groups * element_tiles(problem)
    block_bytes = 512 * device.multiprocessors / (device.bandwidth * _BANDWIDTH)
    sums = problem.groups * row(problem) * columns(problem) * ITEM_BYTES[problem.accumulator]

    def score(channels: int) -> float:
        count = parts(problem, channels)
        each = ceil_div(tiles * count, device.multiprocessors)
        # fewer blocks do not have enough loads on their way
        alone = max(1.0, _STREAM_BLOCKS / each)
        finish = count * (2 * sums / (device.bandwidth * _CACHE) + _ADDING)
        return each * (channels * block_bytes * alone + _MEETING) + finish

    return min(range(WARPS, MOST_CHANNELS + 1, WARPS), key=score)
