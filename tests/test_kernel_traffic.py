# SPDX-License-Identifier: MIT
"""Memory traffic of the kernels, counted by the emulator, and offsets beyond 2^31 elements."""

from dataclasses import replace

import numpy as np
import pytest

from cupy_convt.core import plan_direct, plan_fft, plan_gemm
from cupy_convt.core.device import PRESETS
from cupy_convt.core.launch import Launch, Plan
from cupy_convt.core.problem import Problem
from cupy_convt.engines.dtypes import named_dtype
from tests import cases
from tests.emulated import EmulatedArray, EmulatorRuntime, empty, make_engine, over, run_steps, to_device
from tests.emulator.counters import LaunchStats
from tests.emulator.memory import Lazy

H200 = PRESETS["h200"]
#: So few multiprocessors that a small problem is tiled as a large one is on the whole device.
ONE = replace(H200, multiprocessors=1)
LIMIT = 256 << 20
SECTOR = 32

#: (N, C_in, L_in, C_out, K, s, g, p_left, p_right); aligned lengths, then odd ones
ALIGNED = {
    "anti-aliased x2": (1, 1, 8192, 1, 12, 2, 1, 5, 5),
    "depthwise x3": (1, 3, 4096, 3, 12, 3, 3, 4, 5),
    "resampler x4": (1, 2, 4096, 2, 81, 4, 2, 40, 37),
    "fir": (1, 1, 4096, 1, 41, 1, 1, 20, 20),
    "pqmf": (1, 4, 4000, 1, 63, 4, 1, 31, 28),
    "x6": (1, 1, 4096, 1, 60, 6, 1, 27, 27),
    "x8": (1, 1, 4096, 1, 80, 8, 1, 36, 36),
    "x16": (1, 1, 2048, 1, 160, 16, 1, 72, 72),
    "x160": (1, 1, 512, 1, 1600, 160, 1, 0, 1440),
    "short rows": (16, 8, 32, 8, 6, 3, 8, 1, 2),
}
ODD = {
    "anti-aliased x2, odd": (1, 1, 8191, 1, 12, 2, 1, 5, 4),
    "depthwise x3, odd": (1, 3, 4095, 3, 12, 3, 3, 4, 4),
    "pqmf, odd": (1, 4, 3999, 1, 63, 4, 1, 31, 29),
    "x7, odd": (1, 1, 2047, 1, 70, 7, 1, 31, 32),
    "x6, odd": (1, 1, 2047, 1, 60, 6, 1, 27, 26),
}


def problem(shape: tuple[int, ...], dtype: str) -> Problem:
    n, c_in, length, c_out, k, s, g, left, right = shape
    return Problem(n, c_in, length, c_out, k, s, 1, g, left, right, dtype, dtype)


def counted(p: Problem, plan: Plan) -> list[tuple[Launch, LaunchStats]]:
    runtime = EmulatorRuntime(counters=True)
    x, weight, _ = cases.operands(p)
    engine = make_engine()
    engine.runtime = runtime
    engine.run(p, plan, to_device(x), to_device(weight), None, empty(p.out_shape, p.out_dtype))
    assert all(stats.counted for _, stats in runtime.stats)
    return runtime.stats


def conflicts(stats: LaunchStats) -> tuple[float, float]:
    """Wavefronts over the fewest possible, of shared loads and stores."""
    load, store = stats.shared_load, stats.shared_store
    return load.wavefronts / load.wavefronts_min, store.wavefronts / store.wavefronts_min


@pytest.mark.parametrize("name", [*ALIGNED, *ODD])
@pytest.mark.parametrize("dtype", ["float32", pytest.param("float16", marks=pytest.mark.slow)])
def test_direct_stream_moves_every_byte_about_once(name: str, dtype: str) -> None:
    p = problem((ALIGNED | ODD)[name], dtype)
    plan = plan_direct.candidates(p, ONE, LIMIT)[0]
    assert plan.variant == "stream"
    ((_, stats),) = counted(p, plan)
    assert stats.sectors * SECTOR <= (1.05 if name in ALIGNED and dtype == "float32" else 1.2) * p.bytes
    loads, stores = conflicts(stats)
    assert loads <= (1.08 if dtype == "float32" else 1.25)
    assert stores <= (1.001 if dtype == "float32" else 2)


@pytest.mark.parametrize("planner", [plan_gemm, plan_fft])
def test_interleaving_kernels_store_every_sector_once(planner) -> None:
    for shape in ((1, 2, 4096, 2, 12, 2, 1, 5, 5), (1, 2, 1000, 2, 33, 5, 1, 3, 2), (1, 1, 300, 1, 64, 32, 1, 5, 3)):
        p = problem(shape, "float32")
        (plan,) = planner.candidates(p, H200, LIMIT)
        last, stats = counted(p, plan)[-1]
        assert last.kernel in ("overlap_add", "fft_finish")
        assert stats.global_store.sectors * SECTOR <= 1.05 * p.out_bytes
        assert max(conflicts(stats)) <= 1.001


def test_fft_kernels_read_and_write_runs() -> None:
    p = problem((2, 3, 5000, 4, 512, 2, 1, 0, 0), "float32")
    short = problem((2, 3, 200, 4, 64, 2, 1, 0, 0), "float32")
    own, planes = plan_fft.candidates(p, H200, LIMIT)[0], plan_fft.candidates(short, H200, LIMIT)[2]
    runs = {"fft_pack", "fft_product", "fft_split", "fft_join"}
    launches = counted(p, own) + counted(short, planes)
    assert runs <= {launch.kernel for launch, _ in launches}
    for launch, stats in launches:
        if launch.kernel in runs:
            assert stats.global_load.sectors <= 1.3 * stats.global_load.sectors_min, launch.kernel
            assert stats.global_store.sectors <= 1.3 * stats.global_store.sectors_min, launch.kernel


# ---- more than 2^31 elements ----------------------------------------------------------------------------------------


def lazy(shape: tuple[int, ...], dtype: str) -> EmulatedArray:
    """A zero-filled array of which only touched pages exist."""
    kind = named_dtype(dtype)
    return over(Lazy(int(np.prod(shape, dtype=np.int64)), kind), shape, kind)


def run_last_blocks(p: Problem, plan: Plan, arrays: dict[str, EmulatedArray | None], number: int) -> None:
    """The last blocks of every launch, and the library calls not at all: the buffers between are lazy too."""
    buffers = {w.name: lazy((w.count,), w.dtype) for w in plan.workspaces + plan.packed}
    for step in plan.steps:
        if isinstance(step, Launch):
            runtime = EmulatorRuntime(
                blocks=(max(0, step.grid - number), min(number, step.grid)), check_unwritten=False
            )
            run_steps(runtime, [step], {**arrays, **buffers})


@pytest.mark.parametrize("l_in", [2**30 + 77, 300_000])
def test_direct_kernels_reach_past_two_to_the_31(l_in: int) -> None:
    channels = -(-(2**31 + 10**6) // (3 * l_in)) if l_in < 2**30 else 1
    p = Problem(1, channels, l_in, channels, 5, 3, 1, channels, 1, 0, "float16", "float16")
    assert p.batch * p.c_out * p.l_out > 2**31
    x, out = lazy(p.x_shape, p.x_dtype), lazy(p.out_shape, p.out_dtype)
    tail = 4096
    values = np.random.default_rng(0).standard_normal(tail).astype(np.float16)
    x[0, -1, -tail:] = values
    weight = np.arange(1, 5 * channels + 1).reshape(p.weight_shape).astype(np.float32) % 7 - 3
    end = Problem(1, 1, tail, 1, 5, 3, 1, 1, 1, 0, "float16", "float16")
    wanted = cases.expected(end, values.reshape(1, 1, -1), weight[-1:].astype(np.float16), None)[0, 0, 10:]
    for plan in plan_direct.candidates(p, H200, LIMIT):
        number = 4 if plan.variant == "stream" else 8
        arrays = {"x": x, "weight": to_device(weight.astype(np.float16)), "bias": None, "out": out}
        out[0, -1, -600:] = 7
        run_last_blocks(p, plan, arrays, number)
        np.testing.assert_allclose(np.asarray(out[0, -1, -600:], np.float64), wanted[-600:], rtol=2e-3, atol=2e-3)


def test_interleaving_kernels_reach_past_two_to_the_31() -> None:
    """The result past 2^31 elements is the bias of its channel, as all columns and planes are zero."""
    p = Problem(2, 1, 20000, 37000, 3, 2, 1, 1, 1, 0, "float16", "float16", True)
    assert p.batch * p.c_out * p.l_out > 2**31
    bias = (np.arange(p.c_out) % 100 - 50).astype(np.float16)
    out = lazy(p.out_shape, p.out_dtype)
    arrays = {"x": lazy(p.x_shape, p.x_dtype), "weight": lazy(p.weight_shape, p.weight_dtype), "bias": to_device(bias)}
    for planner in (plan_gemm, plan_fft):
        (plan,) = planner.candidates(p, H200, 1 << 33)
        last = [step for step in plan.steps if isinstance(step, Launch)][-1]
        out[-1, -1, -200:] = 7
        run_last_blocks(p, replace(plan, steps=(last,)), {**arrays, "out": out}, 2)
        assert (np.asarray(out[-1, -1, -200:]) == bias[-1]).all()
