# SPDX-License-Identifier: MIT
"""Graphs of OpenVINO for cpu_openvino.py: how they are made, and called."""

from __future__ import annotations

import importlib
import os
import threading
from functools import lru_cache
from typing import Any

import numpy as np

from cupy_convt.core.problem import Problem
from cupy_convt.core.subpixel_cpu import SubpixelForm
from cupy_convt.engines.cpu_openvino_pack import interleave
from cupy_convt.engines.cpu_threads import Array, cores

#: Shapes of x for which a graph stays prepared.
_SHAPES = 8


class Fork:
    """Whether this process has used the library, and whether it is the child of one that has."""

    used = lost = False

    @classmethod
    def in_child(cls) -> None:
        """Called in a new child: what its parent has used is lost to it."""
        cls.lost = cls.lost or cls.used


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=Fork.in_child)


@lru_cache(maxsize=1)
def _library() -> tuple[Any, Any, Any]:
    """The library, its operators, and the compiler."""
    Fork.used = True
    openvino = importlib.import_module("openvino")
    return openvino, importlib.import_module("openvino.opset8"), openvino.Core()


def _tensor(array: Array) -> Any:
    """A contiguous array, or the bits of bfloat16 as uint16, as the library sees it, in the same memory."""
    openvino = _library()[0]
    kind = openvino.Type.bf16 if array.dtype == np.uint16 else openvino.Type.f32
    return openvino.Tensor(array, list(array.shape), kind)


class Graph:
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
        """Write the result of the operands into `out`."""
        with self._lock:
            self._infer(operands, out)

    def _infer(self, operands: list[Array], out: Array) -> None:
        for place, operand in enumerate(operands):
            self._request.set_input_tensor(place, _tensor(operand))
        self._request.set_output_tensor(0, _tensor(out))
        self._request.infer()

    def interleaved(self, operands: list[Array], shape: tuple[int, ...], first: int, out: Array) -> None:
        """Rows (n, co, f, u) of a shape as samples (n, co, t), the first of which is sample `first` of them."""
        with self._lock:
            if self._rows is None or self._rows.shape != shape:
                self._rows = None  # gone before there is another
                self._rows = np.empty(shape, out.dtype)
            self._infer(operands, self._rows.reshape(shape[0], shape[1] * shape[2], shape[3]))
            interleave(self._rows, first, out)

    def release(self) -> None:
        """Give back the memory of the last call, unless the next one has begun."""
        if self._lock.acquire(blocking=False):
            try:
                self._rows = None
                self._compiled.release_memory()
            finally:
                self._lock.release()


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


def convolution(problem: Problem, form: SubpixelForm, taps: Array, bias: Array | None) -> Graph:
    """The graph of x (n, ci, i) with the weight ((co, f), ci, m) and the bias as constants; rows (n, (co, f), u)."""
    openvino, operators, _ = _library()
    kind = openvino.Type.bf16 if form.half else openvino.Type.f32
    x = operators.parameter([-1, problem.c_in, -1], kind)
    weight = _wide(openvino.op.Constant(_tensor(taps)), form)
    rows = operators.convolution(_wide(x, form), weight, [1], [form.before], [form.after], [1])
    if bias is not None:
        shift = np.repeat(bias.astype(np.float32), problem.stride)[:, None]
        rows = operators.add(rows, operators.constant(shift[None]))
    return Graph(form, [x], _activated(rows, problem.activation))


@lru_cache(maxsize=32)
def product(c_out: int, stride: int, activation: tuple[str, float] | None, form: SubpixelForm, parts: int) -> Graph:
    """The graph that multiplies windows (depth, n, u) by a weight (depth, (co, f)), which comes in so many parts."""
    parameters, columns, weight = _factors(form, parts)
    operators = _library()[1]
    # (u, (co, f)) is the order in which short x are faster
    rows = _activated(operators.matmul(columns, weight, True, False), activation)
    sizes = operators.gather(operators.shape_of(parameters[0]), _shape(1, 2), operators.constant(np.int64(0)))
    rows = operators.reshape(rows, operators.concat([sizes, _shape(c_out, stride)], 0), False)
    return Graph(form, parameters, _cropped(operators.transpose(rows, _shape(0, 2, 1, 3)), c_out, form))


@lru_cache(maxsize=32)
def rows_of_item(activation: tuple[str, float] | None, form: SubpixelForm, parts: int) -> Graph:
    """The same for one item, whose rows (1, (co, f), u) it leaves as they are."""
    parameters, columns, weight = _factors(form, parts)
    operators = _library()[1]
    rows = _activated(operators.matmul(weight, columns, True, False), activation)
    return Graph(form, parameters, operators.unsqueeze(rows, _shape(0)))


def _factors(form: SubpixelForm, parts: int) -> tuple[list[Any], Any, Any]:
    """The parameters, and what is made of them: windows (depth, (n, u)) and the weight."""
    openvino, operators, _ = _library()
    x, *weights = parameters = [operators.parameter([-1] * axes, openvino.Type.bf16) for axes in [3] + [2] * parts]
    columns = operators.reshape(x, _shape(0, -1), True)
    weight = operators.concat(weights, 0) if parts > 1 else weights[0]
    return parameters, _wide(columns, form), _wide(weight, form)
