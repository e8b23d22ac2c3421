# SPDX-License-Identifier: MIT
"""GEMM plans as data: tiles that cover the output once, products inside their operands, limits obeyed."""

from dataclasses import replace

import numpy as np
import pytest

from cupy_convt.core import plan_gemm
from cupy_convt.core.device import PRESETS
from cupy_convt.core.interleave import q_count
from cupy_convt.core.launch import Gemm, Launch, Stride
from cupy_convt.core.problem import ITEM_BYTES, Problem
from tests.cases import GEOMETRIES, PAIRS, pair_id, problem
from tests.plans import check_launches

H200 = PRESETS["h200"]
LIMITS = (1 << 28, 1 << 15, 1 << 11)


@pytest.fixture(autouse=True)
def _tiny_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_gemm, "LEAST_BUDGET", 1)


@pytest.mark.parametrize("pair", PAIRS, ids=pair_id)
def test_launches_are_legal_and_products_stay_inside(pair) -> None:
    for name in GEOMETRIES:
        p = problem(name, *pair)
        for limit in LIMITS:
            for plan in plan_gemm.candidates(p, H200, limit):
                check_launches(plan, H200)
                (columns,) = plan.workspaces
                for step in plan.steps:
                    if isinstance(step, Gemm):
                        check_product(p, step, columns.bytes)
                    else:
                        assert isinstance(step, Launch)
                        assert step.variant in plan_gemm.variants()


def check_product(p: Problem, step: Gemm, columns_bytes: int) -> None:
    pairs = ITEM_BYTES[p.x_dtype] // ITEM_BYTES[step.dtype]
    planes = ITEM_BYTES[p.weight_dtype] // ITEM_BYTES[step.dtype]
    assert step.left_transposed
    assert (step.out.rows, step.out.columns) == (step.left.columns, step.right.columns)
    assert step.left.rows == step.right.rows == p.c_in_group
    stride = step.out.row_stride
    assert isinstance(stride, int)
    assert isinstance(step.out.batch_stride, int)
    last = (step.batch - 1) * step.out.batch_stride + (step.out.rows - 1) * stride + step.out.columns
    assert last * ITEM_BYTES[step.out_dtype] <= columns_bytes
    strides = {Stride("x", 0, pairs): p.c_in * p.l_in * pairs, Stride("x", 1, pairs): p.l_in * pairs}
    strides[Stride("x", 1, pairs * p.c_in_group)] = p.c_in_group * p.l_in * pairs

    def last_element(matrix) -> int:
        first = matrix.offset + sum(strides[s] * times for s, times in matrix.stride_offsets)
        row, batch = (strides.get(s, s) for s in (matrix.row_stride, matrix.batch_stride))
        return first + (step.batch - 1) * batch + (matrix.rows - 1) * row + matrix.columns

    assert last_element(step.right) <= p.batch * p.c_in * p.l_in * pairs
    assert last_element(step.left) <= p.c_in * p.c_out_group * p.kernel_size * planes


@pytest.mark.parametrize("name", GEOMETRIES)
def test_tiles_cover_the_output_once(name: str) -> None:
    p = problem(name)
    for limit in LIMITS:
        layout = plan_gemm._layout(p, limit)
        covered = np.zeros((p.batch, p.c_out, q_count(p)), int)
        parts = list(plan_gemm._parts(p, layout))
        assert len(parts) == plan_gemm._tiles(p, layout)
        for part in parts:
            for b in range(part.batch):
                n, group = (part.n, part.group + b) if part.over_groups else (part.n + b, part.group)
                first = group * p.c_out_group + part.channel
                covered[n, first : first + part.channels, part.q : part.q + part.q_count] += 1
            reach = [
                i
                for t in range(part.q * p.stride, min((part.q + part.q_count) * p.stride, p.l_out))
                for j in range(p.kernel_size)
                for i in [(t + p.p_left - j * p.dilation) / p.stride]
                if i.is_integer() and 0 <= i < p.l_in
            ]
            if reach:
                assert part.i_first <= min(reach)
                assert max(reach) < part.i_first + part.inputs
        assert (covered == 1).all()


def test_workspaces_obey_the_limit() -> None:
    p = Problem(8, 64, 5000, 32, 16, 4)
    for limit in (1 << 28, 1 << 24, 1 << 20):
        (plan,) = plan_gemm.candidates(p, H200, limit)
        assert 0.2 * limit < plan.workspace_bytes <= limit or limit == 1 << 28


def test_mixed_products_stay_real() -> None:
    p = problem("ragged", "complex64", "float32")
    steps = [step for step in plan_gemm.candidates(p, H200, 1 << 28)[0].steps if isinstance(step, Gemm)]
    assert {(step.dtype, step.out_dtype) for step in steps} == {("float32", "float32")}
    assert steps[0].right.columns == 2 * p.l_in
    p = problem("ragged", "float64", "complex128")
    steps = [step for step in plan_gemm.candidates(p, H200, 1 << 28)[0].steps if isinstance(step, Gemm)]
    assert {step.dtype for step in steps} == {"float64"}
    assert steps[0].left.columns == 2 * p.c_out_group * p.kernel_size


def test_half_products_are_summed_in_float32_and_tf32_is_asked_for_by_name() -> None:
    def product(dtype: str, precision: str | None = None) -> Gemm:
        p = replace(problem("ragged", dtype), precision=precision)
        return next(s for s in plan_gemm.candidates(p, H200, 1 << 28)[0].steps if isinstance(s, Gemm))

    assert (product("float16").dtype, product("float16").out_dtype) == ("float16", "float32")
    assert [product("float32", name).tf32 for name in (None, "ieee", "tf32")] == [False, False, True]
    assert not product("float64", "tf32").tf32


def test_what_the_method_cannot_take() -> None:
    for p in (
        replace(problem("ragged"), operation="weight_grad"),
        Problem(1, 1, 2**29, 1, 4, 2),
        Problem(1, 1, 1000, 1, 65536 * 64, 1),
    ):
        assert not plan_gemm.candidates(p, H200, 1 << 28)
        assert plan_gemm.why_not(p, H200)
