# SPDX-License-Identifier: MIT
"""Plans of the implicit GEMM: coverage of the result, limits, defines, predicted times, compiled resources."""

import re
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from math import prod

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from cupy_convt.core import cost_implicit, implicit_tiles, plan_implicit
from cupy_convt.core.device import PRESETS, DeviceSpec
from cupy_convt.core.launch import I32, Launch, Plan, Stride
from cupy_convt.core.problem import Problem
from cupy_convt.engines.source import kernel_directory
from tests.plans import parameters

H200, T4 = replace(PRESETS["h200"], three_tf32=True), PRESETS["t4"]
VOCODER = Problem(1, 512, 862, 256, 16, 8, p_left=4, p_right=4)
IEEE = replace(VOCODER, precision="ieee")
DTYPES = tuple(implicit_tiles.TILES)


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    groups, dtype = draw(st.sampled_from([1, 1, 2, 3])), draw(st.sampled_from(DTYPES))
    return Problem(
        batch=draw(st.integers(1, 3)),
        c_in=groups * draw(st.integers(1, 40)),
        l_in=draw(st.one_of(st.integers(1, 6), st.integers(1, 90), st.integers(500, 600))),
        c_out=groups * draw(st.integers(1, 20)),
        kernel_size=draw(st.integers(1, 30)),
        stride=draw(st.integers(1, 9)),
        dilation=draw(st.integers(1, 7)),
        groups=groups,
        p_left=draw(st.integers(-30, 60)),
        p_right=draw(st.integers(-30, 60)),
        x_dtype=dtype,
        weight_dtype=dtype,
    )


@settings(max_examples=150, deadline=None)
@given(problems())
def test_columns_hold_every_sample_once_and_every_input_that_it_sees(problem: Problem):
    assume(problem.l_out > 0)
    line, phases, l_in = implicit_tiles.line(problem), problem.phases, problem.l_in
    taps = {first * problem.dilation % problem.stride: first for first in range(len(phases.active))}
    residues = [(r, taps[r] * problem.dilation if r in taps else r) for r in range(problem.stride)]
    columns = range(line.first_u, line.first_u + line.columns)
    written = Counter(u * problem.stride + lead - problem.p_left for u in columns for _, lead in residues)
    assert all(written[t] == 1 for t in range(problem.l_out))
    # a look back beyond the row's first column ends in zeros: those before x, found at the end of the row before
    for u in columns:
        samples = [u * problem.stride + first * problem.dilation - problem.p_left for first in taps.values()]
        if not any(0 <= t < problem.l_out for t in samples):
            continue
        for m in range(phases.max_taps):
            place = u - m * phases.input_step
            if place < line.first_u:
                before = place + line.columns
                assert (place < 0 and before >= l_in) or place >= l_in, (problem, u, m)


@settings(max_examples=150, deadline=None)
@given(problems())
def test_row_tiles_hold_every_channel_and_phase_once(problem: Problem):
    for tile in implicit_tiles.TILES[problem.x_dtype]:
        rows, phases = implicit_tiles.split(problem, tile), len(problem.phases.active)
        assert rows.channels * rows.phases <= tile.rows
        assert (rows.channel_tiles - 1) * rows.channels < problem.c_out_group <= rows.channel_tiles * rows.channels
        assert (rows.phase_tiles - 1) * rows.phases < phases <= rows.phase_tiles * rows.phases


@settings(max_examples=150, deadline=None)
@given(problems())
def test_launches_stay_within_the_limits(problem: Problem):
    assume(problem.l_out > 0)
    plans = plan_implicit.candidates(problem, H200, 1 << 40)
    assert len({plan.name for plan in plans}) == len(plans)
    assert [implicit_tiles.tile_of(problem, p) for p in plans if not p.workspaces] == [
        *implicit_tiles.tiles(problem, H200)
    ]
    for plan in plans:
        for launch in plan.launches:
            assert 0 < launch.grid < 2**31 and launch.block <= 1024
            assert launch.shared_bytes <= 227 << 10
            assert len(launch.arguments) == len(parameters(launch.kernel))
            assert launch.variant in plan_implicit.variants()
        reach = (implicit_tiles.panel_taps(problem) - 1) * problem.phases.input_step
        assert 0 <= reach <= implicit_tiles.HALO
        assert cost_implicit.seconds(problem, plan, H200) > H200.launch_seconds


def parts_of(plan: Plan) -> int:
    """Parts of the contraction, from the product's arguments."""
    product = plan.steps[0]
    assert isinstance(product, Launch)
    parts, part_steps = (product.arguments[i] for i in (26, 27))
    assert isinstance(parts, I32) and isinstance(part_steps, I32)
    chunks, taps = (product.arguments[i] for i in (16, 17))
    assert isinstance(chunks, I32) and isinstance(taps, I32)
    assert parts.value * part_steps.value == chunks.value * taps.value  # none is longer than another, nothing is left
    return parts.value


@settings(max_examples=150, deadline=None)
@given(problems(), st.sampled_from([3, 12, 132]), st.sampled_from([0.0, 4e-6]))
def test_parts_cover_the_contraction_and_follow_from_an_item(problem: Problem, multiprocessors: int, launch: float):
    assume(problem.l_out > 0)
    device = replace(H200, multiprocessors=multiprocessors, launch_seconds=launch)
    for plan in plan_implicit.candidates(problem, device, 1 << 40):
        parts, tile = parts_of(plan), implicit_tiles.tile_of(problem, plan)
        product = plan.steps[0]
        assert isinstance(product, Launch) and product.grid == parts * implicit_tiles.blocks(problem, tile)
        assert (parts > 1) == (len(plan.steps) == 2) == bool(plan.workspaces)
        alone = replace(problem, batch=1)
        assert parts in (1, cost_implicit.contraction_parts(alone, tile, device))
        if parts > 1:
            assert implicit_tiles.blocks(alone, tile) < multiprocessors
            assert any(plan.sum_order == p.sum_order for p in plan_implicit.candidates(alone, device, 1 << 40))
            runs = {i.value for step in plan.steps for i in step.arguments[8:] if isinstance(i, I32)}
            assert plan.workspaces[0].count == parts * implicit_tiles.part_count(problem, tile) and runs


def test_parts_of_a_layer_of_few_tiles():
    """A frame of a decoder: 1 row tile of 64 rows, 32 chunks by 2 taps."""
    layer = replace(IEEE, l_in=33, c_out=1)
    tiled, split = (p for p in plan_implicit.candidates(layer, H200, 1 << 30) if "fma-64" in p.variant)
    assert split.variant == "implicit/fma-64x128 in 32 parts"
    assert [step.grid for step in split.launches] == [32, 32, 1]
    assert cost_implicit.seconds(layer, split, H200) < cost_implicit.seconds(layer, tiled, H200) / 4
    assert split.packing_key == tiled.packing_key
    assert split.workspace_bytes == tiled.workspace_bytes + 32 * 8 * 128 * 4  # parts of 8 phases by 128 columns
    assert split not in plan_implicit.candidates(layer, H200, tiled.workspace_bytes)
    # a wave of tiles is not cut, nor one whose sums would take longer than what they save
    assert all(not p.workspaces for p in plan_implicit.candidates(IEEE, H200, 1 << 30))


def test_every_dtype_has_plans_and_every_variant_a_plan():
    emitted = {
        launch.variant
        for dtype in DTYPES
        for precision in (None, "tf32")
        for length in (862, 5)
        for plan in plan_implicit.candidates(
            replace(VOCODER, l_in=length, c_out=9, x_dtype=dtype, weight_dtype=dtype, precision=precision),
            H200,
            1 << 40,
        )
        for launch in plan.launches
    }
    assert emitted == set(plan_implicit.variants())


def test_defines_are_those_that_the_sources_ask_for():
    for kernel, defines in plan_implicit.variants():
        asked = set(re.findall(r"#ifndef (CONVT_\w+)\n#error", (kernel_directory() / f"{kernel}.cu").read_text()))
        assert asked == {name for name, _ in defines}


def test_what_it_does_not_take():
    assert "operation" not in plan_implicit.why_not(VOCODER, H200)
    assert "weight_grad" in plan_implicit.why_not(replace(VOCODER, operation="weight_grad"), H200)
    assert "one dtype" in plan_implicit.why_not(replace(VOCODER, x_dtype="complex64"), H200)
    assert "2^23" in plan_implicit.why_not(replace(VOCODER, dilation=2**23 + 1), H200)
    assert "columns" in plan_implicit.why_not(replace(VOCODER, l_in=2**30), H200)
    assert "tiles" in plan_implicit.why_not(replace(VOCODER, batch=2**27), H200)
    assert plan_implicit.candidates(replace(VOCODER, batch=0), H200, 1 << 40) == ()
    assert plan_implicit.candidates(VOCODER, H200, 1 << 20) == ()  # 8 MiB of packed weights


def test_plan_of_a_vocoder_layer():
    plan, small = plan_implicit.candidates(IEEE, H200, 256 << 20)
    assert (plan.name, small.name) == ("gemm/implicit/fma-64x128", "gemm/implicit/fma-32x64")
    (product,), (pack,) = plan.steps, plan.packing_steps
    assert isinstance(product, Launch) and isinstance(pack, Launch)
    assert plan.packed[0].bytes == 4 * prod(VOCODER.weight_shape)  # nothing is padded
    assert product.grid == 32 * 7  # 2048 rows, 863 columns
    assert product.arguments[4:8] == (Stride("x", 0), Stride("x", 1), Stride("out", 0), Stride("out", 1))
    assert plan.workspaces == ()
    longer = plan_implicit.candidates(replace(IEEE, l_in=1000, p_left=2), H200, 256 << 20)[0]
    assert plan.packing_key == longer.packing_key != small.packing_key
    assert plan.packing_key != plan_implicit.candidates(replace(IEEE, stride=4), H200, 256 << 20)[0].packing_key


def test_precision_and_device_decide_on_the_arithmetic():
    def units(problem: Problem, device: DeviceSpec) -> set[str]:
        plans = plan_implicit.candidates(problem, device, 256 << 20)
        return {plan.variant.removeprefix("implicit/").split("-")[0] for plan in plans}

    assert units(VOCODER, H200) == {"3xtf32", "fma"}
    assert units(VOCODER, PRESETS["h200"]) == {"fma"}
    assert units(IEEE, H200) == {"fma"}
    assert units(replace(VOCODER, precision="tf32"), H200) == {"tf32", "fma"}
    assert units(VOCODER, T4) == {"fma"}
    half = replace(VOCODER, x_dtype="float16", weight_dtype="float16")
    assert units(half, H200) == {"mma"}
    assert units(half, T4) == set()
    assert "sm_80" in plan_implicit.why_not(half, T4)


def test_predicted_times_of_a_vocoder_layer():
    plan, small = plan_implicit.candidates(IEEE, H200, 256 << 20)
    floor = VOCODER.flops / H200.fp32
    assert floor < cost_implicit.seconds(VOCODER, plan, H200) < 3 * floor
    assert cost_implicit.seconds(VOCODER, small, H200) > floor
    for precision in (None, "tf32"):
        problems = [replace(VOCODER, l_in=length, precision=precision) for length in range(600, 1200, 7)]
        plans = [plan_implicit.candidates(problem, H200, 256 << 20)[0] for problem in problems]
        times = [cost_implicit.seconds(problem, plan, H200) for problem, plan in zip(problems, plans, strict=True)]
        assert all(abs(b / a - 1) < 0.15 for a, b in pairwise(times))
