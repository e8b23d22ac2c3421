# SPDX-License-Identifier: MIT
"""Steps of plans with their names resolved: what is left to a call is to put pointers in their places.

A kernel has dozens of arguments, of which only the pointers differ from call to call: scalars are converted and strides
of the caller's arrays looked up once, for arrays of one layout.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from cupy_convt.core.launch import F32, F64, I32, I64, Argument, At, Fft, Gemm, Launch, Matrix, Step, Stride
from cupy_convt.core.problem import ITEM_BYTES
from cupy_convt.engines.layout import Layout
from cupy_convt.engines.protocol import KernelArgument, Operand, Pointer, Runtime

#: Layouts of arrays by name; None for a bias that is not there.
Layouts = Mapping[str, Layout | None]
_SCALARS: dict[type, Callable[[Any], np.generic]] = {
    I32: np.int32,
    I64: np.int64,
    Stride: np.int64,
    F32: np.float32,
    F64: np.float64,
}


class Bound:
    """Steps bound to a runtime, its current device, and the layouts of the arrays that they name.

    `layouts` is in the order in which the call gets the pointers of the arrays.
    """

    def __init__(self, runtime: Runtime, steps: Iterable[Step], layouts: Layouts) -> None:
        self._runtime, self._layouts = runtime, layouts
        self._places = {name: place for place, name in enumerate(layouts)}
        self.names: set[str] = set()
        self._calls = [self._bound(step) for step in steps]

    def __call__(self, pointers: Sequence[Pointer]) -> None:
        """Queue the steps."""
        for call in self._calls:
            call(pointers)

    def _bound(self, step: Step) -> Callable[[Sequence[Pointer]], None]:
        if isinstance(step, Launch):
            return self._launch(step)
        return self._fft(step) if isinstance(step, Fft) else self._gemm(step)

    def _layout(self, name: str) -> Layout:
        layout = self._layouts[name]
        assert layout is not None, name
        return layout

    def _place(self, name: str, offset: int = 0) -> tuple[int, int]:
        """Which pointer, and how many bytes further."""
        self.names.add(name)
        return self._places[name], offset * self._layout(name).itemsize

    def _stride(self, stride: Stride) -> int:
        return self._layout(stride.buffer).element_stride(stride.axis) * stride.times

    def _scalar(self, argument: Argument) -> KernelArgument:
        assert isinstance(argument, (I32, I64, F32, F64, Stride))
        value = self._stride(argument) if isinstance(argument, Stride) else argument.value
        return self._runtime.scalar(_SCALARS[type(argument)](value))

    def _launch(self, launch: Launch) -> Callable[[Sequence[Pointer]], None]:
        fixed: list[KernelArgument] = []
        plain: list[tuple[int, int]] = []
        shifted: list[tuple[int, int, int]] = []
        for index, argument in enumerate(launch.arguments):
            if isinstance(argument, str) and self._layouts[argument] is None:
                fixed.append(None)
            elif isinstance(argument, (str, At)):
                name, offset = (argument, 0) if isinstance(argument, str) else (argument.buffer, argument.offset)
                place, nbytes = self._place(name, offset)
                fixed.append(None)
                if nbytes:
                    shifted.append((index, place, nbytes))
                else:
                    plain.append((index, place))
            else:
                fixed.append(self._scalar(argument))
        kernel = self._runtime.kernel(launch)

        def call(pointers: Sequence[Pointer]) -> None:
            arguments = fixed.copy()
            for index, place in plain:
                arguments[index] = pointers[place]
            for index, place, nbytes in shifted:
                arguments[index] = pointers[place] + nbytes
            kernel(arguments)

        return call

    def _fft(self, step: Fft) -> Callable[[Sequence[Pointer]], None]:
        (source, before), (target, after) = (
            self._place(end.buffer, end.offset) for end in (step.source, step.destination)
        )
        return lambda pointers: self._runtime.fft(step, pointers[source] + before, pointers[target] + after)

    def _gemm(self, step: Gemm) -> Callable[[Sequence[Pointer]], None]:
        ends = ((step.left, step.dtype), (step.right, step.dtype), (step.out, step.out_dtype))
        found = [self._matrix(*end) for end in ends]

        def call(pointers: Sequence[Pointer]) -> None:
            left, right, out = (Operand(pointers[place] + nbytes, *sizes) for place, nbytes, sizes in found)
            self._runtime.gemm(step, left, right, out)

        return call

    def _matrix(self, matrix: Matrix, dtype: str) -> tuple[int, int, tuple[int, int, int, int]]:
        def resolved(stride: int | Stride) -> int:
            return self._stride(stride) if isinstance(stride, Stride) else stride

        offset = matrix.offset + sum(resolved(stride) * times for stride, times in matrix.stride_offsets)
        row_stride = resolved(matrix.row_stride) if matrix.rows > 1 else matrix.columns  # that of one row means nothing
        sizes = matrix.rows, matrix.columns, row_stride, resolved(matrix.batch_stride)
        return self._place(matrix.buffer)[0], offset * ITEM_BYTES[dtype], sizes
