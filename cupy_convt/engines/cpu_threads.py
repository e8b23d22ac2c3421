# SPDX-License-Identifier: MIT
"""Both cores at work: tiles on threads, each with a BLAS that keeps to its own thread.

A product of the size of a cache is too small to be shared well between cores, and what comes after it (adding up,
bias, rounding) would run on one core while the others wait. So whole tiles go to threads instead, and BLAS is told to
use one thread for as long as that lasts. NumPy has no call for that; OpenBLAS, which its wheels carry, does, and it is
found the way threadpoolctl finds it. With any other BLAS the tiles of a product run one after the other, each shared
between the cores by BLAS itself.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from importlib import import_module
from math import prod
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
T = TypeVar("T")
#: Working memory that a thread keeps between calls.
KEPT_BYTES = 16 << 20


def cores() -> int:
    """Cores this process may run on."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


@lru_cache(maxsize=1)
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max(cores() - 1, 1), thread_name_prefix="cupy_convt")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)


@lru_cache(maxsize=1)
def _blas_thread_calls() -> tuple[Callable[[], int], Callable[[int], None]] | None:
    """OpenBLAS's calls that read and set its number of threads, from the library NumPy is linked with."""
    package = "numpy._core" if np.lib.NumpyVersion(np.__version__) >= "2.0.0" else "numpy.core"
    try:
        library = ctypes.CDLL(import_module(f"{package}._multiarray_umath").__file__)
    except (ImportError, OSError):
        return None
    for prefix in ("scipy_openblas", "openblas"):
        for suffix in ("64_", "_64", ""):
            get = getattr(library, f"{prefix}_get_num_threads{suffix}", None)
            put = getattr(library, f"{prefix}_set_num_threads{suffix}", None)
            if get is not None and put is not None:
                put.restype = None
                return get, put
    return None


class _OneThread:
    """Counts who wants single-threaded products; the first one in sets it, the last one out puts it back."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._before = 1

    def __enter__(self) -> None:
        calls = _blas_thread_calls()
        assert calls is not None
        get, put = calls
        with self._lock:
            if not self._users:
                self._before = get()
                put(1)
            self._users += 1

    def __exit__(self, *raised: object) -> None:
        calls = _blas_thread_calls()
        assert calls is not None
        with self._lock:
            self._users -= 1
            if not self._users:
                calls[1](self._before)


_one_thread = _OneThread()


class Scratch:
    """Working memory of one thread: named buffers, kept from tile to tile and, up to KEPT_BYTES, from call to call.

    Fresh memory costs a page fault every 4 KiB, a tenth of the time of a layer of a few milliseconds.
    """

    def __init__(self) -> None:
        self._buffers: dict[str, Array] = {}
        self._arrays: dict[str, Array] = {}
        self._contents: dict[str, object] = {}
        self._patterns: dict[str, object] = {}
        self._bytes = 0

    def holds(self, name: str, contents: object) -> bool:
        """Whether the last thing said to be in a buffer is this; from now on it is."""
        same = self._contents.get(name) == contents
        self._contents[name] = contents
        return same

    def end_of_call(self) -> None:
        """Forget what the buffers hold, and the buffers too when they are large."""
        self._contents.clear()
        if self._bytes > KEPT_BYTES:
            self._buffers.clear()
            self._arrays.clear()
            self._patterns.clear()
            self._bytes = 0

    def zero_but(self, name: str, shape: tuple[int, ...], dtype: npt.DTypeLike, pattern: object) -> tuple[Array, bool]:
        """An array for users who always write the same elements, and whether it is new: zeros, and theirs to complete.

        What they do not write again is kept from call to call. The name is for such arrays only.
        """
        array, key = self.get(name, shape, dtype), (shape, dtype, pattern)
        new = self._patterns.get(name) != key
        if new:
            array[...] = 0
            self._patterns[name] = key
        return array, new

    def get(self, name: str, shape: tuple[int, ...], dtype: npt.DTypeLike) -> Array:
        """An uninitialised contiguous array, the memory of which the next call with that name reuses."""
        last = self._arrays.get(name)
        if last is not None and last.shape == shape and last.dtype == dtype:
            return last
        dtype = np.dtype(dtype)
        size = prod(shape) * dtype.itemsize
        if name not in self._buffers or self._buffers[name].size < size:
            last = None  # gone before there is a larger one
            self._arrays.pop(name, None)
            if name in self._buffers:
                self._bytes -= self._buffers.pop(name).size
            self._buffers[name] = np.empty(size, np.uint8)
            self._bytes += size
        array: Array = np.ndarray(shape, dtype, self._buffers[name])
        self._arrays[name] = array
        return array


_local = threading.local()


class _Working:
    """The calling thread's working memory; NaN and Inf are the caller's and pass in silence, as on a GPU."""

    def __enter__(self) -> Scratch:
        self._scratch: Scratch = getattr(_local, "scratch", None) or Scratch()
        _local.scratch = None  # a call inside this one gets its own
        self._quiet = np.errstate(over="ignore", under="ignore", invalid="ignore")
        self._quiet.__enter__()
        return self._scratch

    def __exit__(self, *raised: Any) -> None:
        self._quiet.__exit__(*raised)
        self._scratch.end_of_call()
        _local.scratch = self._scratch


def for_each(work: Callable[[T, Scratch], None], tiles: Iterable[T], *, parallel: bool, products: bool) -> None:
    """Call `work` on every tile, on all cores when `parallel`; `products`: the work calls BLAS.

    BLAS keeps to one thread in either case: what is not worth a second thread here is not worth one there either, and
    its threads spin on the cores of whoever comes next.
    """
    if products and _blas_thread_calls() is not None:
        with _one_thread:
            _for_each(work, tiles, parallel and cores() > 1)
    else:
        _for_each(work, tiles, parallel and cores() > 1 and not products)


def _for_each(work: Callable[[T, Scratch], None], tiles: Iterable[T], parallel: bool) -> None:
    if not parallel:
        with _Working() as scratch:
            for tile in tiles:
                work(tile, scratch)
        return
    source, lock = iter(tiles), threading.Lock()

    def drain() -> None:
        with _Working() as scratch:
            while True:
                with lock:
                    tile = next(source, None)
                if tile is None:
                    return
                work(tile, scratch)

    _drain_everywhere(drain)


def _drain_everywhere(drain: Callable[[], None]) -> None:
    helpers: list[Future[None]] = [_pool().submit(drain) for _ in range(cores() - 1)]
    try:
        drain()
    finally:
        for helper in helpers:
            helper.exception()
    for helper in helpers:
        helper.result()
