# SPDX-License-Identifier: MIT
"""Every rival of the benchmark computes what we compute, and sits out the rows that it cannot do."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import scipy.signal

from benchmarks import rivals, workloads
from benchmarks.onnx_model import conv_transpose
from benchmarks.workloads import Workload

MONO = Workload("mono", "resample", 2, 1, 70, 1, 21, 4, 10, 3, 1, 1, "float32")
ROWS = {
    "mono": MONO,
    "mono, few taps": replace(MONO, k=3, padding=0),
    "mono double": replace(MONO, dtype="float64"),
    "dense": Workload("dense", "v", 3, 6, 17, 4, 5, 3, 1, 2, 1, 1, "float32"),
    "groups": Workload("groups", "v", 2, 6, 11, 4, 5, 2, 2, 1, 2, 3, "float32"),
    "depthwise": Workload("depthwise", "v", 2, 5, 30, 5, 12, 2, 5, 0, 5, 1, "float32"),
    "half": Workload("half", "v", 1, 4, 9, 3, 4, 2, 1, 0, 1, 1, "float16"),
    "long dense": Workload("long dense", "longfir", 2, 3, 40, 4, 300, 1, 20, 0, 1, 1, "float32"),
    "long groups": Workload("long groups", "longfir", 2, 6, 31, 4, 90, 3, 7, 2, 2, 5, "float64"),
    "long depthwise": Workload("long depthwise", "longfir", 1, 5, 60, 5, 200, 2, 0, 1, 5, 1, "float32"),
    "long bank": Workload("long bank", "longfir", 1, 1, 50, 7, 120, 1, 0, 0, 1, 1, "float32"),
}
EXPECTED = {
    "mono": {"torch", "torch fold", "upfirdn", "fftconvolve", "oaconvolve"},
    "mono, few taps": {"torch", "torch fold", "upfirdn", "fftconvolve", "oaconvolve"},
    "mono double": {"torch", "torch fold", "upfirdn", "fftconvolve", "oaconvolve"},
    "dense": {"torch", "torch fold"},
    "groups": {"torch", "torch fold"},
    "depthwise": {"torch", "torch fold"},
    "half": {"torch"},
    "long dense": {"torch", "torch fold", "fftconvolve", "oaconvolve"},
    "long groups": {"torch", "torch fold", "fftconvolve", "oaconvolve"},
    "long depthwise": {"torch", "torch fold", "fftconvolve", "oaconvolve"},
    "long bank": {"torch", "torch fold", "fftconvolve", "oaconvolve"},
}


@pytest.mark.parametrize("name", ROWS)
def test_rivals_agree_with_us(name: str) -> None:
    row = ROWS[name]
    arrays = rivals.make_arrays(row, row.dtype)
    found = rivals.every_rival(row, arrays, threads=1)
    assert set(found) - {"onnxruntime"} == EXPECTED[name]
    want = rivals.ours(row, arrays)()
    for rival, call in found.items():
        for _ in range(2):  # the first call must not have changed its arguments
            got = call()
            assert got.shape == want.shape, rival
            assert got.dtype == want.dtype, rival
            np.testing.assert_allclose(
                got, want, rtol=2e-2 if row.dtype == "float16" else 1e-4, atol=1e-4, err_msg=rival
            )


@pytest.mark.parametrize("name", ["long dense", "long groups"])
def test_channels_that_do_not_fit_together_are_added_one_after_the_other(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = ROWS[name]
    arrays = rivals.make_arrays(row, row.dtype)
    whole = rivals.stuffed_calls(row, arrays)
    problem = row.problem(row.dtype)
    seen: list[int] = []
    for original in (scipy.signal.fftconvolve, scipy.signal.oaconvolve):

        def counted(x: Any, taps: Any, axes: int, original: Any = original) -> Any:
            seen.append(x.shape[2])
            return original(x, taps, axes=axes)

        monkeypatch.setattr(scipy.signal, original.__name__, counted)
    response = problem.batch * problem.c_out * problem.l_full * arrays.x.itemsize
    least = 4 * (problem.x_bytes * problem.stride + response)
    for spare, sizes in ((0, [1] * 3), (9 * response, [2, 1])):
        monkeypatch.setattr(rivals, "RIVAL_BYTES", least + spare)
        parts = rivals.stuffed_calls(row, arrays)
        assert set(parts) == set(rivals.STUFFED)
        for rival, call in parts.items():
            seen.clear()
            np.testing.assert_allclose(call(), whole[rival](), rtol=1e-4, atol=1e-5)
            assert seen == sizes
    monkeypatch.setattr(rivals, "RIVAL_BYTES", least - 1)
    assert not rivals.stuffed_calls(row, arrays)
    monkeypatch.setattr(rivals, "RIVAL_BYTES", 1 << 30)
    monkeypatch.setattr(rivals, "STUFFED_FLOPS", 1000)
    assert not rivals.stuffed_calls(row, arrays)


def test_every_long_row_has_the_stuffed_rivals() -> None:
    """In float32, which every row is timed in."""
    for row in workloads.load():
        if row.is_long:
            x, weight, bias = (np.broadcast_to(np.float32(0), shape) for shape in shapes(row))
            assert set(rivals.stuffed_calls(row, rivals.Arrays(x, weight, bias))) == set(rivals.STUFFED), row.name


def shapes(row: Workload) -> tuple[tuple[int, ...], ...]:
    problem = row.problem()
    return problem.x_shape, problem.weight_shape, (problem.c_out,)


def test_rivals_sit_out_what_would_take_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = rivals.make_arrays(MONO, "float32")
    monkeypatch.setattr(rivals, "RIVAL_BYTES", 1000)
    monkeypatch.setattr(rivals, "UPFIRDN_STEPS", 10)
    assert set(rivals.every_rival(MONO, arrays, threads=1)) - {"onnxruntime"} == {"torch"}
    wide = replace(ROWS["groups"], dilation=6, output_padding=5)
    assert rivals.fold_call(wide, rivals.make_arrays(wide, "float32")) is None


def fields(data: bytes) -> list[tuple[int, Any]]:
    """Fields of a protocol buffer message, read back from the format's definition."""
    found, at = [], 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(data):
        key = varint()
        if key & 7 == 0:
            found.append((key >> 3, varint()))
        else:
            assert key & 7 == 2
            size = varint()
            found.append((key >> 3, data[at : at + size]))
            at += size
    assert at == len(data)
    return found


def test_the_onnx_model_says_what_was_asked_for() -> None:
    model = fields(conv_transpose(stride=8, padding=300, output_padding=1, groups=2, dilation=3, taps=16))
    assert [number for number, _ in model] == [1, 7, 8]
    graph = fields(model[1][1])
    assert [number for number, _ in graph] == [1, 2, 11, 11, 11, 12]
    node = fields(graph[0][1])
    assert [value for number, value in node if number in (1, 2, 4)] == [
        b"x",
        b"weight",
        b"bias",
        b"y",
        b"ConvTranspose",
    ]
    attributes = {}
    for attribute in (fields(value) for number, value in node if number == 5):
        name = next(value for number, value in attribute if number == 1).decode()
        attributes[name] = [value for number, value in attribute if number in (3, 8)]
    assert attributes == {
        "dilations": [3], "group": [2], "kernel_shape": [16], "output_padding": [1], "pads": [300, 300], "strides": [8]
    }  # fmt: skip


def test_onnx_runtime_takes_the_model() -> None:
    pytest.importorskip("onnxruntime")
    for name in ("dense", "groups", "depthwise", "mono"):
        row = ROWS[name]
        arrays = rivals.make_arrays(row, "float32")
        call = rivals.onnx_call(row, arrays, threads=1)
        assert call is not None
        np.testing.assert_allclose(call(), rivals.ours(row, arrays)(), rtol=1e-4, atol=1e-4)
    assert rivals.onnx_call(ROWS["half"], rivals.make_arrays(ROWS["half"], "float16"), 1) is None
