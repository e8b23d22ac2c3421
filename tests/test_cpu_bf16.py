# SPDX-License-Identifier: MIT
"""bfloat16's own products on the CPU: offered where they exist, exact products, float32 sums."""

import subprocess
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from cupy_convt.core.device import preset
from cupy_convt.core.plan_cpu import candidates
from cupy_convt.core.problem import EPSILON, Problem
from cupy_convt.engines import cpu_bf16
from cupy_convt.engines.cpu import CpuEngine, reference
from cupy_convt.engines.dtypes import named_dtype
from tests.test_cpu import arguments, empty

ABLE, LIMIT = replace(preset("cpu"), fp16=4e11), 256 << 20
DENSE = Problem(2, 12, 40, 10, 16, 8, p_left=4, p_right=4, x_dtype="bfloat16", weight_dtype="bfloat16", has_bias=True)
needs_products = pytest.mark.skipif(not cpu_bf16.available(), reason="OpenVINO or AVX512_BF16 is missing")


def names(problem: Problem, device: Any = ABLE) -> set[str]:
    return {plan.variant for plan in candidates(problem, device, LIMIT) if plan.narrow}


def test_offered_for_bfloat16_alone_where_the_device_has_them() -> None:
    assert names(DENSE) == {"columns_bf16", "rows_bf16"}
    assert not names(DENSE, preset("cpu"))
    for dtype in ("float16", "float32", "float64", "complex64"):
        assert not names(replace(DENSE, x_dtype=dtype, weight_dtype=dtype))


def test_a_plan_says_what_becomes_of_subnormal_numbers() -> None:
    assert all("subnormal" in plan.notes[0] for plan in candidates(DENSE, ABLE, LIMIT) if plan.narrow)


def test_the_weight_is_not_converted() -> None:
    for plan in candidates(DENSE, ABLE, LIMIT):
        assert not plan.narrow or (plan.packing_key == () and plan.packed_bytes == 0)


@needs_products
@pytest.mark.parametrize(("depth", "rows", "columns"), [(1, 1, 1), (7, 5, 3), (64, 130, 17), (1025, 31, 40)])
def test_products_are_exact_and_sums_float32(depth: int, rows: int, columns: int) -> None:
    rng = np.random.default_rng(depth)
    a, b = (rng.standard_normal((depth, n)).astype(named_dtype("bfloat16")) for n in (rows, columns))
    out = np.full((rows, columns), np.nan, np.float32)
    cpu_bf16.multiply(a.view(np.uint16), b.view(np.uint16), out)
    wide_a, wide_b = a.astype(np.float64), b.astype(np.float64)
    allowed = depth * EPSILON["float32"] * (np.abs(wide_a).T @ np.abs(wide_b))
    assert (np.abs(out - wide_a.T @ wide_b) <= allowed).all()


@needs_products
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"groups": 2},
        {"batch": 1, "l_in": 3000, "c_in": 3},
        {"dilation": 3, "stride": 6},
        {"kernel_size": 3},
        {"kernel_size": 300, "p_left": 150},
        {"l_in": 1, "p_left": -3},
        {"activation": ("leaky_relu", 0.1)},
    ],
    ids=str,
)
@pytest.mark.parametrize("limit", [1 << 18, LIMIT])
def test_plans_compute_the_operator(changes: dict[str, Any], limit: int) -> None:
    problem = replace(DENSE, **changes)
    x, weight, bias = arguments(problem, 3)
    want = reference(problem, x, weight, bias)
    size = reference(replace(problem, activation=None), np.abs(x), np.abs(weight), np.abs(bias))
    for plan in candidates(problem, CpuEngine().device(), limit):
        if plan.narrow:
            out = empty(problem)
            CpuEngine().run(problem, plan, x, weight, bias, out)
            terms = problem.c_in_group * problem.phases.max_taps + 2
            allowed = 2 * terms * EPSILON["float32"] * size + EPSILON["bfloat16"] * np.abs(want)
            assert (np.abs(out.astype(np.float64) - want) <= allowed).all(), plan.name


@needs_products
def test_a_call_in_float32_does_not_import_the_library() -> None:
    code = (
        "import sys, numpy as np, cupy_convt as ct; "
        "ct.conv_transpose1d(np.ones((1, 64, 64), 'f4'), np.ones((64, 64, 4), 'f4'), stride=2); "
        "print('openvino' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@needs_products
def test_a_forked_child_does_without() -> None:
    code = (
        "import os, numpy as np; from cupy_convt.engines import cpu_bf16\n"
        "a = np.full((8, 8), 0x3F80, np.uint16); out = np.zeros((8, 8), np.float32)\n"
        "cpu_bf16.multiply(a, a, out)\n"
        "child = os.fork()\n"
        "if not child:\n"
        "    out[...] = 0; cpu_bf16.multiply(a, a, out); os._exit(0 if (out == 8).all() else 1)\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "0"
