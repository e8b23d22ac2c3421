# SPDX-License-Identifier: MIT
"""Few inputs: the operator is one reading of the weight, as it lies.

    sums[(n,i)][(co,j)] = sum_ci w[ci,co,j] x[n,ci,i]      y[n,co,t] = bias[co] + sum_{i*s + j*d = t + p_left} sums

Each 16 bytes of the weight are loaded once and meet all columns (n, i) in registers; nothing is packed, no zero is
multiplied. Wins for frames of a streaming decoder, where tiles of a product would be nearly empty; beyond 16 columns
there is arithmetic enough for the implicit GEMM. Values that are not finite stay in their receptive field.

The contraction is cut into parts, the blocks' sums meet in a workspace and are added in ascending order
(kernels/weight_stream_finish.cu). The cut follows from one item and the device, never from the batch, so an item gets
the same bits in any batch.
"""

from __future__ import annotations

from dataclasses import replace

from cupy_convt.core.cost_implicit import stream_channels
from cupy_convt.core.device import DeviceSpec
from cupy_convt.core.launch import (
    CUDA_TYPES,
    DTYPE_PAIRS,
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
from cupy_convt.core.problem import Problem, ceil_div, result_dtype
from cupy_convt.core.weight_tiles import BLOCK, COLUMNS, blocks, columns, element_tiles, parts, row, shared_bytes

_SIZES = 2**30


def variants() -> tuple[Variant, ...]:
    """Every (kernel, defines) that a plan of this method can launch."""
    products = [("weight_stream", _defines(*pair, count)) for pair in DTYPE_PAIRS for count in COLUMNS]
    finishes = [("weight_stream_finish", _finish_defines(result_dtype(*pair))) for pair in DTYPE_PAIRS]
    return tuple(dict.fromkeys(products + finishes))


def _defines(x_dtype: str, weight_dtype: str, count: int) -> tuple[tuple[str, str | int], ...]:
    return ("CONVT_X", CUDA_TYPES[x_dtype]), ("CONVT_W", CUDA_TYPES[weight_dtype]), ("CONVT_COLUMNS", count)


def _finish_defines(dtype: str) -> tuple[tuple[str, str | int], ...]:
    return (("CONVT_Y", CUDA_TYPES[dtype]),)


def why_not(problem: Problem, device: DeviceSpec) -> str:
    """Why the method cannot take the problem; empty if it can."""
    if problem.operation != "forward":
        return f"no weight streaming kernel for {problem.operation}"
    if problem.batch * problem.l_in > COLUMNS[-1]:
        return f"weight streaming takes up to {COLUMNS[-1]} inputs of a channel, over the whole batch"
    sizes = abs(problem.p_left) + problem.l_out, problem.effective_kernel + problem.stride, row(problem)
    if max(sizes) >= _SIZES or problem.batch * problem.c_out * problem.l_out >= _SIZES:
        return "crops, reach and samples of 2^30"
    if blocks(problem, stream_channels(_item(problem), device)) > GRID_LIMIT:
        return "more than 2^31 tiles"
    return ""


def _item(problem: Problem) -> Problem:
    return replace(problem, batch=1)


def candidates(problem: Problem, device: DeviceSpec, workspace_limit: int) -> tuple[Plan, ...]:
    """One plan, if its sums fit the limit."""
    if not problem.batch or problem.l_out < 1 or why_not(problem, device):
        return ()
    channels = stream_channels(_item(problem), device)
    plan = _plan(problem, channels)
    return (plan,) if plan.workspace_bytes <= workspace_limit else ()


def _plan(problem: Problem, channels: int) -> Plan:
    # whole sectors between two columns
    pitch = ceil_div(row(problem), 32) * 32
    count = problem.groups * parts(problem, channels) * columns(problem) * pitch
    steps = _product(problem, channels, pitch), _finish(problem, channels, pitch)
    notes = (f"{element_tiles(problem)} tiles of taps, {parts(problem, channels)} parts of {channels} input channels",)
    sums = Workspace("sums", count, problem.accumulator)
    order = f"weight_stream by {channels}"
    return Plan("gemm", "weight_stream", steps, (sums,), notes=notes, sum_order=order)


def _product(problem: Problem, channels: int, pitch: int) -> Launch:
    numbers = (
        *(problem.l_in, columns(problem), problem.c_in_group, row(problem), element_tiles(problem)),
        *(parts(problem, channels), channels),
    )
    strides = Stride("x", 0), Stride("x", 1)
    arguments: tuple[Argument, ...] = ("x", "weight", "sums", *strides, I64(pitch), *(I32(n) for n in numbers))
    held = next(count for count in COLUMNS if columns(problem) <= count)
    defines, shared = _defines(problem.x_dtype, problem.weight_dtype, held), shared_bytes(problem, channels, held)
    return Launch("weight_stream", defines, blocks(problem, channels), BLOCK, shared, arguments)


def _finish(problem: Problem, channels: int, pitch: int) -> Launch:
    samples, phases = problem.batch * problem.c_out * problem.l_out, problem.phases
    inverse = pow(phases.input_step, -1, phases.tap_step) if phases.tap_step > 1 else 0
    numbers = (
        *(samples, problem.l_in, problem.l_out, problem.p_left, problem.c_out, problem.c_out_group, columns(problem)),
        *(parts(problem, channels), problem.kernel_size, problem.stride, problem.dilation, phases.tap_step, inverse),
    )
    strides = Stride("out", 0), Stride("out", 1), I64(pitch)
    arguments: tuple[Argument, ...] = ("sums", "bias", "out", *strides, *(I32(n) for n in numbers), *epilogue(problem))
    defines = _finish_defines(problem.out_dtype)
    return Launch("weight_stream_finish", defines, ceil_div(samples, BLOCK), BLOCK, 0, arguments)
