# SPDX-License-Identifier: MIT
"""The GPU cost model: never below the floor, close to it where a kernel should be, smooth, and sane in its order."""

from dataclasses import replace
from itertools import pairwise
from math import inf

import pytest

from cupy_convt.core import cost_gpu, plan_direct, plan_fft, plan_gemm
from cupy_convt.core.device import PRESETS
from cupy_convt.core.problem import Problem
from tests.cases import GEOMETRIES, problem

H200 = PRESETS["h200"]
LIMIT = 256 << 20


def predicted(p: Problem, device=H200) -> dict[str, float]:
    """Seconds of the best plan of each method, the two direct plans apart."""
    times: dict[str, float] = {}
    for planner in (plan_direct, plan_gemm, plan_fft):
        for plan in planner.candidates(p, device, LIMIT):
            name = plan.variant if plan.method == "direct" else plan.method
            times[name] = min(times.get(name, inf), cost_gpu.seconds(p, plan, device))
    return times


DEPTHWISE = Problem(1, 24, 240138, 24, 12, 2, groups=24, p_left=15, p_right=15)
RESAMPLER = Problem(2000, 1, 32768, 1, 41, 2, p_left=20, p_right=20)
LONG_FILTER = Problem(1, 1, 1 << 20, 1, 4096, 1)
ISTFT = Problem(16, 1026, 862, 1, 1024, 256)
VOCODER = Problem(16, 512, 862, 256, 16, 8, p_left=4, p_right=4)


@pytest.mark.parametrize("device", [d for d in PRESETS.values() if not d.is_cpu], ids=lambda d: d.name)
def test_no_prediction_beats_the_bytes(device) -> None:
    for p in (*map(problem, GEOMETRIES), DEPTHWISE, RESAMPLER, LONG_FILTER, ISTFT, VOCODER):
        for name, time in predicted(p, device).items():
            assert time > max(p.bytes / device.bandwidth, device.launch_seconds * 0.99), (name, str(p))


def test_streaming_is_close_to_the_memory_floor_on_few_channels() -> None:
    for p in (DEPTHWISE, RESAMPLER):
        times = predicted(p)
        assert min(times, key=times.__getitem__) == "stream"
        assert times["stream"] < 2 * p.bytes / H200.bandwidth + 1e-5


def test_each_method_has_its_ground() -> None:
    for p, best in ((LONG_FILTER, "fft"), (ISTFT, "gemm"), (VOCODER, "gemm"), (DEPTHWISE, "stream")):
        times = predicted(p)
        assert min(times, key=times.__getitem__) == best


@pytest.mark.parametrize("p", [DEPTHWISE, RESAMPLER, LONG_FILTER, ISTFT, VOCODER], ids=str)
def test_predictions_grow_smoothly_with_the_length(p: Problem) -> None:
    lengths = [int(p.l_in * 1.03**i) for i in range(24)]
    series = [predicted(replace(p, l_in=length)) for length in lengths]
    for name in series[0]:
        times = [row[name] for row in series]
        for before, after in pairwise(times):
            assert 0.8 < after / before < 1.3, name
        assert times[-1] > 1.2 * times[0]
