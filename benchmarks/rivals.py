# SPDX-License-Identifier: MIT
"""Who is timed against whom: calls that take the same arrays and give the same result.

Each maker returns a call without arguments, or None where the rival cannot do the row or is not installed. Every call
allocates its result, as a user's would. scipy.signal.fftconvolve and oaconvolve know no stride: they get the signal
with s - 1 zeros after each sample, which the call makes; so they do s times the work of a polyphase form, and the
tables say what would be left of their ratio if they did not. Nor do they add up channels: they convolve every input
channel with every output channel's taps in one call, by broadcasting, and the sum over the input channels follows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import log2
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

import cupy_convt as ct
from benchmarks.onnx_model import conv_transpose
from benchmarks.workloads import Workload
from cupy_convt.core.plan_cpu import CpuPlan
from cupy_convt.engines.cpu import CpuEngine

Array = npt.NDArray[Any]
Call = Callable[[], Array]


#: upfirdn visits every tap of every sample of the result, in x or not; beyond so many it is not worth waiting for.
UPFIRDN_STEPS = 2 * 10**10


#: Bytes that a rival may make beside its arguments and its result: columns, a zero-stuffed signal.
RIVAL_BYTES = 1 << 30
#: Operations of their transforms, seconds of one core; a row of more is left out.
STUFFED_FLOPS = 2 * 10**10
#: The rivals that work on the zero-stuffed signal.
STUFFED = ("fftconvolve", "oaconvolve")


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


def planned(workload: Workload, arrays: Arrays, plan: CpuPlan, *, kept: bool = False) -> Call:
    """This library held to one plan; with a `kept` weight that was packed before."""
    engine, problem = CpuEngine(), workload.problem(arrays.x.dtype.name)
    packed = engine.pack(problem, plan, arrays.weight) if kept else None

    def call() -> Array:
        out: Array = np.empty(problem.out_shape, arrays.x.dtype)
        engine.run(problem, plan, arrays.x, arrays.weight, arrays.bias, out, packed)
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


def fold_call(workload: Workload, arrays: Arrays) -> Call | None:
    """Product and fold on tensors that share our memory."""
    import torch

    if arrays.x.dtype.name not in ("float32", "float64") or not can_fold(workload):
        return None
    tensors = tuple(torch.from_numpy(array) for array in (arrays.x, arrays.weight, arrays.bias))
    folded = product_and_fold(workload, tensors)

    def call() -> Array:
        out: Array = folded().numpy()
        return out

    return call


def can_fold(workload: Workload) -> bool:
    """Whether the columns are not too many, and fold finds as many of them as there are inputs."""
    problem = workload.problem()
    columns = 4 * problem.batch * problem.c_out * problem.kernel_size * problem.l_in
    return columns <= RIVAL_BYTES and workload.output_padding < workload.stride


def product_and_fold(workload: Workload, tensors: tuple[Any, Any, Any]) -> Callable[[], Any]:
    """One product for all taps in PyTorch, then torch.nn.functional.fold, which adds the columns up."""
    import torch

    problem, (x, weight, bias) = workload.problem(), tensors
    groups, per_group = problem.groups, problem.c_in_group
    left = weight.view(groups, per_group, -1).transpose(1, 2)
    window = {
        "output_size": (1, problem.l_out),
        "kernel_size": (1, problem.kernel_size),
        "dilation": (1, problem.dilation),
        "padding": (0, workload.padding),
        "stride": (1, problem.stride),
    }

    def call() -> Any:
        with torch.inference_mode():
            products = torch.matmul(left, x.view(problem.batch, groups, per_group, problem.l_in))
            return torch.nn.functional.fold(products.flatten(1, 2), **window)[:, :, 0].add_(bias[:, None])

    return call


def onnx_call(workload: Workload, arrays: Arrays, threads: int) -> Call | None:
    """ONNX Runtime's CPU operator, where it is installed; float32 only."""
    try:
        import onnxruntime
    except ImportError:
        return None
    if arrays.x.dtype != np.float32:
        return None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # its threads may spin during a run, but not on the cores of whoever comes next
    options.add_session_config_entry("session.force_spinning_stop", "1")
    model = conv_transpose(**workload.arguments, taps=workload.k)
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    feed = {"x": arrays.x, "weight": arrays.weight, "bias": arrays.bias}

    def call() -> Array:
        out: Array = session.run(["y"], feed)[0]
        return out

    return call


def _is_scipys(arrays: Arrays) -> bool:
    """Whether scipy.signal keeps the dtype."""
    return arrays.x.dtype.name in ("float32", "float64")


def _cropped(workload: Workload, full: Array, bias: Array) -> Array:
    """The row's samples of a full response: the crop is a view, the bias one addition."""
    problem = workload.problem()
    missing = problem.p_left + problem.l_out - full.shape[-1]
    if missing > 0:
        full = np.pad(full, ((0, 0), (0, 0), (0, missing)))
    out: Array = full[..., problem.p_left : problem.p_left + problem.l_out]
    out += bias[:, None]
    return out


def upfirdn_call(workload: Workload, arrays: Arrays) -> Call | None:
    """scipy.signal.upfirdn, for one channel of a dtype it knows."""
    problem = workload.problem()
    if not (workload.is_mono and _is_scipys(arrays)) or problem.l_out * problem.phases.max_taps > UPFIRDN_STEPS:
        return None
    from scipy.signal import upfirdn

    taps = arrays.weight[0, 0]
    return lambda: _cropped(workload, upfirdn(taps, arrays.x, up=workload.stride), arrays.bias)


def stuffed_calls(workload: Workload, arrays: Arrays) -> dict[str, Call]:
    """scipy.signal.fftconvolve and oaconvolve of the zero-stuffed signal: one channel, or long filters of several."""
    problem = workload.problem(arrays.x.dtype.name)
    if not (_is_scipys(arrays) and (workload.is_mono or workload.is_long)):
        return {}
    rows = problem.c_in * (problem.batch + problem.c_out_group) + problem.batch * problem.c_in * problem.c_out_group
    # a transform holds the padded signals, their spectra and the responses, here of one input channel of each group
    response = problem.batch * problem.c_out * problem.l_full * arrays.x.itemsize
    needed = 4 * (problem.x_bytes * problem.stride + response)
    flops = 2.5 * rows * problem.l_full * log2(problem.l_full + 1)
    if needed > RIVAL_BYTES or flops > STUFFED_FLOPS:
        return {}
    from scipy import signal

    together = max(1, min(problem.c_in_group, (RIVAL_BYTES - needed) // (4 * response)))

    def call(convolve: Callable[..., Array]) -> Array:
        x = _spread(arrays.x, problem.stride).reshape(problem.batch, problem.groups, problem.c_in_group, 1, -1)
        taps = _spread(arrays.weight, problem.dilation)
        taps = taps.reshape(1, problem.groups, problem.c_in_group, problem.c_out_group, -1)
        full: Array | None = None
        for first in range(0, problem.c_in_group, together):
            part = slice(first, first + together)
            responses = convolve(x[:, :, part], taps[:, :, part], axes=-1)
            total = responses[:, :, 0] if responses.shape[2] == 1 else responses.sum(axis=2)
            full = total if full is None else np.add(full, total, out=full)
        assert full is not None
        return _cropped(workload, full.reshape(problem.batch, problem.c_out, -1), arrays.bias)

    return {name: partial(call, getattr(signal, name)) for name in STUFFED}


def _spread(array: Array, step: int) -> Array:
    """The samples of the last axis with step - 1 zeros between them."""
    if step == 1:
        return array
    zeros: Array = np.zeros((*array.shape[:-1], (array.shape[-1] - 1) * step + 1), array.dtype)
    zeros[..., ::step] = array
    return zeros


def every_rival(workload: Workload, arrays: Arrays, threads: int) -> dict[str, Call]:
    """All that can do the row here, by name; PyTorch always can."""
    found: dict[str, Call | None] = {
        "torch": torch_call(workload, arrays, threads),
        "torch fold": fold_call(workload, arrays),
        "onnxruntime": onnx_call(workload, arrays, threads),
        "upfirdn": upfirdn_call(workload, arrays),
        **stuffed_calls(workload, arrays),
    }
    return {name: call for name, call in found.items() if call is not None}
