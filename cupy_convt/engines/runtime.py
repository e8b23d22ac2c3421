# SPDX-License-Identifier: MIT
"""The executor of plans, and the small protocol through which it reaches a device.

One planner, one executor, two runtimes: CuPy for users, an emulator on NumPy arrays for tests. The executor turns names
into pointers and scalars; it knows nothing about any kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np

from cupy_convt.core.device import DeviceSpec
from cupy_convt.core.launch import F32, F64, I32, I64, Argument, At, Fft, Gemm, Launch, Matrix, Plan, Step, Stride
from cupy_convt.core.problem import ITEM_BYTES, Problem

Arrays = Mapping[str, Any]
_SCALARS: dict[type, Callable[[Any], np.generic]] = {
    I32: np.int32,
    I64: np.int64,
    Stride: np.int64,
    F32: np.float32,
    F64: np.float64,
}


class Pointer(NamedTuple):
    """A place in the memory of one of the runtime's arrays: bytes after its first element."""

    array: Any
    byte_offset: int = 0


@dataclass(frozen=True)
class Operand:
    """A Matrix with its names resolved; strides in elements of the Gemm's dtype."""

    pointer: Pointer
    rows: int
    columns: int
    row_stride: int
    batch_stride: int


KernelArgument = Pointer | np.generic | None


class Runtime(Protocol):
    """What executing a plan needs of a device. Everything is queued on the current stream; nothing waits."""

    def device(self) -> DeviceSpec:
        """The current device."""

    def complaint(self, name: str, array: Any) -> str | None:
        """Why an array cannot be used on the current device, or None."""

    def empty(self, shape: tuple[int, ...], dtype: str) -> Any:
        """A new array, C-contiguous and uninitialised."""

    def asarray(self, values: Any) -> Any:
        """The values of a NumPy array as an array of this runtime."""

    def contiguous(self, array: Any) -> Any:
        """The array itself if it is C-contiguous, else such a copy."""

    def copy(self, source: Any, destination: Any) -> None:
        """Copy elements between arrays of one shape and dtype, of any strides."""

    def overlaps(self, a: Any, b: Any) -> bool:
        """Whether two arrays share memory."""

    def mark(self) -> Any:
        """A point in the current stream, after everything queued on it so far."""

    def wait(self, mark: Any) -> None:
        """Let what is queued from now on run after that point, on whichever stream it is."""

    def ready(self, step: Step) -> None:
        """Compile or plan what the step needs; run nothing."""

    def seconds(self, call: Callable[[], object]) -> float:
        """Time that the device takes for what a call queues."""

    def launch(self, launch: Launch, arguments: Sequence[KernelArgument]) -> None:
        """Run a kernel."""

    def fft(self, step: Fft, source: Pointer, destination: Pointer) -> None:
        """Run a batch of library transforms."""

    def gemm(self, step: Gemm, left: Operand, right: Operand, out: Operand) -> None:
        """Run a batch of library matrix products."""


def _element_stride(array: Any, stride: Stride) -> int:
    return int(array.strides[stride.axis] // array.dtype.itemsize * stride.times)


def _argument(argument: Argument, arrays: Arrays) -> KernelArgument:
    if isinstance(argument, str):
        array = arrays[argument]
        return None if array is None else Pointer(array)
    if isinstance(argument, At):
        array = arrays[argument.buffer]
        return Pointer(array, argument.offset * int(array.dtype.itemsize))
    value = _element_stride(arrays[argument.buffer], argument) if isinstance(argument, Stride) else argument.value
    scalar: np.generic = _SCALARS[type(argument)](value)
    return scalar


def _operand(matrix: Matrix, dtype: str, arrays: Arrays) -> Operand:
    array = arrays[matrix.buffer]

    def resolved(stride: int | Stride) -> int:
        return _element_stride(array, stride) if isinstance(stride, Stride) else stride

    offset = matrix.offset + sum(resolved(stride) * times for stride, times in matrix.stride_offsets)
    return Operand(
        Pointer(array, offset * ITEM_BYTES[dtype]),
        matrix.rows,
        matrix.columns,
        resolved(matrix.row_stride) if matrix.rows > 1 else matrix.columns,  # the stride of one row means nothing
        resolved(matrix.batch_stride),
    )


#: Launches seen, by identity: arguments that are the same in every call, and the places of those that are not.
_bound: dict[int, tuple[Launch, list[KernelArgument], list[tuple[int, Argument]]]] = {}
_BOUND_LAUNCHES = 4096


def _bind(launch: Launch) -> tuple[Launch, list[KernelArgument], list[tuple[int, Argument]]]:
    """Convert a launch's scalars once: a kernel has dozens, and a conversion costs as much as half a pointer."""
    fixed: list[KernelArgument] = []
    places: list[tuple[int, Argument]] = []
    for index, argument in enumerate(launch.arguments):
        constant = isinstance(argument, (I32, I64, F32, F64))
        fixed.append(_argument(argument, {}) if constant else None)
        if not constant:
            places.append((index, argument))
    if len(_bound) >= _BOUND_LAUNCHES:
        _bound.clear()
    entry = _bound[id(launch)] = launch, fixed, places
    return entry


def _arguments(launch: Launch, arrays: Arrays) -> list[KernelArgument]:
    # the entry holds its launch, so no other one can have got its identity
    _, fixed, places = _bound.get(id(launch)) or _bind(launch)
    resolved = fixed.copy()
    for index, argument in places:
        resolved[index] = _argument(argument, arrays)
    return resolved


def _run(steps: Sequence[Step], runtime: Runtime, arrays: Arrays) -> None:
    for step in steps:
        if isinstance(step, Launch):
            runtime.launch(step, _arguments(step, arrays))
        elif isinstance(step, Fft):
            source, destination = _argument(step.source, arrays), _argument(step.destination, arrays)
            assert isinstance(source, Pointer) and isinstance(destination, Pointer)
            runtime.fft(step, source, destination)
        else:
            left, right = (_operand(matrix, step.dtype, arrays) for matrix in (step.left, step.right))
            runtime.gemm(step, left, right, _operand(step.out, step.out_dtype, arrays))


def pack(plan: Plan, runtime: Runtime, weight: Any) -> dict[str, Any]:
    """Run the packing steps: the buffers of `plan.packed` by name."""
    packed = {buffer.name: runtime.empty((buffer.count,), buffer.dtype) for buffer in plan.packed}
    scratch = {w.name: runtime.empty((w.count,), w.dtype) for w in plan.packing_workspaces}
    _run(plan.packing_steps, runtime, {"weight": weight, **packed, **scratch})
    return packed


def execute(plan: Plan, runtime: Runtime, arrays: Arrays, packed: Arrays | None = None) -> None:
    """Run a plan on the caller's "x", "weight", "bias" (may be None) and "out".

    Workspaces live until the call returns; the runtime's allocator may hand them on in stream order.
    """
    buffers = {**arrays, **(pack(plan, runtime, arrays["weight"]) if packed is None else packed)}
    buffers.update((w.name, runtime.empty((w.count,), w.dtype)) for w in plan.workspaces)
    _run(plan.steps, runtime, buffers)


def _time_is_contiguous(array: Any) -> bool:
    """Whether kernels can read the array: unit time stride, whole elements between rows."""
    if array.flags.c_contiguous:
        return True
    itemsize = int(array.dtype.itemsize)
    whole = all(int(stride) % itemsize == 0 for stride in array.strides)
    return whole and (int(array.shape[-1]) <= 1 or int(array.strides[-1]) == itemsize)


def _is_library_matrix(array: Any) -> bool:
    """Whether BLAS takes the rows of (N, C, L) as a matrix: no two rows overlap, and the pitch is a 32-bit integer."""
    pitch = int(array.strides[1]) // int(array.dtype.itemsize)
    return int(array.shape[1]) == 1 or int(array.shape[2]) <= pitch < 2**30


def _by_library(plan: Plan) -> bool:
    """Whether the vendor's products read x."""
    return any(isinstance(step, Gemm) and "x" in (step.left.buffer, step.right.buffer) for step in plan.steps)


@dataclass(frozen=True)
class Packed:
    """Packed weights, and the point in their stream from which on they can be read."""

    buffers: Arrays
    mark: Any


class GpuEngine:
    """Runs plans on arrays of one runtime; the GPU's counterpart of the CPU engine."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime

    def device(self) -> DeviceSpec:
        """The device that the next call runs on."""
        return self.runtime.device()

    def complaint(self, name: str, array: Any) -> str | None:
        """Why an array cannot be used on the current device, or None."""
        return self.runtime.complaint(name, array)

    def empty(self, shape: tuple[int, ...], dtype: str) -> Any:
        """A new uninitialised array on that device."""
        return self.runtime.empty(shape, dtype)

    def asarray(self, values: Any) -> Any:
        """The values of a NumPy array as an array on that device."""
        return self.runtime.asarray(values)

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

    def settled(self, plan: Plan, x: Any) -> Any:
        """x, or a copy where the vendor's products read it: they choose a kernel by the alignment of what they read."""
        if not _by_library(plan):
            return x
        copy = self.runtime.empty(x.shape, x.dtype.name)
        self.runtime.copy(x, copy)
        return copy

    def pack(self, problem: Problem, plan: Plan, weight: Any) -> Packed:
        """What `run` takes as `packed`: the plan's buffers that depend on the weight only."""
        buffers = pack(plan, self.runtime, self.runtime.contiguous(weight))
        return Packed(buffers, self.runtime.mark())

    def run(
        self, problem: Problem, plan: Plan, x: Any, weight: Any, bias: Any, out: Any, packed: Packed | None = None
    ) -> None:
        """Compute the problem into `out`. x (N, C_in, L_in) and out (N, C_out, L_out) may have any strides.

        x is copied only if its time axis is not contiguous, or if BLAS is to read it and its rows overlap.
        """
        if not problem.batch:
            return
        if not _time_is_contiguous(x) or (not _is_library_matrix(x) and _by_library(plan)):
            x = self.runtime.contiguous(x)
        target = out if _time_is_contiguous(out) else self.runtime.empty(problem.out_shape, problem.out_dtype)
        arrays = {
            "x": x,
            "weight": self.runtime.contiguous(weight),
            "bias": None if bias is None else self.runtime.contiguous(bias),
            "out": target,
        }
        if packed is not None:
            self.runtime.wait(packed.mark)
        execute(plan, self.runtime, arrays, None if packed is None else packed.buffers)
        if target is not out:
            self.runtime.copy(target, out)
