# SPDX-License-Identifier: MIT
"""What a plan does, in numbers beside its time: floating-point operations, and bytes to and from memory at least.

Bytes are the caller's arrays once, what is kept packed of the weight once, and every result of a library transform or
product once out and once in. Operations of a kernel of this library are those of the definition, except where the
method has another number of them: transforms (2.5 M log2 M for a real one of M points) and the products between them,
blocks of a Toeplitz matrix with its zeros, minimal filters.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import log2

from cupy_convt.core.accuracy import tensor_core_products, transform_length
from cupy_convt.core.device import DeviceSpec
from cupy_convt.core.launch import Gemm, Launch, Plan
from cupy_convt.core.plan_cpu import CpuPlan
from cupy_convt.core.plan_fft_matrices import plane_bytes
from cupy_convt.core.problem import ITEM_BYTES, Problem, ceil_div, is_complex, real_dtype
from cupy_convt.core.rows_cpu import RealShape, row_grid


@dataclass(frozen=True)
class Work:
    """Floating-point operations and bytes of one call."""

    flops: int
    bytes: int


def roofline_seconds(problem: Problem, plan: Plan | CpuPlan, device: DeviceSpec) -> float:
    """Time of a plan's own operations and bytes at the device's full rates."""
    done = work(problem, plan)
    peak = device.peak(problem.accumulator)
    products = tensor_core_products(problem, plan)
    if products:
        peak = max(peak, {"half": device.fp16, "tf32": device.tf32, "3xtf32": device.tf32 / 3}[products])
    return max(done.bytes / device.bandwidth, done.flops / peak)


@lru_cache(maxsize=4096)
def work(problem: Problem, plan: Plan | CpuPlan) -> Work:
    """What a call with packed weights does."""
    return _cpu(problem, plan) if isinstance(plan, CpuPlan) else _gpu(problem, plan)


def _transform_flops(length: int, count: int) -> int:
    return int(2.5 * length * log2(max(length, 2)) * count)


def _cpu(problem: Problem, plan: CpuPlan) -> Work:
    real, grid = RealShape.of(problem), row_grid(problem)
    signals = real.planes * problem.batch * problem.groups
    moved = problem.bytes + plan.packed_bytes
    if plan.fft:
        x_windows = plan.fft.windows if plan.fft.kind == "blocks" else 1
        results = signals * real.c_out * plan.fft.windows * len(problem.phases.active)
        flops = _transform_flops(plan.fft.length, signals * real.c_in * x_windows + results)
        return Work(flops + 8 * plan.fft.bins * results * real.c_in, moved)
    if plan.form:
        taps = problem.phases.max_taps
        tiles = ceil_div(grid.rows, plan.form.outputs)
        depth = plan.form.points * plan.form.sections(taps) * real.c_in
        return Work(2 * signals * tiles * depth * real.c_out * problem.stride, moved)
    if plan.block:
        window = real.c_in * (plan.block + grid.span)
        return Work(
            2 * signals * ceil_div(grid.rows, plan.block) * window * plan.block * problem.stride * real.c_out, moved
        )
    return Work(problem.flops, moved)


def _gpu(problem: Problem, plan: Plan) -> Work:
    moved = problem.bytes + sum(buffer.bytes for buffer in plan.packed)
    flops = 0
    own_products = not any(isinstance(step, Gemm) for step in plan.steps)
    for step in plan.steps:
        if isinstance(step, Launch):
            moved += plane_bytes(step, ITEM_BYTES[real_dtype(problem.accumulator)])
        elif isinstance(step, Gemm):
            size = step.batch * step.out.rows * step.out.columns
            flops += 2 * size * step.right.rows * (4 if is_complex(step.dtype) else 1)
            moved += 2 * size * ITEM_BYTES[step.out_dtype]
        else:
            pair = step.kind.startswith("c2c")
            bins, item = step.length if pair else step.length // 2 + 1, ITEM_BYTES[step.dtype]
            flops += _transform_flops(step.length, step.batch) * (2 if pair else 1)
            moved += 2 * step.batch * item * (2 * bins + step.length * (2 if pair else 1))
            if own_products and step.kind in ("c2r", "c2c_inverse"):
                flops += 8 * step.batch * bins * problem.c_in_group
    if plan.method == "fft" and not flops:
        flops = _fused(problem, transform_length(plan))
    return Work(flops or problem.flops, moved)


def _fused(problem: Problem, length: int) -> int:
    """Operations of transforms that stay inside one kernel."""
    windows = problem.batch * ceil_div(row_grid(problem).rows, max(length - problem.phases.span, 1))
    results = windows * problem.c_out * len(problem.phases.active)
    pair = 2 if is_complex(problem.out_dtype) else 1
    return pair * (
        _transform_flops(length, windows * problem.c_in + results) + 4 * length * results * problem.c_in_group
    )
