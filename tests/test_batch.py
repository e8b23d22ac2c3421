# SPDX-License-Identifier: MIT
"""batch_invariant=True: an item's bits are those that it gets alone, in any batch, beside any neighbours."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import cupy_convt as ct
from cupy_convt.core.device import PRESETS
from cupy_convt.core.dispatch import choose
from cupy_convt.core.problem import DTYPES, Problem
from cupy_convt.engines import Engine
from cupy_convt.engines.cpu import CpuEngine
from cupy_convt.engines.items import bind_items
from cupy_convt.engines.layout import layouts_of
from tests import cases
from tests.emulated import EmulatedArray, make_engine, to_device, to_host

METHODS = ("auto", "direct", "gemm", "fft")
#: (channels in, length, channels out a group, taps, arguments): odd lengths, so that items lie at odd addresses
LAYERS: dict[str, tuple[int, int, int, int, dict[str, Any]]] = {
    "dense": (48, 37, 24, 8, {"stride": 4, "padding": 2}),
    "few columns": (40, 3, 9, 5, {"stride": 2}),
    "groups": (12, 33, 3, 7, {"stride": 3, "groups": 4, "dilation": 2}),
    "one channel": (1, 301, 1, 41, {"stride": 4, "padding": 20}),
    "depthwise": (6, 45, 1, 12, {"stride": 2, "groups": 6, "padding": 5}),
    "long taps": (2, 203, 3, 257, {"stride": 2}),
}
SIZES = (1, 2, 3, 5, 17)


def arrays(layer: str, dtype: str, items: int) -> tuple[Any, Any, Any, dict[str, Any]]:
    c_in, length, c_out, taps, geometry = LAYERS[layer]
    rng = np.random.default_rng(3)
    x, weight = (cases.values(rng, shape, dtype) for shape in ((items, c_in, length), (c_in, c_out, taps)))
    return x, weight, cases.values(rng, (c_out * geometry.get("groups", 1),), dtype), geometry


def same_bits(a: Any, b: Any) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_numpy_items_have_the_bits_they_get_alone(dtype: str, method: str, layer: str) -> None:
    x, weight, bias, geometry = arrays(layer, dtype, max(SIZES))
    how = {**geometry, "method": method, "batch_invariant": True}
    alone = [ct.conv_transpose1d(item[None], weight, bias, **how)[0] for item in x]
    want = ct.reference(x[:2], weight, bias, **geometry)
    error = np.abs(np.stack(alone[:2]).astype(want.dtype) - want).max()
    assert error <= (2e-2 if dtype in ("float16", "bfloat16") else 1e-4) * np.abs(want).max()
    operator = ct.prepare(weight, bias, **how)
    kept_alone = [operator(item[None])[0] for item in x]
    for size in SIZES:
        for first in (0, max(SIZES) - size):
            together = ct.conv_transpose1d(x[first : first + size], weight, bias, **how)
            kept = operator(x[first : first + size])
            for n in range(size):
                assert same_bits(together[n], alone[first + n]), (size, n)
                assert same_bits(kept[n], kept_alone[first + n]), (size, n)
    assert same_bits(ct.conv_transpose1d(x[4], weight, bias, **how), alone[4])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("activation", ["tanh", ("leaky_relu", 0.3)])
def test_activations_and_layouts_of_the_batch_do_not_matter(activation: Any, method: str) -> None:
    for layer in LAYERS:
        x, weight, bias, geometry = arrays(layer, "float32", 5)
        how = {**geometry, "method": method, "activation": activation, "batch_invariant": True}
        alone = [ct.conv_transpose1d(item, weight, bias, **how) for item in x]
        layouts = {
            "batch last": np.moveaxis(np.moveaxis(x, 0, -1).copy(), -1, 0),
            "time before channels": x.transpose(0, 2, 1).copy().transpose(0, 2, 1),
            "every other sample": np.repeat(x, 2, axis=2)[:, :, ::2],
            "backwards": x[:, :, ::-1].copy()[:, :, ::-1],
        }
        for layout, given in layouts.items():
            together = ct.conv_transpose1d(given, weight, bias, **how)
            assert all(same_bits(a, b) for a, b in zip(together, alone, strict=True)), (layer, layout)


def test_neighbours_do_not_matter_even_when_they_are_no_numbers() -> None:
    for method in METHODS:
        x, weight, bias, geometry = arrays("dense", "float32", 4)
        how = {**geometry, "method": method, "batch_invariant": True}
        before = ct.conv_transpose1d(x, weight, bias, **how)[2]
        x[[0, 1, 3]] = np.nan
        assert same_bits(ct.conv_transpose1d(x, weight, bias, **how)[2], before)


def test_without_it_the_batch_decides_what_runs() -> None:
    """The promise is not empty: some problem here is run by another plan, with other bits, in a batch."""
    different = 0
    for layer in LAYERS:
        x, weight, bias, geometry = arrays(layer, "float32", max(SIZES))
        whole = ct.conv_transpose1d(x, weight, bias, **geometry)
        different += any(
            not same_bits(whole[n], ct.conv_transpose1d(x[n], weight, bias, **geometry)) for n in range(len(x))
        )
    assert different


@pytest.mark.slow
@pytest.mark.parametrize("layer", ["dense", "groups", "one channel"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", ["float32", "float16", "complex64"])
def test_emulated_items_have_the_bits_they_get_alone(dtype: str, method: str, layer: str) -> None:
    x, weight, bias, geometry = arrays(layer, dtype, 3)
    w, b = to_device(weight), to_device(bias)
    how = {**geometry, "method": method, "batch_invariant": True}
    together = ct.conv_transpose1d(to_device(x), w, b, **how)
    assert isinstance(together, EmulatedArray)
    for n, item in enumerate(to_host(together)):
        assert same_bits(item, to_host(ct.conv_transpose1d(to_device(x[n : n + 1]), w, b, **how))[0]), n
    want = ct.reference(x, weight, bias, **geometry)
    assert np.abs(to_host(together).astype(want.dtype) - want).max() <= 2e-2 * np.abs(want).max()


GPU_PROBLEMS = [
    Problem(5, 20, 19, 6, 9, 3, p_left=2, p_right=1, has_bias=True),
    Problem(3, 40, 7, 70, 4, 2, x_dtype="float16", weight_dtype="float16"),
    Problem(4, 36, 11, 5, 4, 3, x_dtype="bfloat16", weight_dtype="bfloat16", p_left=1),
    Problem(2, 9, 21, 4, 5, 2, x_dtype="complex64", weight_dtype="complex64", dilation=3),
    Problem(3, 33, 9, 8, 6, 2, precision="tf32"),
    Problem(3, 17, 13, 8, 6, 2, x_dtype="float64", weight_dtype="float64"),
    Problem(2, 600, 3, 8, 6, 2, has_bias=True),
    Problem(2, 2, 150, 2, 257, 2, groups=2),
]


def run_by_item(engine: Engine, problem: Problem, plan: Any, *arrays: Any) -> None:
    bind_items(engine, problem, plan, *layouts_of(*arrays))(*arrays)


@pytest.mark.slow
@pytest.mark.parametrize("problem", GPU_PROBLEMS, ids=str)
def test_plans_of_one_order_give_every_item_the_same_bits(problem: Problem) -> None:
    """What `sum_order` promises, of every plan that names one: for the batch, and for each item alone."""
    engine = make_engine("fast", replace(PRESETS["h200"], three_tf32=True))
    x, weight, bias = (None if a is None else to_device(a) for a in cases.operands(problem))
    found: dict[str, list[Any]] = {}
    for case in (problem, replace(problem, batch=1)):
        for row in choose(case, engine.device()).ranking:
            if row.plan is None or not row.plan.sum_order:
                continue
            if row.method == "gemm" and problem.kernel_size > 100:
                continue  # minutes in the emulator, and the other problems have them
            out = engine.empty(problem.out_shape, problem.out_dtype)
            if case.batch == 1:
                run_by_item(engine, problem, row.plan, x, weight, bias, out)
            else:
                engine.run(case, row.plan, x, weight, bias, out)
            found.setdefault(row.plan.sum_order, []).append(to_host(out))
    # an order may be there for an item alone: a plan for few columns
    assert sum(len(results) >= 2 for results in found.values()) >= 2, found.keys()
    for order, results in found.items():
        assert all(same_bits(result, results[0]) for result in results), order


@pytest.mark.parametrize("device", PRESETS)
@pytest.mark.parametrize("method", METHODS)
def test_the_order_of_sums_does_not_depend_on_the_batch(device: str, method: str) -> None:
    for sizes in ((64, 128, 87, 64, 16, 8), (64, 1, 4000, 1, 81, 4), (64, 8, 33, 8, 700, 2)):
        problem = Problem(*sizes)
        choices = [
            choose(replace(problem, batch=n), PRESETS[device], method, batch_invariant=True) for n in (1, 2, 64, 5000)
        ]
        assert len({(choice.method, choice.plan.sum_order) for choice in choices}) == 1
        if not choices[0].plan.sum_order:
            assert all(choice.by_item for choice in choices)
            assert len({choice.plan for choice in choices}) == 1
            assert choices[2].seconds == pytest.approx(64 * choices[0].seconds)
        for choice in choices:
            assert sum(row.plan == choice.plan for row in choice.ranking) == 1


def test_products_of_the_library_read_items_at_one_alignment(monkeypatch: pytest.MonkeyPatch) -> None:
    """cuBLAS picks its kernel by alignment, and items of an odd size lie at odd addresses."""
    x, weight, *_ = arrays("groups", "float32", 3)
    engine = make_engine()
    seen: list[int] = []
    original = type(engine.runtime).gemm
    monkeypatch.setattr(
        type(engine.runtime),
        "gemm",
        lambda self, step, left, right, out: (
            seen.append(right.pointer.offset) or original(self, step, left, right, out)
        ),
    )
    problem = Problem(3, 12, 33, 12, 7, 3, 2, 4)
    plan = next(
        row.plan for row in choose(replace(problem, batch=1), engine.device()).ranking if "overlap_add" in row.name
    )
    out = engine.empty(problem.out_shape, problem.out_dtype)
    run_by_item(engine, problem, plan, to_device(x), to_device(weight), None, out)
    assert seen and not any(seen)


def test_the_weight_is_packed_once_for_all_items(monkeypatch: pytest.MonkeyPatch) -> None:
    packed: list[int] = []
    original = CpuEngine.pack
    monkeypatch.setattr(CpuEngine, "pack", lambda self, *a: packed.append(1) or original(self, *a))
    x, weight, bias, geometry = arrays("long taps", "float32", 5)
    ct.conv_transpose1d(x, weight, bias, method="fft", batch_invariant=True, **geometry)
    assert len(packed) == 1


def test_the_layer_and_explain_take_it() -> None:
    layer = ct.ConvTranspose1d(48, 24, 8, stride=4, padding=2, batch_invariant=True)
    assert repr(layer) == ("ConvTranspose1d(48, 24, kernel_size=(8,), stride=(4,), padding=(2,), batch_invariant=True)")
    x = arrays("dense", "float32", 9)[0]
    assert same_bits(layer(x)[3], layer(x[3]))
    shapes = (9, 48, 37), (48, 24, 8)
    told = ct.explain(*shapes, stride=4, padding=2, method="gemm", batch_invariant=True)
    assert "item by item" in str(told)
    assert told.variant == ct.explain((1, 48, 37), shapes[1], stride=4, padding=2, method="gemm").variant


@pytest.mark.parametrize("value", [1, 0, None, "yes", np.True_])
def test_other_things_than_a_bool_are_refused(value: Any) -> None:
    x, weight, bias, geometry = arrays("dense", "float32", 2)
    ct.conv_transpose1d(x, weight, bias, batch_invariant=True, **geometry)
    for call in (
        lambda: ct.conv_transpose1d(x, weight, bias, batch_invariant=value, **geometry),
        lambda: ct.prepare(weight, bias, batch_invariant=value),
        lambda: ct.explain(x.shape, weight.shape, batch_invariant=value),
        lambda: ct.ConvTranspose1d(48, 24, 8, batch_invariant=value),
    ):
        with pytest.raises(TypeError, match="batch_invariant: expected a bool, got"):
            call()


def test_an_empty_batch() -> None:
    _, weight, bias, geometry = arrays("dense", "float32", 1)
    y = ct.conv_transpose1d(np.zeros((0, 48, 37), "float32"), weight, bias, batch_invariant=True, **geometry)
    assert y.shape == (0, 24, 148)
