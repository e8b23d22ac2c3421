# SPDX-License-Identifier: MIT
"""Tiles on threads, BLAS on one, and the working memory of each thread."""

import threading

import numpy as np
import pytest

from cupy_convt.core.problem import Problem
from cupy_convt.engines import cpu_threads
from tests.test_cpu import arguments, plans, run


def test_scratch_keeps_the_zeros_of_a_pattern() -> None:
    scratch = cpu_threads.Scratch()
    first, new = scratch.zero_but("a", (3, 4), np.float32, "left")
    assert new and not first.any()
    first[:, 0] = 1
    for _ in range(2):
        scratch.end_of_call()
        again, new = scratch.zero_but("a", (3, 4), np.float32, "left")
        assert not new and (again == np.eye(1, 4)).all()
    for shape, dtype in (((3, 4), np.float32), ((4, 3), np.float32), ((4, 3), np.float64)):
        other, new = scratch.zero_but("a", shape, dtype, "right")
        assert new and not other.any() and other.shape == shape and other.dtype == dtype
        other[...] = 2
    large, new = scratch.zero_but("a", (cpu_threads.KEPT_BYTES + 1,), np.uint8, "right")
    large[...] = 3
    scratch.end_of_call()
    assert scratch.zero_but("a", large.shape, np.uint8, "right")[1]


def test_blas_gets_its_threads_back() -> None:
    calls = cpu_threads._blas_thread_calls()
    if calls is None:
        pytest.skip("not OpenBLAS")
    before = calls[0]()
    problem = Problem(2, 64, 3000, 64, 4, 2)
    x, weight, bias = arguments(problem)
    plan = next(plan for plan in plans(problem) if plan.method == "gemm")
    callers = [threading.Thread(target=run, args=(problem, plan, x, weight, bias)) for _ in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert calls[0]() == before


def test_an_error_in_a_tile_reaches_the_caller() -> None:
    def work(tile: int, scratch: cpu_threads.Scratch) -> None:
        if tile == 7:
            raise RuntimeError("tile 7")

    for parallel in (False, True):
        with pytest.raises(RuntimeError, match="tile 7"):
            cpu_threads.for_each(work, range(20), parallel=parallel, products=True)


def test_every_tile_is_done_once() -> None:
    done: list[int] = []
    cpu_threads.for_each(lambda tile, scratch: done.append(tile), range(500), parallel=True, products=False)
    assert sorted(done) == list(range(500))
