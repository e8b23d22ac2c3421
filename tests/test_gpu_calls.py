# SPDX-License-Identifier: MIT
"""The CuPy runtime without a device: what it hands to cuBLAS, cuFFT and RawModule, judged by stand-ins."""

from __future__ import annotations

import ctypes
import sys
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from cupy_convt.core.device import PRESETS
from cupy_convt.core.launch import I32, At, Fft, Gemm, Launch, Matrix
from cupy_convt.engines.dtypes import named_dtype
from cupy_convt.engines.protocol import Operand

cupy = pytest.importorskip("cupy", exc_type=ImportError)
gpu = pytest.importorskip("cupy_convt.engines.gpu", exc_type=ImportError)


@dataclass(frozen=True)
class Memory:
    """Stands in for cupy.cuda.MemoryPointer."""

    ptr: int

    def __add__(self, offset: int) -> Memory:
        return Memory(self.ptr + offset)


class Device:
    """Stands in for cupy.ndarray: an array of which only `.data` and `.dtype` are asked for."""

    def __init__(self, values: np.ndarray) -> None:
        self.values = values
        self.dtype = values.dtype
        self.data = Memory(values.ctypes.data)


def column_major(pointer: int, dtype: Any, rows: int, columns: int, pitch: int) -> np.ndarray:
    """A library matrix as a writable view."""
    count = pitch * (columns - 1) + rows
    raw = np.frombuffer((ctypes.c_char * (count * dtype.itemsize)).from_address(pointer), dtype)
    return np.lib.stride_tricks.as_strided(raw, (rows, columns), (dtype.itemsize, pitch * dtype.itemsize))


TYPES = {0: "float32", 1: "float64", 2: "float16", 4: "complex64", 5: "complex128", 14: "bfloat16"}
COMPUTES = {68: ("float32", "complex64"), 70: ("float64", "complex128"), 77: ("float32",)}


class Cublas:
    """cublasGemmStridedBatchedEx as its manual defines it."""

    def gemmStridedBatchedEx(
        self, handle, transa, transb, m, n, k, alpha, A, Atype, lda, strideA, B, Btype, ldb, strideB,
        beta, C, Ctype, ldc, strideC, batchCount, computeType, algo,
    ) -> None:  # fmt: skip
        a_type, b_type, c_type = (named_dtype(TYPES[t]) for t in (Atype, Btype, Ctype))
        assert (handle, algo) == (7, -1)
        assert c_type.name in COMPUTES[computeType]
        scales = [np.frombuffer((ctypes.c_char * c_type.itemsize).from_address(p), c_type)[0] for p in (alpha, beta)]
        assert scales == [1, 0]
        assert lda >= (k if transa else m)
        assert ldb >= (n if transb else k)
        assert ldc >= m
        for i in range(batchCount):
            a_shape, b_shape = (k, m) if transa else (m, k), (n, k) if transb else (k, n)
            a = column_major(A + i * strideA * a_type.itemsize, a_type, *a_shape, lda)
            b = column_major(B + i * strideB * b_type.itemsize, b_type, *b_shape, ldb)
            c = column_major(C + i * strideC * c_type.itemsize, c_type, m, n, ldc)
            c[...] = (a.T if transa else a).astype(c_type) @ (b.T if transb else b).astype(c_type)


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Any:
    import cupy_backends.cuda.libs

    monkeypatch.setitem(vars(cupy_backends.cuda.libs), "cublas", Cublas())  # loading the real one may fail
    monkeypatch.setattr(gpu, "get_cublas_handle", lambda: 7)
    monkeypatch.setattr(cupy.cuda.runtime, "getDevice", lambda: 0, raising=False)
    monkeypatch.setattr(cupy.cuda, "get_current_stream", lambda: SimpleStream(0))
    return gpu.CupyRuntime()


@pytest.mark.parametrize("transposed", [True, False])
@pytest.mark.parametrize(
    ("dtype", "out_dtype"),
    [
        ("float32", "float32"),
        ("float16", "float32"),
        ("bfloat16", "float32"),
        ("complex64", "complex64"),
        ("float64",) * 2,
    ],
)
def test_a_product_reaches_cublas_as_it_was_meant(runtime, transposed: bool, dtype: str, out_dtype: str) -> None:
    batch, rows, inner, columns = 3, 4, 5, 6
    rng = np.random.default_rng(0)
    left = rng.integers(-4, 5, (batch, inner, rows + 2) if transposed else (batch, rows, inner + 2)).astype(
        named_dtype(dtype)
    )
    right = rng.integers(-4, 5, (batch, inner, columns + 3)).astype(named_dtype(dtype))
    out = np.zeros((batch, rows, columns + 1), out_dtype)
    wide = [Matrix("", 0, a.shape[1], a.shape[2], a.shape[2], a[0].size) for a in (left, right, out)]
    step = Gemm(*wide, batch, transposed, dtype, out_dtype)
    shape = (inner, rows) if transposed else (rows, inner)
    item = left.itemsize
    operands = (
        Operand(Device(left).data + 2 * item, *shape, left.shape[2], left[0].size),
        Operand(Device(right).data + 3 * item, inner, columns, right.shape[2], right[0].size),
        Operand(Device(out).data + out.itemsize, rows, columns, out.shape[2], out[0].size),
    )
    runtime.gemm(step, *operands)
    a = left[:, :, 2:].astype(out_dtype)
    wanted = (a.transpose(0, 2, 1) if transposed else a) @ right[:, :, 3:].astype(out_dtype)
    np.testing.assert_array_equal(out[:, :, 1:], wanted)
    assert not out[:, :, 0].any()


def test_transforms_are_planned_once_for_each_stream_and_forgotten_in_order(runtime, monkeypatch) -> None:
    made: list[tuple[int, int, int]] = []
    calls: list[tuple[int, int, int]] = []
    current = SimpleStream(1)

    class Plan1d:
        def __init__(self, nx: int, fft_type: int, batch: int) -> None:
            made.append((nx, fft_type, batch))

        def fft(self, a: Any, out: Any, direction: int) -> None:
            calls.append((a.data.ptr, out.data.ptr, direction))

    library = type("cufft", (), {"Plan1d": Plan1d})
    monkeypatch.setitem(vars(cupy.cuda), "cufft", library)
    monkeypatch.setattr(cupy.cuda, "get_current_stream", lambda: current)
    x, y = Device(np.zeros(8)), Device(np.zeros(8))

    def transform(kind: str, length: int = 16, dtype: str = "float32") -> None:
        runtime.fft(Fft(kind, length, 2, At("x", 0), At("y", 0), dtype), x.data + 8, y.data + 16)

    for kind in ("r2c", "r2c", "c2r", "c2c", "c2c_inverse"):
        transform(kind)
    assert made == [(16, 0x2A, 2), (16, 0x2C, 2), (16, 0x29, 2)]  # both directions of c2c share a plan
    assert [call[2] for call in calls] == [-1, -1, -1, -1, 1]
    assert calls[0][:2] == (x.data.ptr + 8, y.data.ptr + 16)
    transform("r2c", dtype="float64")
    assert made[-1] == (16, 0x6A, 2)
    current.ptr = 2
    transform("r2c")
    assert len(made) == 5
    for length in range(20, 20 + gpu.FFT_PLANS):
        transform("r2c", length)
    before = len(made)
    transform("r2c", 20 + gpu.FFT_PLANS - 1)
    assert len(made) == before
    transform("r2c")
    assert len(made) == before + 1


@pytest.mark.parametrize(
    ("kind", "layout"),
    [
        ("r2c", ((16,), 1, 16, (9,), 5, 1)),
        ("c2r", ((9,), 5, 1, (16,), 1, 16)),
        ("c2c", ((16,), 1, 16, (16,), 5, 1)),
        ("c2c_inverse", ((16,), 5, 1, (16,), 1, 16)),
    ],
)
def test_spread_spectra_are_strides_of_the_plan(runtime, monkeypatch, kind: str, layout: tuple[Any, ...]) -> None:
    made: list[tuple[Any, ...]] = []
    library = SimpleNamespace(PlanNd=lambda *a: made.append(a) or SimpleNamespace(fft=lambda *b: None))
    monkeypatch.setitem(vars(cupy.cuda), "cufft", library)
    monkeypatch.setattr(cupy.cuda, "get_current_stream", lambda: SimpleStream(1))
    x = Device(np.zeros(8))
    for _ in range(2):
        runtime.fft(Fft(kind, 16, 3, At("x", 0), At("x", 0), "float32", 5), x.data, x.data)
    assert made == [((16,), *layout, gpu._FFT_TYPES[kind, "float32"], 3, "C", 0, None)]


@dataclass
class SimpleStream:
    ptr: int
    capturing: bool = False

    def is_capturing(self) -> bool:
        return self.capturing


class Event:
    """Stands in for cupy.cuda.Event: knows when it was recorded, by a clock of the test."""

    clock = 0.0

    def record(self, stream: Any = None) -> None:
        self.at = Event.clock

    def synchronize(self) -> None:
        pass


def test_nothing_is_compiled_planned_or_packed_while_a_graph_is_captured(runtime, monkeypatch) -> None:
    stream = SimpleStream(1)
    made: list[str] = []
    kernel = SimpleNamespace(max_dynamic_shared_size_bytes=0)
    module = SimpleNamespace(get_function=lambda name: lambda *a, **k: made.append(name) or kernel)
    library = SimpleNamespace(Plan1d=lambda *a: SimpleNamespace(fft=lambda *b: made.append("transform")))
    monkeypatch.setattr(cupy.cuda, "get_current_stream", lambda: stream)
    monkeypatch.setattr(cupy, "RawModule", lambda **_: module)
    monkeypatch.setitem(vars(cupy.cuda), "cufft", library)
    x = Device(np.zeros(8, np.float32))
    launch = Launch("direct_gather", (("CONVT_X", "float"), ("CONVT_W", "float")), 1, 256, 0, ("x",))
    step = Fft("r2c", 16, 2, At("x", 0), At("y", 0), "float32")
    calls = {
        "the kernel direct_gather is compiled": lambda: runtime.kernel(launch)([x.data]),
        "a transform of 16 points is planned": lambda: runtime.fft(step, x.data, x.data),
    }
    stream.capturing = True
    for what, call in calls.items():
        with pytest.raises(RuntimeError, match=f"stream: expected none that is being captured while {what}"):
            call()
    with pytest.raises(RuntimeError, match="while weights are packed to be kept, got a capture of a CUDA graph"):
        runtime.mark()
    assert not made
    stream.capturing = False
    runtime.ready(launch)
    runtime.ready(step)
    assert not made
    stream.capturing = True
    for call in calls.values():
        call()
    assert made == ["direct_gather", "transform"]


def test_arrays_are_at_home_on_the_current_device(runtime) -> None:
    def on(ordinal: int) -> Any:
        return SimpleNamespace(data=SimpleNamespace(device_id=ordinal))

    assert runtime.home(on(0), None, on(0)) == 0
    assert runtime.home(on(1), on(1)) is None
    assert runtime.home(on(0), on(0), None, on(1)) is None


def test_the_stream_is_not_asked_for_once_a_mark_has_passed(runtime, monkeypatch) -> None:
    waited: list[Any] = []
    stream = SimpleNamespace(ptr=2, is_capturing=lambda: False, wait_event=waited.append)
    monkeypatch.setattr(cupy.cuda, "get_current_stream", lambda: stream)
    event = SimpleNamespace(done=False)
    mark = gpu._Mark(1, event)
    runtime.wait(mark)
    event.done = True
    runtime.wait(mark)
    monkeypatch.setattr(cupy.cuda, "get_current_stream", None)
    runtime.wait(mark)
    assert waited == [event]


def test_time_is_what_passes_between_two_events(runtime, monkeypatch) -> None:
    monkeypatch.setattr(cupy.cuda, "Event", Event)
    monkeypatch.setattr(cupy.cuda, "get_elapsed_time", lambda start, stop: stop.at - start.at, raising=False)

    def call() -> None:
        Event.clock += 2.5

    assert runtime.seconds(call) == pytest.approx(2.5e-3)


def test_a_product_is_made_ready_by_its_handle(runtime, monkeypatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(gpu, "get_cublas_handle", lambda: asked.append(7))
    wide = Matrix("", 0, 2, 2, 2, 4)
    runtime.ready(Gemm(wide, wide, wide, 1, False, "float32", "float32"))
    assert asked == [7]


def test_kernels_are_compiled_once_and_asked_for_their_shared_memory(runtime, monkeypatch) -> None:
    built: list[tuple[str, tuple[str, ...]]] = []
    launched: list[tuple[Any, ...]] = []

    class Kernel:
        max_dynamic_shared_size_bytes = 0

        def __call__(self, grid, block, args, *, shared_mem=0) -> None:
            launched.append((grid, block, args, shared_mem, self.max_dynamic_shared_size_bytes))

    class Module:
        def __init__(self, *, code: str, options: tuple[str, ...]) -> None:
            assert "direct_stream(" in code
            assert '#include "types.cuh"' not in code
            built.append((code, options))

        def get_function(self, name: str) -> Kernel:
            assert name == "direct_stream"
            return Kernel()

    monkeypatch.setattr(cupy, "RawModule", Module)
    monkeypatch.setattr(gpu, "_probed", lambda ordinal: PRESETS["h200"])
    x = Device(np.zeros(8, np.float32))
    small = Launch("direct_stream", (("CONVT_X", "float"), ("CONVT_R", 2)), 5, 128, 1000, ("x", I32(3)))
    large = Launch("direct_stream", small.defines, 5, 128, 60 << 10, ("x", I32(3)))
    for launch in (small, small, large, large):
        runtime.kernel(launch)([runtime.pointer(x) + 12, np.int32(3), None])
    assert [options for _, options in built] == [("-std=c++17", "-DCONVT_X=float", "-DCONVT_R=2")] * 2
    assert launched[0] == ((5,), (128,), (Memory(x.data.ptr + 12), np.int32(3), None), 1000, 0)
    assert launched[3][3:] == (60 << 10, PRESETS["h200"].shared_bytes)


@pytest.mark.parametrize("takes", [True, False])
def test_a_compiler_that_refuses_a_second_architecture_is_noticed(monkeypatch, takes: bool) -> None:
    asked: list[tuple[str, ...]] = []

    class Module:
        def __init__(self, *, code: str, options: tuple[str, ...]) -> None:
            asked.append(options)

        def compile(self) -> None:
            if not takes:
                raise cupy.cuda.compiler.CompileException("defined more than once", "", "", (), "nvrtc")

    capability, name = "90", "NVIDIA H200"
    monkeypatch.setattr(cupy, "RawModule", Module)
    monkeypatch.setattr(
        cupy.cuda, "Device", lambda n: SimpleNamespace(compute_capability=capability, attributes=attributes)
    )
    monkeypatch.setattr(cupy.cuda.runtime, "getDeviceProperties", lambda n: {"name": name.encode()}, raising=False)
    attributes = {"MultiProcessorCount": 132}
    spec = gpu._probed.__wrapped__(0)
    assert spec == replace(PRESETS["h200"], own_instructions=takes)
    assert asked == [("-std=c++17", "-arch=sm_90a")]
    capability, name, attributes = "80", "NVIDIA A100", {"MultiProcessorCount": 108}
    assert gpu._probed.__wrapped__(0) == PRESETS["a100"]
    assert len(asked) == 1


def test_kernels_for_one_architecture_are_compiled_for_it(runtime, monkeypatch) -> None:
    built: list[tuple[str, ...]] = []
    kernel = SimpleNamespace(max_dynamic_shared_size_bytes=0)

    def module(*, code: str, options: tuple[str, ...]) -> Any:
        built.append(options)
        return SimpleNamespace(get_function=lambda name: kernel)

    monkeypatch.setattr(cupy, "RawModule", module)
    monkeypatch.setattr(gpu, "_probed", lambda ordinal: PRESETS["h200"])
    runtime.ready(Launch("implicit_gemm_wgmma", (("CONVT_T", "float"),), 5, 512, 100 << 10, ()))
    assert built == [("-std=c++17", "-arch=sm_90a", "-DCONVT_T=float")]


def test_cupy_takes_what_the_runtime_hands_over() -> None:
    """CuPy converts a launch's arguments before it asks the driver for anything, and refuses what it does not know."""
    from cupy.cuda.function import Function

    try:
        cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError:
        pass
    else:
        pytest.skip("launches of no kernel are for machines without a driver; tests/test_gpu.py launches real ones")
    place = cupy.cuda.MemoryPointer(cupy.cuda.UnownedMemory(4096, 64, None, 0), 0) + 8
    assert place.ptr == 4104

    def convert(argument: object) -> None:
        Function.__new__(Function)((1,), (1,), (argument,), stream=cupy.cuda.Stream.null)

    with pytest.raises(TypeError, match="Unsupported type"):
        convert(object())
    scalars = [gpu.CupyRuntime().scalar(value) for value in (np.int32(1), np.int64(1), np.float32(1), np.float64(1))]
    for argument in (place, None, *scalars):
        with pytest.raises(Exception, match="CUDA|INVALID"):
            convert(argument)


def test_scalars_are_addresses_of_copies_that_live_as_long(monkeypatch) -> None:
    """CuPy takes the address in such an object as it is; the driver reads as many bytes as the parameter has."""
    held: list[np.ndarray] = []
    original = gpu.CNumpyArray
    monkeypatch.setattr(gpu, "CNumpyArray", lambda array: held.append(array) or original(array))
    gpu._constant.cache_clear()
    scalar = gpu.CupyRuntime().scalar
    values = np.int32(7), np.int64(7), np.float64(0.0), np.float64(-0.0)
    made = [scalar(value) for value in values]
    for value, array in zip(values, held, strict=True):
        assert array.dtype == value.dtype and array.tobytes() == value.tobytes()
    assert scalar(np.int32(7)) is made[0]
    before = [sys.getrefcount(array) for array in held]
    made.clear()
    gpu._constant.cache_clear()
    assert [sys.getrefcount(array) for array in held] == [count - 1 for count in before]
