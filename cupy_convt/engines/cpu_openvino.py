# SPDX-License-Identifier: MIT
"""Sub-pixel convolutions compiled by OpenVINO: core/subpixel_cpu.py says what they compute.

A kept weight is a constant of a graph: the library brings it into its own order once, and adds bias and activation to
the sums while they are in registers. One graph serves every batch and length. It is compiled at the first call, in some
30 ms; so it is for kept weights. In float32 it wins for inputs of up to about a hundred samples, and for single outputs
of many channels; elsewhere cpu_phases.py mostly does.

A weight that is met once is not worth that. Where it is bfloat16, for whose products NumPy's BLAS has no instructions,
windows of x are multiplied by it, as long as the taps of a phase, with the bias as one more row of it:

    z[u, (co, f)] = sum_(m, ci) x[ci, u - m] w[m, ci, (co, f)] + 1 bias[(co, f)]

which is one product, rounded once, and needs of the weight only that runs of s taps are moved. For short x the library
interleaves the phases, too; for long ones, in the other order of the product, copies do. The instructions take
subnormal numbers for zero. OpenVINO does so with a subnormal float32 weight; such a weight is left to BLAS. Its threads
do not survive a fork: a child of a process that has used them computes by BLAS, too.
"""

from __future__ import annotations

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
from cupy_convt.engines.cpu_openvino_graphs import Fork, Graph, convolution, product, rows_of_item
from cupy_convt.engines.cpu_openvino_pack import bits_of, has_subnormals, rows_of_taps, taps_of, windows_of
from cupy_convt.engines.cpu_threads import Array

_CPU = Path("/proc/cpuinfo")
#: The bits of minus infinity as a bfloat16, as a signed number: above it are negative NaNs, below it numbers.
_MINUS_INFINITY = -0x80
#: Inputs of a tile from which a product's phases are better interleaved by copies than by the library.
LONG_INPUTS = 512
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


def can_run(operand: object) -> bool:
    """Whether the library works in this process, and takes the weight, packed or not, as it is."""
    return not Fork.lost and (not isinstance(operand, Convolution) or operand.exact)


# ---- what is kept ---------------------------------------------------------------------------------------------------


class _Memory:
    """Which graphs keep the working memory of their last call: those used last, KEPT_BYTES together.

    Fresh memory costs a page fault every 4 KiB, more than the work of a layer of few channels.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: OrderedDict[weakref.ref[Graph], int] = OrderedDict()

    def used(self, graph: Graph, nbytes: int) -> None:
        """A graph has been used that holds about so many bytes."""
        with self._lock:
            self._held.pop(weakref.ref(graph), None)
            self._held[weakref.ref(graph, self._gone)] = nbytes
            while sum(list(self._held.values())) > KEPT_BYTES:
                oldest = self._held.popitem(last=False)[0]()
                if oldest is not None:
                    oldest.release()

    def _gone(self, reference: weakref.ref[Graph]) -> None:
        self._held.pop(reference, None)


_memory = _Memory()


class Convolution:
    """A weight as the constant ((co, f), ci, m) of a convolution; compiled when its bias is known, and not pickled.

    `exact` is False for a float32 weight with subnormal numbers.
    """

    def __init__(self, problem: Problem, form: SubpixelForm, weight: Array) -> None:
        self.form = form
        self._taps = taps_of(problem, form, bits_of(weight))
        self.exact = form.half or not has_subnormals(self._taps)
        self._lock = threading.Lock()
        self._compiled: tuple[bytes, Graph] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"form": self.form, "_taps": self._taps, "exact": self.exact}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock(), _compiled=None)

    def graph(self, problem: Problem, bias: Array | None) -> Graph:
        """The graph with this bias."""
        key = b"" if bias is None else bias.tobytes()
        with self._lock:
            if self._compiled is None or self._compiled[0] != key:
                self._compiled = key, convolution(problem, self.form, self._taps, bias)
            return self._compiled[1]


# ---- running --------------------------------------------------------------------------------------------------------


def run(problem: Problem, plan: CpuPlan, x: Array, weight: Array | Convolution, bias: Array | None, out: Array) -> None:
    """Write the result into `out`; the weight is packed or the caller's, as the form wants it."""
    form = plan.subpixel
    assert form is not None
    x, out = bits_of(x), bits_of(out)
    items_of_tile, long = plan.batch_tile, plan.row_tile >= LONG_INPUTS
    if isinstance(weight, Convolution):
        graph, more = weight.graph(problem, bias), []
    else:
        bias = None if bias is None else bits_of(bias)
        more = rows_of_taps(problem, form, bits_of(weight), bias)
        if long:
            items_of_tile, graph = 1, rows_of_item(problem.activation, form, len(more))
        else:
            graph = product(problem.c_out, problem.stride, problem.activation, form, len(more))
    for items, inputs, samples in subpixel_tiles(problem, items_of_tile, plan.row_tile):
        part = np.ascontiguousarray(x[items, :, inputs])
        first, home = samples.start - inputs.start * problem.stride, out[items, :, samples]
        operands = [windows_of(problem, form, part, bias), *more] if more else [part]
        if long or not more:
            rows = part.shape[-1] + form.before + form.after - form.taps + 1
            shape = len(part), problem.c_out, problem.stride, rows
            graph.interleaved(operands, shape, form.head + first, home)
            continue
        length = problem.l_out - (problem.l_in - part.shape[-1]) * problem.stride
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
