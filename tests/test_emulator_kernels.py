# SPDX-License-Identifier: MIT
"""The emulator runs the prototype kernels right: against the float64 definition, in both builds and several orders."""

import gc
from functools import cache

import ml_dtypes
import numpy as np
import pytest

from cupy_convt.engines.source import flatten
from tests.emulator import build, prototypes
from tests.emulator.prototypes import KERNELS, TOLERANCE, Shape, make_case, random_shapes
from tests.emulator.runner import At, CompileError, DeviceBuffer, EmuError, EmuModule, Out, TensorMap

MODES = ["fast", "check"]
ORDERS = [dict(), dict(sched="prio", seed=1, async_mode="eager"), dict(sched="random", seed=7, async_mode="random")]
i32 = np.int32


def numbered(count: int, seed: int, length_multiple: int = 1) -> list:
    shapes = random_shapes(count, seed, length_multiple)
    return [pytest.param(i, s, id="-".join(map(str, s.__dict__.values()))) for i, s in enumerate(shapes)]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", ["bf16", "f16"])
@pytest.mark.parametrize(("i", "shape"), numbered(12, 1))
def test_mma16(i: int, shape: Shape, dtype: str, mode: str):
    case = make_case(shape, dtype, i)
    y, kernel = prototypes.convt_mma16_with_kernel(case, mode, **ORDERS[i % 3])
    assert case.error(y) < TOLERANCE[dtype]
    assert kernel.stats.ldmatrix_conflicts == 0
    assert kernel.stats.mma > 0


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("i", "shape"), numbered(12, 2))
def test_tf32(i: int, shape: Shape, mode: str):
    case = make_case(shape, "f32", i)
    y = prototypes.convt_tf32(case, mode, **ORDERS[i % 3])
    assert case.error(y) < TOLERANCE["tf32"]
    assert case.error(y, rounding=prototypes.tf32_round) < TOLERANCE["f32"]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("i", "shape"), numbered(8, 3))
def test_shared_and_direct(i: int, shape: Shape, mode: str):
    case = make_case(shape, "f32", i)
    assert case.error(prototypes.convt_shared(case, mode, **ORDERS[i % 3]), with_bias=False) < TOLERANCE["f32"]
    assert case.error(prototypes.convt_direct(case, mode, **ORDERS[i % 3])) < TOLERANCE["f32"]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", ["tma", "swizzled", "plain"])
@pytest.mark.parametrize(("i", "shape"), numbered(6, 4, 8))
def test_wgmma(i: int, shape: Shape, kind: str, mode: str):
    case = make_case(shape, "bf16", i)
    if kind == "tma":
        y = prototypes.convt_wgmma_tma(case, mode, **ORDERS[i % 3])
    else:
        y = prototypes.convt_wgmma_manual(case, mode, swizzle=int(kind == "swizzled"), **ORDERS[i % 3])
    assert case.error(y) < TOLERANCE["bf16"]


# ---- element types: defines, one extern "C" entry, no template ------------------------------------------------------
TYPES = {
    "float": (np.float32, 1e-6), "double": (np.float64, 1e-14), "float2": (np.complex64, 1e-6),
    "double2": (np.complex128, 1e-14), "__half": (np.float16, 1e-3), "__nv_bfloat16": (ml_dtypes.bfloat16, 8e-3),
}  # fmt: skip


def random_array(dtype, count: int, seed: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    values = generator.standard_normal(count) + 1j * generator.standard_normal(count)
    return (values if np.dtype(dtype).kind == "c" else values.real).astype(dtype)


@cache
def types_module(c_type: str, mode: str) -> EmuModule:
    return EmuModule(code=flatten(KERNELS / "types.cu"), entries=["types"], defines={"CONVT_X": c_type}, mode=mode)


def wide(array: np.ndarray) -> np.ndarray:
    return array.astype(np.complex128 if array.dtype.kind == "c" else np.float64)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("c_type", TYPES)
@pytest.mark.parametrize("step", [1, -1, 3])
def test_element_types_on_strided_inputs(step: int, c_type: str, mode: str):
    dtype, tolerance = TYPES[c_type]
    n = 77
    span, b, c = random_array(dtype, n * 3, 0), random_array(dtype, n, 1), random_array(dtype, n, 2)
    first = n - 1 if step < 0 else 0
    a = span[first::step][:n]
    y = np.zeros(n, dtype)
    kernel = types_module(c_type, mode).kernel("types")
    kernel((2,), (64,), (At(span, first), b, c, Out(y), i32(n), i32(step)))
    want = np.conj(wide(a)) * wide(b) + wide(c)
    assert np.abs(wide(y) - want).max() / np.abs(want).max() < tolerance


def test_module_arguments():
    with pytest.raises(TypeError, match="code or path"):
        EmuModule(entries=["types"])
    with pytest.raises(TypeError, match="at least one"):
        EmuModule(KERNELS / "types.cu")
    with pytest.raises(ValueError, match="mode: expected one of"):
        EmuModule(KERNELS / "types.cu", ["types"], mode="slow")
    with pytest.raises(ValueError, match="counters: expected mode 'check'"):
        EmuModule(KERNELS / "types.cu", ["types"], mode="fast", counters=True)
    with pytest.raises(KeyError, match="entry"):
        types_module("float", "check").kernel("typos")


def test_cache_directory_is_the_named_one_else_the_users(monkeypatch, tmp_path):
    monkeypatch.setenv("CONVT_EMULATOR_CACHE", str(tmp_path))
    assert build.cache_directory() == tmp_path
    monkeypatch.delenv("CONVT_EMULATOR_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert build.cache_directory() == tmp_path / "cupy_convt-emulator"


def test_missing_define_is_a_compile_error():
    with pytest.raises(CompileError, match="CONVT_X: the storage type"):
        EmuModule(code=flatten(KERNELS / "types.cu"), entries=["types"])


# ---- device memory across launches ----------------------------------------------------------------------------------
def types_kernel(mode: str = "check"):
    return types_module("float", mode).kernel("types")


def ones(count: int) -> np.ndarray:
    return np.ones(count, np.float32)


@pytest.mark.parametrize("mode", MODES)
def test_results_stay_in_device_memory(mode: str):
    x, work = DeviceBuffer.from_host(ones(32)), DeviceBuffer(64 * 4, "work")
    kernel = types_kernel(mode)
    kernel((1,), (32,), (x, x, x, work, i32(32), i32(1)))
    kernel((1,), (32,), (work, work, work, At(work, 128), i32(32), i32(1)))
    np.testing.assert_array_equal(work.to_host(np.float32), np.repeat([2, 6], 32))


def test_initialisation_is_remembered_between_launches():
    x, work = DeviceBuffer.from_host(ones(32)), DeviceBuffer(64 * 4, "work")
    kernel = types_kernel()
    kernel((1,), (32,), (x, x, x, work, i32(20), i32(1)))
    assert work.unwritten() == (64 - 20) * 4
    with pytest.raises(EmuError, match="unwritten memory: 176 of 256 bytes read back from work"):
        work.to_host(np.float32)
    np.testing.assert_array_equal(work.to_host(np.float32, 20), 2)
    assert np.isnan(work.to_host(np.float32, 1, 80, allow_unwritten=True))
    with pytest.raises(EmuError, match=r"uninitialised read: work\+80"):
        kernel((1,), (32,), (x, x, work, At(work, 128), i32(32), i32(1)))
    work.set(ones(12), 80)
    work.to_host(np.float32, 32)
    work.poison()
    assert work.unwritten() == 256


def test_a_view_keeps_its_memory():
    view = DeviceBuffer.from_host(ones(1000)).view(np.float32)[10:].reshape(2, -1)
    gc.collect()
    assert view.sum() == 990


@pytest.mark.parametrize(("offset", "n", "message"), [
    (0, 33, r"read of 4 bytes at 0 bytes past the end of x \(128 bytes\)"),
    (-4, 1, "read of 4 bytes at 4 bytes before x"),
    (2, 1, "misaligned access: read of 4 bytes at x+2"),
])  # fmt: skip
def test_bounds_are_those_of_the_whole_buffer(offset: int, n: int, message: str):
    x, y = DeviceBuffer.from_host(ones(32), "x"), DeviceBuffer(256)
    with pytest.raises(EmuError, match=message.replace("+", r"\+")):
        types_kernel()((1,), (64,), (At(x, offset), y.from_host(ones(64)), At(x, 0), y, i32(n), i32(1)))


def test_a_buffer_is_read_only_while_all_pointers_to_it_are_const():
    x = DeviceBuffer.from_host(ones(32), "x")
    kernel = EmuModule(KERNELS / "bugs.cu", ["write_const"]).kernel("write_const")
    with pytest.raises(EmuError, match="write to const buffer: x"):
        kernel((1,), (32,), (x, DeviceBuffer(128)))


def test_writers_of_the_last_launch_do_not_race_with_this_one():
    x, y = DeviceBuffer.from_host(ones(64)), DeviceBuffer(256)
    kernel = types_kernel()
    for block in (64, 32):  # other blocks write the same elements, in another launch
        kernel((64 // block,), (block,), (x, x, x, y, i32(64), i32(1)))
    np.testing.assert_array_equal(y.to_host(np.float32), 2)


def test_one_array_behind_two_arguments_is_one_buffer():
    work = np.concatenate([ones(32), np.zeros(32, np.float32)])
    types_kernel()((1,), (32,), (work, work, work, At(work, 32), i32(32), i32(1)))
    np.testing.assert_array_equal(work, np.repeat([1, 2], 32))
    with pytest.raises(TypeError, match="overlaps another argument"):
        types_kernel()((1,), (32,), (work, work[1:], work, At(work, 32), i32(31), i32(1)))


def test_arguments_are_checked_against_the_signature():
    kernel, x, y = types_kernel(), ones(32), Out(ones(32))
    assert kernel.signature == ("p14", "p14", "p14", "p04", "i4", "i4")
    for args, message in [
        ((x, x, x, y, 32, i32(1)), "expected a NumPy scalar for i4, got int"),
        ((x, x, x, y, np.int64(32), i32(1)), "the kernel's parameter is i4, got int64"),
        ((x, x, x, y, i32(32)), "got 5 arguments"),
        ((x.astype(float), x, x, y, i32(32), i32(1)), "4-byte elements, got dtype float64"),
        ((y, x, x, y, i32(32), i32(1)), "got Out"),
        ((x[::2], x, x, y, i32(32), i32(1)), "expected a C-contiguous ndarray"),
    ]:
        with pytest.raises(TypeError, match=message):
            kernel((1,), (32,), args)


def test_large_shared_memory_must_be_asked_for():
    with pytest.raises(EmuError, match="max_dynamic_shared_size_bytes is 49152"):
        types_kernel()((1,), (32,), (None, None, None, None, i32(0), i32(1)), 50000)


def test_tensor_map_rules():
    with pytest.raises(ValueError, match="multiples of 16"):
        TensorMap(np.zeros((4, 33), np.uint16), (33, 4), (66,), (8, 4))
    with pytest.raises(ValueError, match="at most 128"):
        TensorMap(np.zeros((4, 256), np.uint16), (256, 4), (512,), (128, 4))


# ---- features of the execution model (probes.cu) --------------------------------------------------------------------
BLOCK_REDUCE = ["block_reduce<float, 1>", "block_reduce<__half, 1>"]
PLAIN = ["hist", "vec4", "half2k", "transpose", "warp_scan"]


@cache
def probe(entry: str, mode: str):
    return EmuModule(KERNELS / "probes.cu", BLOCK_REDUCE + PLAIN, mode=mode).kernel(entry)


@pytest.fixture(params=[(m, o) for m in MODES for o in range(3)], ids=lambda p: f"{p[0]}-{p[1]}")
def run(request):
    """Launch a probe in one build and one order."""
    mode, order = request.param

    def launch(entry, grid, block, args, shared_bytes=0):
        probe(entry, mode)(grid, block, args, shared_bytes, **ORDERS[order])

    return launch


@pytest.mark.parametrize(("entry", "dtype"), list(zip(BLOCK_REDUCE, [np.float32, np.float16], strict=True)))
def test_shuffles_and_static_shared_memory(run, entry, dtype):
    x, y = (np.arange(1000) % 7).astype(dtype), np.zeros(3, dtype)
    run(entry, (3,), (96,), (x, Out(y), i32(1000)))
    assert y.astype(float).sum() == (np.arange(1000) % 7).sum()


def test_atomics_ballots_and_dynamic_shared_memory(run):
    n, bins = 500, 5
    x = np.random.default_rng(0).integers(0, bins, n).astype(np.int32)
    histogram, ballots = np.zeros(bins, np.int32), np.zeros(16, np.uint32)
    run("hist", (4,), (128,), (x, histogram, Out(ballots), i32(n), i32(bins)), 4 * bins)
    np.testing.assert_array_equal(histogram, np.bincount(x, minlength=bins))
    odd = np.zeros(512, bool)
    odd[:n] = x & 1
    np.testing.assert_array_equal(ballots, np.packbits(odd, bitorder="little").view(np.uint32))


def test_vector_and_paired_types(run):
    x = np.random.default_rng(0).standard_normal((50, 4)).astype(np.float32)
    y = np.zeros(50, "V16")
    run("vec4", (1,), (64,), (x.view("V16").reshape(-1), Out(y), i32(50)))
    want = np.stack([x[:, 0] * 2, x[:, 1] + 1, np.maximum(x[:, 2], 0), x[:, 0] * 2], 1)
    np.testing.assert_array_equal(y.view(np.float32).reshape(50, 4), want)
    h, b = x[:, :2].astype(np.float16), x[:, 2:].astype(ml_dtypes.bfloat16)
    pairs = [Out(np.zeros(50, "V4")), Out(np.zeros(50, "V4"))]
    inputs = [np.ascontiguousarray(a).view("V4").reshape(-1) for a in (h, b)]
    run("half2k", (1,), (64,), (inputs[0], pairs[0], inputs[1], pairs[1], i32(50)))
    fused = (h.astype(np.float64) ** 2 + np.array([1, 2])).astype(np.float16)
    np.testing.assert_array_equal(pairs[0].array.view(np.float16).reshape(50, 2), fused)
    np.testing.assert_array_equal(pairs[1].array.view(ml_dtypes.bfloat16).reshape(50, 2), b * b)


def test_two_dimensional_blocks(run):
    x, y = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32), np.zeros((64, 64), np.float32)
    run("transpose", (2, 2), (32, 8), (x, Out(y), i32(64)))
    np.testing.assert_array_equal(y, x.T)


def test_partial_masks_and_warp_barriers(run):
    x, y = np.arange(1, 129).astype(np.int32), np.zeros(128, np.int32)
    run("warp_scan", (1,), (128,), (x, Out(y), i32(128)))
    np.testing.assert_array_equal(y, np.cumsum(x.reshape(4, 32), axis=1).reshape(-1))
