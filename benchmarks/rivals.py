# SPDX-License-Identifier: MIT
"""Who is timed against whom: calls that take the same arrays and give the same result.

Each maker returns a call without arguments, or None where the rival cannot do the row. Every call allocates its result,
as a user's would.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

import cupy_convt as ct
from benchmarks.workloads import Workload
from cupy_convt.core.plan_cpu import CpuPlan
from cupy_convt.engines.cpu import CpuEngine

Array = npt.NDArray[Any]
Call = Callable[[], Array]


#: upfirdn visits every tap of every sample of the result, in x or not; beyond so many it is not worth waiting for.
UPFIRDN_STEPS = 2 * 10**10


@dataclass(frozen=True)
class Arrays:
    """The arguments of one row."""

    x: Array
    weight: Array
    bias: Array


def make_arrays(workload: Workload, dtype: str) -> Arrays:
    """Random arguments of a row; the taps are scaled so that results are of order one."""
    random = np.random.default_rng(1)
    problem = workload.problem(dtype)
    numpy_dtype = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    gain = (problem.c_in_group * max(problem.phases.max_taps, 1)) ** -0.5

    def draw(shape: tuple[int, ...], scale: float) -> Array:
        values: Array = random.standard_normal(shape, dtype=np.float32)
        values *= np.float32(scale)
        return values.astype(numpy_dtype, copy=False)

    return Arrays(draw(problem.x_shape, 1), draw(problem.weight_shape, gain), draw((problem.c_out,), 1))


def ours(workload: Workload, arrays: Arrays) -> Call:
    """The unprepared call of this library."""
    return lambda: ct.conv_transpose1d(arrays.x, arrays.weight, arrays.bias, **workload.arguments)


def prepared(workload: Workload, arrays: Arrays) -> Call:
    """This library with the weight packed once."""
    operator = ct.prepare(arrays.weight, arrays.bias, **workload.arguments)
    return lambda: operator(arrays.x)


def planned(workload: Workload, arrays: Arrays, plan: CpuPlan) -> Call:
    """This library held to one plan."""
    engine, problem = CpuEngine(), workload.problem(arrays.x.dtype.name)

    def call() -> Array:
        out: Array = np.empty(problem.out_shape, arrays.x.dtype)
        engine.run(problem, plan, arrays.x, arrays.weight, arrays.bias, out)
        return out

    return call


def torch_call(workload: Workload, arrays: Arrays, threads: int) -> Call:
    """torch.nn.functional.conv_transpose1d on tensors that share our memory."""
    import torch

    torch.set_num_threads(threads)

    def tensor(array: Array) -> torch.Tensor:
        if array.dtype.name == "bfloat16":
            return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
        return torch.from_numpy(array)

    x, weight, bias = tensor(arrays.x), tensor(arrays.weight), tensor(arrays.bias)

    def call() -> Array:
        with torch.inference_mode():
            result = torch.nn.functional.conv_transpose1d(x, weight, bias, **workload.arguments)
        if result.dtype == torch.bfloat16:
            result = result.view(torch.int16)
        out: Array = result.numpy().view(arrays.x.dtype)
        return out

    return call


def upfirdn_call(workload: Workload, arrays: Arrays) -> Call | None:
    """scipy.signal.upfirdn, for one channel of a dtype it knows; the crop is a view, the bias one addition."""
    if not workload.is_mono or arrays.x.dtype.name not in ("float32", "float64"):
        return None
    from scipy.signal import upfirdn

    problem = workload.problem()
    if problem.l_out * problem.phases.max_taps > UPFIRDN_STEPS:
        return None
    taps, bias = arrays.weight[0, 0], arrays.bias[0]

    def call() -> Array:
        full = upfirdn(taps, arrays.x, up=workload.stride)
        missing = problem.p_left + problem.l_out - full.shape[-1]
        if missing > 0:
            full = np.pad(full, ((0, 0), (0, 0), (0, missing)))
        out: Array = full[..., problem.p_left : problem.p_left + problem.l_out]
        out += bias
        return out

    return call
