# SPDX-License-Identifier: MIT
"""Sub-pixel convolutions compiled by OpenVINO: core/subpixel_cpu.py says what they compute.

A kept weight is a constant of a graph: the library brings it into its own order once, and adds bias and activation to
the sums while they are in registers. One graph serves every batch and length. It is compiled at the first call, in some
30 ms; so it is for kept weights. In float32 it wins for inputs of up to about a hundred samples, and for single outputs
of many channels; elsewhere cpu_phases.py mostly does.

A weight that is met once is not worth that. Where it is bfloat16, for whose products NumPy's BLAS has no instructions,
windows of x are multiplied by it, as long as the taps of a phase, with the bias as one more row of it:

    z[u, (co, f)] = sum_(m, ci) x[ci, u - m] w[m, ci, (co, f)] + 1 bias[(co, f)]

which is one product, rounded once, and needs of the weight only that runs of s taps are moved. The instructions take
subnormal numbers for zero. OpenVINO does so with a subnormal float32 weight; such a weight is left to BLAS. Its threads
do not survive a fork: a child of a process that has used them computes by BLAS, too.
"""

from __future__ import annotations

import importlib
import os
import threading
import weakref
from collections import OrderedDict
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from cupy_convt.core.plan_cpu import CpuPlan
from cupy_convt.core.problem import Problem
from cupy_convt.core.subpixel_cpu import SubpixelForm, subpixel_tiles
from cupy_convt.engines.cpu_arrays import apply_activation
from cupy_convt.engines.cpu_openvino_pack import bits_of, has_subnormals, interleave, rows_of_taps, taps_of, windows_of
from cupy_convt.engines.cpu_threads import Array, cores

_CPU = Path("/proc/cpuinfo")
#: The bits of minus infinity as a bfloat16, as a signed number: above it are negative NaNs, below it numbers.
_MINUS_INFINITY = -0x80
#: Shapes of x for which a graph stays prepared.
_SHAPES = 8
#: Working memory that graphs keep between calls, all together.
KEPT_BYTES = 96 << 20


@lru_cache(maxsize=1)
def available() -> bool:
    """Whether the library is installed. Imports nothing."""
    return find_spec("openvino") is not None


@lru_cache(maxsize=1)
def bfloat16() -> bool:
    """Whether the CPU has instructions for products of bfloat16."""
    try:
        return "avx512_bf16" in _CPU.read_text(encoding="utf-8").split()
    except OSError:  # not a Linux kernel
        return False


class _Fork:
    """Whether this process has used the library, and whether it is the child of one that has."""

    used = lost = False

    @classmethod
    def in_child(cls) -> None:
        cls.lost = cls.lost or cls.used


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_Fork.in_child)


def can_run(operand: object) -> bool:
    """Whether the library works in this process, and takes the weight, packed or not, as it is."""
    return not _Fork.lost and (not isinstance(operand, Convolution) or operand.exact)


# ---- graphs ---------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def _library() -> tuple[Any, Any, Any]:
    """The library, its operators, and the compiler."""
    _Fork.used = True
    openvino = importlib.import_module("openvino")
    return openvino, importlib.import_module("openvino.opset8"), openvino.Core()


def _tensor(array: Array) -> Any:
    """A contiguous array, or the bits of bfloat16 as uint16, as the library sees it, in the same memory."""
    openvino = _library()[0]
    kind = openvino.Type.bf16 if array.dtype == np.uint16 else openvino.Type.f32
    return openvino.Tensor(array, list(array.shape), kind)


class _Graph:
    """A compiled graph of one result; one call at a time, which uses all cores."""

    def __init__(self, form: SubpixelForm, parameters: list[Any], result: Any) -> None:
        openvino, operators, core = _library()
        settings = {
            "INFERENCE_PRECISION_HINT": "bf16" if form.half else "f32",
            "INFERENCE_NUM_THREADS": cores(),
            "NUM_STREAMS": 1,
            "ENABLE_CPU_PINNING": False,
            "CPU_RUNTIME_CACHE_CAPACITY": _SHAPES,
        }
        result = operators.convert(result, "bf16") if form.half else result
        self._compiled = core.compile_model(openvino.Model([result], parameters), "CPU", settings)
        self._request = self._compiled.create_infer_request()
        self._lock = threading.Lock()
        self._rows: Array | None = None

    def __call__(self, operands: list[Array], out: Array) -> None:
        with self._lock:
            self._infer(operands, out)

    def _infer(self, operands: list[Array], out: Array) -> None:
        for place, operand in enumerate(operands):
            self._request.set_input_tensor(place, _tensor(operand))
        self._request.set_output_tensor(0, _tensor(out))
        self._request.infer()

    def interleaved(self, x: Array, shape: tuple[int, ...], first: int, out: Array) -> None:
        """Rows (n, co, f, u) of a shape as samples (n, co, t), the first of which is sample `first` of them."""
        with self._lock:
            if self._rows is None or self._rows.shape != shape:
                self._rows = None  # gone before there is another
                self._rows = np.empty(shape, out.dtype)
            self._infer([x], self._rows.reshape(shape[0], shape[1] * shape[2], shape[3]))
            interleave(self._rows, first, out)

    def release(self) -> None:
        """Give back the memory of the last call, unless the next one has begun."""
        if self._lock.acquire(blocking=False):
            try:
                self._rows = None
                self._compiled.release_memory()
            finally:
                self._lock.release()


class _Memory:
    """Which graphs keep the working memory of their last call: those used last, KEPT_BYTES together.

    Fresh memory costs a page fault every 4 KiB, more than the work of a layer of few channels.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: OrderedDict[weakref.ref[_Graph], int] = OrderedDict()

    def used(self, graph: _Graph, nbytes: int) -> None:
        """A graph has been used that holds about so many bytes."""
        with self._lock:
            self._held.pop(weakref.ref(graph), None)
            self._held[weakref.ref(graph, self._gone)] = nbytes
            while sum(list(self._held.values())) > KEPT_BYTES:
                oldest = self._held.popitem(last=False)[0]()
                if oldest is not None:
                    oldest.release()

    def _gone(self, reference: weakref.ref[_Graph]) -> None:
        self._held.pop(reference, None)


_memory = _Memory()


def _wide(node: Any, form: SubpixelForm) -> Any:
    """Operands said to be float32, so that bias and activation follow on unrounded sums; the hint keeps the bits."""
    return _library()[1].convert(node, "f32") if form.half else node


def _shape(*sizes: int) -> Any:
    return _library()[1].constant(np.array(sizes, np.int64))


def _activated(rows: Any, activation: tuple[str, float] | None) -> Any:
    """The activation of sums, but for relu, which the library gives a number for NaN."""
    operators = _library()[1]
    name, slope = activation or ("", 0.0)
    if name == "leaky_relu":
        return operators.prelu(rows, operators.constant(np.array([slope], np.float32)))
    return operators.tanh(rows) if name == "tanh" else rows


def _cropped(rows: Any, c_out: int, form: SubpixelForm) -> Any:
    """The result (n, co, t) of rows (n, co, u, f)."""
    operators = _library()[1]
    result = operators.reshape(rows, _shape(0, c_out, -1), True)
    if form.head or form.tail:
        masks = [1, 1, 0], [1, 1, 0 if form.tail else 1]
        ends = _shape(0, 0, form.head), _shape(0, 0, -form.tail), _shape(1, 1, 1)
        result = operators.strided_slice(result, *ends, *masks)
    return result


class Convolution:
    """A weight as the constant ((co, f), ci, m) of a convolution; compiled when its bias is known, and not pickled.

    `exact` is False for a float32 weight with subnormal numbers.
    """

    def __init__(self, problem: Problem, form: SubpixelForm, weight: Array) -> None:
        self.form = form
        self._taps = taps_of(problem, form, bits_of(weight))
        self.exact = form.half or not has_subnormals(self._taps)
        self._lock = threading.Lock()
        self._compiled: tuple[bytes, _Graph] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"form": self.form, "_taps": self._taps, "exact": self.exact}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock(), _compiled=None)

    def graph(self, problem: Problem, bias: Array | None) -> _Graph:
        """The graph with this bias."""
        key = b"" if bias is None else bias.tobytes()
        with self._lock:
            if self._compiled is None or self._compiled[0] != key:
                self._compiled = key, self._compile(problem, bias)
            return self._compiled[1]

    def _compile(self, problem: Problem, bias: Array | None) -> _Graph:
        openvino, operators, _ = _library()
        form = self.form
        kind = openvino.Type.bf16 if form.half else openvino.Type.f32
        x = operators.parameter([-1, problem.c_in, -1], kind)
        weight = _wide(openvino.op.Constant(_tensor(self._taps)), form)
        rows = operators.convolution(_wide(x, form), weight, [1], [form.before], [form.after], [1])
        if bias is not None:
            shift = np.repeat(bias.astype(np.float32), problem.stride)[:, None]
            rows = operators.add(rows, operators.constant(shift[None]))
        return _Graph(form, [x], _activated(rows, problem.activation))


@lru_cache(maxsize=32)
def _product(c_out: int, stride: int, activation: tuple[str, float] | None, form: SubpixelForm, parts: int) -> _Graph:
    """The graph that multiplies windows (depth, n, u) by a weight (depth, (co, f)), which comes in so many parts."""
    openvino, operators, _ = _library()
    x, *weights = (operators.parameter([-1] * axes, openvino.Type.bf16) for axes in [3] + [2] * parts)
    columns = operators.reshape(x, _shape(0, -1), True)
    weight = operators.concat(weights, 0) if parts > 1 else weights[0]
    # (u, (co, f)) is the order in which short x are faster
    rows = _activated(operators.matmul(_wide(columns, form), _wide(weight, form), True, False), activation)
    sizes = operators.gather(operators.shape_of(x), _shape(1, 2), operators.constant(np.int64(0)))
    rows = operators.reshape(rows, operators.concat([sizes, _shape(c_out, stride)], 0), False)
    return _Graph(form, [x, *weights], _cropped(operators.transpose(rows, _shape(0, 2, 1, 3)), c_out, form))


# ---- running --------------------------------------------------------------------------------------------------------


def run(problem: Problem, plan: CpuPlan, x: Array, weight: Array | Convolution, bias: Array | None, out: Array) -> None:
    """Write the result into `out`; the weight is packed or the caller's, as the form wants it."""
    form = plan.subpixel
    assert form is not None
    x, out = bits_of(x), bits_of(out)
    if isinstance(weight, Convolution):
        graph, more = weight.graph(problem, bias), []
    else:
        bias = None if bias is None else bits_of(bias)
        more = rows_of_taps(problem, form, bits_of(weight), bias)
        graph = _product(problem.c_out, problem.stride, problem.activation, form, len(more))
    for items, inputs, samples in subpixel_tiles(problem, plan.batch_tile, plan.row_tile):
        part = np.ascontiguousarray(x[items, :, inputs])
        first, home = samples.start - inputs.start * problem.stride, out[items, :, samples]
        if not more:
            rows = part.shape[-1] + form.before + form.after - form.taps + 1
            shape = len(part), problem.c_out, problem.stride, rows
            graph.interleaved(part, shape, form.head + first, home)
            continue
        length = problem.l_out - (problem.l_in - part.shape[-1]) * problem.stride
        operands = [windows_of(problem, form, part, bias), *more]
        if length == problem.l_out and home.flags.c_contiguous:
            graph(operands, home)
            continue
        whole = np.empty((len(part), problem.c_out, length), out.dtype)
        graph(operands, whole)
        np.copyto(home, whole[:, :, first : first + home.shape[-1]])
    _memory.used(graph, plan.workspace_bytes - plan.packed_bytes)
    if problem.activation is not None and problem.activation[0] == "relu":  # the library's makes NaN a number
        _relu(out)


def _relu(out: Array) -> None:
    if out.dtype == np.uint16:
        bits = out.view(np.int16)
        np.copyto(bits, 0, where=bits <= _MINUS_INFINITY)
    else:
        apply_activation(out, "relu", 0.0)
