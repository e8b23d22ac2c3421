# SPDX-License-Identifier: MIT
"""Predicted seconds of an implicit GEMM plan: the slowest of arithmetic, memory and cache, over waves of blocks.

Version 1: the shares below are estimates from instruction counts, not fits to measurements. Every formula is continuous
in the sizes, so a new length never flips the choice by more than its neighbours do.
"""

from __future__ import annotations

from cupy_convt.core.device import DeviceSpec
from cupy_convt.core.implicit_tiles import CHUNK_BYTES, HALO, TILES, Tile, blocks, chunks, panel_taps, shared_bytes
from cupy_convt.core.launch import Plan
from cupy_convt.core.plan_implicit import tile_of
from cupy_convt.core.problem import ITEM_BYTES, Problem

#: Share of the multiply-add peak: in the inner loop 10 of 11 instructions of a full tile are multiply-adds, in a small
#: one 2 of 3; barriers and the first and last steps of a tile take the rest.
_FMA, _FMA_SMALL = 0.75, 0.5
#: Share of the tensor-core peak: x goes through registers, and mma.sync itself reaches two thirds of it on sm_90.
_MMA, _MMA_SMALL = 0.5, 0.35
#: Share of the copy bandwidth, and how much faster than memory the cache serves tiles that several blocks read.
_BANDWIDTH, _CACHE = 0.85, 2.5
#: Instruction slots for a sample on its way through shared memory.
_SAMPLE_SLOTS = 12.0
#: Loss where shared memory holds one block only, so that nothing else runs while it waits at a barrier.
_ALONE = 1.2
#: Part of a wave that is idle on average while the last blocks finish.
_TAIL = 0.5


def seconds(problem: Problem, plan: Plan, device: DeviceSpec) -> float:
    """Predicted time of one call, without packing the weight."""
    tile = tile_of(problem, plan)
    count = blocks(problem, tile)
    arithmetic = count * tile_flops(problem, tile) / _rate(problem, tile, device)
    samples = count * tile.rows * tile.columns * 2 * _SAMPLE_SLOTS / device.fp32
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
    waves = count / device.multiprocessors
    return device.launch_seconds + busy * max(1.0, 1 / waves) * (1 + _TAIL / max(1.0, waves))


def tile_flops(problem: Problem, tile: Tile) -> float:
    """Real operations of one block, those on padding included."""
    depth = chunks(problem) * CHUNK_BYTES // ITEM_BYTES[problem.x_dtype] * problem.phases.max_taps
    return 2.0 * tile.rows * tile.columns * depth * problem.real_multiplies


def _rate(problem: Problem, tile: Tile, device: DeviceSpec) -> float:
    small = tile != next(other for other in TILES[problem.x_dtype] if other.unit == tile.unit)
    if tile.products:
        peak = device.fp16 if tile.unit == "mma" else device.tf32 / tile.products
        return peak * (_MMA_SMALL if small else _MMA)
    return device.peak(problem.accumulator) * (_FMA_SMALL if small else _FMA)
