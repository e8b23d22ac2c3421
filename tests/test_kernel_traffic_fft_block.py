# SPDX-License-Identifier: MIT
"""Memory traffic of the fused FFT block, counted by the emulator, and offsets beyond 2^31 elements."""

from dataclasses import replace

import numpy as np
import pytest

from cupy_convt.core import plan_fft_block
from cupy_convt.core.device import PRESETS
from cupy_convt.core.launch import Launch, Plan
from cupy_convt.core.problem import ITEM_BYTES, Problem
from cupy_convt.engines.dtypes import named_dtype
from cupy_convt.engines.runtime import GpuEngine
from tests import cases
from tests.emulated import EmulatedArray, EmulatorRuntime, empty, make_engine, over, run_steps, to_device
from tests.emulator.counters import LaunchStats
from tests.emulator.memory import Lazy
from tests.test_kernels_fft_block import plan_of, plans

H200 = PRESETS["h200"]
SECTOR = 32

#: (log2 of the points, stride, taps, L_in), aligned
TRAFFIC = [(7, 1, 33, 2048), (8, 2, 130, 4096), (9, 3, 300, 2048), (10, 4, 1600, 4096), (11, 1, 1000, 16384)]


def counted(p: Problem, plan: Plan) -> LaunchStats:
    runtime = EmulatorRuntime(counters=True)
    x, weight, _ = cases.operands(p)
    out = empty(p.out_shape, p.out_dtype)
    GpuEngine(runtime).run(p, plan, to_device(x), to_device(weight), None, out)
    launch, stats = runtime.stats[-1]
    assert launch.kernel == "fft_block" and stats.counted
    return stats


@pytest.mark.parametrize("dtype", ["float32", pytest.param("float16", marks=pytest.mark.slow)])
@pytest.mark.parametrize(("log", "stride", "taps", "l_in"), TRAFFIC)
def test_x_is_read_about_once_and_the_result_written_once(
    log: int, stride: int, taps: int, l_in: int, dtype: str
) -> None:
    p = Problem(1, 1, l_in, 1, taps, stride, 1, 1, 0, taps - stride, dtype, dtype)
    plan = plan_of(p, log)
    block = plan_fft_block._block(p, H200, 1 << log)
    assert block is not None and block.residue_tile == stride
    stats = counted(p, plan)
    most = 1.05 * block.length / (block.length - p.phases.span)
    assert stats.argument(0).load_sectors * SECTOR <= most * p.x_bytes
    assert stats.argument(4).store_sectors * SECTOR <= 1.01 * p.out_bytes
    # each block reads the spectra of its classes once; a warp with rank 0 asks for some sectors twice
    spectra = plan.steps[0].grid * block.neighbours * len(p.phases.active) * block.points * 8
    assert stats.argument(1).load_sectors * SECTOR <= 1.07 * spectra
    load, store = stats.shared_load, stats.shared_store
    # of 16 threads those with the lowest frequencies meet, which counts where a block has few
    conflicts = {7: 1.55, 8: 1.44, 9: 1.16}.get(log, 1.1)
    assert load.wavefronts <= conflicts * load.wavefronts_min
    assert store.wavefronts <= conflicts * store.wavefronts_min


@pytest.mark.parametrize(
    "dtype", ["float32", *(pytest.param(d, marks=pytest.mark.slow) for d in ("float16", "complex64"))]
)
@pytest.mark.parametrize(("log", "stride", "taps", "l_in"), [row for row in TRAFFIC if row[0] > 7])
@pytest.mark.parametrize("odd", [1, 2, 3])
def test_rows_that_start_anywhere_are_read_about_once_too(
    log: int, stride: int, taps: int, l_in: int, odd: int, dtype: str
) -> None:
    """Odd lengths, so that every row starts elsewhere, and (but for 2) crops that are no multiple of a sector."""
    crop = odd if odd != 2 else 0
    p = Problem(1, 3, l_in + odd, 3, taps, stride, 1, 3, crop, taps - stride, dtype, dtype)
    plan = plan_of(p, log)
    block = plan_fft_block._block(p, H200, 1 << log)
    assert block is not None
    stats = counted(p, plan)
    # samples at any place touch one sector more than they fill, which is little on blocks of 64 sectors and more
    item = ITEM_BYTES[dtype]
    touched = (block.length * item + SECTOR) / (block.step * item)
    least = block.length / (block.length - p.phases.span)
    loaded = stats.argument(0).load_sectors * SECTOR / p.x_bytes
    assert loaded <= touched
    if block.length * item >= 64 * SECTOR:
        assert loaded <= 1.05 * least
    assert stats.argument(4).store_sectors * SECTOR <= 1.01 * p.out_bytes
    load, store = stats.shared_load, stats.shared_store
    # runs that are laid out cross the padding
    assert load.wavefronts <= (1.15 if log > 8 else 1.4) * load.wavefronts_min
    assert store.wavefronts <= (1.21 if log > 8 else 1.48) * store.wavefronts_min


# ---- more than 2^31 elements ----------------------------------------------------------------------------------------


def lazy(shape: tuple[int, ...], dtype: str) -> EmulatedArray:
    """A zero-filled array of which only touched pages exist."""
    kind = named_dtype(dtype)
    return over(Lazy(int(np.prod(shape, dtype=np.int64)), kind), shape, kind)


def test_rows_reach_past_two_to_the_31() -> None:
    p = Problem(1, 1, 2**30 + 77, 1, 64, 3, 1, 1, 1, 0, "float16", "float16")
    assert p.l_out > 2**31
    x, out = lazy(p.x_shape, p.x_dtype), lazy(p.out_shape, p.out_dtype)
    tail = 2000
    values = np.random.default_rng(0).standard_normal(tail).astype(np.float16)
    x[0, 0, -tail:] = values
    out[0, 0, -600:] = 7
    weight = cases.values(np.random.default_rng(1), p.weight_shape, "float16")
    end = replace(p, l_in=tail)
    wanted = cases.expected(end, values.reshape(1, 1, -1), weight, None)[0, 0, -600:]
    plan = plans(p)[0]
    packed = make_engine().pack(p, plan, to_device(weight)).buffers
    (launch,) = plan.steps
    assert isinstance(launch, Launch)
    runtime = EmulatorRuntime(blocks=(launch.grid - 2, 2), check_unwritten=False)
    run_steps(runtime, [launch], {"x": x, "bias": None, "out": out, **packed})
    np.testing.assert_allclose(np.asarray(out[0, 0, -600:], np.float64), wanted, rtol=2e-3, atol=1e-2)
