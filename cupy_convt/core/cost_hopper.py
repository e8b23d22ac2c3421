# SPDX-License-Identifier: MIT
"""Predicted seconds of a plan of core/plan_hopper.py: tensor cores, shared memory, producers, then the way out.

Version 1: estimates from instruction and byte counts, not fits to measurements. Every formula is continuous in the
sizes, so a new length never flips the choice by more than its neighbours do.
"""

from __future__ import annotations

from cupy_convt.core.device import DeviceSpec
from cupy_convt.core.implicit_tiles import CHUNK_BYTES, HALO, chunks, panel_taps
from cupy_convt.core.launch import Plan
from cupy_convt.core.plan_hopper import HopperTile, tile_count, tile_of
from cupy_convt.core.problem import ITEM_BYTES, Problem

#: Share of the tensor-core peak while operands are there, by rows of the tile: one warpgroup alone waits at barriers
#: that two pass in turn.
_TENSOR = {128: 0.8, 64: 0.65}
#: Share of shared memory's 128 bytes in a clock, at the clock of the multiply-add peak.
_SHARED = 0.7
#: A tile of x cannot come faster: two are under way, each waits about 0.5 us for memory.
_PANEL_SECONDS = 0.25e-6
#: Instruction slots for a sample on its way out, while the block's tensor cores have nothing to do.
_SAMPLE_SLOTS = 12.0
#: Share of the copy bandwidth, and how much faster than memory the cache serves tiles that several blocks read.
_BANDWIDTH, _CACHE = 0.85, 2.5
#: Until a block's first tiles are there.
_START_SECONDS = 1.5e-6
#: Part of a wave that is idle on average while the last tiles finish.
_TAIL = 0.5


def seconds(problem: Problem, plan: Plan, device: DeviceSpec) -> float:
    """Predicted time of one call, without packing the weight."""
    tile = tile_of(problem, plan)
    count, taps = tile_count(problem, tile), problem.phases.max_taps
    panels = chunks(problem) * taps / panel_taps(problem)
    panel = max(panel_taps(problem) * step_seconds(problem, tile, device), _PANEL_SECONDS)
    # a multiprocessor has 128 slots in a clock, of which fp32 counts each as two operations
    out = tile.rows * tile.columns * 2 * _SAMPLE_SLOTS / (device.fp32 / device.multiprocessors)
    waves = max(1.0, count / device.multiprocessors)
    arithmetic = (panels * panel + out) * waves
    weight_tiles = count * chunks(problem) * taps * CHUNK_BYTES * tile.rows
    x_tiles = count * panels * CHUNK_BYTES * (tile.columns + min(HALO, problem.phases.span))
    cache = (weight_tiles + x_tiles) / (device.bandwidth * _CACHE)
    packed = sum(buffer.bytes for buffer in plan.packed)
    # packed weights that do not stay in the cache come from memory again for every wave of columns
    again = max(0.0, 1 - device.cache_bytes / (2 * packed)) * weight_tiles / (2 * device.multiprocessors)
    memory = (problem.x_bytes + packed + again + problem.out_bytes) / (device.bandwidth * _BANDWIDTH)
    busy = max(arithmetic, cache, memory)
    return device.launch_seconds + _START_SECONDS + busy * (1 + _TAIL / waves)


def step_seconds(problem: Problem, tile: HopperTile, device: DeviceSpec) -> float:
    """One step of one block: 64 bytes of channels of one tap."""
    depth = CHUNK_BYTES // ITEM_BYTES[problem.x_dtype]
    peak = device.tf32 if tile.unit == "tf32" else device.fp16
    tensor = 2.0 * tile.rows * tile.columns * depth / (peak / device.multiprocessors * _TENSOR[tile.rows])
    read = tile.rows // 64 * (64 + tile.columns)
    written = tile.rows + (tile.columns + HALO) / panel_taps(problem)
    shared = (read + written) * CHUNK_BYTES / (device.fp32 / (2 * device.multiprocessors) * _SHARED)
    return max(tensor, shared)
