# SPDX-License-Identifier: MIT
"""The small protocol through which plans reach a device: CuPy implements it for users, an emulator for tests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from cupy_convt.core.device import DeviceSpec
from cupy_convt.core.launch import Fft, Gemm, Launch, Step

#: A place in device memory, which keeps that memory; a pointer plus an int is the place so many bytes further.
Pointer = Any
#: A pointer, what Runtime.scalar made of a scalar, or None for a null pointer.
KernelArgument = Any
#: Queues a kernel with the arguments given.
Kernel = Callable[[Sequence[KernelArgument]], None]


class Operand(NamedTuple):
    """A Matrix with its names resolved; strides in elements of the Gemm's dtype."""

    pointer: Pointer
    rows: int
    columns: int
    row_stride: int
    batch_stride: int


class Runtime(Protocol):
    """What executing a plan needs of a device. Everything is queued on the current stream; nothing waits."""

    def device(self) -> DeviceSpec:
        """The current device."""

    def home(self, *arrays: Any) -> int | None:
        """The number of the current device if all arrays that are not None lie on it, else None."""

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

    def pointer(self, array: Any) -> Pointer:
        """The place of an array's first element."""

    def scalar(self, value: np.generic) -> KernelArgument:
        """A scalar in the form that costs the least at each launch."""

    def kernel(self, launch: Launch) -> Kernel:
        """The kernel of a launch, compiled for the current device, with its grid, block and shared memory."""

    def fft(self, step: Fft, source: Pointer, destination: Pointer) -> None:
        """Run a batch of library transforms."""

    def gemm(self, step: Gemm, left: Operand, right: Operand, out: Operand) -> None:
        """Run a batch of library matrix products."""
