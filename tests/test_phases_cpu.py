# SPDX-License-Identifier: MIT
"""Products phase by phase: the forms are filters, tiles cover every sample once, and the CPU engine computes them."""

from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cupy_convt.core.device import preset
from cupy_convt.core.phases_cpu import FORMS, PLAIN, Form, phase_forms, phase_tiles, rows_of
from cupy_convt.core.plan_cpu import CpuPlan, phase_plan
from cupy_convt.core.problem import EPSILON, Problem
from cupy_convt.engines import cpu_phases
from cupy_convt.engines.cpu import CpuEngine, reference
from cupy_convt.engines.cpu_arrays import Pieces
from tests.test_cpu import arguments, empty

CPU, LIMIT = preset("cpu"), 256 << 20
DENSE = Problem(2, 48, 100, 32, 16, 8, p_left=4, p_right=4, has_bias=True)


def plan_of(problem: Problem, form: Form, limit: int = LIMIT) -> CpuPlan:
    return phase_plan(problem, CPU, limit, form)


def arrays(problem: Problem, seed: int = 0) -> tuple[Any, Any, Any]:
    rng = np.random.default_rng(seed)
    shapes = problem.x_shape, problem.weight_shape, (problem.c_out,)
    return tuple(rng.standard_normal(shape).astype(problem.x_dtype) for shape in shapes)  # type: ignore[return-value]


def run(problem: Problem, plan: CpuPlan, x: Any, weight: Any, bias: Any = None) -> Any:
    out = empty(problem)
    CpuEngine().run(problem, plan, x, weight, bias, out)
    return out


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
@pytest.mark.parametrize("taps", [1, 2, 3, 4, 5, 7])
def test_a_form_is_the_filter_exactly(form: Form, taps: int) -> None:
    """Small integers: every product and sum is exact in float32, halves included, so the result must be too."""
    problem = Problem(3, 2, 13, 3, 4 * taps, 4, p_left=3, p_right=2)
    rng = np.random.default_rng(taps)
    shapes = problem.x_shape, problem.weight_shape, (problem.c_out,)
    x, weight, bias = (rng.integers(-8, 9, shape).astype(np.float32) for shape in shapes)
    whole = plan_of(problem, form)
    for plan in (whole, replace(whole, row_tile=5 * form.outputs)):
        np.testing.assert_array_equal(run(problem, plan, x, weight, bias), reference(problem, x, weight, bias))


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    groups, stride = draw(st.integers(1, 3)), draw(st.sampled_from([1, 2, 3, 4, 5, 8, 33, 40]))
    x_dtype, weight_dtype = draw(
        st.sampled_from(
            [*[("float32", "float32")] * 3, ("float64", "float64"), ("float16", "float16"), ("bfloat16", "bfloat16")]
            + [("complex64", "complex64"), ("complex64", "float32"), ("float32", "complex64")]
        )
    )
    problem = Problem(
        draw(st.integers(1, 4)),
        draw(st.integers(1, 5)) * groups,
        draw(st.integers(1, 60)),
        draw(st.integers(1, 5)) * groups,
        draw(st.integers(1, 4 * stride)),
        stride,
        groups=groups,
        p_left=draw(st.integers(-9, 30)),
        x_dtype=x_dtype,
        weight_dtype=weight_dtype,
        has_bias=draw(st.booleans()),
    )
    return replace(problem, p_right=problem.l_full - problem.p_left - draw(st.integers(1, 150)))


@given(problems(), st.sampled_from(FORMS), st.sampled_from([0, 1 << 17, LIMIT]), st.integers(0, 2**32 - 1))
@settings(max_examples=500, deadline=None)
def test_every_form_agrees_with_the_reference(problem: Problem, form: Form, limit: int, seed: int) -> None:
    x, weight, bias = arguments(problem, seed)
    got = run(problem, plan_of(problem, form, limit), x, weight, bias if problem.has_bias else None)
    want = reference(problem, x, weight, bias if problem.has_bias else None)
    norms = [np.sqrt((np.abs(array.astype(np.complex128)) ** 2).sum()) for array in (x, weight)]
    allowed = 8 * EPSILON[problem.accumulator] * (norms[0] * norms[1] + 4) + EPSILON[problem.out_dtype] * np.abs(want)
    error = np.abs(got.astype(want.dtype) - want)
    assert (error <= allowed + (2.0**-24 if problem.out_dtype == "float16" else 0)).all()


def test_minimal_filters_have_the_fewest_products() -> None:
    for form, share in zip(FORMS[1:], (Fraction(3, 4), Fraction(2, 3), Fraction(2, 3)), strict=True):
        assert form.points == form.outputs + form.section - 1
        assert Fraction(form.points, form.outputs * form.section) == share


def test_forms_offered() -> None:
    def names(**changes: Any) -> list[str]:
        return [form.name for form in phase_forms(replace(DENSE, **changes))]

    assert names() == ["phases", "winograd3x2", "winograd2x2"]
    assert names(kernel_size=24) == ["phases", "winograd2x3"]
    assert names(kernel_size=32) == ["phases", "winograd2x2"]
    assert names(kernel_size=32, c_out=64) == ["phases", "winograd3x2", "winograd2x2"]
    assert names(c_in=1024) == ["winograd3x2", "winograd2x2"]
    assert names(c_in=1024, kernel_size=8) == ["phases"]
    assert names(c_out=31) == ["phases", "winograd2x2"]
    assert names(c_out=7) == names(kernel_size=8) == ["phases"]
    assert names(precision="ieee") == ["phases"]
    assert names(kernel_size=7) == names(dilation=2) == []


@pytest.mark.slow
@given(
    batch=st.integers(1, 9),
    channels=st.integers(1, 40),
    groups=st.integers(1, 3),
    length=st.integers(1, 3000),
    crop=st.integers(0, 15),
    form=st.sampled_from(FORMS),
    most=st.sampled_from([0, 1 << 12, 1 << 18, 1 << 24]),
)
@settings(max_examples=200, deadline=None)
def test_tiles_cover_every_sample_once(
    batch: int, channels: int, groups: int, length: int, crop: int, form: Form, most: int
) -> None:
    problem = Problem(batch, 5 * groups, length, channels * groups, 16, 8, 1, groups, crop, 0)
    cut = phase_tiles(problem, form, most, 2)
    assert min(cut.items, cut.channels, cut.groups) >= 1
    plan = CpuPlan("gemm", form.name, cut.items, 1, cut.channels, cut.groups * form.outputs, form=form)
    first, stop = rows_of(problem)
    assert first * 8 <= crop < (first + 1) * 8 and (stop - 1) * 8 < crop + problem.l_out <= stop * 8
    rows = -(-(stop - first) // form.outputs)
    seen: np.ndarray[Any, np.dtype[np.int8]] = np.zeros((batch, groups, channels, rows), np.int8)
    for tile in cpu_phases.tiles(problem, plan):
        seen[tile.items, tile.group, tile.channels, tile.outputs] += 1
    assert (seen == 1).all()


@pytest.mark.parametrize("form", FORMS[1:], ids=lambda form: form.name)
def test_error_is_relative_to_what_is_summed(form: Form) -> None:
    """Signals with 60 dB of dynamics: against the largest of a window of four x, errors stay those of float32."""
    problem = replace(DENSE, kernel_size=8 * form.section)
    x, weight, bias = arrays(problem, seed=3)
    x *= np.float32(10) ** np.linspace(-1.5, 1.5, problem.l_in, dtype=np.float32)
    error = np.abs(run(problem, plan_of(problem, form), x, weight, bias) - reference(problem, x, weight, bias))
    reach = np.maximum.reduce([np.roll(np.abs(x), shift, -1) for shift in range(-3, 4)]).astype(np.float64)
    scale = reference(replace(problem, x_dtype="float64", weight_dtype="float64"), reach, np.abs(weight), np.abs(bias))
    terms = problem.c_in_group * problem.phases.max_taps
    assert (error <= (4 + terms**0.5) * np.finfo(np.float32).eps * scale).all()
    assert error.max() > 0


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_a_nan_reaches_its_group_of_outputs_at_most(form: Form) -> None:
    x, weight, _ = arrays(DENSE)
    x[0, 5, 50] = np.nan
    bad = np.isnan(run(DENSE, plan_of(DENSE, form) if form in phase_forms(DENSE) else plan_of(DENSE, PLAIN), x, weight))
    assert not bad[1].any()
    hit = np.flatnonzero(bad[0].any(0))
    assert set(range(50 * 8 - 4, 52 * 8 - 4)) <= set(hit)
    assert hit.min() >= (50 - 3) * 8 - 4 and hit.max() < (52 + 3) * 8 - 4


def test_packed_weight_serves_any_length_and_crop() -> None:
    x, weight, bias = arrays(DENSE)
    plan = plan_of(DENSE, Form(3, 2))
    packed = CpuEngine().pack(DENSE, plan, weight)
    for other in (replace(DENSE, l_in=7, batch=1), replace(DENSE, p_left=0, p_right=3), replace(DENSE, l_in=100)):
        theirs = plan_of(other, Form(3, 2))
        assert theirs.packing_key == plan.packing_key
        part = np.ascontiguousarray(x[: other.batch, :, : other.l_in])
        out = np.empty(other.out_shape, np.float32)
        CpuEngine().run(other, theirs, part, weight, bias, out, packed)
        np.testing.assert_array_equal(out, run(other, theirs, part, weight, bias))


def test_sums_of_x_are_made_once_for_the_channels_of_a_tile(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles of the same inputs follow each other, and find them where they were left."""
    filled: list[Any] = []
    before = cpu_phases._fill_planes

    def counted(pieces: Pieces, *where: Any) -> None:
        filled.append(where)
        before(pieces, *where)

    monkeypatch.setattr(cpu_phases, "_fill_planes", counted)
    problem = replace(DENSE, batch=1, p_left=0)
    plan = replace(plan_of(problem, Form(3, 2)), channel_tile=8, row_tile=3 * 40)
    x, weight, bias = arrays(problem)
    packed = CpuEngine().pack(problem, plan, weight)
    out = np.empty(problem.out_shape, np.float32)
    pieces = Pieces(problem, x, bias, out)
    cpu_phases.run(pieces, plan, np.asarray(packed), packed=True, parallel=False)
    assert len(filled) == 1
    np.testing.assert_allclose(out, reference(problem, x, weight, bias), atol=1e-4)
