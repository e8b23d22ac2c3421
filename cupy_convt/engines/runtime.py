# SPDX-License-Identifier: MIT
"""The executor of plans: it turns names into pointers and scalars, and knows nothing about any kernel.

One planner, one executor, two runtimes: CuPy for users, an emulator on NumPy arrays for tests.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from cupy_convt.core.device import DeviceSpec
from cupy_convt.core.launch import Gemm, Plan, Workspace
from cupy_convt.core.problem import ITEM_BYTES, Problem
from cupy_convt.engines.bound import Bound
from cupy_convt.engines.layout import Layout, layouts_of
from cupy_convt.engines.protocol import Pointer, Runtime


def _by_library(plan: Plan) -> bool:
    """Whether the vendor's products read x."""
    return any(isinstance(step, Gemm) and "x" in (step.left.buffer, step.right.buffer) for step in plan.steps)


@dataclass(frozen=True)
class Packed:
    """Packed weights by name, their places, and the point in their stream from which on they can be read."""

    buffers: Mapping[str, Any]
    pointers: Mapping[str, Pointer]
    mark: Any


def _layouts(buffers: Iterable[Workspace]) -> dict[str, Layout]:
    return {buffer.name: Layout.dense((buffer.count,), ITEM_BYTES[buffer.dtype]) for buffer in buffers}


class _Packing:
    """The packing steps of a plan for a contiguous weight, bound at the first use."""

    def __init__(self, runtime: Runtime, plan: Plan, weight: Layout) -> None:
        self._runtime, self._plan, self._weight = runtime, plan, weight
        self.packed = [(w.name, (w.count,), w.dtype) for w in plan.packed]
        self._scratch = [((w.count,), w.dtype) for w in plan.packing_workspaces]

    @cached_property
    def _steps(self) -> Bound:
        plan = self._plan
        layouts = {"weight": self._weight} | _layouts(plan.packed) | _layouts(plan.packing_workspaces)
        return Bound(self._runtime, plan.packing_steps, layouts)

    def __call__(self, weight: Pointer, packed: list[Pointer]) -> None:
        """Fill buffers as `packed` describes them."""
        pointer, empty = self._runtime.pointer, self._runtime.empty
        pointers = [weight, *packed]
        for shape, dtype in self._scratch:
            pointers.append(pointer(empty(shape, dtype)))
        self._steps(pointers)


class BoundPlan:
    """A plan for arrays of one layout each: checks, copies and arguments are decided, pointers are not.

    x is copied only if its time axis is not contiguous, if BLAS is to read it and its rows overlap, or if BLAS is to
    read it from an address of one alignment always (`settled`: the library chooses its kernel by that).
    """

    def __init__(
        self,
        runtime: Runtime,
        problem: Problem,
        plan: Plan,
        x: Layout,
        weight: Layout,
        bias: Layout | None,
        out: Layout,
        settled: bool,
    ) -> None:
        self._runtime, self._problem = runtime, problem
        x, out, library = x.batched(), out.batched(), _by_library(plan)
        self._settle_x = settled and library
        self._copy_x = not x.has_plain_rows or (library and not x.is_library_matrix)
        self._copy_weight = not weight.is_dense
        self._copy_bias = bias is not None and not bias.is_dense
        self._copy_out = not out.has_plain_rows
        copies = self._settle_x, self._copy_x, self._copy_weight, self._copy_bias, self._copy_out
        self._copies = any(copies)
        weight = Layout.dense(weight.shape, weight.itemsize)
        layouts: dict[str, Layout | None] = {
            "x": Layout.dense(x.shape, x.itemsize) if self._settle_x or self._copy_x else x,
            "weight": weight,
            "bias": None if bias is None else Layout.dense(bias.shape, bias.itemsize),
            "out": Layout.dense(out.shape, out.itemsize) if self._copy_out else out,
        }
        self._packing = _Packing(runtime, plan, weight)
        self._workspaces = [((w.count,), w.dtype) for w in plan.workspaces]
        layouts |= _layouts(plan.packed) | _layouts(plan.workspaces)
        self._steps = Bound(runtime, plan.steps, layouts)

    def __call__(self, x: Any, weight: Any, bias: Any, out: Any, packed: Packed | None = None) -> None:
        """Compute the problem into `out`."""
        if self._copies:
            self._run_on_copies(x, weight, bias, out, packed)
        else:
            self._run(x, weight, bias, out, packed)

    def _run_on_copies(self, x: Any, weight: Any, bias: Any, out: Any, packed: Packed | None) -> None:
        runtime, target = self._runtime, out
        if self._settle_x:
            given, x = x, runtime.empty(x.shape, self._problem.x_dtype)
            runtime.copy(given, x)
        elif self._copy_x:
            x = runtime.contiguous(x)
        if self._copy_weight and (packed is None or "weight" in self._steps.names):
            weight = runtime.contiguous(weight)
        if self._copy_bias:
            bias = runtime.contiguous(bias)
        if self._copy_out:
            target = runtime.empty(out.shape, self._problem.out_dtype)
            if self._problem.beta:
                runtime.copy(out, target)
        self._run(x, weight, bias, target, packed)
        if self._copy_out:
            runtime.copy(target, out)

    def _run(self, x: Any, weight: Any, bias: Any, out: Any, packed: Packed | None) -> None:
        """Workspaces live until the call returns; the runtime's allocator may hand them on in stream order."""
        pointer, empty = self._runtime.pointer, self._runtime.empty
        pointers = [pointer(x), pointer(weight), None if bias is None else pointer(bias), pointer(out)]
        if packed is not None:
            self._runtime.wait(packed.mark)
            for name, _, _ in self._packing.packed:
                pointers.append(packed.pointers[name])
        elif self._packing.packed:
            buffers = [pointer(empty(shape, dtype)) for _, shape, dtype in self._packing.packed]
            self._packing(pointers[1], buffers)
            pointers += buffers
        for shape, dtype in self._workspaces:
            pointers.append(pointer(empty(shape, dtype)))
        self._steps(pointers)


class GpuEngine:
    """Runs plans on arrays of one runtime; the GPU's counterpart of the CPU engine."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime

    def device(self) -> DeviceSpec:
        """The device that the next call runs on."""
        return self.runtime.device()

    def home(self, *arrays: Any) -> int | None:
        """The number of the current device if all arrays that are not None lie on it, else None."""
        return self.runtime.home(*arrays)

    def complaint(self, name: str, array: Any) -> str | None:
        """Why an array cannot be used on the current device, or None."""
        return self.runtime.complaint(name, array)

    def empty(self, shape: tuple[int, ...], dtype: str) -> Any:
        """A new uninitialised array on that device."""
        return self.runtime.empty(shape, dtype)

    def asarray(self, values: Any) -> Any:
        """The values of a NumPy array as an array on that device."""
        return self.runtime.asarray(values)

    def writeable(self, array: Any) -> bool:
        """Device arrays know no read-only flag."""
        return True

    def overlaps(self, a: Any, b: Any) -> bool:
        """Whether two arrays share memory."""
        return self.runtime.overlaps(a, b)

    def ready(self, plan: Plan) -> None:
        """Compile and plan all that running the plan needs; compute nothing."""
        for step in dict.fromkeys(plan.packing_steps + plan.steps):
            self.runtime.ready(step)

    def seconds(self, call: Callable[[], object]) -> float:
        """How long the device takes for one call."""
        return self.runtime.seconds(call)

    def pack(self, problem: Problem, plan: Plan, weight: Any) -> Packed:
        """What `run` takes as `packed`: the plan's buffers that depend on the weight only."""
        weight = self.runtime.contiguous(weight)
        packing = _Packing(self.runtime, plan, Layout.of(weight))
        buffers = {name: self.runtime.empty(shape, dtype) for name, shape, dtype in packing.packed}
        pointers = {name: self.runtime.pointer(buffer) for name, buffer in buffers.items()}
        packing(self.runtime.pointer(weight), list(pointers.values()))
        return Packed(buffers, pointers, self.runtime.mark())

    def bind(
        self,
        problem: Problem,
        plan: Plan,
        x: Layout,
        weight: Layout,
        bias: Layout | None,
        out: Layout,
        *,
        settled: bool = False,
    ) -> BoundPlan:
        """The plan, ready to be run on arrays of these layouts on the current device."""
        return BoundPlan(self.runtime, problem, plan, x, weight, bias, out, settled)

    def run(
        self, problem: Problem, plan: Plan, x: Any, weight: Any, bias: Any, out: Any, packed: Packed | None = None
    ) -> None:
        """Compute the problem into `out`. x (N, C_in, L_in) and out (N, C_out, L_out) may have any strides."""
        if problem.batch:
            self.bind(problem, plan, *layouts_of(x, weight, bias, out))(x, weight, bias, out, packed)
