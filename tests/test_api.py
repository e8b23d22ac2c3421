# SPDX-License-Identifier: MIT
"""The public functions: values, refusals for every kind of array, what is accepted, `out`, prepare, explain."""

import json
from typing import Any

import numpy as np
import pytest

import cupy_convt as ct
from cupy_convt import api
from cupy_convt.calls import current_limit
from cupy_convt.core.problem import DTYPES
from tests.emulated import to_device as emulated

RNG = np.random.default_rng(7)


def values(*shape: int, dtype: str = "float32") -> Any:
    data = RNG.standard_normal(shape)
    if dtype.startswith("complex"):
        data = data + 1j * RNG.standard_normal(shape)
    return data.astype(api.to_dtype(dtype))


X, W, B = values(2, 4, 9), values(4, 3, 5), values(6)
GOOD: dict[str, Any] = {"x": X, "weight": W, "bias": B, "stride": 3, "groups": 2, "padding": 1}

#: Every row of the interface's table of refusals: a fault, the error, a piece of its message.
REFUSALS: list[tuple[int, dict[str, Any], type[Exception], str]] = [
    (1, {"x": [[1.0]]}, TypeError, "x: expected a NumPy or CuPy array, got list"),
    (1, {"weight": None}, TypeError, "weight: expected a NumPy or CuPy array, got NoneType"),
    (1, {"bias": 1.0}, TypeError, "bias: expected a NumPy or CuPy array, got float"),
    (1, {"out": "y"}, TypeError, "out: expected a NumPy or CuPy array, got str"),
    (1, {"stride": 1.0}, TypeError, "stride: expected an int, got 1.0"),
    (1, {"padding": True}, TypeError, "padding: expected an int, got True"),
    (1, {"groups": "2"}, TypeError, "groups: expected an int, got '2'"),
    (2, {"x": X[0, 0]}, ValueError, r"x: expected 2 axes \(C_in, L\) or 3 axes \(N, C_in, L\), got 1"),
    (3, {"groups": 0}, ValueError, "groups: expected an int >= 1, got 0"),
    (4, {"stride": (1, 2)}, ValueError, "stride: expected an int or a sequence of one int"),
    (5, {"padding": -1}, ValueError, "padding: expected an int >= 0, got -1"),
    (5, {"crop": (-1, 0)}, ValueError, "crop: expected two ints >= 0"),
    (6, {"output_padding": -2}, ValueError, "output_padding: expected an int >= 0, got -2"),
    (7, {"stride": 0}, ValueError, "stride: expected an int >= 1, got 0"),
    (8, {"dilation": 0}, ValueError, "dilation: expected an int >= 1, got 0"),
    (9, {"method": "best"}, ValueError, "method: expected one of"),
    (9, {"precision": "half"}, ValueError, "precision: expected one of"),
    (9, {"padding": "reflect"}, ValueError, "padding: expected an int or one of"),
    (10, {"weight": W[0]}, ValueError, "weight: expected 3 axes"),
    (11, {"groups": 3}, ValueError, "groups: expected a divisor of C_in = 4, got 3"),
    (12, {"x": X[:, :3]}, ValueError, "x: expected C_in = 4 channels"),
    (13, {"bias": B[:5]}, ValueError, r"bias: expected shape \(6,\), got \(5,\)"),
    (14, {"weight": W.astype("float64")}, TypeError, "weight: expected dtype float32 .* got float64"),
    (14, {"x": X.astype("int32")}, TypeError, "x: expected a dtype among .*, got int32"),
    (14, {"x": X > 0}, TypeError, "x: expected a dtype among .*, got bool"),
    (15, {"x": X[:, :, :0]}, ValueError, "x: expected L_in >= 1, got 0"),
    (15, {"weight": W[:, :, :0]}, ValueError, "weight: expected K >= 1, got 0"),
    (15, {"weight": W[:, :0], "bias": None}, ValueError, "weight: expected C_out >= 1, got 0"),
    (16, {"output_padding": 3}, ValueError, "output_padding: expected smaller than either stride = 3 or dilation = 1"),
    (17, {"padding": 20}, ValueError, "expected L_out >= 1, got L_out = -11 from L_in = 9"),
    (17, {"crop": (20, 20)}, ValueError, "expected L_out >= 1"),
    (18, {"output_size": 99}, ValueError, "output_size: expected 27 to 29 for L_in = 9, got 99"),
    (18, {"out": np.empty((2, 6, 26), "float32")}, ValueError, r"out: expected shape \(2, 6, 27\), got \(2, 6, 26\)"),
    (18, {"out": np.empty((2, 6, 27), "float64")}, TypeError, "out: expected dtype float32, got float64"),
]


def call(**changes: Any) -> Any:
    arguments = GOOD | changes
    return ct.conv_transpose1d(arguments.pop("x"), arguments.pop("weight"), arguments.pop("bias"), **arguments)


@pytest.mark.parametrize("kind", ["numpy", "emulated"])
@pytest.mark.parametrize("row", REFUSALS, ids=lambda row: f"{row[0]}-{'-'.join(row[1])}-{row[3][:24]}")
def test_refusals(kind: str, row: tuple[int, dict[str, Any], type[Exception], str]) -> None:
    _, changes, error, message = row
    arguments = GOOD | changes
    if kind == "emulated":
        arguments = {k: emulated(v) if isinstance(v, np.ndarray) else v for k, v in arguments.items()}
    with pytest.raises(error, match=message):
        call(**arguments)


@pytest.mark.parametrize("row", [r for r in REFUSALS if r[0] != 18], ids=lambda row: f"{row[0]}-{'-'.join(row[1])}")
@pytest.mark.parametrize("later", [r for r in REFUSALS if r[0] != 18], ids=lambda row: f"{row[0]}-{'-'.join(row[1])}")
def test_the_first_fault_in_the_tables_order_is_the_one_reported(row: Any, later: Any) -> None:
    clash = set(row[1]) & set(later[1]) or ("x" in row[1] and "weight" in later[1])
    if later[0] <= row[0] or clash:
        return
    with pytest.raises(row[2], match=row[3]):
        call(**(later[1] | row[1]))


def test_mixed_kinds_name_both() -> None:
    with pytest.raises(TypeError, match="weight: expected a numpy array as x is, got a emulated array"):
        call(weight=emulated(W))
    with pytest.raises(TypeError, match="weight: expected a emulated array as x is, got a numpy array"):
        call(x=emulated(X))


def test_an_array_that_its_engine_cannot_use_here_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from cupy_convt.engines.cpu import CpuEngine

    monkeypatch.setattr(CpuEngine, "home", lambda self, *arrays: None)
    monkeypatch.setattr(CpuEngine, "complaint", lambda self, name, array: f"{name}: expected another device")
    with pytest.raises(TypeError, match="x: expected another device"):
        call()
    with pytest.raises(ValueError, match="weight: expected 3 axes"):
        call(weight=W[0])


def test_nothing_is_written_when_something_is_refused() -> None:
    out = np.full((2, 6, 27), 5.0, "float32")
    for changes in ({"stride": 4}, {"weight": W.astype("float64")}, {"method": "none"}):
        with pytest.raises((TypeError, ValueError)):
            call(out=out, **changes)
    assert (out == 5).all()


@pytest.mark.parametrize("method", ["auto", "direct", "gemm", "fft"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_method_and_dtype_agrees_with_the_reference(method: str, dtype: str) -> None:
    x, w, b = values(2, 4, 33, dtype=dtype), values(4, 3, 5, dtype=dtype), values(6, dtype=dtype)
    geometry: dict[str, Any] = {"stride": 3, "padding": 2, "output_padding": 2, "groups": 2, "dilation": 2}
    y = ct.conv_transpose1d(x, w, b, method=method, **geometry)
    want = ct.reference(x, w, b, **geometry)
    assert y.dtype == x.dtype
    assert y.shape == want.shape
    scale = np.abs(want).max()
    tolerance = {"float16": 2e-3, "bfloat16": 1.6e-2, "float32": 4e-6, "complex64": 4e-6}.get(dtype, 1e-14)
    assert np.abs(y.astype(want.dtype) - want).max() <= tolerance * scale


@pytest.mark.parametrize("x_dtype", ["float32", "complex64"])
@pytest.mark.parametrize("w_dtype", ["float32", "complex64"])
@pytest.mark.parametrize("b_dtype", ["float32", "complex64"])
def test_real_and_complex_mix(x_dtype: str, w_dtype: str, b_dtype: str) -> None:
    x, w, b = values(2, 3, 17, dtype=x_dtype), values(3, 2, 4, dtype=w_dtype), values(2, dtype=b_dtype)
    for method in ("direct", "gemm", "fft"):
        y = ct.conv_transpose1d(x, w, b, stride=2, method=method)
        want = ct.reference(x, w, b, stride=2)
        assert y.dtype == ("complex64" if "complex64" in (x_dtype, w_dtype, b_dtype) else "float32")
        np.testing.assert_allclose(y, want, rtol=1e-4, atol=1e-4)


def test_shapes_without_batch() -> None:
    np.testing.assert_array_equal(call(x=X[0], method="direct"), call(method="direct")[0])


def test_an_empty_batch_gives_an_empty_result() -> None:
    assert call(x=X[:0]).shape == (0, 6, 27)


def test_awkward_arrays_are_accepted() -> None:
    want = call(method="direct")
    frozen = X.copy()
    frozen.flags.writeable = False
    wide = np.zeros((2, 4, 18), "float32")
    wide[:, :, ::2] = X
    for x in (
        frozen,
        wide[:, :, ::2],
        X.astype(">f4"),
        np.asfortranarray(X),
        X[:, ::-1][:, ::-1],
        X[:, :, ::-1].copy()[:, :, ::-1],
    ):
        np.testing.assert_array_equal(call(x=x, method="direct"), want)
    np.testing.assert_array_equal(call(weight=W.astype(">f4"), bias=B.astype(">f4"), method="direct"), want)
    row = np.broadcast_to(X[:1, :1], (2, 4, 9))
    np.testing.assert_array_equal(call(x=row, method="direct"), call(x=row.copy(), method="direct"))


def test_out_is_used_and_returned() -> None:
    want = call()
    out = np.full((2, 6, 27), np.nan, "float32")
    assert call(out=out) is out
    np.testing.assert_array_equal(out, want)
    strided = np.full((2, 6, 54), np.nan, "float32")
    call(out=strided[:, :, ::2])
    np.testing.assert_array_equal(strided[:, :, ::2], want)
    assert np.isnan(strided[:, :, 1::2]).all()


def test_out_may_not_overlap_an_input_nor_be_read_only() -> None:
    buffer = np.zeros(2 * 6 * 27 + 10, "float32")
    x = buffer[10 : 10 + X.size].reshape(X.shape)
    out = buffer[: 2 * 6 * 27].reshape(2, 6, 27)
    with pytest.raises(ValueError, match="out: expected an array that shares no memory with x"):
        call(x=x, out=out)
    frozen = np.empty((2, 6, 27), "float32")
    frozen.flags.writeable = False
    with pytest.raises(ValueError, match="out: expected a writeable array"):
        call(out=frozen)


@pytest.mark.parametrize("activation", ["relu", "leaky_relu", ("leaky_relu", 0.1), "tanh"])
@pytest.mark.parametrize("method", ["direct", "gemm", "fft"])
def test_activations(activation: Any, method: str) -> None:
    plain = call().astype("float64")
    want = {
        "relu": np.maximum(plain, 0),
        "leaky_relu": np.where(plain > 0, plain, 0.01 * plain),
        "tanh": np.tanh(plain),
    }[activation if isinstance(activation, str) else "leaky_relu"]
    if activation == ("leaky_relu", 0.1):
        want = np.where(plain > 0, plain, 0.1 * plain)
    np.testing.assert_allclose(call(activation=activation, method=method), want, rtol=1e-4, atol=1e-5)


def test_crop_equals_slicing() -> None:
    whole = call(method="direct")
    np.testing.assert_array_equal(call(method="direct", crop=(4, 3)), whole[:, :, 4:-3])


def test_causal_padding_looks_at_no_later_input() -> None:
    x = X.copy()
    before = ct.conv_transpose1d(x, W, stride=3, padding="causal")
    x[:, :, 5:] = 99
    after = ct.conv_transpose1d(x, W, stride=3, padding="causal")
    np.testing.assert_array_equal(before[:, :, :15], after[:, :, :15])
    assert before.shape[-1] == 27


def test_direct_bits_depend_on_nothing_but_the_receptive_field() -> None:
    x, w = values(3, 2, 500), values(2, 2, 7)
    whole = ct.conv_transpose1d(x, w, stride=2, method="direct")
    for n in range(3):
        np.testing.assert_array_equal(ct.conv_transpose1d(x[n], w, stride=2, method="direct"), whole[n])
    part = ct.conv_transpose1d(x[:, :, 100:200], w, stride=2, method="direct")
    np.testing.assert_array_equal(part[:, :, 6:190], whole[:, :, 206:390])


def test_nan_and_inf_stay_in_their_receptive_field_on_the_direct_path() -> None:
    x = X.copy()
    x[0, 1, 4], x[1, 3, 2] = np.nan, np.inf
    y, clean = call(x=x, method="direct"), call(method="direct")
    bad = ~np.isfinite(y)
    assert bad[0].any()
    assert bad[1].any()
    assert not bad[0, 3:].any()
    assert not bad[1, :3].any()
    np.testing.assert_array_equal(y[~bad], clean[~bad])
    assert bad.sum() == 2 * 3 * 5
    for method in ("gemm", "fft"):
        other = call(x=x, method=method)
        assert not np.isfinite(other[bad]).any()
        assert np.isfinite(other[0, 3:]).all()


def test_a_second_run_gives_the_same_bits() -> None:
    for method in ("direct", "gemm", "fft"):
        np.testing.assert_array_equal(call(method=method), call(method=method))


def test_prepare_gives_what_the_function_gives() -> None:
    for method in ("auto", "direct", "gemm", "fft"):
        op = ct.prepare(W, B, stride=3, groups=2, padding=1, method=method)
        for x in (X, X[0], X[:, :, :4], X):
            want = ct.conv_transpose1d(x, W, B, stride=3, groups=2, padding=1, method=method)
            np.testing.assert_allclose(op(x), want, rtol=1e-5, atol=1e-5)
        out = np.empty((2, 6, 27), "float32")
        assert op(X, out=out) is out


def test_prepare_packs_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from cupy_convt.engines.cpu import CpuEngine

    packed = []
    original = CpuEngine.pack
    monkeypatch.setattr(CpuEngine, "pack", lambda self, *a: packed.append(1) or original(self, *a))
    op = ct.prepare(values(1, 1, 4096), stride=2, method="fft")
    x = values(1, 1, 30000)
    first = op(x)
    assert len(packed) == 1
    np.testing.assert_array_equal(op(x), first)
    assert len(packed) == 1


def test_prepare_refuses_early() -> None:
    with pytest.raises(ValueError, match="bias: expected shape"):
        ct.prepare(W, B, stride=3)
    with pytest.raises(TypeError, match="bias: expected a numpy array as weight is, got a emulated array"):
        ct.prepare(W, emulated(B), stride=3, groups=2)
    with pytest.raises(ValueError, match="output_padding: expected smaller"):
        ct.prepare(W, B, stride=3, groups=2, output_padding=3)
    with pytest.raises(ValueError, match="weight: expected 3 axes"):
        ct.prepare(W[0])


def test_workspace_limit_is_checked_and_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="nbytes: expected an int >= 0"), ct.workspace_limit(-1):
        pass
    with ct.workspace_limit(1 << 20):
        assert current_limit() == 1 << 20
    assert current_limit() == 256 << 20
    monkeypatch.setenv("CUPY_CONVT_WORKSPACE_LIMIT", "12345")
    assert current_limit() == 12345
    monkeypatch.setenv("CUPY_CONVT_WORKSPACE_LIMIT", "lots")
    with pytest.raises(ValueError, match="CUPY_CONVT_WORKSPACE_LIMIT: expected a number of bytes, got 'lots'"):
        call()


@pytest.mark.parametrize("method", ["direct", "gemm", "fft"])
def test_tight_workspace_changes_nothing_but_rounding(method: str) -> None:
    x, w = values(2, 4, 20000), values(4, 3, 31)
    want = ct.conv_transpose1d(x, w, stride=3, method=method)
    with ct.workspace_limit(4 << 20):
        y = ct.conv_transpose1d(x, w, stride=3, method=method)
    np.testing.assert_allclose(y, want, rtol=1e-4, atol=1e-4)


def test_output_length_is_the_length_of_the_output() -> None:
    for geometry in ({"stride": 3, "padding": 2}, {"padding": "same", "stride": 2}, {"dilation": 3, "crop": (1, 2)}):
        y = ct.conv_transpose1d(X, W, **geometry)
        assert ct.output_length(9, 5, **geometry) == y.shape[-1]
    with pytest.raises(TypeError, match="l_in: expected an int"):
        ct.output_length(9.0, 5)


def test_explain_says_what_would_run_and_why() -> None:
    text = ct.explain((1, 1, 480000), (1, 1, 4096), stride=2)
    assert text.method == "fft"
    assert text.seconds > 0
    assert text.workspace_bytes <= 256 << 20
    assert text.out_shape == (1, 1, 964094)
    printed = str(text)
    for word in ("direct", "gemm", "fft", "predicted", "workspace", "the best"):
        assert word in printed
    assert {row.method for row in text.candidates} == {"direct", "gemm", "fft"}


def test_explain_as_a_dict_is_json_with_the_same_content() -> None:
    text = ct.explain((2, 4, 100), (4, 3, 5), stride=3)
    data = json.loads(json.dumps(text.as_dict()))
    assert data["problem"]["out_shape"] == [2, 3, 302]
    assert (data["method"], data["variant"], data["seconds"]) == (text.method, text.variant, text.seconds)
    assert [row["reason"] for row in data["candidates"]] == [row.reason for row in text.candidates]
    assert data["seconds"] == min(row["seconds"] for row in data["candidates"])
    row = data["candidates"][0]
    assert list(row) == [
        *("method", "variant", "seconds", "bytes", "flops", "share_of_roofline"),
        *("workspace_bytes", "error_bound", "error_bound_of", "reason"),
    ]
    assert row["error_bound"] == text.error_bound.factor and row["bytes"] >= data["bytes"]
    assert 0 < row["share_of_roofline"] < 2 and row["flops"] > 0


@pytest.mark.parametrize("device", ["cpu", "h200"])
def test_an_explanation_is_a_table_of_a_page_width(device: str) -> None:
    for shapes in (((1, 1, 480000), (1, 1, 4096)), ((1, 512, 862), (512, 256, 16)), ((2, 3, 9), (3, 4, 5))):
        text = ct.explain(*shapes, stride=2, device=device)
        lines = str(text).splitlines()
        assert max(map(len, lines)) <= 120
        head = next(index for index, line in enumerate(lines) if "predicted" in line and "workspace" in line)
        for word in ("roof", "flop", "bytes", "error", "why"):
            assert word in lines[head]
        rows = [line for line in lines[head + 1 :] if line[2:].startswith(("direct/", "gemm/", "fft/"))]
        assert len(rows) == sum(row.plan is not None for row in text.candidates)
        assert sum(line.startswith("* ") for line in rows) == 1
        assert ("a NaN or an Inf" in str(text)) == (text.method == "fft")
        assert f"{text.error_bound.factor:.1e}" in next(line for line in rows if line.startswith("* "))


def test_every_problem_is_explained_once_when_the_environment_asks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    x, w = values(1, 2, 77), values(2, 1, 3)
    ct.conv_transpose1d(x, w)
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("CUPY_CONVT_EXPLAIN", "1")
    ct.conv_transpose1d(x, w)
    assert capsys.readouterr().err.startswith("(1, 2, 77) -> (1, 1, 79) K=3 stride=1")
    ct.conv_transpose1d(x, w)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("device", ["t4", "rtx3060", "a100", "h100", "h200"])
def test_explain_predicts_for_devices_that_are_not_there(device: str) -> None:
    dense = ct.explain((1, 512, 862), (512, 256, 16), stride=8, padding=4, device=device)
    assert dense.method != "fft"
    assert "predicted" in str(dense)
    assert ct.explain((1, 1, 1 << 22), (1, 1, 65536), device=device).method == "fft"
    depthwise = ct.explain((1, 24, 240138), (24, 1, 12), stride=2, padding=15, groups=24, device=device)
    assert depthwise.method == "direct"


def test_explain_refuses_unknown_devices() -> None:
    with pytest.raises(ValueError, match="device: expected one of a100, cpu, .*got 'tpu'"):
        ct.explain((1, 1, 9), (1, 1, 3), device="tpu")
    with pytest.raises(ValueError, match="device: expected 'cpu', 'cuda', 'cuda:N'"):
        ct.explain((1, 1, 9), (1, 1, 3), device="cuda:x")


def test_reference_takes_numpy_only() -> None:
    with pytest.raises(TypeError, match="x: expected a NumPy array"):
        ct.reference(emulated(X), W)


def test_emulated_arrays_go_through_the_gpu_engine() -> None:
    for method in ("auto", "direct", "gemm", "fft"):
        y = ct.conv_transpose1d(emulated(X), emulated(W), emulated(B), stride=3, groups=2, padding=1, method=method)
        assert type(y) is type(emulated(X))
        np.testing.assert_allclose(np.asarray(y), call(), rtol=1e-4, atol=1e-5)
