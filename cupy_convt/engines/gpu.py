# SPDX-License-Identifier: MIT
"""The CuPy runtime: probes the device, compiles and caches kernels, calls cuFFT and cuBLAS.

Everything is queued on CuPy's current stream of the current device, and all memory comes from CuPy's pool.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from types import SimpleNamespace
from typing import Any

import cupy
import numpy as np
from cupy.cuda.device import get_cublas_handle
from cupy.cuda.function import CNumpyArray

from cupy_convt.core.device import DEFAULT_SHARED_BYTES, DeviceSpec, spec_of
from cupy_convt.core.launch import Fft, Gemm, Launch, Step
from cupy_convt.engines.dtypes import named_dtype
from cupy_convt.engines.protocol import Kernel, KernelArgument, Operand, Pointer
from cupy_convt.engines.runtime import GpuEngine
from cupy_convt.engines.source import compiler_options, kernel_source

#: Transform plans kept per process; each holds a work area of about the size of its data.
FFT_PLANS = 16


@cache
def _probed(ordinal: int) -> DeviceSpec:
    device = cupy.cuda.Device(ordinal)
    name = cupy.cuda.runtime.getDeviceProperties(ordinal)["name"].decode()
    spec = spec_of(name, int(device.compute_capability), device.attributes)
    return replace(spec, own_instructions=_takes_own_instructions()) if spec.architecture == 90 else spec


def _takes_own_instructions() -> bool:
    """Whether the compiler takes sm_90a beside the -arch that CuPy adds: early ones of CUDA 12 refuse a second one."""
    options = compiler_options("implicit_gemm_wgmma")
    try:
        cupy.RawModule(code='extern "C" __global__ void probe() {}', options=options).compile()
    except cupy.cuda.compiler.CompileException:
        return False
    return True


@dataclass
class _Mark:
    """A recorded event, its stream, and whether it is known to have passed."""

    stream: int
    event: Any
    passed: bool = False


class CupyRuntime:
    """The Runtime protocol on CuPy arrays."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kernels: dict[tuple[Any, ...], Any] = {}
        self._transforms: OrderedDict[tuple[Any, ...], Any] = OrderedDict()

    def device(self) -> DeviceSpec:
        """The current device."""
        return _probed(cupy.cuda.runtime.getDevice())

    def home(self, *arrays: Any) -> int | None:
        """The current device's ordinal if all arrays live on it, else None."""
        here: int = cupy.cuda.runtime.getDevice()
        for array in arrays:
            if array is not None and array.data.device_id != here:
                return None
        return here

    def complaint(self, name: str, array: Any) -> str | None:
        """Arrays live on the current device, as everywhere in CuPy."""
        here, there = cupy.cuda.runtime.getDevice(), array.device.id
        return None if here == there else f"{name}: expected an array on the current device {here}, got device {there}"

    def empty(self, shape: tuple[int, ...], dtype: str) -> Any:
        """A new array, C-contiguous and uninitialised."""
        return cupy.ndarray(shape, named_dtype(dtype))  # as cupy.empty, without its own Python

    def asarray(self, values: Any) -> Any:
        """The values of a NumPy array on the current device."""
        return cupy.asarray(values)

    def contiguous(self, array: Any) -> Any:
        """The array itself if it is C-contiguous, else such a copy."""
        return cupy.ascontiguousarray(array)

    def copy(self, source: Any, destination: Any) -> None:
        """Copy elements between arrays of one shape and dtype, of any strides."""
        destination[...] = source

    def overlaps(self, a: Any, b: Any) -> bool:
        """Whether two arrays share memory."""
        return bool(cupy.may_share_memory(a, b))

    def mark(self) -> _Mark:
        """A point in the current stream.

        Raises:
            RuntimeError: the stream is being captured.
        """
        _refuse_capture("weights are packed to be kept")
        stream = cupy.cuda.get_current_stream()
        event = cupy.cuda.Event(disable_timing=True)
        event.record(stream)
        return _Mark(stream.ptr, event)

    def wait(self, mark: _Mark) -> None:
        """Order the current stream behind a mark of another one.

        A capture cannot wait for work outside of it: plan and pack before capturing, as for every kernel.
        """
        if mark.passed:
            return
        stream = cupy.cuda.get_current_stream()
        if stream.ptr == mark.stream or stream.is_capturing():
            return
        mark.passed = mark.event.done
        if not mark.passed:
            stream.wait_event(mark.event)

    def ready(self, step: Step) -> None:
        """Compile the kernel, plan the transform, or make the library's handle."""
        if isinstance(step, Launch):
            self.kernel(step)
        elif isinstance(step, Fft):
            self._transform(step)
        else:
            get_cublas_handle()

    def seconds(self, call: Callable[[], object]) -> float:
        """Time between two events around what a call queues; the host waits for it."""
        start, stop = cupy.cuda.Event(), cupy.cuda.Event()
        start.record()
        call()
        stop.record()
        stop.synchronize()
        return float(cupy.cuda.get_elapsed_time(start, stop)) * 1e-3

    def pointer(self, array: Any) -> Pointer:
        """Its memory, from the first element on."""
        return array.data

    def scalar(self, value: np.generic) -> KernelArgument:
        """The address of a copy: CuPy converts a scalar anew at each launch, and a kernel has dozens."""
        return _constant(value.dtype.char, value.tobytes())

    def kernel(self, launch: Launch) -> Kernel:
        """A kernel, compiled at its first use on a device (CuPy keeps the binary on disk)."""
        large = launch.shared_bytes > DEFAULT_SHARED_BYTES
        key = (cupy.cuda.runtime.getDevice(), launch.variant, large)
        kernel = self._kernels.get(key)
        if kernel is None:
            _refuse_capture(f"the kernel {launch.kernel} is compiled")
            options = (*compiler_options(launch.kernel), *(f"-D{name}={value}" for name, value in launch.defines))
            module = cupy.RawModule(code=kernel_source(launch.kernel), options=options)
            kernel = module.get_function(launch.kernel)
            if large:
                kernel.max_dynamic_shared_size_bytes = self.device().shared_bytes
            self._kernels[key] = kernel
        grid, block, shared_bytes = (launch.grid,), (launch.block,), launch.shared_bytes

        def run(arguments: Sequence[KernelArgument]) -> None:
            kernel(grid, block, tuple(arguments), shared_mem=shared_bytes)

        return run

    def fft(self, step: Fft, source: Pointer, destination: Pointer) -> None:
        """Run a batch of transforms by cuFFT."""
        direction = _CUFFT_INVERSE if step.kind == "c2c_inverse" else _CUFFT_FORWARD
        # Plan1d.fft reads no more of its arrays than .data.ptr
        ends = (SimpleNamespace(data=pointer) for pointer in (source, destination))
        self._transform(step).fft(*ends, direction)

    def _transform(self, step: Fft) -> Any:
        from cupy.cuda import cufft  # loads the library: only this method needs it

        # a plan owns one work area, so two streams must not share it
        stream = cupy.cuda.get_current_stream().ptr
        sizes = step.length, step.batch, (step.kind, step.spread) if step.spread else None
        key = (cupy.cuda.runtime.getDevice(), stream, _FFT_TYPES[step.kind, step.dtype], *sizes)
        with self._lock:
            plan = self._transforms.get(key)
            if plan is None:
                _refuse_capture(f"a transform of {step.length} points is planned")
                plan = _spread_plan(cufft, step) if step.spread else cufft.Plan1d(step.length, key[2], step.batch)
                self._transforms[key] = plan
            self._transforms.move_to_end(key)
            while len(self._transforms) > FFT_PLANS:
                self._transforms.popitem(last=False)
        return plan

    def gemm(self, step: Gemm, left: Operand, right: Operand, out: Operand) -> None:
        """Run a batch of products by cuBLAS, whose matrices are column-major: out^T = right^T left^T."""
        from cupy_backends.cuda.libs import cublas

        operand, result = _CUDA_TYPES[step.dtype], _CUDA_TYPES[step.out_dtype]
        double = step.out_dtype in ("float64", "complex128")
        compute = _COMPUTE_FAST_TF32 if step.tf32 else _COMPUTE_64F if double else _COMPUTE_32F
        one, zero = _SCALES[step.out_dtype]
        cublas.gemmStridedBatchedEx(
            get_cublas_handle(),
            _OP_N,
            _OP_T if step.left_transposed else _OP_N,
            *(out.columns, out.rows, right.rows, one),
            *(right.pointer.ptr, operand, right.row_stride, right.batch_stride),
            *(left.pointer.ptr, operand, left.row_stride, left.batch_stride),
            *(zero, out.pointer.ptr, result, out.row_stride, out.batch_stride),
            *(step.batch, compute, _GEMM_DEFAULT),
        )


@lru_cache(maxsize=4096)
def _constant(kind: str, content: bytes) -> KernelArgument:
    return CNumpyArray(np.frombuffer(content, kind))


def _refuse_capture(event: str) -> None:
    """A graph can hold launches, but neither compiling, nor planning, nor what outlives it can happen in its capture.

    Raises:
        RuntimeError: the current stream is being captured.
    """
    if cupy.cuda.get_current_stream().is_capturing():
        raise RuntimeError(
            f"stream: expected none that is being captured while {event}, got a capture of a CUDA graph; make the call "
            "once before the capture, or cupy_convt.precompile"
        )


def _spread_plan(cufft: Any, step: Fft) -> Any:
    """A plan whose spectra lie frequency by frequency: their elements are `spread` apart, the transforms one."""
    bins = step.length if step.kind.startswith("c2c") else step.length // 2 + 1
    plain, spread = ((step.length,), 1, step.length), ((bins,), step.spread, 1)
    ends = (plain, spread) if step.kind in ("r2c", "c2c") else (spread, plain)
    layout = (*ends[0], *ends[1])
    return cufft.PlanNd((step.length,), *layout, _FFT_TYPES[step.kind, step.dtype], step.batch, "C", 0, None)


# cudaDataType_t of library_types.h; the rest from cublas_api.h and cufft.h
_CUDA_TYPES = {"float32": 0, "float64": 1, "float16": 2, "complex64": 4, "complex128": 5, "bfloat16": 14}
_OP_N, _OP_T, _GEMM_DEFAULT = 0, 1, -1
_COMPUTE_32F, _COMPUTE_64F, _COMPUTE_FAST_TF32 = 68, 70, 77
_ONE_AND_ZERO = [np.array([1, 0], dtype) for dtype in ("float32", "float64", "complex64", "complex128")]
#: Addresses of a product's factors: 1 for the product, 0 for what was there.
_SCALES = {pair.dtype.name: (pair.ctypes.data, pair.ctypes.data + pair.itemsize) for pair in _ONE_AND_ZERO}
_CUFFT_FORWARD, _CUFFT_INVERSE = -1, 1
_FFT_TYPES = {
    ("r2c", "float32"): 0x2A,
    ("c2r", "float32"): 0x2C,
    ("c2c", "float32"): 0x29,
    ("c2c_inverse", "float32"): 0x29,
    ("r2c", "float64"): 0x6A,
    ("c2r", "float64"): 0x6C,
    ("c2c", "float64"): 0x69,
    ("c2c_inverse", "float64"): 0x69,
}


def make_engine() -> GpuEngine:
    """The engine of CuPy arrays."""
    return GpuEngine(CupyRuntime())


def array_module(ordinal: int | None) -> tuple[Any, int]:
    """CuPy, and the ordinal of a device; None is the current one.

    Raises:
        ValueError: there is no such device.
    """
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        raise ValueError(f"device: expected a CUDA device, got none ({error})") from error
    if ordinal is None:
        return cupy, cupy.cuda.runtime.getDevice()
    if ordinal >= count:
        raise ValueError(f"device: expected 'cuda:0' to 'cuda:{count - 1}', got 'cuda:{ordinal}'")
    return cupy, ordinal


def probe(ordinal: int | None) -> DeviceSpec:
    """The DeviceSpec of a device; None is the current one.

    Raises:
        ValueError: there is no such device.
    """
    return _probed(array_module(ordinal)[1])
