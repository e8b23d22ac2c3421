# SPDX-License-Identifier: MIT
"""Predicted seconds of a plan on a device: one question, answered by the model of the device's kind."""

from __future__ import annotations

from cupy_convt.core import cost_cpu, cost_fft_block, cost_gpu, cost_hopper, cost_implicit
from cupy_convt.core.device import DeviceSpec
from cupy_convt.core.launch import Plan
from cupy_convt.core.plan_cpu import CpuPlan
from cupy_convt.core.problem import Problem


def seconds(problem: Problem, plan: Plan | CpuPlan, device: DeviceSpec) -> float:
    """Predicted time of one call, without packing the weight."""
    if isinstance(plan, CpuPlan):
        return cost_cpu.seconds(problem, plan, device)
    if plan.variant.startswith("implicit/"):
        return cost_implicit.seconds(problem, plan, device)
    if plan.variant == "weight_stream":
        return cost_implicit.stream_seconds(problem, plan, device)
    if plan.variant.startswith("hopper/"):
        return cost_hopper.seconds(problem, plan, device)
    if plan.variant.startswith("fused block"):
        return cost_fft_block.seconds(problem, plan, device)
    return cost_gpu.seconds(problem, plan, device)


def packing_seconds(problem: Problem, plan: Plan | CpuPlan, device: DeviceSpec) -> float:
    """Predicted time of packing the weight for a plan, which a call without a kept one does first."""
    if isinstance(plan, CpuPlan):
        return cost_cpu.packing_seconds(problem, plan, device)
    return cost_gpu.packing_seconds(problem, plan, device)


def floor_seconds(problem: Problem, device: DeviceSpec) -> float:
    """Time that no method can beat on the device's plain arithmetic: bytes once, or the definition's multiplications.

    A frequency-domain method may pass below the arithmetic bound, never below the bytes.
    """
    return max(problem.bytes / device.bandwidth, problem.flops / device.peak(problem.accumulator))
