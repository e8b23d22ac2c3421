# SPDX-License-Identifier: MIT
"""The Runtime protocol on emulated device memory: what CuPy is to users, for tests without a GPU.

Kernels run as the emulator compiled them; library transforms and products are NumPy's, in the precision of their dtype.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np

from cupy_convt.core.device import PRESETS, DeviceSpec
from cupy_convt.core.launch import Fft, Gemm, Launch, Step, Variant
from cupy_convt.engines.bound import Bound
from cupy_convt.engines.dtypes import named_dtype
from cupy_convt.engines.layout import Layout
from cupy_convt.engines.protocol import Kernel, KernelArgument, Operand
from cupy_convt.engines.runtime import GpuEngine
from cupy_convt.engines.source import kernel_source
from tests.emulator.counters import LaunchStats
from tests.emulator.memory import At, DeviceBuffer
from tests.emulator.runner import EmuKernel, EmuModule


class EmulatedArray(np.ndarray):
    """An array in emulated device memory. Slices and reshapes stay in it; results of arithmetic are host arrays."""

    buffer: DeviceBuffer | None = None

    def __array_finalize__(self, parent: Any) -> None:
        buffer = getattr(parent, "buffer", None)
        inside = buffer is not None and buffer.ptr <= self.ctypes.data <= buffer.ptr + buffer.nbytes
        self.buffer = buffer if inside else None

    def astype(self, dtype: Any, *_: Any, **__: Any) -> EmulatedArray:
        """A copy on the device, as CuPy's."""
        return to_device(np.asarray(to_host(self)).astype(dtype))

    @property
    def byte_offset(self) -> int:
        """Where the first element lies in the buffer."""
        assert self.buffer is not None, "expected an array in emulated device memory"
        return self.ctypes.data - self.buffer.ptr


def over(buffer: DeviceBuffer, shape: tuple[int, ...], dtype: np.dtype[Any]) -> EmulatedArray:
    """The buffer's memory as an array."""
    count = int(np.prod(shape, dtype=np.int64))
    array = buffer.view(dtype, count).reshape(shape).view(EmulatedArray)
    array.buffer = buffer
    return array


def to_device(array: np.ndarray) -> EmulatedArray:
    """A C-contiguous copy in emulated device memory."""
    array = np.asarray(array)
    return over(DeviceBuffer.from_host(array), array.shape, array.dtype)


def empty(shape: tuple[int, ...], dtype: str, shift: int = 0) -> EmulatedArray:
    """Never written memory, `shift` elements past an aligned address."""
    kind = named_dtype(dtype)
    count = int(np.prod(shape, dtype=np.int64)) + shift
    return over(DeviceBuffer(count * kind.itemsize), (count,), kind)[shift:].reshape(shape)


def to_host(array: np.ndarray) -> np.ndarray:
    """A host copy; EmuError if any of its elements was never written."""
    assert isinstance(array, EmulatedArray) and array.buffer is not None
    itemsize = array.dtype.itemsize
    flags = array.buffer.flags
    offsets = array.byte_offset + sum(
        np.arange(n).reshape((-1,) + (1,) * (array.ndim - 1 - axis)) * stride
        for axis, (n, stride) in enumerate(zip(array.shape, array.strides, strict=True))
    )
    if array.size and array.buffer.tracked:
        written = np.stack([flags[offsets + i] & 1 for i in range(itemsize)])
        assert written.all(), f"{int((written == 0).any(axis=0).sum())} of {array.size} elements were never written"
    return np.array(array, copy=True, subok=False)


class Place(At):
    """A pointer that moves by bytes, as those of CuPy."""

    def __add__(self, nbytes: int) -> Place:
        return Place(self.buffer, self.offset + nbytes)


@cache
def compiled(variant: Variant, mode: str, counters: bool = False) -> EmuKernel:
    """A kernel variant, built once for the process (and kept on disk by the emulator)."""
    stem, defines = variant
    code, options = kernel_source(stem), dict(defines)
    return EmuModule(code=code, entries=[stem], mode=mode, defines=options, counters=counters).kernel(stem)


class EmulatorRuntime:
    """The Runtime protocol; `stats` lists (launch, counters) of every kernel launch, counted if `counters` is set."""

    def __init__(
        self, mode: str = "check", spec: DeviceSpec = PRESETS["h200"], counters: bool = False, **launch_options: Any
    ) -> None:
        self.mode, self.spec, self.counters, self.launch_options = mode, spec, counters, launch_options
        self.stats: list[tuple[Launch, LaunchStats]] = []

    def device(self) -> DeviceSpec:
        return self.spec

    def home(self, *arrays: Any) -> int | None:
        return 0

    def complaint(self, name: str, array: Any) -> str | None:
        return None

    def empty(self, shape: tuple[int, ...], dtype: str) -> EmulatedArray:
        return empty(shape, dtype)

    def asarray(self, values: Any) -> EmulatedArray:
        return to_device(values)

    def contiguous(self, array: Any) -> Any:
        return array if array.flags.c_contiguous else to_device(to_host(array))

    def copy(self, source: Any, destination: Any) -> None:
        destination[...] = source
        assert destination.buffer is not None
        destination.buffer.mark_written()

    def overlaps(self, a: Any, b: Any) -> bool:
        return bool(np.may_share_memory(a, b))

    def mark(self) -> None:
        """Nothing runs ahead in the emulator."""

    def wait(self, mark: None) -> None:
        pass

    def ready(self, step: Step) -> None:
        if isinstance(step, Launch):
            compiled(step.variant, self.mode, self.counters)

    def seconds(self, call: Callable[[], object]) -> float:
        start = time.perf_counter()
        call()
        return time.perf_counter() - start

    def pointer(self, array: Any) -> Place:
        return Place(array.buffer, array.byte_offset)

    def scalar(self, value: np.generic) -> KernelArgument:
        return value

    def kernel(self, launch: Launch) -> Kernel:
        def run(arguments: Sequence[KernelArgument]) -> None:
            assert launch.shared_bytes <= self.spec.shared_bytes, launch
            kernel = compiled(launch.variant, self.mode, self.counters)
            kernel.max_dynamic_shared_size_bytes = self.spec.shared_bytes
            kernel((launch.grid,), (launch.block,), arguments, launch.shared_bytes, **self.launch_options)
            self.stats.append((launch, kernel.stats))

        return run

    def fft(self, step: Fft, source: Place, destination: Place) -> None:
        real = np.dtype(step.dtype)
        pair = np.result_type(real, np.complex64)
        half, n = step.length // 2 + 1, step.length
        given, made = {
            "r2c": ((real, n), (pair, half)),
            "c2r": ((pair, half), (real, n)),
        }.get(step.kind, ((pair, n), (pair, n)))
        inverse = step.kind in ("c2r", "c2c_inverse")
        if step.spread and inverse:
            places = [source + f * step.spread * given[0].itemsize for f in range(given[1])]
            before = np.stack([_read(place, given[0], step.batch) for place in places], axis=1)
        else:
            before = _read(source, given[0], step.batch * given[1]).reshape(step.batch, given[1])
        transform = {
            "r2c": np.fft.rfft,
            "c2r": lambda a, axis: np.fft.irfft(a, n, axis=axis) * n,
            "c2c": np.fft.fft,
            "c2c_inverse": lambda a, axis: np.fft.ifft(a, axis=axis) * n,
        }[step.kind]
        after = transform(before, axis=1).astype(made[0])
        if not step.spread or inverse:
            _write(destination, after)
            return
        for f, row in enumerate(after.T):
            _write(destination + f * step.spread * row.itemsize, np.ascontiguousarray(row))

    def gemm(self, step: Gemm, left: Operand, right: Operand, out: Operand) -> None:
        assert left.row_stride >= left.columns and right.row_stride >= right.columns, "rows of a library matrix overlap"
        kind = np.dtype(step.out_dtype)
        for b in range(step.batch):
            a = _matrix(left, b, named_dtype(step.dtype)).astype(kind)
            product = (a.T if step.left_transposed else a) @ _matrix(right, b, named_dtype(step.dtype)).astype(kind)
            assert product.shape == (out.rows, out.columns), step
            for i, row in enumerate(product):
                shift = (b * out.batch_stride + i * out.row_stride) * kind.itemsize
                _write(out.pointer + shift, row)


def _read(place: Place, dtype: np.dtype[Any], count: int) -> np.ndarray:
    return place.buffer.to_host(dtype, count, place.offset)


def _write(place: Place, values: np.ndarray) -> None:
    place.buffer.set(values, place.offset)


def _matrix(operand: Operand, index: int, dtype: np.dtype[Any]) -> np.ndarray:
    first = index * operand.batch_stride
    rows = [
        _read(operand.pointer + (first + i * operand.row_stride) * dtype.itemsize, dtype, operand.columns)
        for i in range(operand.rows)
    ]
    return np.stack(rows)


def run_steps(runtime: EmulatorRuntime, steps: Sequence[Step], arrays: Mapping[str, Any]) -> None:
    """Some steps of a plan on arrays by name; None for a bias that is not there."""
    layouts = {name: None if array is None else Layout.of(array) for name, array in arrays.items()}
    pointers = [None if array is None else runtime.pointer(array) for array in arrays.values()]
    Bound(runtime, steps, layouts)(pointers)


def make_engine(mode: str = "check", spec: DeviceSpec = PRESETS["h200"], **options: Any) -> GpuEngine:
    """A GPU engine on the emulator; options are those of EmulatorRuntime."""
    return GpuEngine(EmulatorRuntime(mode, spec, **options))
