# SPDX-License-Identifier: MIT
"""The CPU engine's forms of circular convolution as data: lengths, windows that hold what they keep, size classes."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cupy_convt.core.dispatch import choose
from cupy_convt.core.problem import Problem
from cupy_convt.core.rows_cpu import RealShape, row_grid
from cupy_convt.core.transforms_cpu import FftForm, fft_forms, split_of
from cupy_convt.engines.cpu import CpuEngine

CPU = CpuEngine().device()


def forms_of(problem: Problem) -> list[FftForm]:
    return fft_forms(problem, RealShape.of(problem), row_grid(problem))


@pytest.mark.parametrize("length", [8192, 9216, 45 << 8, 589824, 1 << 22])
def test_two_steps_are_about_equally_long(length: int) -> None:
    rows = split_of(length)
    assert length % rows == 0 and rows % 2 == 0
    assert length / rows / rows < 3


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    problem = Problem(
        batch=1,
        c_in=1,
        l_in=draw(st.integers(1, 900)),
        c_out=1,
        kernel_size=draw(st.integers(1, 900)),
        stride=draw(st.integers(1, 5)),
        dilation=draw(st.integers(1, 4)),
        p_left=draw(st.integers(-400, 900)),
    )
    wanted = draw(st.integers(1, 1500))
    return replace(problem, p_right=problem.l_full - problem.p_left - wanted)


@given(problems())
@settings(max_examples=150, deadline=None)
def test_windows_keep_what_does_not_wrap(problem: Problem) -> None:
    """Circular convolutions of the windows, kept as each form says, are the rows of one phase, and zero elsewhere."""
    grid, rng = row_grid(problem), np.random.default_rng(3)
    x, taps = rng.standard_normal(problem.l_in), rng.standard_normal(grid.span + 1)
    linear = np.convolve(x, taps)
    at = np.arange(grid.rows) + grid.lookahead
    inside = (at >= 0) & (at < linear.size)
    rows = np.where(inside, linear[np.clip(at, 0, linear.size - 1)], 0)
    for form in forms_of(problem):
        found = np.zeros(grid.rows)
        for k in range(form.windows):
            if form.kind == "blocks":
                start = k * form.hop - grid.lookback
                inputs = [x[i] if 0 <= i < x.size else 0.0 for i in range(start, start + form.length)]
                filters = np.zeros(form.length)
                filters[: taps.size] = taps
            else:
                inputs = np.zeros(form.length)
                inputs[: form.x_stop - form.x_start] = x[form.x_start : form.x_stop]
                start = k * form.hop - max(form.room - 1, 0)
                filters = [taps[j] if 0 <= j < taps.size else 0.0 for j in range(start, start + form.length)]
            circular = np.fft.irfft(np.fft.rfft(inputs) * np.fft.rfft(filters), form.length)
            kept = circular[form.drop : form.drop + form.hop]
            first = form.first + k * form.hop
            for row, value in enumerate(kept, first):
                if 0 <= row < grid.rows:
                    found[row] = value
        np.testing.assert_allclose(found, rows, atol=1e-9 * max(1, grid.span), err_msg=str(form))
        assert form.windows <= form.tap_windows or form.kind == "blocks"


def test_long_filters_are_cut_and_short_ones_are_not() -> None:
    kinds = {form.kind for form in forms_of(Problem(1, 1, 4096, 1, 262144))}
    assert kinds == {"whole", "taps"}
    kinds = {form.kind for form in forms_of(Problem(1, 1, 1 << 20, 1, 4096))}
    assert kinds == {"whole", "blocks"}


def test_nothing_is_transformed_where_no_input_is_seen() -> None:
    (form,) = forms_of(Problem(1, 1, 30, 1, 5, 2, p_left=500, p_right=-600))
    assert form.windows == 0


@pytest.mark.parametrize("kernel_size", [300, 5000])
def test_new_lengths_share_their_packing(kernel_size: int) -> None:
    """Lengths within an octave need at most a handful of packed forms, and so do all long signals together."""

    def key(length: int) -> tuple[object, ...]:
        problem = Problem(1, 1, length, 1, kernel_size, 2, p_left=10, p_right=10)
        return choose(problem, CPU, "fft").plan.packing_key

    rng = np.random.default_rng(0)
    for low in (2000, 20_000, 200_000):
        assert len({key(int(n)) for n in rng.integers(low, 2 * low, 200)}) <= 8
    assert len({key(int(n)) for n in rng.integers(2_000_000, 20_000_000, 200)}) <= 4
