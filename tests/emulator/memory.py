# SPDX-License-Identifier: MIT
"""Emulated device memory: guarded buffers with one flag byte for each byte, and views of them as kernel arguments."""

from __future__ import annotations

import ctypes
import itertools
import mmap
from dataclasses import dataclass

import numpy as np
from numpy.typing import DTypeLike

PAGE = 4096
GAP = 256 << 20  # unmapped on both sides, so that a wild index faults instead of reaching the next buffer
POISON = 0xFF  # a NaN in every floating type
INITIALISED = 1  # as F_INIT in emu/rt_counters.h
LARGE = 64 << 20  # larger mappings are left to the kernel to fill with zeros, page by page

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_NORESERVE, _NO_ACCESS = 0x4000, 0
_PRIVATE = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NORESERVE
_READ_WRITE = mmap.PROT_READ | mmap.PROT_WRITE


class EmuError(RuntimeError):
    """A kernel did something that the emulator rejects."""


def _map(size: int, protection: int) -> int:
    address = _libc.mmap(None, size, protection, _PRIVATE, -1, 0)
    if address in (None, ctypes.c_void_p(-1).value):
        raise MemoryError(f"mmap of {size} bytes failed, errno {ctypes.get_errno()}")
    return address


def _bytes_at(address: int, size: int, owner: object) -> np.ndarray:
    """A live uint8 view of raw memory, which keeps its owner alive."""
    if size == 0:
        return np.empty(0, np.uint8)
    memory = (ctypes.c_ubyte * size).from_address(address)
    memory.owner = owner
    return np.frombuffer(memory, np.uint8)


class DeviceBuffer:
    """Emulated global memory that lives across launches and remembers which bytes were ever written.

    Pass it (or `At(buffer, byte_offset)`) for a pointer parameter. It starts poisoned. During a launch whose pointers
    to it are all const it is read-only. The base address is a multiple of 256, the end is exact in check builds.
    """

    _numbers = itertools.count()

    def __init__(self, nbytes: int, name: str | None = None, *, align: int = 256, tracked: bool = True) -> None:
        if nbytes < 0:
            raise ValueError(f"nbytes: expected at least 0, got {nbytes}")
        self.nbytes = int(nbytes)
        self.name = name or f"buffer{next(self._numbers)}"
        self.tracked = tracked  # False: initialisation is not known, every byte counts as written
        body = -(-(self.nbytes + align) // PAGE) * PAGE
        self._mappings = [(_map(body + 2 * GAP, _NO_ACCESS), body + 2 * GAP)]
        start = self._mappings[0][0] + GAP
        if _libc.mprotect(start, body, _READ_WRITE):
            raise MemoryError(f"mprotect of {body} bytes failed, errno {ctypes.get_errno()}")
        self.large = body >= LARGE
        if not self.large:
            ctypes.memset(start, POISON, body)
        self.ptr = (start + body - self.nbytes) // align * align
        self._flags = 0
        self._cells = 0
        if tracked:
            size = max(1, self.nbytes)
            self._flags = _map(size, _READ_WRITE)
            self._mappings.append((self._flags, size))

    @classmethod
    def from_host(cls, array: np.ndarray, name: str | None = None) -> DeviceBuffer:
        """A buffer of the array's size, holding its bytes in C order."""
        array = np.ascontiguousarray(array)
        buffer = cls(array.nbytes, name)
        buffer.set(array)
        return buffer

    def set(self, array: np.ndarray, byte_offset: int = 0) -> None:
        """Copy an array's bytes in (C order) and mark them as written."""
        array = np.ascontiguousarray(array)
        self._check_range(byte_offset, array.nbytes)
        ctypes.memmove(self.ptr + byte_offset, array.ctypes.data, array.nbytes)
        self.flags[byte_offset : byte_offset + array.nbytes] |= INITIALISED

    def to_host(
        self, dtype: DTypeLike, count: int | None = None, byte_offset: int = 0, *, allow_unwritten: bool = False
    ) -> np.ndarray:
        """A copy of `count` elements; EmuError if any of their bytes was never written."""
        view = self.view(dtype, count, byte_offset)
        if not allow_unwritten:
            missing = self.unwritten(byte_offset, view.nbytes)
            if missing:
                raise EmuError(f"unwritten memory: {missing} of {view.nbytes} bytes read back from {self.name}")
        return view.copy()

    def view(self, dtype: DTypeLike, count: int | None = None, byte_offset: int = 0) -> np.ndarray:
        """A live NumPy window on the memory. Writes through it are not tracked: use `set` or `mark_written`."""
        dtype = np.dtype(dtype)
        if count is None:
            count = (self.nbytes - byte_offset) // dtype.itemsize
        self._check_range(byte_offset, count * dtype.itemsize)
        window = _bytes_at(self.ptr + byte_offset, count * dtype.itemsize, self).view(dtype)
        return window

    def mark_written(self, byte_offset: int = 0, nbytes: int | None = None) -> None:
        """Declare bytes as written, for code outside the emulator that writes through `view`."""
        end = self.nbytes if nbytes is None else byte_offset + nbytes
        self.flags[byte_offset:end] |= INITIALISED

    def poison(self) -> None:
        """Back to never written, as a fresh allocation."""
        ctypes.memset(self.ptr, POISON, self.nbytes)
        self.flags[:] = 0

    def unwritten(self, byte_offset: int = 0, nbytes: int | None = None) -> int:
        """Number of bytes in the range that no launch and no `set` ever wrote."""
        if not self.tracked:
            return 0
        end = self.nbytes if nbytes is None else byte_offset + nbytes
        window = self.flags[byte_offset:end]
        return int(window.size - np.count_nonzero(window & INITIALISED))

    def changed_unseen(self) -> int:
        """Bytes that hold something but were never written as far as the checks know: a gap in the instrumentation."""
        if not self.tracked:
            return 0
        return int(
            np.count_nonzero((self.flags & INITIALISED == 0) & (_bytes_at(self.ptr, self.nbytes, self) != POISON))
        )

    @property
    def flags(self) -> np.ndarray:
        """Live flag bytes, one for each byte of memory; empty if untracked."""
        return _bytes_at(self._flags, self.nbytes if self.tracked else 0, self)

    def cells(self, cell_size: int) -> int:
        """Address of the race detector's state (2 bytes of memory a cell), mapped at the first use."""
        if not self._cells:
            size = (self.nbytes // 2 + 2) * cell_size
            self._cells = _map(size, _READ_WRITE)
            self._mappings.append((self._cells, size))
        return self._cells

    def free(self) -> None:
        """Unmap; views are dead afterwards. Called by the destructor, which waits for the last view."""
        for address, size in self.__dict__.pop("_mappings", ()):
            _libc.munmap(address, size)

    def _check_range(self, byte_offset: int, nbytes: int) -> None:
        if byte_offset < 0 or nbytes < 0 or byte_offset + nbytes > self.nbytes:
            raise ValueError(
                f"{self.name}: expected a range inside {self.nbytes} bytes, got offset {byte_offset}, {nbytes} bytes"
            )

    def __del__(self) -> None:
        self.free()

    def __repr__(self) -> str:
        return f"DeviceBuffer({self.nbytes}, name={self.name!r})"


class Lazy(DeviceBuffer):
    """A huge zero-filled buffer of which only the touched pages exist, for 64-bit index tests with `blocks=`."""

    def __init__(self, count: int, dtype: DTypeLike) -> None:
        self.count, self.dtype = count, np.dtype(dtype)
        super().__init__(count * self.dtype.itemsize, tracked=False)

    def get(self, first: int, count: int) -> np.ndarray:
        """Elements first .. first + count - 1, after a launch."""
        return self.view(self.dtype, count, first * self.dtype.itemsize).copy()


@dataclass
class Out:
    """An output array whose contents before the launch are undefined: poisoned, and in check mode to be written fully.

    `partial` drops the second demand.
    """

    array: np.ndarray
    partial: bool = False


@dataclass
class At:
    """A pointer `offset` into a buffer: elements of an array, bytes of a DeviceBuffer.

    Bounds are those of the whole buffer, so a strided or reversed input is handed over as its memory span.
    """

    buffer: np.ndarray | DeviceBuffer | Out
    offset: int = 0


class TensorMap:
    """Stand-in for a CUtensorMap over an array; dims and strides innermost first, strides in bytes.

    Enforces the rules of cuTensorMapEncodeTiled. `swizzle` is 0 for none, 1 for 128 bytes.
    """

    def __init__(self, array: np.ndarray, dims, strides, box, swizzle: int = 1) -> None:
        inner = box[0] * array.itemsize
        if not len(dims) == len(box) == len(strides) + 1 <= 5:
            raise ValueError(f"expected dims and box of one length, one stride less, got {dims} {box} {strides}")
        if any(s % 16 for s in strides):
            raise ValueError(f"strides: expected multiples of 16 bytes, got {strides}")
        if not all(0 < b <= 256 for b in box) or inner % 16 or (swizzle and inner > 128):
            raise ValueError(f"box: expected 1..256, inner bytes a multiple of 16, at most 128 if swizzled, got {box}")
        self.array, self.dims, self.strides, self.box, self.swizzle = array, dims, strides, box, swizzle
