# SPDX-License-Identifier: MIT
"""The fused FFT block in the emulator's checking mode against the reference loops, and its memory traffic."""

from dataclasses import replace
from math import log2
from typing import Any

import numpy as np
import pytest

from cupy_convt.core import plan_fft_block
from cupy_convt.core.device import PRESETS
from cupy_convt.core.launch import Plan
from cupy_convt.core.problem import EPSILON, ITEM_BYTES, Problem, is_complex
from cupy_convt.engines.runtime import GpuEngine
from tests import cases
from tests.cases import GEOMETRIES, PAIRS, pair_id, problem
from tests.emulated import empty, make_engine, to_device, to_host

H200 = PRESETS["h200"]
LIMIT = 256 << 20
SECTOR = 32
FAST_PAIRS = {("float32", "float32"), ("float16", "float16"), ("complex64", "float32")}
#: (N, C_in, L_in, C_out, K, s, d, g, p_left, p_right, activation) beside those of cases.py: one input channel a group
OWN: dict[str, tuple[Any, ...]] = {
    "several blocks": (2, 2, 1201, 2, 67, 1, 1, 2, 33, 33, None),
    "causal": (1, 1, 601, 1, 101, 2, 1, 1, 0, 99, ("leaky_relu", 0.2)),
    "common factor, deep": (1, 2, 157, 2, 37, 4, 6, 2, -3, -9, None),
    "wide dilation": (1, 1, 331, 1, 9, 3, 17, 1, 20, 11, ("tanh", 0.0)),
    "fewer taps than stride": (2, 1, 523, 1, 3, 7, 1, 1, 2, -4, ("relu", 0.0)),
    "one sample": (3, 2, 1, 2, 11, 3, 2, 2, 1, 0, ("tanh", 0.0)),
    "filter bank": (1, 2, 211, 6, 23, 2, 1, 2, 5, 6, None),
    "crop on the left": (1, 1, 97, 1, 40, 2, 1, 1, 150, -3, ("leaky_relu", 0.1)),
    "far before the taps": (1, 1, 40, 1, 5, 2, 1, 1, -777, 30, ("relu", 0.0)),
    "whole row": (1, 1, 200, 1, 201, 1, 1, 1, 0, 0, None),
}


def own(name: str, x_dtype: str = "float32", weight_dtype: str | None = None) -> Problem:
    """A geometry with dtypes, as cases.problem, but no tanh of halves."""
    if name in GEOMETRIES:
        p = problem(name, x_dtype, weight_dtype)
    else:
        n, c_in, l_in, c_out, k, s, d, g, left, right, activation = OWN[name]
        p = Problem(
            n, c_in, l_in, c_out, k, s, d, g, left, right, x_dtype, weight_dtype or x_dtype, k % 2 == 1, activation
        )
    unfit = is_complex(p.out_dtype) or (ITEM_BYTES[p.out_dtype] == 2 and (p.activation or ("",))[0] == "tanh")
    return replace(p, activation=None) if unfit else p


NAMES = [*OWN, *(name for name in GEOMETRIES if problem(name).c_in_group == 1)]


def run(p: Problem, plan: Plan, engine: GpuEngine | None = None, shift: int = 0) -> np.ndarray:
    """The plan's result; `shift` elements put x and out off their alignment."""
    engine = engine or make_engine()
    x, weight, bias = cases.operands(p)
    source = empty(p.x_shape, p.x_dtype, shift)
    source[...] = x
    source.buffer.mark_written()
    out = empty(p.out_shape, p.out_dtype, shift)
    engine.run(p, plan, source, to_device(weight), None if bias is None else to_device(bias), out)
    return to_host(out)


def check(p: Problem, plan: Plan, y: np.ndarray) -> None:
    """Against the norms of each row: 0.5 eps log2(M) |x| |w|, eps of the accumulator, and one rounding."""
    x, weight, bias = cases.operands(p)
    wanted = cases.expected(p, x, weight, bias)
    wide = wanted.dtype
    norms = np.linalg.norm(x.astype(wide), axis=2)[:, :, None], np.linalg.norm(weight.astype(wide), axis=2)
    bound = (norms[0] * norms[1][None]).reshape(p.batch, p.c_out, 1)
    length = int(plan.variant.rsplit(" ", 1)[1])
    bound = 0.5 * EPSILON[p.accumulator] * log2(length) * bound
    rounding = EPSILON[p.out_dtype] * np.abs(wanted)
    excess = np.abs(y.astype(wide) - wanted) / (bound + rounding + 1e-300)
    assert excess.max() <= 1, f"{plan.name} on {p}: {excess.max():.2f} times the tolerance"


def plans(p: Problem) -> tuple[Plan, ...]:
    found = plan_fft_block.candidates(p, H200, LIMIT)
    assert found, (p, plan_fft_block.why_not(p, H200))
    return found


def plan_of(p: Problem, log: int) -> Plan:
    """The plan of a transform of 2^log complex points, which the planner may think too long."""
    block = plan_fft_block._block(p, H200, 1 << log)
    assert block is not None
    return plan_fft_block._plan(p, block)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "pair", [pytest.param(p, marks=() if p in FAST_PAIRS else pytest.mark.slow) for p in PAIRS], ids=pair_id
)
def test_every_geometry(name: str, pair: tuple[str, str]) -> None:
    p = own(name, *pair)
    for plan in plans(p):
        check(p, plan, run(p, plan))


@pytest.mark.parametrize("name", ["stride five", "stride seven", "wide stride", "common factor, deep", "wide dilation"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "complex64"])
def test_residues_that_are_staged_in_turn(name: str, dtype: str) -> None:
    """As on a device whose shared memory holds some of them only, the last time fewer."""
    p = own(name, dtype)
    block = plan_fft_block.fused_blocks(p, H200)[0]
    small = replace(H200, shared_bytes=block.shared_bytes - 1)
    partly = plan_fft_block.fused_blocks(p, small)[0]
    assert partly.length == block.length and 1 <= partly.residue_tile < p.stride
    (plan, *_) = plan_fft_block.candidates(p, small, LIMIT)
    check(p, plan, run(p, plan))


LENGTHS = [
    pytest.param(
        pair, log, marks=() if pair == ("float32", "float32") else pytest.mark.slow, id=f"{pair_id(pair)}-{log}"
    )
    for pair in PAIRS
    for log in range(7, 14)
]


def of_length(pair: tuple[str, str], log: int) -> tuple[Problem, Plan] | None:
    """A problem of two blocks or so, short enough for the emulator; None if there is no such length."""
    out = problem("fir", *pair).out_dtype
    if any(("fft_block", log) == (k, dict(d).get("CONVT_LOG")) for k, d in variants_of(*pair)):
        length = (1 if is_complex(out) else 2) << log
        stride = 2 if log < 11 else 1
        p = Problem(1, 1, length * 3 // 2 + 5, 1, length // 3, stride, 1, 1, 7, 5, *pair, True)
        return p, plan_of(p, log)
    return None


def variants_of(x: str, weight: str) -> list[Any]:
    p = problem("fir", x, weight)
    kinds = {plan_fft_block.CUDA_TYPES[x], plan_fft_block.CUDA_TYPES[p.out_dtype]}
    return [v for v in plan_fft_block.variants() if {dict(v[1]).get("CONVT_X"), dict(v[1]).get("CONVT_Y")} == kinds]


@pytest.mark.parametrize(("pair", "log"), LENGTHS)
def test_every_length(pair: tuple[str, str], log: int) -> None:
    found = of_length(pair, log)
    if found is None:
        p = problem("fir", *pair)
        assert log > plan_fft_block._MOST_LOG[p.accumulator] or (log == 7 and is_complex(p.out_dtype))
        return
    p, plan = found
    y = run(p, plan)
    check(p, plan, y)
    # rows that do not start at sectors come in another way
    assert run(p, plan, shift=1).tobytes() == y.tobytes()


def test_the_lengths_reach_every_variant() -> None:
    found = [of_length(pair, log) for pair in PAIRS for log in range(7, 14)]
    launched = {launch.variant for case in found if case for launch in case[1].launches}
    assert launched == set(plan_fft_block.variants())


@pytest.mark.parametrize("name", ["several blocks", "causal", "short rows", "wide stride"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "complex64"])
def test_misaligned_rows_have_the_same_bits(name: str, dtype: str) -> None:
    p = own(name, dtype)
    for plan in plans(p):
        aligned = run(p, plan)
        for shift in (1, 2, 3):
            assert run(p, plan, shift=shift).tobytes() == aligned.tobytes()


def test_rows_of_any_stride() -> None:
    p = own("several blocks")
    _, weight, bias = cases.operands(p)
    n, c, length = p.x_shape
    wide = to_device(cases.values(np.random.default_rng(5), (n, c + 1, length + 5), p.x_dtype))
    one = to_device(cases.values(np.random.default_rng(6), (1, 1, length), p.x_dtype))
    broadcast = np.lib.stride_tricks.as_strided(one, p.x_shape, (0, 0, one.strides[2]), subok=True)
    for x in (wide[:, :0:-1, 2:-3], broadcast):
        host = np.array(x, subok=False)
        wanted = cases.expected(p, host, weight, bias)
        for plan in plans(p):
            out = empty((n, c, p.l_out + 3), p.out_dtype)[:, ::-1, 2:-1]
            make_engine().run(p, plan, x, to_device(weight), to_device(bias), out)
            np.testing.assert_allclose(to_host(out), wanted, atol=1e-4)


@pytest.mark.parametrize("options", [{"sched": "desc"}, {"sched": "random", "seed": 3}, {"block_order": "desc"}])
@pytest.mark.parametrize("dtype", ["float32", "complex64"])
def test_any_schedule_gives_the_same_bits(dtype: str, options: dict[str, Any]) -> None:
    p = own("causal", dtype)
    for plan in plans(p):
        assert run(p, plan, make_engine(**options)).tobytes() == run(p, plan).tobytes()


def test_an_item_of_a_batch_has_the_bits_that_it_gets_alone() -> None:
    p = replace(own("several blocks"), batch=3)
    x, weight, bias = cases.operands(p)
    alone = replace(p, batch=1)
    for plan, single in zip(plans(p), plans(alone), strict=True):
        assert plan.sum_order == single.sum_order
        out, item = empty(p.out_shape, p.x_dtype), empty(alone.out_shape, p.x_dtype)
        make_engine().run(p, plan, to_device(x), to_device(weight), to_device(bias), out)
        make_engine().run(alone, single, to_device(x[1:2]), to_device(weight), to_device(bias), item)
        assert to_host(out)[1].tobytes() == to_host(item)[0].tobytes()


def test_a_nan_stays_in_the_blocks_that_load_it() -> None:
    p = own("several blocks")
    plan = plans(p)[0]
    block = plan_fft_block.block_of(p, plan, H200)
    x, weight, bias = cases.operands(p)
    wanted = cases.expected(p, x, weight, bias)
    x[0, 1, 600] = np.nan
    out = empty(p.out_shape, p.out_dtype)
    make_engine().run(p, plan, to_device(x), to_device(weight), to_device(bias), out)
    wrong = ~np.isfinite(to_host(out))
    number = np.arange(p.l_out) // block.step
    start = block.first + number * block.step
    loads = (start <= 600) & (start + block.length > 600)
    assert 0 < loads.sum() < p.l_out
    assert (wrong[0, 1] == loads).all()
    assert wrong.sum() == loads.sum()
    np.testing.assert_allclose(to_host(out)[~wrong], wanted[~wrong], atol=1e-4)


@pytest.mark.parametrize(("stride", "taps", "l_in"), [(2, 34, 700), (1, 65, 64), (3, 90, 20)])
def test_samples_beyond_the_response_are_the_bias_exactly(stride: int, taps: int, l_in: int) -> None:
    p = Problem(1, 1, l_in, 1, taps, stride, p_left=-47, p_right=-61, has_bias=True)
    bias = cases.operands(p)[2]
    assert bias is not None
    for plan in plans(p):
        y = run(p, plan)
        check(p, plan, y)
        assert (y[..., :47] == bias[0]).all() and (y[..., -61:] == bias[0]).all()


def test_packed_weights_are_used_again() -> None:
    p = own("several blocks")
    engine = make_engine()
    x, weight, bias = cases.operands(p)
    for plan in plans(p):
        packed = engine.pack(p, plan, to_device(weight))
        out = empty(p.out_shape, p.out_dtype)
        nothing = to_device(np.zeros_like(weight))
        engine.run(p, plan, to_device(x), nothing, to_device(bias), out, packed)
        check(p, plan, to_host(out))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_roots_are_rounded_once(dtype: str) -> None:
    p = own("several blocks", dtype)
    plan = plan_of(replace(p, l_in=5000), 11)
    packed = make_engine().pack(p, plan, to_device(cases.operands(p)[1]))
    numbers = np.arange(1024)
    reversed_bits = np.array([int(f"{b:010b}"[::-1], 2) for b in numbers])
    wanted = np.exp(-1j * np.pi * (reversed_bits / 1024).astype(np.longdouble))
    error = np.abs(to_host(packed.buffers["roots"]) - wanted)
    assert error.max() < (0.75 if dtype == "float32" else 1.5) * EPSILON[dtype]
