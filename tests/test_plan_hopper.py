# SPDX-License-Identifier: MIT
"""Plans of the implicit GEMM by warpgroups: where they are, their launches, predicted times, compiled resources."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from cupy_convt.core import cost, cost_hopper, cost_implicit, plan_hopper, plan_implicit
from cupy_convt.core.device import PRESETS
from cupy_convt.core.dispatch import choose
from cupy_convt.core.implicit_tiles import HALO, panel_taps
from cupy_convt.core.launch import Launch, Stride
from cupy_convt.core.plan_hopper import KERNEL, TILES, HopperTile
from cupy_convt.core.problem import ITEM_BYTES, Problem
from cupy_convt.engines.source import ARCHITECTURES, compiler_options, kernel_source
from tests import plans
from tests.emulator import nvrtc

H200, H100 = PRESETS["h200"], PRESETS["h100"]
LIMIT = 256 << 20
RESOURCES = Path(__file__).parent / "resources_hopper.json"
HALF = Problem(16, 512, 862, 256, 16, 8, p_left=4, p_right=4, x_dtype="bfloat16", weight_dtype="bfloat16")
TF32 = replace(HALF, x_dtype="float32", weight_dtype="float32", precision="tf32")


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    groups, dtype = draw(st.sampled_from([1, 1, 2, 3])), draw(st.sampled_from(tuple(TILES)))
    return Problem(
        batch=draw(st.integers(1, 40)),
        c_in=groups * draw(st.integers(1, 700)),
        l_in=draw(st.one_of(st.integers(1, 90), st.integers(500, 100_000))),
        c_out=groups * draw(st.integers(1, 300)),
        kernel_size=draw(st.integers(1, 300)),
        stride=draw(st.integers(1, 200)),
        dilation=draw(st.integers(1, 7)),
        groups=groups,
        p_left=draw(st.integers(-30, 60)),
        p_right=draw(st.integers(-30, 60)),
        x_dtype=dtype,
        weight_dtype=dtype,
        precision="tf32" if dtype == "float32" else None,
    )


@settings(max_examples=150, deadline=None)
@given(problems())
def test_launches_stay_within_the_limits(problem: Problem) -> None:
    assume(problem.l_out > 0)
    for plan in plan_hopper.candidates(problem, H200, 1 << 40):
        tile = plan_hopper.tile_of(problem, plan)
        (product,), (pack,) = plan.steps, plan.packing_steps
        assert isinstance(product, Launch) and isinstance(pack, Launch)
        for launch in (product, pack):
            plans.check_launch(
                replace(launch, block=min(launch.block, 256)), H200
            )  # the limit is 256 and an expression
            assert launch.variant in plan_hopper.variants()
        assert product.block == 2 * tile.rows + 256
        count = plan_hopper.tile_count(problem, tile)
        assert plan_hopper.LEAST_WAVE * H200.multiprocessors <= count
        assert product.grid == min(count, H200.multiprocessors)
        assert (panel_taps(problem) - 1) * problem.phases.input_step <= HALO
        assert cost.seconds(problem, plan, H200) == cost_hopper.seconds(problem, plan, H200) > H200.launch_seconds


def test_every_variant_has_a_plan_and_none_is_shared_with_the_other_forms() -> None:
    emitted = {
        launch.variant
        for dtype in TILES
        for plan in plan_hopper.candidates(replace(TF32, x_dtype=dtype, weight_dtype=dtype), H200, LIMIT)
        for launch in plan.launches
    }
    assert emitted == set(plan_hopper.variants())
    assert not emitted & set(plan_implicit.variants())


def test_where_there_is_no_plan() -> None:
    def reason(device: Any = H200, **changes: Any) -> str:
        problem = replace(HALF, **changes)
        assert bool(plan_hopper.candidates(problem, device, LIMIT)) == (not plan_hopper.why_not(problem, device))
        return plan_hopper.why_not(problem, device)

    assert reason() == "" == reason(H100)
    for name in ("a100", "rtx3060", "t4"):
        assert "sm_90" in reason(PRESETS[name])
    assert "sm_90" in reason(replace(H200, architecture=100))
    assert "sm_90a" in reason(replace(H200, own_instructions=False))
    assert "weight_grad" in reason(operation="weight_grad")
    assert "one dtype" in reason(weight_dtype="float16")
    for dtype in ("float32", "float64", "complex64", "complex128"):
        assert "halves" in reason(x_dtype=dtype, weight_dtype=dtype)
    assert "halves" in plan_hopper.why_not(replace(TF32, precision="ieee"), H200)
    assert "2^23" in reason(dilation=2**23 + 1)
    assert "2^29" in reason(kernel_size=2**29)
    assert "columns" in reason(l_in=2**30)
    assert "tiles" in reason(batch=1, l_in=90)
    assert "tiles" in reason(batch=2**27)
    assert plan_hopper.candidates(replace(HALF, batch=0), H200, LIMIT) == ()
    assert plan_hopper.candidates(HALF, H200, 1 << 20) == ()  # 4 MiB of packed weights


def test_about_a_wave_is_needed() -> None:
    for length in range(100, 2000, 50):
        problem = replace(HALF, batch=1, l_in=length)
        found = {plan_hopper.tile_of(problem, plan) for plan in plan_hopper.candidates(problem, H200, LIMIT)}
        assert found == {t for t in TILES["bfloat16"] if plan_hopper.tile_count(problem, t) >= 99}


def test_plan_of_a_vocoder_layer() -> None:
    large, middle, small = plan_hopper.candidates(HALF, H200, LIMIT)
    names = ("gemm/hopper/wgmma-128x192", "gemm/hopper/wgmma-128x128", "gemm/hopper/wgmma-64x192")
    assert (large.name, middle.name, small.name) == names
    (product,) = middle.steps
    assert isinstance(product, Launch)
    assert (product.grid, product.block) == (132, 512)  # 16 row tiles by 108 column tiles
    assert product.arguments[4:8] == (Stride("x", 0), Stride("x", 1), Stride("out", 0), Stride("out", 1))
    assert middle.packed[0].bytes == 2 * prod(HALF.weight_shape)  # nothing is padded
    assert middle.workspaces == ()
    assert large.packing_key == middle.packing_key != small.packing_key
    longer = plan_hopper.candidates(replace(HALF, l_in=1000, p_left=2), H200, LIMIT)[0]
    assert longer.packing_key == large.packing_key
    other = plan_implicit.candidates(HALF, H200, LIMIT)[0]
    assert other.packing_key != large.packing_key  # another order of weights


def test_the_tile_knows_the_kernel() -> None:
    """The constants of the source that the planner repeats."""
    text = plans.source(KERNEL)
    assert "W_STAGES = 8, X_STAGES = 2 " in text
    assert "CONSUMERS = 2 * BM, FIRST_LOADER = CONSUMERS + 32, LOADERS = PLACES " in text
    assert "PASS = BN % 128 ? BN / 2 : 128 " in text
    for tile in TILES["float16"]:
        assert tile.threads == 2 * tile.rows + 256
        assert tile.staged.columns in (tile.columns, tile.columns // 2)
        places = tile.columns + HALO
        assert places <= 224
        # two x tiles, and 5 units of 16 bytes of two more for each thread that carries them
        assert tile.operand_bytes == 8 * 64 * tile.rows + 2 * 64 * places + 2 * 5 * 16 * places + 256
        assert tile.operand_bytes % 128 == 0


def test_predicted_times() -> None:
    for problem, peak in ((HALF, H200.fp16), (TF32, H200.tf32)):
        floor = problem.flops / peak
        for plan in plan_hopper.candidates(problem, H200, LIMIT):
            assert floor / 0.8 < cost_hopper.seconds(problem, plan, H200) < 3 * floor
        lengths = [replace(problem, l_in=length) for length in range(300, 2600, 23)]
        times = [
            {plan.name: cost_hopper.seconds(p, plan, H200) for plan in plan_hopper.candidates(p, H200, LIMIT)}
            for p in lengths
        ]
        for before, after in pairwise(times):
            assert before.keys() <= after.keys()
            assert all(0.9 < after[name] / before[name] < 1.15 for name in before)


def test_it_is_chosen_where_it_is_predicted_to_win() -> None:
    for problem in (HALF, TF32):
        choice = choose(problem, H200)
        assert choice.plan.variant.startswith("hopper/")
        (best,) = {row.seconds for row in choice.ranking if row.plan == choice.plan}
        assert best is not None
        assert best < min(
            cost_implicit.seconds(problem, plan, H200) for plan in plan_implicit.candidates(problem, H200, LIMIT)
        )
    few = replace(HALF, batch=1, l_in=32)
    assert not choose(few, H200).plan.variant.startswith("hopper/")
    bytes_bound = replace(HALF, c_in=8, c_out=8, batch=4, l_in=5000)
    assert not choose(bytes_bound, H200).plan.variant.startswith("hopper/")


def test_steps_are_bound_by_tensor_cores_or_shared_memory() -> None:
    for problem in (HALF, TF32):
        for tile in TILES[problem.x_dtype]:
            step = cost_hopper.step_seconds(problem, tile, H200)
            depth = 64 // ITEM_BYTES[problem.x_dtype]
            peak = H200.fp16 if problem is HALF else H200.tf32
            floor = 2 * tile.rows * tile.columns * depth / (peak / H200.multiprocessors)
            assert floor < step < 2 * floor
            # more taps share an x tile
            assert cost_hopper.step_seconds(replace(problem, kernel_size=64), tile, H200) <= step


# ---- compiled resources: python -m tests.test_plan_hopper rewrites the table ----------------------------------------

needs_nvrtc = pytest.mark.skipif(not nvrtc.available(), reason="no libnvrtc with headers")


def label(kernel: str, defines: tuple[tuple[str, str | int], ...]) -> str:
    return " ".join((kernel, *(f"{name.removeprefix('CONVT_')}={value}" for name, value in defines)))


def shared_bytes(kernel: str, defines: tuple[tuple[str, str | int], ...]) -> int:
    """Dynamic shared memory of the product for a stride of 8."""
    wanted = dict(defines)
    dtype = {"__half": "float16", "__nv_bfloat16": "bfloat16", "float": "float32"}[str(wanted["CONVT_T"])]
    sides = wanted["CONVT_BM"], wanted["CONVT_BN"]
    tile = next(tile for tile in TILES[dtype] if (tile.rows, tile.columns) == sides)
    assert isinstance(tile, HopperTile)
    return plan_hopper.shared_bytes(replace(TF32, x_dtype=dtype, weight_dtype=dtype), tile)


def resources() -> dict[str, Any]:
    """[registers at the launch, static shared bytes, dynamic ones of a vocoder layer], by variant."""
    table: dict[str, list[int]] = {}
    for kernel, defines in plan_hopper.variants():
        architecture = ARCHITECTURES.get(kernel, "sm_90")
        found = nvrtc.compile_kernel(kernel_source(kernel), kernel, dict(defines), architecture)
        assert (found.stack, found.spill_stores, found.spill_loads) == (0, 0, 0), found
        assert not found.warnings, found
        dynamic = shared_bytes(kernel, defines) if kernel == KERNEL else 0
        table[label(kernel, defines)] = [found.registers, found.shared, dynamic]
    return {"nvrtc": list(nvrtc.version()), "resources": table}


@pytest.mark.slow
@needs_nvrtc
def test_nothing_spills_and_resources_do_not_drift() -> None:
    kept, found = json.loads(RESOURCES.read_text()), resources()
    assert kept["resources"].keys() == found["resources"].keys()
    if kept["nvrtc"] == found["nvrtc"]:
        assert kept["resources"] == found["resources"]


@pytest.mark.slow
@needs_nvrtc
@pytest.mark.parametrize("dtype", TILES)
def test_products_of_one_accumulator_need_not_wait(dtype: str) -> None:
    """The compiler says so where it puts waits between them."""
    defines = (
        plan_hopper.candidates(replace(TF32, x_dtype=dtype, weight_dtype=dtype), H200, LIMIT)[0].launches[-1].defines
    )
    _, log, _ = nvrtc.compile_cubin(kernel_source(KERNEL), [KERNEL], dict(defines), "sm_90a")
    assert "registers" in log and "serialized" not in log


@pytest.mark.slow
@needs_nvrtc
def test_cupys_own_architecture_beside_ours_changes_nothing() -> None:
    """CuPy appends the device's -arch to the options of a module."""
    if nvrtc.version() < (12, 9):
        pytest.skip("compilers of early CUDA 12 refuse a second -arch")
    options = compiler_options(KERNEL)
    assert "-arch=sm_90a" in options and compiler_options("pack_weights") == ("-std=c++17",)
    kernel, defines = next(variant for variant in plan_hopper.variants() if variant[0] == KERNEL)
    ours, theirs = (
        nvrtc.compile_cubin(kernel_source(kernel), [kernel], dict(defines), "sm_90a", given)[0]
        for given in ((), ("-arch=sm_90",))
    )
    assert ours == theirs
    with pytest.raises(nvrtc.NvrtcError):
        nvrtc.compile_cubin(kernel_source(kernel), [kernel], dict(defines), "sm_90")


if __name__ == "__main__":
    RESOURCES.write_text(json.dumps(resources(), indent=1, sort_keys=True) + "\n")
