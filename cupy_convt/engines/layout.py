# SPDX-License-Identifier: MIT
"""How an array lies in memory: what decisions about it depend on, without the array."""

from __future__ import annotations

from typing import Any, NamedTuple


class Layout(NamedTuple):
    """Shape, strides in bytes and bytes of an element; (C, L) stands for (1, C, L)."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    itemsize: int

    @classmethod
    def of(cls, array: Any) -> Layout:
        """That of an array."""
        return cls(tuple(array.shape), tuple(array.strides), int(array.dtype.itemsize))

    @classmethod
    def dense(cls, shape: tuple[int, ...], itemsize: int) -> Layout:
        """That of a C-contiguous array."""
        strides, below = [], itemsize
        for size in reversed(shape):
            strides.append(below)
            below *= size
        return cls(shape, tuple(reversed(strides)), itemsize)

    def batched(self) -> Layout:
        """With an axis for the batch."""
        return self._replace(shape=(1, *self.shape), strides=(0, *self.strides)) if len(self.shape) == 2 else self

    def item(self) -> Layout:
        """That of a batch of one of the items."""
        batch = self.batched()
        return batch._replace(shape=(1, *batch.shape[1:]))

    def element_stride(self, axis: int) -> int:
        """Stride of an axis in elements."""
        return self.strides[axis] // self.itemsize

    @property
    def is_dense(self) -> bool:
        """Whether the elements follow each other in C order; the strides of single elements mean nothing."""
        if 0 in self.shape:
            return True
        usual = Layout.dense(self.shape, self.itemsize).strides
        pairs = zip(self.strides, usual, self.shape, strict=True)
        return all(size == 1 or stride == wanted for stride, wanted, size in pairs)

    @property
    def has_plain_rows(self) -> bool:
        """Whether kernels can read the array: unit time stride, whole elements between rows."""
        if self.is_dense:
            return True
        whole = all(stride % self.itemsize == 0 for stride in self.strides)
        return whole and (self.shape[-1] <= 1 or self.strides[-1] == self.itemsize)

    @property
    def is_library_matrix(self) -> bool:
        """Whether BLAS takes the rows of (N, C, L) as a matrix: no two overlap, and the pitch is a 32-bit integer."""
        return self.shape[1] == 1 or self.shape[2] <= self.element_stride(1) < 2**30


def layouts_of(x: Any, weight: Any, bias: Any, out: Any) -> tuple[Layout, Layout, Layout | None, Layout]:
    """Those of a call's arrays."""
    return Layout.of(x), Layout.of(weight), None if bias is None else Layout.of(bias), Layout.of(out)
