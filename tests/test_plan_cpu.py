# SPDX-License-Identifier: MIT
"""Plans of the CPU engine as data: rows and runs say what the definition says, tiles fit the limit, costs are sane."""

from dataclasses import replace
from math import isfinite, prod

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.workloads import load
from cupy_convt.core.cost_cpu import packing_seconds, seconds
from cupy_convt.core.device import preset
from cupy_convt.core.dispatch import choose
from cupy_convt.core.plan_cpu import METHODS, CpuPlan, candidates, why_not
from cupy_convt.core.problem import DTYPES, Problem, ceil_div
from cupy_convt.core.rows_cpu import row_grid

CPU = preset("cpu")
LIMIT = 256 << 20


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    problem = Problem(
        batch=draw(st.integers(1, 3)),
        c_in=2,
        l_in=draw(st.integers(1, 40)),
        c_out=2,
        kernel_size=draw(st.integers(1, 40)),
        stride=draw(st.integers(1, 12)),
        dilation=draw(st.integers(1, 12)),
        p_left=draw(st.integers(-20, 60)),
        x_dtype=draw(st.sampled_from(DTYPES)),
    )
    problem = replace(problem, weight_dtype=problem.x_dtype)
    wanted = draw(st.integers(1, 100))
    return replace(problem, p_right=problem.l_full - problem.p_left - wanted)


@given(problems())
@settings(max_examples=300, deadline=None)
def test_rows_are_the_definition(problem: Problem) -> None:
    grid = row_grid(problem)
    found = set()
    for run in grid.runs:
        rows = grid.rows if run.residue < grid.tail else grid.rows - 1
        for q in range(rows):
            for k in range(run.count):
                for m in range(run.taps):
                    i = q + run.lead - m * grid.input_step
                    assert q - grid.lookback <= i <= q + grid.lookahead
                    if 0 <= i < problem.l_in:
                        t = q * problem.stride + run.residue + k
                        found.add((t, i, run.first_tap + k + m * grid.tap_step))
    expected = {
        (i * problem.stride + j * problem.dilation - problem.p_left, i, j)
        for i in range(problem.l_in)
        for j in range(problem.kernel_size)
    }
    assert found == {entry for entry in expected if 0 <= entry[0] < problem.l_out}


@given(problems())
@settings(max_examples=200, deadline=None)
def test_runs_cover_every_residue_once(problem: Problem) -> None:
    grid = row_grid(problem)
    residues = [run.residue + k for run in grid.runs for k in range(run.count)]
    assert residues == list(range(min(problem.stride, problem.l_out)))
    assert (grid.rows - 1) * problem.stride + grid.tail == problem.l_out
    assert 1 <= grid.tail <= problem.stride


@given(problems(), st.sampled_from([0, 1 << 12, 1 << 20, LIMIT]))
@settings(max_examples=100, deadline=None)
def test_every_method_takes_every_problem(problem: Problem, limit: int) -> None:
    plans = candidates(problem, CPU, limit)
    assert {plan.method for plan in plans} == set(METHODS)
    for plan in plans:
        assert why_not(problem, plan.method) is None
        assert isfinite(seconds(problem, plan, CPU)) and seconds(problem, plan, CPU) > 0
        assert min(plan.batch_tile, plan.group_tile, plan.channel_tile, plan.row_tile) >= 1


def test_unknown_method_is_refused() -> None:
    assert "winograd" in str(why_not(Problem(1, 1, 1, 1, 1), "winograd"))


@pytest.mark.parametrize("limit", [40 << 20, LIMIT])
def test_real_layers_stay_under_the_limit(limit: int) -> None:
    for workload in load(full=True):
        plans = candidates(workload.problem(), CPU, limit)
        assert any(plan.workspace_bytes - plan.packed_bytes <= limit for plan in plans), workload.name


@pytest.mark.parametrize(
    ("problem", "tiles"),
    [
        (Problem(1, 16, 110_336, 8, 4, 2, p_left=1, p_right=1), 8),  # rows of the result fill a tile
        (Problem(4, 64, 4096, 32, 4, 2, 2), 8),  # half of an item
        (Problem(256, 16, 3001, 3, 1, 1), 26),  # rows of ten items
    ],
)
def test_products_of_few_rows_are_worth_their_calls(problem: Problem, tiles: int) -> None:
    """A tile of a thousand columns would take a fiftieth of a millisecond: less than its calls do."""
    plan = next(plan for plan in candidates(problem, CPU, LIMIT) if plan.variant == "columns")
    counts = (
        (problem.batch, plan.batch_tile),
        (problem.c_out, plan.channel_tile),
        (row_grid(problem).rows, plan.row_tile),
    )
    assert prod(ceil_div(*count) for count in counts) <= tiles


def test_short_signals_are_cut_into_whole_blocks() -> None:
    def blocks(length: int) -> dict[str, int]:
        problem = Problem(1, 8, length, 8, 4, 2, groups=8)
        return {plan.variant: plan.block for plan in candidates(problem, CPU, LIMIT) if plan.block}

    assert blocks(125) == {"toeplitz4": 3, "toeplitz8": 7, "toeplitz16": 14, "toeplitz32": 21, "toeplitz64": 63}
    whole = {f"toeplitz{block}": block for block in (4, 8, 16, 32, 64)}
    assert blocks(126) == whole  # 127 rows
    assert blocks(2000) == whole


def test_packed_weights_are_shared_between_lengths() -> None:
    short, long = (Problem(1, 1, length, 1, 81, 4, p_left=40, p_right=40) for length in (500, 90_000))
    other = replace(long, p_left=41)
    keys = [{p.name: p.packing_key for p in candidates(q, CPU, LIMIT)} for q in (short, long, other)]
    assert keys[0]["gemm/toeplitz16"] == keys[1]["gemm/toeplitz16"] != keys[2]["gemm/toeplitz16"]


def test_a_kept_weight_is_not_paid_for_again() -> None:
    """A short input: unprepared, the plan that wants no packing; prepared, the one with the fewest products."""
    problem = Problem(1, 512, 250, 256, 16, 8, p_left=4, p_right=4)
    once, kept = choose(problem, CPU), choose(problem, CPU, kept=True)
    assert not once.kept and kept.kept
    assert isinstance(once.plan, CpuPlan) and isinstance(kept.plan, CpuPlan)
    assert kept.plan.form is not None and kept.plan.form.points > 1
    assert kept.seconds < once.seconds
    times = [{row.name: row.seconds for row in choice.ranking} for choice in (once, kept)]
    for plan in candidates(problem, CPU, LIMIT):
        difference = (times[0][plan.name] or 0) - (times[1][plan.name] or 0)
        assert difference == pytest.approx(packing_seconds(problem, plan, CPU), abs=1e-12)
        assert (difference > 0) == (plan.packed_bytes > 0)


def test_taps_are_cut_where_they_are_more_than_the_inputs_of_one_channel() -> None:
    def parts(problem: Problem, limit: int = LIMIT, cores: int = 2) -> dict[str, int]:
        device = replace(CPU, multiprocessors=cores)
        return {plan.variant: plan.tap_parts for plan in candidates(problem, device, limit) if plan.tap_parts > 1}

    istft = Problem(1, 1026, 224, 1, 1024, 256)
    assert parts(istft) == {"rows": 2} and parts(istft, cores=4) == {"rows": 4}
    others = {"batch": 2}, {"c_out": 2}, {"l_in": 1024}, {"c_in": 4, "l_in": 20}, {"x_dtype": "complex64"}
    assert not any(parts(replace(istft, **other)) for other in others)
    assert not parts(istft, cores=1) and not parts(istft, limit=1 << 20)
    (plan,) = (plan for plan in candidates(istft, CPU, LIMIT) if plan.variant == "rows")
    assert (plan.batch_tile, plan.channel_tile, plan.row_tile) == (1, 1, row_grid(istft).rows)
