# SPDX-License-Identifier: MIT
"""What a call costs in Python before the device has anything to do: microseconds, with every launch stubbed.

    python -m benchmarks.host            # arrays of NumPy under a class of their own: runs anywhere
    python -m benchmarks.host --cupy     # arrays of CuPy on memory that is not there: needs CuPy, no GPU

All of the library's own work is done as on a GPU: argument checks, device and overlap of the arrays, the remembered
choice, names resolved to pointers, the list of every kernel's arguments. Stubbed are

* the launches themselves, transforms and products of the libraries included: CuPy converts the arguments there;
* the allocation of results and workspaces, of which there is one for each shape and dtype;
* the wait for packed weights, one look at the current stream;
* the question for the current device, which is one call of the CUDA runtime.

An attribute costs much the same with both kinds of arrays, but for shape and strides, 0.06 us more with CuPy's, and the
address, which NumPy has no cheap attribute for: another one takes its place.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol
from unittest import mock

import numpy as np
import numpy.typing as npt

import cupy_convt as ct
from cupy_convt import engines
from cupy_convt.core.device import PRESETS, DeviceSpec
from cupy_convt.core.launch import Fft, Gemm, Launch, Step
from cupy_convt.engines.dtypes import named_dtype
from cupy_convt.engines.protocol import Kernel, KernelArgument, Operand, Pointer
from cupy_convt.engines.runtime import GpuEngine

Array = npt.NDArray[Any]
#: A vocoder layer, a depthwise one and a long filter: (x, weight, arguments).
LAYERS: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "dense": ((1, 512, 87), (512, 256, 16), {"stride": 8, "padding": 4}),
    "depthwise": ((1, 512, 400), (512, 1, 12), {"stride": 2, "padding": 5, "groups": 512}),
    "long filter": ((1, 1, 40000), (1, 1, 8192), {"stride": 2}),
}


class Idle(np.ndarray[Any, Any]):
    """An array on the device that does nothing."""


class IdleRuntime:
    """The Runtime protocol without a device; counts what it was asked to launch."""

    def __init__(self, spec: DeviceSpec = PRESETS["h200"]) -> None:
        self.spec, self.launches = spec, 0
        self._kept: dict[tuple[tuple[int, ...], str], Any] = {}

    def device(self) -> DeviceSpec:
        return self.spec

    def home(self, *arrays: Any) -> int | None:
        for array in arrays:
            if array is not None and array.device != "cpu":
                return None
        return 0

    def complaint(self, name: str, array: Any) -> str | None:
        return None

    def empty(self, shape: tuple[int, ...], dtype: str) -> Any:
        """Always the same array of a shape: what fresh host memory costs is not the question."""
        key = shape, dtype
        if key not in self._kept:
            self._kept[key] = self.fresh(shape, dtype)
        return self._kept[key]

    def fresh(self, shape: tuple[int, ...], dtype: str) -> Any:
        """Another array."""
        return np.empty(shape, named_dtype(dtype)).view(Idle)

    def asarray(self, values: Any) -> Any:
        return values.view(Idle)

    def contiguous(self, array: Any) -> Any:
        return array if array.flags.c_contiguous else np.ascontiguousarray(array).view(Idle)

    def copy(self, source: Any, destination: Any) -> None:
        pass

    def overlaps(self, a: Any, b: Any) -> bool:
        return bool(np.may_share_memory(a, b))

    def mark(self) -> None:
        pass

    def wait(self, mark: None) -> None:
        pass

    def ready(self, step: Step) -> None:
        pass

    def seconds(self, call: Callable[[], object]) -> float:
        call()
        return 0.0

    def pointer(self, array: Any) -> Pointer:
        """As cheap an attribute as CuPy's `data`, which NumPy's is not."""
        return array.base

    def scalar(self, value: np.generic) -> KernelArgument:
        return value

    def kernel(self, launch: Launch) -> Kernel:
        def run(arguments: Sequence[KernelArgument]) -> None:
            tuple(arguments)  # in the form that CuPy takes
            self.launches += 1

        return run

    def fft(self, step: Fft, source: Pointer, destination: Pointer) -> None:
        self.launches += 1

    def gemm(self, step: Gemm, left: Operand, right: Operand, out: Operand) -> None:
        self.launches += 1


RUNTIME = IdleRuntime()
engines.register(lambda array_class: array_class is Idle, "idle", lambda: GpuEngine(RUNTIME))


class Stubbed(Protocol):
    """What is asked of a runtime here."""

    launches: int

    def empty(self, shape: tuple[int, ...], dtype: str) -> Any: ...
    def fresh(self, shape: tuple[int, ...], dtype: str) -> Any: ...


@contextmanager
def stubbed_cupy() -> Iterator[Stubbed]:
    """Calls on arrays of CuPy run on its runtime, but for what the title says; the memory must not be touched."""
    import cupy

    from cupy_convt.engines.gpu import CupyRuntime

    class StubbedCupy(IdleRuntime):
        def fresh(self, shape: tuple[int, ...], dtype: str) -> Any:
            kind = named_dtype(dtype)
            nbytes = int(np.prod(shape)) * kind.itemsize
            self.top += nbytes
            memory = cupy.cuda.UnownedMemory(self.top - nbytes, nbytes, None, 0)
            return cupy.ndarray(shape, kind, memptr=cupy.cuda.MemoryPointer(memory, 0))

        top = 1 << 20
        home, pointer, scalar, overlaps = (
            getattr(CupyRuntime, name) for name in ("home", "pointer", "scalar", "overlaps")
        )

    runtime = StubbedCupy()
    with (
        mock.patch.object(cupy.cuda.runtime, "getDevice", int),  # int() is 0
        mock.patch.dict(engines._engines, {"cupy": GpuEngine(runtime)}),
    ):
        engines.engine_of_classes.cache_clear()
        yield runtime
    engines.engine_of_classes.cache_clear()


def microseconds(call: Callable[[], object], seconds: float = 0.2) -> float:
    """The least time of a call among batches of a hundred."""
    for _ in range(20):
        call()
    best, began = float("inf"), time.perf_counter()
    while best == float("inf") or time.perf_counter() - began < seconds:
        start = time.perf_counter()
        for _ in range(100):
            call()
        best = min(best, (time.perf_counter() - start) / 100)
    return best * 1e6


def host_cost(runtime: Stubbed = RUNTIME, seconds: float = 0.2) -> dict[str, dict[str, float]]:
    """Microseconds of Python of each layer's call: as a function, prepared, and prepared into a given result."""
    found: dict[str, dict[str, float]] = {}
    for name, (x_shape, weight_shape, arguments) in LAYERS.items():
        x, weight = (runtime.empty(shape, "float32") for shape in (x_shape, weight_shape))
        operator = ct.prepare(weight, **arguments)
        out = runtime.fresh(operator(x).shape, "float32")
        calls: dict[str, Callable[[], object]] = {
            "call": partial(ct.conv_transpose1d, x, weight, **arguments),
            "prepared": partial(operator, x),
            "prepared, out=": partial(operator, x, out=out),
        }
        found[name] = {kind: round(microseconds(call, seconds), 2) for kind, call in calls.items()}
        before = runtime.launches
        operator(x)
        found[name]["launches"] = runtime.launches - before
    return found


def main() -> None:
    """Print the microseconds as JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.host", description=__doc__.splitlines()[0])
    parser.add_argument("--cupy", action="store_true", help="with arrays of CuPy")
    if parser.parse_args().cupy:
        with stubbed_cupy() as runtime:
            print(json.dumps(host_cost(runtime), indent=1))
    else:
        print(json.dumps(host_cost(), indent=1))


if __name__ == "__main__":
    main()
