# SPDX-License-Identifier: MIT
"""FFT plans as data: good lengths, blocks that hold what they keep, tiles that cover the output once, limits obeyed."""

from dataclasses import replace

import numpy as np
import pytest

from cupy_convt.core import fft_tiles, plan_fft
from cupy_convt.core.cost_gpu import seconds
from cupy_convt.core.device import PRESETS
from cupy_convt.core.dispatch import choose
from cupy_convt.core.fft_blocks import choose_blocks, good_length, reach
from cupy_convt.core.interleave import q_count
from cupy_convt.core.launch import Fft, Gemm
from cupy_convt.core.problem import ITEM_BYTES, Problem, real_dtype
from cupy_convt.core.work import work
from tests.cases import GEOMETRIES, PAIRS, pair_id, problem
from tests.plans import check_launches

H200 = PRESETS["h200"]
LIMITS = (1 << 28, 1 << 16, 1 << 12)


@pytest.fixture(autouse=True)
def _tiny_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fft_tiles, "LEAST_BUDGET", 1)


def test_good_lengths_are_the_next_even_smooth_numbers() -> None:
    def smooth(n: int) -> bool:
        for prime in (2, 3, 5, 7):
            while n % prime == 0:
                n //= prime
        return n == 1

    for least in [*range(1, 700), 8191, 100_003, 2**20 + 1]:
        found = good_length(least)
        assert found >= least
        assert found % 2 == 0
        assert smooth(found)
        if least < 700:
            assert not [n for n in range(max(2, least), found) if n % 2 == 0 and smooth(n)]


@pytest.mark.parametrize("pair", PAIRS, ids=pair_id)
def test_launches_are_legal_and_transforms_stay_inside(pair) -> None:
    for name in GEOMETRIES:
        p = problem(name, *pair)
        for limit in LIMITS:
            for plan in plan_fft.candidates(p, H200, limit):
                check_launches(plan, H200)
                assert all(launch.variant in plan_fft.variants() for launch in plan.launches)
                buffers = {w.name: w for w in plan.workspaces + plan.packing_workspaces + plan.packed}
                counts = {name: buffer.count for name, buffer in buffers.items()}
                for step in plan.packing_steps + plan.steps:
                    if isinstance(step, Fft):
                        half = step.length // 2 + 1
                        given, made = {"r2c": (step.length, half), "c2r": (half, step.length)}.get(
                            step.kind, (step.length, step.length)
                        )
                        ends = [(step.source, given), (step.destination, made)]
                        inverse = step.kind in ("c2r", "c2c_inverse")
                        for end, size in ends:
                            last = step.batch * size
                            if step.spread and (end is step.source) == inverse:
                                assert step.spread >= step.batch
                                last = (size - 1) * step.spread + step.batch
                            assert end.offset + last <= counts[end.buffer]
                    elif isinstance(step, Gemm):
                        for matrix in (step.left, step.right, step.out):
                            last = (step.batch - 1) * matrix.batch_stride + (matrix.rows - 1) * matrix.row_stride
                            needed = (matrix.offset + last + matrix.columns) * ITEM_BYTES[step.dtype]
                            assert needed <= buffers[matrix.buffer].bytes


@pytest.mark.parametrize("name", GEOMETRIES)
def test_blocks_keep_what_does_not_wrap(name: str) -> None:
    """The kept samples of a circular convolution of the block equal those of the linear one."""
    p = problem(name)
    blocks, span = choose_blocks(p), p.phases.span
    first, count = reach(p, 0, q_count(p))
    rng = np.random.default_rng(1)
    x, taps = rng.standard_normal(p.l_in), rng.standard_normal(span + 1)
    linear = np.convolve(x, taps)
    end = min(p.l_in, first + count) if blocks.whole else p.l_in
    number = 1 if blocks.whole else -(-count // blocks.step)
    kept = []
    for b in range(number):
        start = first - blocks.lead + b * blocks.step
        inputs = [x[i] if 0 <= i < end else 0.0 for i in range(start, start + blocks.length)]
        circular = np.fft.irfft(np.fft.rfft(inputs) * np.fft.rfft(taps, blocks.length), blocks.length)
        kept.append(circular[blocks.lead : blocks.lead + blocks.step])
    if count:
        np.testing.assert_allclose(np.concatenate(kept)[:count], linear[first : first + count], atol=1e-9)


@pytest.mark.parametrize("name", GEOMETRIES)
def test_tiles_cover_the_output_once(name: str) -> None:
    p = problem(name)
    blocks = choose_blocks(p)
    for limit in LIMITS:
        layout = fft_tiles.choose_layout(p, blocks, limit)
        covered = np.zeros((p.batch, p.c_out, q_count(p)), int)
        tiles = list(fft_tiles.tiles_of(p, blocks, layout))
        assert len(tiles) == fft_tiles.tile_count(p, layout)
        for part in tiles:
            first = part.group * p.c_out_group + part.channel
            channels = part.groups * part.channels
            covered[part.n : part.n + part.batch, first : first + channels, part.q : part.q + part.q_count] += 1
            assert part.u_count <= part.blocks * blocks.step or blocks.whole
        assert (covered == 1).all()


@pytest.mark.parametrize("name", GEOMETRIES)
def test_reach_is_what_the_outputs_read(name: str) -> None:
    p = problem(name)
    for q, count in ((0, q_count(p)), (1, max(1, q_count(p) // 3))):
        first, number = reach(p, q, count)
        for t in range(q * p.stride, min((q + count) * p.stride, p.l_out)):
            for j in range(p.kernel_size):
                i, rest = divmod(t + p.p_left - j * p.dilation, p.stride)
                if rest == 0 and 0 <= i < p.l_in:
                    u = i + j // p.phases.tap_step * p.phases.input_step
                    assert first <= u < first + number


def test_long_signals_are_cut_and_short_ones_are_not() -> None:
    assert not choose_blocks(Problem(1, 1, 1 << 22, 1, 4096, 4)).whole
    whole = choose_blocks(Problem(16, 768, 8192, 768, 8192, 1, groups=768, p_right=8191))
    assert whole.whole
    assert whole.length == 16384


def test_workspaces_obey_the_limit() -> None:
    p = Problem(8, 4, 60000, 4, 4096, 4)
    for limit in (1 << 28, 1 << 25, 1 << 22):
        plans = [plan for plan in plan_fft.candidates(p, H200, limit) if 4 * plan.packed[0].bytes <= 3 * limit]
        assert len(plans) > 1 and all(plan.workspace_bytes <= limit for plan in plans)


def test_spectra_beyond_the_limit_are_left_to_the_chooser() -> None:
    p = Problem(1, 512, 1024, 512, 4096, 1)
    plans = plan_fft.candidates(p, H200, 1 << 24)
    assert all(plan.workspace_bytes > 1 << 24 for plan in plans)
    assert plans or plan_fft.why_not(p, H200, 1 << 24)


def test_plans_that_share_a_key_share_their_packing() -> None:
    keys = {}
    for left in (0, 1, 5):
        for length in (500, 20000, 20001, 40000):
            p = Problem(1, 4, length, 4, 300, 4, p_left=left, p_right=left)
            plans = plan_fft.candidates(p, H200, 1 << 28)
            assert len(plans) == 3
            for plan in plans:
                assert keys.setdefault(plan.packing_key, plan.packing_steps) == plan.packing_steps
    assert len(keys) < 24


def test_many_channels_are_matrices_at_every_frequency() -> None:
    p = Problem(1, 64, 64_000, 64, 1024, 1, p_left=512, p_right=512)
    plain, matrices, planes = plan_fft.candidates(p, H200, 1 << 30)
    assert not any(isinstance(step, Gemm) for step in plain.steps)
    assert {step.kernel for step in matrices.launches} == {"fft_pack", "fft_weights", "fft_finish"}
    assert {step.kernel for step in planes.launches} - {step.kernel for step in matrices.launches} == {
        "fft_split",
        "fft_join",
    }
    wide = Problem(64, 256, 2048, 256, 2048)
    times = [seconds(wide, plan, H200) for plan in plan_fft.candidates(wide, H200, 1 << 34)]
    assert times[1] < times[0] < 50 * times[1]
    for plan in (matrices, planes):
        assert all(step.spread for step in plan.packing_steps + plan.steps if isinstance(step, Fft))
    for few in (Problem(1, 1, 64_000, 64, 1024), replace(p, groups=64), replace(p, c_out=1)):
        assert len(plan_fft.candidates(few, H200, 1 << 30)) == 1


def test_three_real_products_in_place_of_a_complex_one() -> None:
    """Three quarters of the multiplications, real, in as many calls; where the extra traffic is less than they save."""
    for dtype in ("float32", "float64", "complex64"):
        p = Problem(4, 64, 64_000, 64, 1024, 1, x_dtype=dtype, weight_dtype=dtype)
        _, matrices, planes = plan_fft.candidates(p, H200, 1 << 34)
        four, three = ([step for step in plan.steps if isinstance(step, Gemm)] for plan in (matrices, planes))
        assert [step.batch for step in three] == [3 * step.batch for step in four]
        assert {step.dtype for step in three} == {real_dtype(dtype)}
        assert not any(step.tf32 for step in three)
        assert planes.packed[0].bytes * 2 == matrices.packed[0].bytes * 3
        assert work(p, planes).flops < work(p, matrices).flops
        assert work(p, planes).bytes > work(p, matrices).bytes
    grounds = {"h200": (128, 1024, "float32"), "a100": (96, 768, "complex64"), "t4": (8, 256, "float64")}
    for name, (few, many, dtype) in grounds.items():
        device, ahead = PRESETS[name], []
        for count in (few, many):
            p = Problem(32, count, 2048, count, 2048, x_dtype=dtype, weight_dtype=dtype)
            _, matrices, planes = plan_fft.candidates(p, device, 1 << 40)
            ahead.append(seconds(p, planes, device) < seconds(p, matrices, device))
        assert ahead == [False, True]


def test_ieee_precision_keeps_to_complex_products() -> None:
    p = Problem(1, 64, 64_000, 64, 1024, precision="ieee")
    assert len(plan_fft.candidates(p, H200, 1 << 30)) == 2
    assert len(plan_fft.candidates(replace(p, precision="tf32"), H200, 1 << 30)) == 3


def test_three_real_products_are_chosen_for_many_channels() -> None:
    p = Problem(1, 384, 480_000, 384, 1024)
    for precision, start in ((None, "three-product matrices"), ("ieee", "matrices")):
        choice = choose(replace(p, precision=precision), H200, workspace_limit=1 << 35, kept=True)
        assert choice.plan.variant.startswith(start)
        assert choice.plan.workspace_bytes <= 1 << 35


def test_what_the_method_cannot_take() -> None:
    for p in (replace(problem("ragged"), operation="weight_grad"), Problem(1, 1, 1000, 1, 2**28, 1)):
        assert not plan_fft.candidates(p, H200, 1 << 28)
        assert plan_fft.why_not(p, H200)


def test_new_lengths_need_few_spectra_and_few_library_plans() -> None:
    """In an octave of lengths: packed forms, and transforms as the library sees them."""
    rng = np.random.default_rng(0)
    for taps, low in ((4000, 3000), (300, 200_000)):
        keys, library = set(), set()
        for length in rng.integers(low, 2 * low, 300):
            (plan,) = plan_fft.candidates(Problem(1, 1, int(length), 1, taps, 2), H200, 1 << 28)
            keys.add(plan.packing_key)
            library |= {(step.kind, step.length, step.batch) for step in plan.steps if isinstance(step, Fft)}
        assert len(keys) <= 8
        assert len(library) <= 40
