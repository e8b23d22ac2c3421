# SPDX-License-Identifier: MIT
"""The kernels on a CUDA device through CuPy: the cases that the emulator runs, and what only a device has."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from cupy_convt.core import (
    plan_direct,
    plan_fft,
    plan_fft_block,
    plan_gemm,
    plan_hopper,
    plan_implicit,
    plan_weight_stream,
)
from cupy_convt.core.launch import Plan
from cupy_convt.core.problem import EPSILON, Problem
from tests import cases
from tests import test_kernels_hopper as hopper
from tests.cases import GEOMETRIES, PAIRS, pair_id, problem

pytestmark = pytest.mark.gpu
LIMIT = 256 << 20
PLANNERS = (plan_direct, plan_implicit, plan_weight_stream, plan_gemm, plan_fft, plan_fft_block)


@pytest.fixture(scope="module")
def cupy() -> Iterator[Any]:
    """CuPy with a device; skips where there is none."""
    module = pytest.importorskip("cupy", exc_type=ImportError)
    try:
        count = module.cuda.runtime.getDeviceCount()
    except module.cuda.runtime.CUDARuntimeError as error:
        pytest.skip(f"no CUDA device: {error}")
    if not count:
        pytest.skip("no CUDA device")
    yield module
    module.get_default_memory_pool().free_all_blocks()


@pytest.fixture(scope="module")
def engine(cupy: Any) -> Any:
    from cupy_convt.engines.gpu import make_engine

    return make_engine()


def plans(p: Problem, engine: Any, limit: int = LIMIT) -> list[Plan]:
    found = [plan for planner in PLANNERS for plan in planner.candidates(p, engine.device(), limit)]
    # small problems are waves of tiles to one multiprocessor
    return found + list(plan_hopper.candidates(p, replace(engine.device(), multiprocessors=1), limit))


def run(cupy: Any, engine: Any, p: Problem, plan: Plan, x: Any, seed: int = 0) -> np.ndarray:
    _, weight, bias = cases.operands(p, seed)
    out = engine.empty(p.out_shape, p.out_dtype)
    out.view(np.uint8)[...] = 0xFF  # NaN wherever a kernel forgets to write
    engine.run(p, plan, x, engine.asarray(weight), None if bias is None else engine.asarray(bias), out)
    return cupy.asnumpy(out)


def check(p: Problem, plan: Plan, y: np.ndarray, x: np.ndarray, seed: int = 0) -> None:
    _, weight, bias = cases.operands(p, seed)
    wanted = cases.expected(p, x, weight, bias)
    excess = np.abs(y.astype(wanted.dtype) - wanted) / cases.tolerance(p, plan, x, weight, wanted)
    assert excess.max() <= 1, f"{plan.name} on {p}: {excess.max():.2f} times the tolerance"


@pytest.mark.parametrize("name", GEOMETRIES)
@pytest.mark.parametrize("pair", PAIRS, ids=pair_id)
def test_every_plan_gives_the_definition(cupy: Any, engine: Any, name: str, pair: tuple[str, str]) -> None:
    p = problem(name, *pair)
    x, _, _ = cases.operands(p)
    results = {}
    for plan in plans(p, engine):
        results[plan.name] = run(cupy, engine, p, plan, engine.asarray(x))
        check(p, plan, results[plan.name], x)
    np.testing.assert_array_equal(
        results["direct/stream"].view(np.uint8), results["direct/gather"].view(np.uint8), "direct plans differ in bits"
    )


@pytest.mark.parametrize("name", GEOMETRIES)
@pytest.mark.parametrize("pair", PAIRS, ids=pair_id)
def test_beta_times_what_was_there_is_added(cupy: Any, engine: Any, name: str, pair: tuple[str, str]) -> None:
    p = replace(problem(name, *pair), beta=-0.75)
    x, weight, bias = cases.operands(p)
    old = cases.values(np.random.default_rng(9), p.out_shape, p.out_dtype)
    arrays = [None if a is None else engine.asarray(a) for a in (x, weight, bias)]
    for plan in plans(p, engine):
        out = engine.asarray(old)
        engine.run(p, plan, *arrays, out)
        limit, wanted = cases.blended(p, plan, x, weight, bias, old)
        excess = np.abs(cupy.asnumpy(out).astype(wanted.dtype) - wanted) / limit
        assert excess.max() <= 1, f"{plan.name} on {p}: {excess.max():.2f} times the tolerance"


def needs_warpgroups(engine: Any) -> None:
    if engine.device().architecture != plan_hopper.ARCHITECTURE:
        pytest.skip("needs sm_90")


@pytest.mark.parametrize("dtype", hopper.DTYPES)
@pytest.mark.parametrize("name", hopper.GEOMETRIES)
def test_products_by_warpgroups(cupy: Any, engine: Any, name: str, dtype: str) -> None:
    """What the emulator runs: TF32 as well, and one block that takes all tiles in turn."""
    needs_warpgroups(engine)

    def on_device(p: Problem, plan: Plan) -> tuple[np.ndarray, None]:
        x, weight, bias = (None if a is None else engine.asarray(a) for a in hopper.operands(p))
        out = engine.empty(p.out_shape, p.out_dtype)
        out.view(np.uint8)[...] = 0xFF
        engine.run(p, plan, x, weight, bias, out)
        return cupy.asnumpy(out), None

    *sizes, p_left, p_right = hopper.GEOMETRIES[name]
    p = hopper.problem_of(dtype, *sizes, p_left=p_left, p_right=p_right)
    hopper.check(p, replace(engine.device(), multiprocessors=1), on_device)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_warpgroups_on_all_multiprocessors(cupy: Any, engine: Any, dtype: str) -> None:
    """Waves of tiles against the plan that sums without tensor cores."""
    needs_warpgroups(engine)
    p = Problem(4, 200, 5000, 130, 10, 5, p_left=3, p_right=2, x_dtype=dtype, weight_dtype=dtype)
    x, _, _ = cases.operands(p)
    gather = next(plan for plan in plan_direct.candidates(p, engine.device(), LIMIT) if plan.variant == "gather")
    wanted = run(cupy, engine, p, gather, engine.asarray(x)).astype(np.float32)
    found = plan_hopper.candidates(p, engine.device(), LIMIT)
    assert found
    for plan in found:
        got = run(cupy, engine, p, plan, engine.asarray(x)).astype(np.float32)
        np.testing.assert_allclose(got, wanted, rtol=2 * EPSILON[dtype], atol=1e-2, err_msg=plan.name)


def test_any_strides(cupy: Any, engine: Any) -> None:
    p = replace(problem("ragged"), activation=None)
    rng = np.random.default_rng(3)
    n, c, length = p.x_shape
    wide = cases.values(rng, (n + 1, c + 2, length + 5), p.x_dtype)
    turned = cases.values(rng, (n, length, c), p.x_dtype)
    one = cases.values(rng, (1, 1, length), p.x_dtype)
    for host, device in (
        (wide[1:, 1:-1, 2:-3], engine.asarray(wide)[1:, 1:-1, 2:-3]),
        (wide[:n, c - 1 :: -1, :length], engine.asarray(wide)[:n, c - 1 :: -1, :length]),
        (turned.transpose(0, 2, 1), engine.asarray(turned).transpose(0, 2, 1)),
        (np.broadcast_to(one, p.x_shape), cupy.broadcast_to(engine.asarray(one), p.x_shape)),
    ):
        for plan in plans(p, engine):
            check(p, plan, run(cupy, engine, p, plan, device), host)


def test_workspace_limits(cupy: Any, engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from cupy_convt.core import fft_tiles

    monkeypatch.setattr(plan_gemm, "LEAST_BUDGET", 1)
    monkeypatch.setattr(fft_tiles, "LEAST_BUDGET", 1)
    p = problem("long filter")
    x, _, _ = cases.operands(p)
    for limit in (1 << 17, 1 << 14):
        for plan in plans(p, engine, limit):
            check(p, plan, run(cupy, engine, p, plan, engine.asarray(x)), x)


def test_other_streams_and_graph_capture(cupy: Any, engine: Any) -> None:
    p = problem("depthwise")
    x, weight, _ = cases.operands(p)
    for plan in plans(p, engine):
        check(p, plan, run(cupy, engine, p, plan, engine.asarray(x)), x)
        stream = cupy.cuda.Stream(non_blocking=True)
        arrays = engine.asarray(x), engine.asarray(weight), engine.empty(p.out_shape, p.out_dtype)
        cupy.cuda.get_current_stream().synchronize()
        with stream:
            engine.run(p, plan, arrays[0], arrays[1], None, arrays[2])  # compiled and planned before the capture
            stream.synchronize()
            if plan.method != "direct":
                continue  # the pool may not allocate while a capture is on
            arrays[2][...] = 0
            stream.begin_capture()
            engine.run(p, plan, arrays[0], arrays[1], None, arrays[2])
            graph = stream.end_capture()
            graph.launch()
            stream.synchronize()
        check(p, plan, cupy.asnumpy(arrays[2]), x)


def test_more_than_two_to_the_31_elements(cupy: Any, engine: Any) -> None:
    free, _ = cupy.cuda.runtime.memGetInfo()
    if free < 12 << 30:
        pytest.skip("needs 12 GiB of free device memory")
    p = Problem(1, 1, 2**30 + 77, 1, 5, 2, 1, 1, 1, 0, "float16", "float16")
    tail = np.random.default_rng(0).standard_normal(4096).astype(np.float16)
    weight = np.array([1, -2, 3, 0.5, 4], np.float16).reshape(1, 1, 5)
    x = cupy.zeros(p.x_shape, np.float16)
    x[0, 0, -4096:] = engine.asarray(tail)
    end = Problem(1, 1, 4096, 1, 5, 2, 1, 1, 1, 0, "float16", "float16")
    wanted = cases.expected(end, tail.reshape(1, 1, -1), weight, None)[0, 0, -1000:]
    for plan in plan_direct.candidates(p, engine.device(), LIMIT):
        out = engine.empty(p.out_shape, p.out_dtype)
        engine.run(p, plan, x, engine.asarray(weight), None, out)
        np.testing.assert_allclose(cupy.asnumpy(out[0, 0, -1000:]), wanted, rtol=2e-3, atol=2e-3)
        del out


def test_the_device_is_probed(cupy: Any, engine: Any) -> None:
    spec = engine.device()
    assert spec.kind == "cuda"
    assert spec.multiprocessors > 0
    assert spec.shared_bytes >= 48 << 10
    assert 1e10 < spec.bandwidth < 2e13
    assert 1e11 < spec.fp32 < 1e15


def test_a_capture_takes_what_was_compiled_before_and_refuses_the_rest(cupy: Any) -> None:
    """A kernel compiled by precompile is captured at once; one that was not is refused with a clear error."""
    import cupy_convt as ct

    x, weight = cupy.ones((1, 2, 64), "float32"), cupy.ones((2, 3, 7), "float32")
    out = cupy.empty((1, 3, 321), "float32")  # (64 - 1) * 5 + 7, less one sample
    stream = cupy.cuda.Stream(non_blocking=True)
    cupy.cuda.get_current_stream().synchronize()
    with stream:
        ct.precompile([{"x_shape": x.shape, "weight_shape": weight.shape, "stride": 5, "method": "direct"}])
        stream.begin_capture()
        ct.conv_transpose1d(x, weight, stride=5, method="direct", crop=(1, 0), out=out)
        graph = stream.end_capture()
        graph.launch()
        stream.synchronize()
        stream.begin_capture()
        with pytest.raises(RuntimeError, match="stream: expected none that is being captured"):
            ct.prepare(weight, stride=5, method="fft")(x)
        stream.end_capture()
    want = ct.reference(cupy.asnumpy(x), cupy.asnumpy(weight), stride=5, crop=(1, 0))
    np.testing.assert_allclose(cupy.asnumpy(out), want, rtol=1e-6)


def test_plans_are_timed_by_events(cupy: Any, engine: Any) -> None:
    from cupy_convt import tuning

    measured = tuning.measure_all(engine, [Problem(1, 32, 500, 16, 8, 4)], seconds=0.01)
    (times,) = measured.values()
    assert len(times) >= 2
    assert all(1e-7 < seconds < 1 for seconds in times.values())
