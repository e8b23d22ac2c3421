# SPDX-License-Identifier: MIT
"""Plans of the fused FFT block: kept samples that no wrap reaches, legal launches, shared packing, predicted times."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from cupy_convt.core import cost, cost_fft_block, plan_fft_block
from cupy_convt.core.device import PRESETS
from cupy_convt.core.dispatch import choose
from cupy_convt.core.interleave import q_count
from cupy_convt.core.plan_fft_block import FusedBlock
from cupy_convt.core.problem import Problem, is_complex
from tests import cases
from tests.cases import GEOMETRIES, PAIRS, pair_id, problem
from tests.plans import check_launches

H200, T4 = PRESETS["h200"], PRESETS["t4"]
LIMIT = 256 << 20
MONO = Problem(1, 1, 1 << 20, 1, 1024, 1, p_left=512, p_right=511)
DEPTHWISE = Problem(16, 256, 8192, 256, 8192, 1, groups=256, p_right=8191)


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    return Problem(
        batch=1,
        c_in=1,
        l_in=draw(st.one_of(st.integers(1, 6), st.integers(1, 90), st.integers(500, 900))),
        c_out=1,
        kernel_size=draw(st.integers(1, 300)),
        stride=draw(st.integers(1, 9)),
        dilation=draw(st.integers(1, 7)),
        p_left=draw(st.integers(-400, 600)),
        p_right=draw(st.integers(-400, 600)),
        x_dtype=(dtype := draw(st.sampled_from(["float32", "complex64", "float16", "complex128"]))),
        weight_dtype=dtype,
    )


def response(p: Problem, block: FusedBlock, x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """What the blocks give: circular convolutions, of which each output takes the sample that the kernel takes."""
    y = np.full(p.l_out, np.nan, complex)
    span = p.phases.span
    p_q, p_r = divmod(p.p_left, p.stride)
    for phase in p.phases.active:
        taps = np.zeros(block.length, complex)
        for m in range(phase.taps):
            taps[m * p.phases.input_step] = weight[phase.first_tap + m * p.phases.tap_step]
        shift, residue = p_q + phase.offset + (phase.residue < p_r), (phase.residue - p_r) % p.stride
        for b in range(block.tiles * block.neighbours):
            start = block.first + b * block.step
            inputs = [x[i] if 0 <= i < block.end else 0 for i in range(start, start + block.length)]
            circular = np.fft.ifft(np.fft.fft(inputs) * np.fft.fft(taps))
            for q in range(b * block.step, (b + 1) * block.step):
                t, u = q * p.stride + residue, q + shift
                if t < p.l_out:
                    seen = 0 <= u < p.l_in + span and 0 <= u - start < block.length
                    y[t] = circular[u - start] if seen else 0
    inactive = {(phase.residue - p_r) % p.stride for phase in p.phases.active}
    for residue in set(range(p.stride)) - inactive:
        y[residue :: p.stride] = 0
    return y


@settings(max_examples=60, deadline=None)
@given(problems())
def test_kept_samples_are_those_of_the_definition(p: Problem) -> None:
    assume(p.l_out > 0)
    wide = replace(p, x_dtype="complex128", weight_dtype="complex128")
    x, weight, _ = cases.operands(wide)
    wanted = cases.expected(wide, x, weight, None)[0, 0]
    for block in plan_fft_block.fused_blocks(p, H200):
        if block.length > 1024:
            continue
        got = response(p, block, x[0, 0], weight[0, 0])
        np.testing.assert_allclose(got, wanted, atol=1e-10 * p.kernel_size)


@settings(max_examples=200, deadline=None)
@given(problems())
def test_blocks_are_legal_and_cover_the_row(p: Problem) -> None:
    assume(p.l_out > 0)
    for device in (H200, T4):
        for block in plan_fft_block.fused_blocks(p, device):
            assert block.length == block.points * (1 if is_complex(p.out_dtype) else 2)
            assert block.tiles * block.neighbours * block.step >= q_count(p)
            assert (block.tiles - 1) * block.neighbours * block.step < q_count(p)
            assert block.shared_bytes <= device.shared_bytes
            assert 1 <= block.residue_tile <= p.stride
            sector = 32 // {"float16": 2, "float32": 4, "complex64": 8, "complex128": 16}[p.x_dtype]
            if block.tiles > 1:
                assert block.first % sector == block.step % sector == 0


@pytest.mark.parametrize("pair", PAIRS, ids=pair_id)
def test_launches_are_legal(pair) -> None:
    seen = 0
    for name in GEOMETRIES:
        p = problem(name, *pair)
        for device in (H200, T4):
            for plan in plan_fft_block.candidates(p, device, LIMIT):
                check_launches(plan, device)
                assert all(launch.variant in plan_fft_block.variants() for launch in plan.launches)
                assert len(plan.steps) == 1 and not plan.workspaces
                seen += 1
    assert seen > 20


def test_plans_that_share_a_key_share_their_packing() -> None:
    keys = {}
    for left in (0, 1, 5):
        for length in (500, 20000, 20001, 40000):
            p = Problem(1, 2, length, 2, 300, 4, groups=2, p_left=left, p_right=left)
            for plan in plan_fft_block.candidates(p, H200, LIMIT):
                assert keys.setdefault(plan.packing_key, plan.packing_steps) == plan.packing_steps
    assert len(keys) == 3  # one for each block length


def test_packing_in_chunks_fills_every_spectrum_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_fft_block, "_PACKING_BYTES", 5000)
    p = Problem(1, 7, 300, 7, 30, 2, groups=7)
    for plan in plan_fft_block.candidates(p, H200, LIMIT):
        points = plan.packed[0].count * 2
        fills = [launch for launch in plan.launches if launch.kernel == "fft_block_spectra"]
        rows = [(launch.arguments[2].offset // points, launch.arguments[3].value) for launch in fills]
        assert sum(count for _, count in rows) == 14 == plan.packed[1].count // points
        assert all(first + count == following for (first, count), (following, _) in pairwise(rows))


def test_what_it_does_not_take() -> None:
    tanh = replace(MONO, x_dtype="float16", weight_dtype="float16", activation=("tanh", 0.0))
    for p, why in (
        (replace(MONO, operation="weight_grad"), "weight_grad"),
        (replace(MONO, c_in=2), "one input channel"),
        (replace(MONO, kernel_size=1 << 15), "too long"),
        (replace(MONO, stride=2**16, dilation=2**16 - 1), "2^30"),
        (replace(MONO, batch=2**31), "2^31"),
        (tanh, "tanh"),
    ):
        assert why in plan_fft_block.why_not(p, H200)
        assert not plan_fft_block.candidates(p, H200, LIMIT)
    assert not plan_fft_block.why_not(MONO, H200)
    assert plan_fft_block.candidates(replace(MONO, batch=0), H200, LIMIT) == ()


@pytest.mark.parametrize(
    ("dtype", "longest"),
    [
        ("float32", {227: 16384, 163: 16384, 99: 8192, 64: 4096}),
        ("float64", {227: 4096, 163: 4096, 99: 4096, 64: 2048}),
        ("complex64", {227: 8192, 163: 8192, 99: 4096, 64: 4096}),
        ("complex128", {227: 4096, 163: 4096, 99: 2048, 64: 2048}),
    ],
)
def test_shared_memory_limits_the_longest_block(dtype: str, longest: dict[int, int]) -> None:
    """KiB of a block on sm_90, sm_80, sm_86 and its kin, sm_75: samples of the longest block that fits."""
    p = Problem(1, 1, 1 << 20, 1, 400, x_dtype=dtype, weight_dtype=dtype)
    for kib, length in longest.items():
        device = replace(H200, shared_bytes=kib << 10)
        found = [plan_fft_block._block(p, device, 1 << log) for log in plan_fft_block._logs(dtype)]
        assert max(block.length for block in found if block is not None) == length
        reach = max(length // 2, 400)
        assert plan_fft_block.candidates(replace(p, kernel_size=reach), device, LIMIT)


def test_whole_rows_need_no_zeros_before_them() -> None:
    p = Problem(1, 1, 6000, 1, 6000)
    plan = plan_fft_block.candidates(p, H200, LIMIT)[-1]
    block = plan_fft_block.block_of(p, plan, H200)
    assert plan.variant == "fused block of 16384"
    assert (block.tiles, block.first, block.step) == (1, 0, 11999)


# ---- predicted times ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", [d for d in PRESETS.values() if not d.is_cpu], ids=lambda d: d.name)
def test_no_prediction_beats_the_bytes(device) -> None:
    for p in (*map(problem, GEOMETRIES), MONO, DEPTHWISE):
        for plan in plan_fft_block.candidates(p, device, LIMIT):
            assert cost_fft_block.seconds(p, plan, device) > max(p.bytes / device.bandwidth, device.launch_seconds)
            assert cost.seconds(p, plan, device) == cost_fft_block.seconds(p, plan, device)


def test_it_is_chosen_for_long_filters_and_not_for_short_ones() -> None:
    for p in (MONO, DEPTHWISE):
        assert choose(p, H200).plan.name.startswith("fft/fused block")
    for taps in (12, 32):
        assert choose(replace(DEPTHWISE, kernel_size=taps, p_right=taps - 1), H200).method == "direct"


@pytest.mark.parametrize("p", [MONO, replace(MONO, stride=4, kernel_size=4096)], ids=str)
def test_predictions_grow_smoothly_with_the_length(p: Problem) -> None:
    times = []
    for i in range(24):
        longer = replace(p, l_in=int(p.l_in * 1.03**i))
        plans = plan_fft_block.candidates(longer, H200, LIMIT)
        times.append(min(cost_fft_block.seconds(longer, plan, H200) for plan in plans))
    for before, after in pairwise(times):
        assert 0.9 < after / before < 1.2
    assert times[-1] > 1.2 * times[0]
