# SPDX-License-Identifier: MIT
"""Predicted seconds of a fused FFT block: the slowest of memory, cache, arithmetic and shared memory.

Version 1: an estimate from the kernel's text (operations and shared accesses a point, bytes with what is read twice,
threads that fit on a multiprocessor), not a fit to measurements.
"""

from __future__ import annotations

from math import log2, sqrt

from cupy_convt.core.device import DeviceSpec
from cupy_convt.core.fft_tiles import class_count, dtypes
from cupy_convt.core.launch import Launch, Plan
from cupy_convt.core.plan_fft_block import FusedBlock, block_of
from cupy_convt.core.problem import ITEM_BYTES, Problem, ceil_div, is_complex

#: Share of the copy bandwidth, and how much faster than memory the cache serves spectra and overlaps.
_BANDWIDTH, _CACHE = 0.85, 2.5
#: Instructions for a complex point and level there (6 a pair) and back (8 a pair), with those on addresses.
_THERE, _BACK = 4.0, 5.0
#: Instructions for a point of a product of spectra, real and complex, and for a sample on its way out.
_PRODUCT, _COMPLEX_PRODUCT, _SAMPLE_SLOTS = 14.0, 5.0, 14.0
#: Share of the peak between so many barriers, and multiply-add slots that a word of shared memory takes.
_PEAK, _WORD_SLOTS = 0.4, 4.0
#: Threads of a multiprocessor that hide each other's waits.
_THREADS = 512
#: Runs of part of the residues: sectors are written in pieces.
_PIECES = 1.25
#: Part of a wave that is idle on average while the last blocks finish.
_TAIL = 0.5


def seconds(problem: Problem, plan: Plan, device: DeviceSpec) -> float:
    """Predicted time of one call, without packing the weight."""
    block = block_of(problem, plan, device)
    (launch,) = (step for step in plan.steps if isinstance(step, Launch))
    spectrum = dtypes(problem)[1]
    classes, blocks = class_count(problem), launch.grid * block.neighbours
    taps = blocks * classes * block.points * ITEM_BYTES[spectrum]
    kept = problem.l_in / max(problem.l_in, block.tiles * block.neighbours * block.step)
    x_bytes = problem.x_bytes * problem.c_out_group * (block.length / block.step * kept + 1 - kept)
    out_bytes = problem.out_bytes * (1.0 if block.residue_tile == problem.stride else _PIECES)
    packed = sum(buffer.bytes for buffer in plan.packed)
    # spectra that do not stay in the cache come from memory for every row of the batch
    again = max(0.0, 1 - device.cache_bytes / (2 * packed)) * max(0.0, taps - packed) / max(1, block.tiles)
    memory = (max(problem.x_bytes, x_bytes) + out_bytes + packed + again) / (device.bandwidth * _BANDWIDTH)
    cache = (x_bytes + out_bytes + taps) / (device.bandwidth * _CACHE)
    work = blocks * _point_slots(problem, block, classes, spectrum, device)
    threads = min(_THREADS, max(1, device.shared_bytes // (block.shared_bytes + 1024)) * block.threads)
    waits = sqrt(_THREADS / threads)
    waves = launch.grid * block.threads / (device.multiprocessors * threads)
    busy = max(memory, cache, work * waits)
    return device.launch_seconds + busy * max(1.0, 1 / waves) * (1 + _TAIL / max(1.0, waves))


def _point_slots(problem: Problem, block: FusedBlock, classes: int, spectrum: str, device: DeviceSpec) -> float:
    """Seconds that one block of overlap-save takes of the whole device's arithmetic or shared memory."""
    levels, samples = log2(block.points), block.step * problem.stride
    product = _COMPLEX_PRODUCT if is_complex(problem.out_dtype) else _PRODUCT
    transforms = block.points * (levels * _THERE + classes * (levels * _BACK + product))
    arithmetic = 2 * transforms / (device.peak(problem.accumulator) * _PEAK)
    arithmetic += 2 * samples * _SAMPLE_SLOTS / device.fp32
    # each pass but the last writes and reads every point once; samples are staged
    passes = ceil_div(block.log, 4 if spectrum == "complex64" else 3)
    words = 2 * block.points * (passes - 1) * (1 + classes) * ITEM_BYTES[spectrum] / 4
    words += 2 * samples * ITEM_BYTES[problem.out_dtype] / 4
    return max(arithmetic, 2 * words * _WORD_SLOTS / device.fp32)
