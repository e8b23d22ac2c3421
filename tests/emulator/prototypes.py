# SPDX-License-Identifier: MIT
"""Host side of the prototype kernels in tests/emulator/kernels, which exist to test the emulator itself.

Arrays of bfloat16 are uint16. Every launcher takes the geometry and the emulator's launch options as keywords.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .runner import EmuKernel, EmuModule, Out, TensorMap

KERNELS = Path(__file__).resolve().parent / "kernels"
C_TYPE = {"f32": "float", "f16": "__half", "bf16": "__nv_bfloat16"}
TOLERANCE = {"bf16": 6e-3, "f16": 8e-4, "f32": 2e-6, "tf32": 1.5e-3}
TILE = (64, 64, 32, 32, 3)  # block rows, block columns, warp rows, warp columns, stages
i32 = np.int32


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def bf16_round(values: np.ndarray) -> np.ndarray:
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def tf32_round(values: np.ndarray) -> np.ndarray:
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + 0x1000) & 0xFFFFE000).view(np.float32)


def encode(values: np.ndarray, dtype: str) -> np.ndarray:
    if dtype == "bf16":
        return bf16_round(values)
    return values.astype(np.float16 if dtype == "f16" else np.float32)


def decode(values: np.ndarray, dtype: str) -> np.ndarray:
    if dtype == "bf16":
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float32)


@dataclass(frozen=True)
class Shape:
    """Geometry of one transposed convolution."""

    batch: int
    in_channels: int
    length: int
    out_channels: int
    kernel: int
    stride: int
    padding: int
    output_padding: int = 0

    @property
    def taps(self) -> int:
        """Kernel taps of one phase, rounded up."""
        return ceil_div(self.kernel, self.stride)

    @property
    def out_length(self) -> int:
        return (self.length - 1) * self.stride - 2 * self.padding + self.kernel + self.output_padding

    @property
    def columns(self) -> int:
        """Columns of the implicit GEMM: one for each group of `stride` outputs."""
        return ceil_div(self.out_length + self.padding, self.stride)


def random_shapes(count: int, seed: int, length_multiple: int = 1) -> list[Shape]:
    """Small awkward geometries; the same ones for the same seed."""
    generator = np.random.default_rng(seed)
    shapes: list[Shape] = []
    while len(shapes) < count:
        stride, kernel = (int(generator.integers(1, n)) for n in (6, 12))
        padding, output_padding = (int(generator.integers(n)) for n in (kernel, stride))
        length = int(generator.integers(1, 130))
        if length_multiple > 1:
            length = length // length_multiple * length_multiple + length_multiple
        batch, in_channels, out_channels = (int(generator.integers(1, n)) for n in (3, 80, 40))
        shape = Shape(batch, in_channels, length, out_channels, kernel, stride, padding, output_padding)
        if shape.out_length > 0:
            shapes.append(shape)
    return shapes


@dataclass(frozen=True)
class Case:
    """Operands of a shape in one storage type, and the comparison with the float64 definition."""

    shape: Shape
    dtype: str
    x: np.ndarray
    w: np.ndarray
    bias: np.ndarray

    def result(self) -> np.ndarray:
        return np.zeros((self.shape.batch, self.shape.out_channels, self.shape.out_length), self.x.dtype)

    def reference(self, rounding=lambda v: v, with_bias: bool = True) -> np.ndarray:
        s = self.shape
        x, w = (rounding(decode(a, self.dtype)).astype(np.float64) for a in (self.x, self.w))
        reach = (s.length - 1) * s.stride
        full = np.zeros((s.batch, s.out_channels, reach + s.kernel + s.output_padding + s.padding))
        for k in range(s.kernel):
            full[:, :, k : k + reach + 1 : s.stride] += np.einsum("nci,cd->ndi", x, w[:, :, k])
        y = full[:, :, s.padding : s.padding + s.out_length]
        return y + self.bias[None, :, None] if with_bias else y

    def error(self, y: np.ndarray, **options) -> float:
        """Largest deviation from the reference, relative to its largest value."""
        reference = self.reference(**options)
        return float(np.abs(decode(y, self.dtype) - reference).max() / np.abs(reference).max())


def make_case(shape: Shape, dtype: str, seed: int = 0) -> Case:
    generator = np.random.default_rng(seed)
    x = encode(generator.standard_normal((shape.batch, shape.in_channels, shape.length)), dtype)
    w = encode(generator.standard_normal((shape.in_channels, shape.out_channels, shape.kernel)), dtype)
    return Case(shape, dtype, x, w, generator.standard_normal(shape.out_channels).astype(np.float32))


def pack_weight(w: np.ndarray, stride: int, row_multiple: int, channel_multiple: int) -> np.ndarray:
    """[tap][out channel and phase][in channel], zero-padded to the tile."""
    in_channels, out_channels, kernel = w.shape
    rows = ceil_div(out_channels * stride, row_multiple) * row_multiple
    columns = ceil_div(in_channels, channel_multiple) * channel_multiple
    packed = np.zeros((ceil_div(kernel, stride), rows, columns), w.dtype)
    for k in range(kernel):
        packed[k // stride, k % stride : out_channels * stride : stride, :in_channels] = w[:, :, k].T
    return packed


def kernel(file: str, entry: str, mode: str, code: str | None = None) -> EmuKernel:
    loaded = EmuModule(KERNELS / file, [entry], mode=mode, code=code).kernel(entry)
    loaded.max_dynamic_shared_size_bytes = 232448
    return loaded


def convt_direct(case: Case, mode: str = "check", code: str | None = None, **options) -> np.ndarray:
    s, y = case.shape, case.result()
    launch = kernel("convt_direct.cu", f"convt_direct<{C_TYPE[case.dtype]}>", mode, code)
    scalars = map(i32, (s.in_channels, s.length, s.out_channels, s.kernel, s.stride, s.padding, s.out_length))
    grid = (ceil_div(s.out_length, 256), s.out_channels, s.batch)
    launch(grid, (256,), (case.x, case.w, case.bias, Out(y), *scalars), **options)
    return y


def convt_shared(
    case: Case, mode: str = "check", code: str | None = None, tile: int = 64, cut: int = 0, short: int = 0, **options
) -> np.ndarray:
    """`cut` bytes too little shared memory and a grid `short` tiles too small are for planted bugs. No bias."""
    s, y = case.shape, case.result()
    launch = kernel("convt_direct.cu", "convt_smem_f32", mode, code)
    scalars = map(i32, (s.in_channels, s.length, s.out_channels, s.kernel, s.stride, s.padding, s.out_length, tile))
    grid = (ceil_div(s.columns, tile) - short, s.out_channels, s.batch)
    launch(grid, (tile // 4 * s.stride,), (case.x, case.w, Out(y), *scalars), 4 * (s.taps - 1 + tile) - cut, **options)
    return y


def convt_mma16(case: Case, mode: str = "check", code: str | None = None, tile=TILE, **options) -> np.ndarray:
    y, _ = convt_mma16_with_kernel(case, mode, code, tile, **options)
    return y


def convt_mma16_with_kernel(case: Case, mode="check", code=None, tile=TILE, **options) -> tuple[np.ndarray, EmuKernel]:
    s, y = case.shape, case.result()
    rows, columns, warp_rows, warp_columns, stages = tile
    launch = kernel("convt_mma.cu", f"convt_mma16<{C_TYPE[case.dtype]},{','.join(map(str, tile))}>", mode, code)
    packed = pack_weight(case.w, s.stride, rows, 32)
    scalars = (s.in_channels, s.length, s.out_channels, s.stride, s.padding, s.out_length, *packed.shape)
    shared = 2 * 40 * (stages * rows + 2 * (columns + s.taps - 1))
    grid = (ceil_div(s.columns, columns), packed.shape[1] // rows, s.batch)
    threads = (rows // warp_rows) * (columns // warp_columns) * 32
    launch(grid, (threads,), (case.x, packed, case.bias, Out(y), *map(i32, scalars)), shared, **options)
    return y, launch


def convt_tf32(case: Case, mode: str = "check", code: str | None = None, tile=TILE, **options) -> np.ndarray:
    s, y = case.shape, case.result()
    rows, columns, warp_rows, warp_columns, stages = tile
    launch = kernel("convt_mma.cu", f"convt_tf32<{','.join(map(str, tile))}>", mode, code)
    packed = pack_weight(case.w, s.stride, rows, 16)
    width = columns + s.taps - 1
    leading = width + (8 - width) % 32
    scalars = (s.in_channels, s.length, s.out_channels, s.stride, s.padding, s.out_length, *packed.shape, leading)
    grid = (ceil_div(s.columns, columns), packed.shape[1] // rows, s.batch)
    threads = (rows // warp_rows) * (columns // warp_columns) * 32
    shared = 4 * (stages * rows * 20 + 2 * 16 * leading)
    launch(grid, (threads,), (case.x, packed, case.bias, Out(y), *map(i32, scalars)), shared, **options)
    return y


def convt_wgmma_tma(
    case: Case, mode: str = "check", code: str | None = None, columns: int = 128, stages: int = 3, **options
) -> np.ndarray:
    """Needs a length that is a multiple of 8."""
    s, y = case.shape, case.result()
    launch = kernel("convt_wgmma.cu", f"convt_wgmma_tma<{C_TYPE[case.dtype]},{columns},{stages}>", mode, code)
    packed = pack_weight(case.w, s.stride, 64, 64)
    taps, rows, channels = packed.shape
    weight_map = TensorMap(packed, (channels, rows, taps), (channels * 2, rows * channels * 2), (64, 64, 1))
    x_strides = (s.length * 2, s.in_channels * s.length * 2)
    x_map = TensorMap(case.x, (s.length, s.in_channels, s.batch), x_strides, (64, 64, 1))
    scalars = map(i32, (s.out_channels, s.stride, s.padding, s.out_length, taps, channels // 64))
    shared = stages * (64 + columns) * 128 + 16 * stages
    grid = (ceil_div(s.columns, columns), rows // 64, s.batch)
    launch(grid, (160,), (weight_map, x_map, case.bias, Out(y), *scalars), shared, **options)
    return y


def convt_wgmma_manual(
    case: Case, mode: str = "check", code: str | None = None, swizzle: int = 1, extra: int = 0, **options
) -> np.ndarray:
    """`extra` bytes of shared memory are for a planted bug."""
    columns = 64
    s, y = case.shape, case.result()
    launch = kernel("convt_wgmma.cu", f"convt_wgmma_manual<{C_TYPE[case.dtype]},{columns},{swizzle}>", mode, code)
    packed = pack_weight(case.w, s.stride, 64, 64)
    scalars = (s.in_channels, s.length, s.out_channels, s.stride, s.padding, s.out_length, *packed.shape)
    shared = 8192 + ceil_div(columns + s.taps - 1, 8) * 8 * 128 + extra
    grid = (ceil_div(s.columns, columns), packed.shape[1] // 64, s.batch)
    launch(grid, (128,), (case.x, packed, case.bias, Out(y), *map(i32, scalars)), shared, **options)
    return y
