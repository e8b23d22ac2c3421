# SPDX-License-Identifier: MIT
"""What a call costs in Python before the device has anything to do: microseconds, with every launch stubbed.

    python -m benchmarks.host

Arrays are NumPy's under a class of their own, which the GPU engine takes with a runtime that launches nothing: argument
checks, the remembered choice, names resolved to pointers, all as on a GPU. What CuPy adds (an allocation of the result,
the launch itself) is not in it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

import cupy_convt as ct
from cupy_convt.core.device import PRESETS, DeviceSpec
from cupy_convt.core.launch import Fft, Gemm, Launch, Step
from cupy_convt.engines import register
from cupy_convt.engines.dtypes import named_dtype
from cupy_convt.engines.runtime import GpuEngine, KernelArgument, Operand, Pointer

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

    def complaint(self, name: str, array: Any) -> str | None:
        return None

    def empty(self, shape: tuple[int, ...], dtype: str) -> Any:
        """Always the same array of a shape: what fresh host memory costs is not the question."""
        key = shape, dtype
        if key not in self._kept:
            self._kept[key] = np.empty(shape, named_dtype(dtype)).view(Idle)
        return self._kept[key]

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

    def launch(self, launch: Launch, arguments: Sequence[KernelArgument]) -> None:
        self.launches += 1

    def fft(self, step: Fft, source: Pointer, destination: Pointer) -> None:
        self.launches += 1

    def gemm(self, step: Gemm, left: Operand, right: Operand, out: Operand) -> None:
        self.launches += 1


RUNTIME = IdleRuntime()
register(lambda array: type(array) is Idle, "idle", lambda: GpuEngine(RUNTIME))


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


def host_cost(seconds: float = 0.2) -> dict[str, dict[str, float]]:
    """Microseconds of Python of each layer's call: as a function, prepared, and prepared into a given result."""
    found: dict[str, dict[str, float]] = {}
    for name, (x_shape, weight_shape, arguments) in LAYERS.items():
        x, weight = (RUNTIME.empty(shape, "float32") for shape in (x_shape, weight_shape))
        operator = ct.prepare(weight, **arguments)
        out = np.empty_like(operator(x)).view(Idle)
        calls: dict[str, Callable[[], object]] = {
            "call": partial(ct.conv_transpose1d, x, weight, **arguments),
            "prepared": partial(operator, x),
            "prepared, out=": partial(operator, x, out=out),
        }
        found[name] = {kind: round(microseconds(call, seconds), 2) for kind, call in calls.items()}
        before = RUNTIME.launches
        operator(x)
        found[name]["launches"] = RUNTIME.launches - before
    return found


def main() -> None:
    """Print the microseconds as JSON."""
    print(json.dumps(host_cost(), indent=1))


if __name__ == "__main__":
    main()
