# SPDX-License-Identifier: MIT
"""Derived lengths and phases against their definitions."""

from math import gcd

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cupy_convt.core.problem import Problem, ceil_div, phases, result_dtype


@given(stride=st.integers(1, 12), dilation=st.integers(1, 12), kernel_size=st.integers(1, 40))
def test_phases_cover_every_tap_once(stride: int, dilation: int, kernel_size: int) -> None:
    table = phases(stride, dilation, kernel_size)
    seen = []
    for phase in table.active:
        for m in range(phase.taps):
            tap = phase.first_tap + m * table.tap_step
            seen.append(tap)
            # input q + offset - m * input_step meets output q * stride + residue through this tap
            for q in (0, 7):
                i = q + phase.offset - m * table.input_step
                assert i * stride + tap * dilation == q * stride + phase.residue
    assert sorted(seen) == list(range(kernel_size))


@given(stride=st.integers(1, 12), dilation=st.integers(1, 12), kernel_size=st.integers(1, 40))
def test_phases_have_the_number_of_taps_that_the_gcd_says(stride: int, dilation: int, kernel_size: int) -> None:
    table, common = phases(stride, dilation, kernel_size), gcd(stride, dilation)
    assert table.common == common
    assert all(phase.residue % common == 0 for phase in table.active)
    assert len(table.active) == min(stride // common, kernel_size)
    assert table.max_taps == ceil_div(kernel_size * common, stride) == max(phase.taps for phase in table.active)
    assert [phase.residue for phase in table.active] == sorted({phase.residue for phase in table.active})


def test_derived_sizes_of_a_known_layer() -> None:
    problem = Problem(2, 512, 87, 256, 16, stride=8, p_left=4, p_right=4)
    assert (problem.l_full, problem.l_out, problem.effective_kernel) == (704, 696, 16)
    assert problem.macs == 2 * 512 * 256 * 16 * 87
    assert problem.flops == 2 * problem.macs
    assert problem.bytes == 4 * (2 * 512 * 87 + 512 * 256 * 16 + 2 * 256 * 696)


@pytest.mark.parametrize(
    ("x", "weight", "out", "accumulator", "multiplies"),
    [
        ("float32", "float32", "float32", "float32", 1),
        ("float16", "float16", "float16", "float32", 1),
        ("bfloat16", "bfloat16", "bfloat16", "float32", 1),
        ("complex64", "float32", "complex64", "complex64", 2),
        ("float64", "complex128", "complex128", "complex128", 2),
        ("complex64", "complex64", "complex64", "complex64", 4),
    ],
)
def test_dtypes(x: str, weight: str, out: str, accumulator: str, multiplies: int) -> None:
    problem = Problem(1, 1, 4, 1, 3, x_dtype=x, weight_dtype=weight)
    assert (problem.out_dtype, problem.accumulator, problem.real_multiplies) == (out, accumulator, multiplies)
    assert result_dtype(weight, x) == out
