# SPDX-License-Identifier: MIT
"""Predicted seconds of a GPU plan: bytes over bandwidth or operations over rate, whichever is more, step by step.

Version 1: the constants below are estimates from instruction counts, not fits to measurements. Every formula is
continuous in the sizes, so a new length never flips the choice by more than its neighbours do.
"""

from __future__ import annotations

from math import log2, sqrt

from cupy_convt.core.device import DeviceSpec
from cupy_convt.core.fft_blocks import passes
from cupy_convt.core.launch import Fft, Gemm, Launch, Plan
from cupy_convt.core.plan_direct import GATHER_BLOCK, StreamTile, choose_tile, group_length
from cupy_convt.core.plan_fft_matrices import plane_bytes
from cupy_convt.core.problem import ITEM_BYTES, Problem, ceil_div, is_complex, real_dtype

#: Share of the copy bandwidth that a well-shaped kernel of this library reaches.
_STREAM_BANDWIDTH = 0.85
_INTERLEAVE_BANDWIDTH = 0.7
#: Instruction slots that direct_gather spends on a tap beside the arithmetic: two loads at a quarter of the rate.
_GATHER_SLOTS = 9.0
#: direct_stream: slots for a group of Q x slots beside its multiply-adds, and for an output sample in and out.
_WINDOW_SLOTS, _SAMPLE_SLOTS = 16.0, 8.0
#: Share of the multiply-add peak it reaches: every fourth to eighth instruction is a load of taps or inputs.
_STREAM_FMA = 0.6
#: Share of the peak that the library's products and transforms reach on large sizes.
_GEMM_FMA, _GEMM_TENSOR, _FFT_PEAK = 0.8, 0.55, 0.25
#: Traffic of a transform's spectra that lie frequency by frequency, over that of spectra one after the other.
_SPREAD_TRAFFIC = 1.5
#: Side of the library's tile of a product: fewer tiles than multiprocessors leave some of them idle.
_GEMM_TILE = 128


def seconds(problem: Problem, plan: Plan, device: DeviceSpec) -> float:
    """Predicted time of one call, without packing the weight."""
    launches = sum(isinstance(step, Launch) for step in plan.steps)
    overhead = launches * device.launch_seconds + (len(plan.steps) - launches) * device.library_seconds
    if plan.method == "gemm":
        return overhead + _gemm(problem, plan, device)
    if plan.method == "fft":
        return overhead + _fft(problem, plan, device)
    tile = choose_tile(problem, device) if plan.variant == "stream" else None
    return overhead + (_gather(problem, device) if tile is None else _stream(problem, tile, device))


def packing_seconds(problem: Problem, plan: Plan, device: DeviceSpec) -> float:
    """Predicted time of packing the weight: it is read once, each buffer on the way written and read once."""
    moved = problem.weight_bytes + sum(buffer.bytes for buffer in plan.packed) if plan.packing_steps else 0
    overhead, real = 0.0, ITEM_BYTES[real_dtype(problem.accumulator)]
    for step in plan.packing_steps:
        if isinstance(step, Fft):
            moved += int(passes(step.length) * 4 * step.batch * step.length * real)
        elif isinstance(step, Launch):
            moved += plane_bytes(step, real)
        overhead += device.launch_seconds if isinstance(step, Launch) else device.library_seconds
    return overhead + moved / (device.bandwidth * _INTERLEAVE_BANDWIDTH)


def _peak(problem: Problem, device: DeviceSpec) -> float:
    return device.peak(problem.accumulator)


def _gather(problem: Problem, device: DeviceSpec) -> float:
    taps = problem.batch * problem.c_out * problem.l_out * problem.c_in_group * problem.kernel_size / problem.stride
    arithmetic = 2 * taps * problem.real_multiplies / _peak(problem, device)
    slots = 2 * taps * _GATHER_SLOTS / device.fp32
    blocks = max(1.0, problem.batch * problem.c_out * problem.l_out / GATHER_BLOCK)
    return max(problem.bytes / device.bandwidth, arithmetic + slots) * max(1.0, device.multiprocessors / blocks)


def _stream(problem: Problem, tile: StreamTile, device: DeviceSpec) -> float:
    q, r = group_length(problem), tile.residues
    chunks = ceil_div(tile.residue_tile, r)
    items = tile.blocks * tile.batch * tile.q_groups * chunks * tile.channel_tile
    windows = items * problem.c_in_group * tile.window.windows
    # slots that hold a tap: J a residue, whatever the windows' padding
    held = min(1.0, problem.phases.max_taps / (tile.window.windows * q))
    multiply_adds = windows * q * q * r * held * problem.real_multiplies
    partly = windows * q * r if held < 1 else 0.0
    channels = problem.c_in_group + tile.residue_tile * tile.channel_tile
    samples = tile.blocks * tile.batch * tile.q_groups * q * channels
    slots = windows * _WINDOW_SLOTS + partly + samples * _SAMPLE_SLOTS
    time = max(
        tile.traffic / (device.bandwidth * _STREAM_BANDWIDTH),
        2 * multiply_adds / (_peak(problem, device) * _STREAM_FMA) + 2 * slots / device.fp32,
    )
    # fewer than four blocks on a multiprocessor leave its pipes waiting at every barrier
    crowding = sqrt(max(1.0, 4 * tile.shared_bytes / device.shared_bytes))
    return time * crowding * max(1.0, device.multiprocessors / tile.blocks)


def _gemm(problem: Problem, plan: Plan, device: DeviceSpec) -> float:
    time, columns = 0.0, 0.0
    for step in plan.steps:
        if isinstance(step, Gemm):
            time += _product_seconds(step, device)
            columns += step.batch * step.out.rows * step.out.columns * ITEM_BYTES[step.out_dtype]
    return time + (columns + problem.out_bytes) / (device.bandwidth * _INTERLEAVE_BANDWIDTH)


def _product_seconds(step: Gemm, device: DeviceSpec) -> float:
    rows, columns, inner = step.out.rows, step.out.columns, step.right.rows
    multiplies = 4 if is_complex(step.dtype) else 1
    if step.dtype in ("float16", "bfloat16"):
        rate = _GEMM_TENSOR * max(device.fp16, device.fp32)
    elif step.tf32:
        rate = _GEMM_TENSOR * max(device.tf32, device.fp32)
    else:
        rate = _GEMM_FMA * device.peak(step.out_dtype)
    tiles = max(1.0, rows / _GEMM_TILE) * max(1.0, columns / _GEMM_TILE) * step.batch
    # a side shorter than the tile wastes the rest of it
    work = 2.0 * step.batch * max(rows, 32) * max(columns, 32) * max(inner, 8) * multiplies
    arithmetic = work / rate * max(1.0, device.multiprocessors / tiles)
    item, out_item = ITEM_BYTES[step.dtype], ITEM_BYTES[step.out_dtype]
    moved = step.batch * ((rows + columns) * inner * item + rows * columns * out_item)
    return max(arithmetic, moved / device.bandwidth)


def _fft(problem: Problem, plan: Plan, device: DeviceSpec) -> float:
    real = 8 if real_dtype(problem.accumulator) == "float64" else 4
    peak = device.peak(problem.accumulator)
    moved = float(sum(plane_bytes(step, real) for step in plan.steps if isinstance(step, Launch)))
    arithmetic = 0.0
    x_spectra, y_spectra = 0.0, 0.0
    products = [step for step in plan.steps if isinstance(step, Gemm)]
    for step in plan.steps:
        if not isinstance(step, Fft):
            continue
        points = step.batch * step.length
        whole = 2 if step.kind.startswith("c2c") else 1
        time_bytes = points * real * whole
        spectrum_bytes = points * real * 2 if whole == 2 else step.batch * (step.length // 2 + 1) * real * 2
        # spectra frequency by frequency are written and read in short runs
        moved += passes(step.length) * (time_bytes + spectrum_bytes * (_SPREAD_TRAFFIC if step.spread else 1))
        arithmetic += 2.5 * whole * points * log2(step.length) / (peak * _FFT_PEAK)
        if step.kind in ("r2c", "c2c"):
            x_spectra += spectrum_bytes
            moved += time_bytes * (1 + ITEM_BYTES[problem.x_dtype] / (real * whole))  # packing
        else:
            y_spectra += spectrum_bytes
            moved += time_bytes  # finishing reads it
    finish = problem.out_bytes / (device.bandwidth * _INTERLEAVE_BANDWIDTH)
    if products:
        time = moved / (device.bandwidth * _STREAM_BANDWIDTH) + arithmetic + finish
        return time + sum(_product_seconds(step, device) for step in products)
    weight_spectra = sum(buffer.bytes for buffer in plan.packed)
    # the product reads a column's spectra once for every four rows, mostly from cache
    rows = max(1.0, y_spectra / max(1.0, x_spectra) * problem.c_in_group)
    moved += y_spectra + weight_spectra + x_spectra * (1 + 0.25 * sqrt(max(1.0, rows / 4) - 1))
    arithmetic += y_spectra / (2 * real) * problem.c_in_group * 8 / (peak * 0.6)
    return moved / (device.bandwidth * _STREAM_BANDWIDTH) + arithmetic + finish
