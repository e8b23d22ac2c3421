# SPDX-License-Identifier: MIT
"""Sub-pixel convolutions by OpenVINO: offered where they apply, the operator rounded once, and fallbacks by BLAS."""

import copy
import pickle
import subprocess
import sys
import threading
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import cupy_convt as ct
from cupy_convt.core.plan_cpu import CpuPlan, candidates
from cupy_convt.core.problem import EPSILON, Problem
from cupy_convt.engines import cpu_openvino
from cupy_convt.engines.cpu import CpuEngine, reference
from cupy_convt.engines.cpu_openvino_pack import interleave
from tests.test_cpu import LIMIT, arguments, empty
from tests.test_subpixel_cpu import DENSE, offered

ENGINE = CpuEngine()
DTYPES = [
    pytest.param("float32", marks=pytest.mark.skipif(not cpu_openvino.available(), reason="OpenVINO is missing")),
    pytest.param(
        "bfloat16",
        marks=pytest.mark.skipif(
            not (cpu_openvino.available() and cpu_openvino.bfloat16()), reason="OpenVINO or AVX512_BF16 is missing"
        ),
    ),
]
needs_library = pytest.mark.skipif(not cpu_openvino.available(), reason="OpenVINO is missing")
in_both_dtypes = pytest.mark.parametrize("dtype", DTYPES)


def plans(problem: Problem, limit: int = LIMIT) -> list[CpuPlan]:
    return offered(problem, ENGINE.device(), limit)


def run(problem: Problem, plan: CpuPlan, x: Any, weight: Any, bias: Any, packed: Any = None) -> Any:
    out = empty(problem)
    ENGINE.run(problem, plan, x, weight, bias, out, packed)
    return out


def errors(problem: Problem, y: Any, x: Any, weight: Any, bias: Any) -> float:
    """The largest error as a share of what sums in float32 and one rounding may be off."""
    absolute = None if bias is None else np.abs(bias)
    want = reference(problem, x, weight, bias)
    size = reference(replace(problem, activation=None), np.abs(x), np.abs(weight), absolute)
    terms = problem.c_in_group * problem.phases.max_taps + 4
    allowed = terms * EPSILON["float32"] * size + EPSILON[problem.out_dtype] / 2 * np.abs(want) + 1e-30
    return float((np.abs(y.astype(np.float64) - want) / allowed).max())


# ---- what is computed -----------------------------------------------------------------------------------------------

GEOMETRIES: list[dict[str, Any]] = [
    {},
    {"batch": 1, "l_in": 3000, "c_in": 3},
    {"batch": 2, "l_in": 600, "kernel_size": 19, "p_left": 7, "activation": ("tanh", 0.0)},
    {"batch": 1, "l_in": 700, "kernel_size": 8, "p_left": 0, "p_right": 0, "has_bias": False},
    {"kernel_size": 19, "p_left": 7},
    {"kernel_size": 8, "p_left": 0, "p_right": 0},
    {"stride": 1, "kernel_size": 3, "p_left": 1, "p_right": 1},
    {"stride": 3, "kernel_size": 7, "batch": 5, "l_in": 17, "p_left": 2, "p_right": 1},
    {"l_in": 1},
    {"l_in": 1, "kernel_size": 22, "p_left": 0, "p_right": 0},
    {"l_in": 2, "stride": 2, "p_left": 0, "p_right": 0},
    {"p_left": 0, "p_right": 0},
    {"p_left": 15, "p_right": 15},
    {"c_in": 1, "c_out": 1},
    {"has_bias": False},
    {"activation": ("relu", 0.0)},
    {"activation": ("leaky_relu", 0.1)},
    {"activation": ("tanh", 0.0)},
]


@pytest.mark.parametrize("stride", [1, 2, 5, 31, 32, 40])
@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_rows_of_phases_leave_in_the_order_of_samples(stride: int, dtype: type) -> None:
    """Any range of samples, of a few rows and of so many that both cores take part."""
    for u, channels in ((3, 2), (2**18 // stride, 3)):
        rows = np.random.default_rng(stride).integers(0, 1000, (2, channels, stride, u)).astype(dtype)
        samples = rows.swapaxes(2, 3).reshape(2, channels, u * stride)
        for first in {0, 1, stride // 2, stride}:
            for last in {first + 1, first + stride, 2 * stride + stride // 3, u * stride - 1, u * stride}:
                if first < last <= u * stride:
                    out = np.full((2, channels, last - first), 7, dtype)
                    interleave(rows, first, out)
                    np.testing.assert_array_equal(out, samples[..., first:last])


@in_both_dtypes
@pytest.mark.parametrize("changes", GEOMETRIES, ids=str)
def test_plans_compute_the_operator(dtype: str, changes: dict[str, Any]) -> None:
    problem = replace(DENSE, x_dtype=dtype, weight_dtype=dtype, **changes)
    x, weight, bias = arguments(problem, 3)
    bias = bias if problem.has_bias else None
    for limit in (1 << 14, LIMIT):
        found = plans(problem, limit=limit)
        assert found
        for plan in found:
            y = run(problem, plan, x, weight, bias)
            assert errors(problem, y, x, weight, bias) <= 1, (plan.name, plan.row_tile)


@in_both_dtypes
def test_small_limits_cut_items_and_inputs(dtype: str) -> None:
    problem = replace(DENSE, batch=3, l_in=500, x_dtype=dtype, weight_dtype=dtype)
    x, weight, bias = arguments(problem, 5)
    two_items = [plan.workspace_bytes for plan in plans(replace(problem, batch=2))]
    for place, limit in enumerate(two_items):
        for small, cut in ((limit, (2, 500)), (1 << 17, None)):
            plan = plans(problem, limit=small)[place]
            assert (plan.batch_tile, plan.row_tile) == cut if cut else plan.row_tile < 500
            assert errors(problem, run(problem, plan, x, weight, bias), x, weight, bias) <= 1


@in_both_dtypes
def test_one_packed_weight_for_several_lengths_and_biases(dtype: str) -> None:
    problem = replace(DENSE, x_dtype=dtype, weight_dtype=dtype)
    weight, packed = arguments(problem, 1)[1], None
    for batch, l_in, seed in ((2, 40, 3), (1, 7, 3), (3, 41, 4), (2, 40, 4)):
        sized = replace(problem, batch=batch, l_in=l_in)
        plan = plans(sized)[0]
        packed = packed or ENGINE.pack(sized, plan, weight)
        x, _, bias = arguments(sized, seed)
        assert errors(sized, run(sized, plan, x, weight, bias, packed), x, weight, bias) <= 1
        assert errors(sized, run(sized, plan, x, weight, None, packed), x, weight, None) <= 1


@in_both_dtypes
def test_any_strides(dtype: str) -> None:
    problem = replace(DENSE, x_dtype=dtype, weight_dtype=dtype)
    x, weight, bias = arguments(problem, 2)
    view = x[:, :, ::-1].copy()[:, :, ::-1]
    view.flags.writeable = False
    turned = np.ascontiguousarray(weight.transpose(2, 1, 0)).transpose(2, 1, 0)
    for plan in plans(problem):
        wide = np.zeros((*problem.out_shape[:2], 2 * problem.l_out), empty(problem).dtype)
        ENGINE.run(problem, plan, view, turned, bias, wide[:, :, ::2])
        assert np.array_equal(wide[:, :, ::2], run(problem, plan, x, weight, bias))
        assert not wide[:, :, 1::2].any()


@in_both_dtypes
@pytest.mark.parametrize("activation", [None, ("relu", 0.0), ("leaky_relu", 0.1), ("tanh", 0.0)])
def test_nan_stays_in_its_rows_and_never_turns_into_a_number(dtype: str, activation: Any) -> None:
    problem = replace(DENSE, x_dtype=dtype, weight_dtype=dtype, kernel_size=13, activation=activation)
    x, weight, bias = arguments(problem, 2)
    clean = x.copy()
    x[1, 3, 20] = np.nan
    for plan in plans(problem):
        y, want = run(problem, plan, x, weight, bias), run(problem, plan, clean, weight, bias)
        first = 20 * problem.stride - problem.p_left
        inside = slice(first, first + problem.kernel_size)
        rows = slice(first, first + plan.subpixel.taps * problem.stride if plan.subpixel else 0)
        assert np.isnan(y[1, :, inside]).all()
        assert np.array_equal(y[0], want[0])
        assert np.array_equal(y[1, :, : rows.start], want[1, :, : rows.start])
        assert np.array_equal(y[1, :, rows.stop :], want[1, :, rows.stop :])


@in_both_dtypes
def test_the_same_bits_every_time(dtype: str) -> None:
    problem = replace(DENSE, l_in=400, x_dtype=dtype, weight_dtype=dtype)
    operands = arguments(problem, 2)
    for plan in plans(problem):
        first = run(problem, plan, *operands)
        assert all(np.array_equal(run(problem, plan, *operands), first) for _ in range(3))


@needs_library
def test_float32_is_as_exact_as_blas() -> None:
    problem = Problem(1, 512, 87, 64, 16, 8, p_left=4, p_right=4)
    x, weight, _ = arguments(problem, 6)
    want = reference(problem, x, weight)
    columns = next(plan for plan in candidates(problem, ENGINE.device(), LIMIT) if plan.variant == "columns")
    off = [
        float(np.sqrt(np.mean((run(problem, plan, x, weight, None) - want) ** 2)))
        for plan in (plans(problem)[0], columns)
    ]
    assert off[0] < 2 * off[1]


@needs_library
def test_a_subnormal_float32_weight_is_not_lost() -> None:
    problem = replace(DENSE, has_bias=False)
    x, weight, _ = arguments(problem, 6)
    x, weight = x * np.float32(1e30), weight * np.float32(1e-39)
    y = run(problem, plans(problem)[0], x, weight, None)
    assert errors(problem, y, x, weight, None) <= 1


# ---- kept weights ---------------------------------------------------------------------------------------------------


@needs_library
def test_a_prepared_operator_takes_it_and_can_be_copied_and_pickled() -> None:
    problem = Problem(1, 256, 24, 256, 16, 8, p_left=4, p_right=4, has_bias=True)
    x, weight, bias = arguments(problem, 6)
    operator = ct.prepare(weight, bias, stride=8, padding=4)
    assert operator.explain(x.shape).variant == "subpixel"
    y = operator(x)
    assert errors(problem, y, x, weight, bias) <= 1
    for other in (copy.copy(operator), copy.deepcopy(operator), pickle.loads(pickle.dumps(operator))):
        assert np.array_equal(other(x), y)


@needs_library
def test_calls_from_several_threads_get_their_own_results(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_openvino, "KEPT_BYTES", 1 << 17)
    jobs = []
    for c_out in (3, 5, 8):
        problem = replace(DENSE, c_out=c_out, l_in=200)
        plan, operands = plans(problem)[0], arguments(problem, c_out)
        packed = ENGINE.pack(problem, plan, operands[1])
        jobs.append((problem, plan, *operands, packed))
    wanted = [run(*job) for job in jobs]
    wrong = []

    def work(first: int) -> None:
        for n in range(30):
            place = (first + n) % len(jobs)
            if not np.array_equal(run(*jobs[place]), wanted[place]):
                wrong.append(place)

    threads = [threading.Thread(target=work, args=(first,)) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


class Graph:
    def __init__(self) -> None:
        self.released = 0

    def release(self) -> None:
        self.released += 1


def test_graphs_keep_so_much_memory_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_openvino, "KEPT_BYTES", 100)
    memory: Any = cpu_openvino._Memory()
    first, second, third = Graph(), Graph(), Graph()
    memory.used(first, 50)
    memory.used(second, 50)
    memory.used(first, 50)
    assert first.released == second.released == 0
    memory.used(third, 40)
    assert (first.released, second.released, third.released) == (0, 1, 0)
    del first
    memory.used(second, 60)
    assert (second.released, third.released) == (1, 0)
    memory.used(second, 101)
    assert (second.released, third.released) == (2, 1)


# ---- without it -----------------------------------------------------------------------------------------------------


def test_an_unprepared_call_in_float32_does_not_import_the_library() -> None:
    code = (
        "import sys, numpy as np, cupy_convt as ct; "
        "ct.conv_transpose1d(np.ones((1, 64, 64), 'f4'), np.ones((64, 64, 4), 'f4'), stride=2); "
        "print('openvino' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@in_both_dtypes
def test_a_forked_child_does_without(dtype: str) -> None:
    code = (
        "import os, numpy as np; from tests.test_cpu_openvino import *\n"
        f"problem = replace(DENSE, x_dtype={dtype!r}, weight_dtype={dtype!r})\n"
        "operands = arguments(problem, 1); made = [(p, ENGINE.pack(problem, p, operands[1])) for p in plans(problem)]\n"
        "def right():\n"
        "    return all(errors(problem, run(problem, p, *operands, k), *operands) <= 1 for p, k in made)\n"
        "assert right()\n"
        "child = os.fork()\n"
        "if not child:\n"
        "    os._exit(0 if right() else 1)\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "0"
