# SPDX-License-Identifier: MIT
"""Compare every instruction wrapper with an independent NumPy model of its register and memory layout.

`python -m tests.emulator.conform` runs the wrappers in the emulator; with `--gpu` (CuPy and a GPU) the same source also
runs there. One line a case; the exit code is the number of cases that differ. Operands are small integers, so that
sums are exact in any order.
"""

from __future__ import annotations

import argparse
import ctypes
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from cupy_convt.engines.source import flatten

from .prototypes import KERNELS, encode, tf32_round
from .runner import EmuModule, Out, TensorMap

SOURCE = KERNELS / "conform.cu"
WGMMA = [f"c_wgmma<__nv_bfloat16,{n},{ta},{tb}>" for n in (32, 64) for ta, tb in ((0, 0), (0, 1), (1, 0))]
AMPERE = ["c_mma<__half>", "c_mma<__nv_bfloat16>", "c_mma<float>", "c_ldm<0>", "c_ldm<1>", "c_tf32"]
WGMMA += [f"c_wgmma<float,{n},0,0>" for n in (32, 64)]
WGMMA += [f"c_wgmma<{kind},{n},0,0>" for kind in ("__nv_bfloat16", "__half", "float") for n in (128, 192)]
HOPPER = ["c_tma", "c_bulk", *WGMMA]


@dataclass(frozen=True)
class Case:
    """One launch of one block; the last argument is the result."""

    entry: str
    block: int
    args: tuple[object, ...]
    shared: int
    want: np.ndarray
    note: str = ""

    @property
    def label(self) -> str:
        return f"{self.entry} {self.note}".strip()


def descriptor(start: int, leading: int, stride: int, swizzle: int) -> np.uint64:
    """wgmma matrix descriptor relative to the start of the shared image."""
    return np.uint64(start >> 4 | (leading >> 4) << 16 | (stride >> 4) << 32 | swizzle << 62)


def mma_cases(generator: np.random.Generator) -> Iterator[Case]:
    for dtype, c_type in (("f16", "__half"), ("bf16", "__nv_bfloat16"), ("f32", "float")):
        depth = 8 if dtype == "f32" else 16
        packed = 1 if depth == 8 else 2  # elements in a register
        a, b, c = (small_integers(generator, *shape) for shape in ((16, depth), (depth, 8), (16, 8)))
        d = a @ b + c
        a_regs, b_regs = np.zeros((32, 4, packed)), np.zeros((32, 2, packed))
        c_regs, d_regs = np.zeros((32, 4), np.float32), np.zeros((32, 4), np.float32)
        for lane in range(32):
            group, t = lane // 4, lane % 4
            for h in range(packed):
                for i in range(4):
                    column = t * 2 + h + 8 * (i >> 1) if depth == 16 else t + 4 * (i >> 1)
                    a_regs[lane, i, h] = a[group + 8 * (i & 1), column]
                for i in range(2):
                    b_regs[lane, i, h] = b[t * 2 + h + 8 * i if depth == 16 else t + 4 * i, group]
            for regs, matrix in ((c_regs, c), (d_regs, d)):
                regs[lane] = [matrix[group + 8 * (e >> 1), 2 * t + (e & 1)] for e in range(4)]

        def words(values: np.ndarray, dtype: str = dtype) -> np.ndarray:
            return np.ascontiguousarray(encode(values.reshape(-1), dtype)).view(np.uint32)

        yield Case(f"c_mma<{c_type}>", 32, (words(a_regs), words(b_regs), c_regs), 0, d_regs)


def ldmatrix_cases(generator: np.random.Generator) -> Iterator[Case]:
    image = generator.integers(0, 2**32, 1024, dtype=np.uint32)
    rows = generator.permutation(256)[:32].astype(np.int32)
    halves = image.view(np.uint16).reshape(256, 8)
    for transposed in (0, 1):
        want = np.zeros((32, 4, 2), np.uint16)
        for lane in range(32):
            for i in range(4):
                r, q = lane // 4, 2 * (lane % 4)
                if transposed:
                    want[lane, i] = [halves[rows[8 * i + q + h], r] for h in (0, 1)]
                else:
                    want[lane, i] = halves[rows[8 * i + r], q : q + 2]
        result = Out(np.zeros(128, np.uint32))
        yield Case(f"c_ldm<{transposed}>", 32, (image, rows, result), 0, want.reshape(-1).view(np.uint32))


def tf32_cases(generator: np.random.Generator) -> Iterator[Case]:
    x = generator.standard_normal(256).astype(np.float32)
    yield Case("c_tf32", 256, (x, Out(np.zeros(256, np.uint32))), 0, tf32_round(x).view(np.uint32))


def tma_cases(generator: np.random.Generator) -> Iterator[Case]:
    array = generator.integers(0, 65535, (2, 70, 104)).astype(np.uint16)
    for corner in ((0, 0, 0), (-3, 0, 1), (60, 10, 1), (-1, 40, 0)):
        tile = np.zeros((64, 64), np.uint16)  # outside of the array: zeros
        for i in range(64):
            for j in range(64):
                if 0 <= corner[0] + j < 104 and 0 <= corner[1] + i < 70:
                    tile[i, j] = array[corner[2], corner[1] + i, corner[0] + j]
        chunks = tile.reshape(64, 8, 8)
        swizzled = np.stack([chunks[i][np.arange(8) ^ (i & 7)] for i in range(64)])
        tensor = TensorMap(array, (104, 70, 2), (208, 70 * 208), (64, 64, 1))
        args = (tensor, *map(np.int32, corner), Out(np.zeros(2048, np.uint32)))
        yield Case("c_tma", 128, args, 8192 + 16, swizzled.reshape(-1).view(np.uint32), f"at {corner}")


def bulk_cases(generator: np.random.Generator) -> Iterator[Case]:
    """1-D copies between addresses that are multiples of 16 bytes and of no more."""
    words = generator.integers(0, 2**32, 2048, dtype=np.uint32)
    for first, to, count in ((0, 0, 2048), (4, 20, 1000), (12, 4, 4)):
        want = np.zeros(2048, np.uint32)
        want[to : to + count] = words[first : first + count]
        args = (words, *map(np.int32, (first, to, count)), Out(np.zeros(2048, np.uint32)))
        yield Case("c_bulk", 128, args, 8192 + 16, want, f"{count} words from {first} to {to}")


# (note, A transposed, B transposed, layout of A, layout of B, rows by which B is shifted)
WGMMA_LAYOUTS = [
    ("K swizzled", 0, 0, "k128", "k128", 0),
    ("K plain", 0, 0, "k0", "k0", 0),
    ("K plain, B rows shifted 3", 0, 0, "k0", "k0", 3),
    ("K swizzled, B rows shifted 3", 0, 0, "k128", "k128", 3),
    ("B MN swizzled", 0, 1, "k128", "m128", 0),
    ("A MN swizzled", 1, 0, "m128", "k128", 0),
]


WGMMA_TF32 = ("K swizzled", "K plain", "K plain, B rows shifted 3")


def place_tf32(image: np.ndarray, matrix: np.ndarray, layout: str, base: int, shift: int) -> np.uint64:
    """The same of floats, [rows][8]. Their last 13 bits, which the instruction does not look at, are set."""
    pitch = (matrix.shape[0] + 8) * 16
    words = image.view(np.uint32)
    for row, values in enumerate(matrix.view(np.uint32), shift):
        for k, value in enumerate(values):
            if layout == "k128":
                offset = row * 128 + ((k // 4) ^ (row & 7)) * 16 + (k % 4) * 4
            else:
                offset = (k // 4) * pitch + row * 16 + (k % 4) * 4
            words[(base + offset) // 4] = value | 0x1FFF
    if layout == "k128":
        return descriptor(base + shift * 128, 16, 1024, 1)
    return descriptor(base + shift * 16, pitch, 128, 0)


def place(
    image: np.ndarray, matrix: np.ndarray, layout: str, base: int, k_offset: int, shift: int, dtype: str = "bf16"
) -> np.uint64:
    """Write a matrix [rows][16] into the shared image in a canonical layout; returns its descriptor."""
    rows, pitch = matrix.shape[0], (matrix.shape[0] + 8) * 16
    for row, values in enumerate(encode(matrix, dtype).view(np.uint16)):
        for k, value in enumerate(values, k_offset):
            r = row + shift
            if layout == "k128":
                offset = r * 128 + ((k // 8) ^ (r & 7)) * 16 + (k % 8) * 2
            elif layout == "k0":
                offset = (k // 8) * pitch + r * 16 + (k % 8) * 2
            else:  # rows of 128 bytes hold 64 elements along M or N, one row for each k
                offset = (r // 64) * 8192 + k * 128 + (((r % 64) // 8) ^ (k & 7)) * 16 + (r % 8) * 2
            image[(base + offset) // 2] = value
    assert rows <= 64 or layout == "k0"
    if layout == "k128":
        return descriptor(base + shift * 128 + k_offset * 2, 16, 1024, 1)
    if layout == "k0":
        return descriptor(base + shift * 16 + k_offset // 8 * pitch, pitch, 128, 0)
    return descriptor(base + k_offset * 128, 8192, 1024, 1)


def wgmma_cases(generator: np.random.Generator) -> Iterator[Case]:
    for n in (128, 192):  # those of the library's kernel, in its layout
        for kind, dtype in (("__nv_bfloat16", "bf16"), ("__half", "f16"), ("float", "tf32")):
            depth = 8 if dtype == "tf32" else 16
            a, b = small_integers(generator, 64, depth), small_integers(generator, n, depth)
            for shift in (0, 3):
                image = np.zeros(16384, np.uint16)
                if dtype == "tf32":
                    descriptors = place_tf32(image, a, "k0", 0, 0), place_tf32(image, b, "k0", 16384, shift)
                else:
                    descriptors = (
                        place(image, a, "k0", 0, 0, 0, dtype),
                        place(image, b, "k0", 16384, 0, shift, dtype),
                    )
                args = (image.view(np.uint32), *descriptors, Out(np.zeros(128 * n // 2, np.float32)))
                note = f"K plain, B rows shifted {shift}"
                yield Case(f"c_wgmma<{kind},{n},0,0>", 128, args, 32768, accumulators(a @ b.T), note)
    for n in (32, 64):
        a, b = small_integers(generator, 64, 16), small_integers(generator, n, 16)
        want = accumulators(a @ b.T)
        for note, ta, tb, a_layout, b_layout, shift in WGMMA_LAYOUTS:
            image = np.zeros(16384, np.uint16)
            a_descriptor = place(image, a, a_layout, 0, 0 if a_layout == "k0" else 16, 0)
            b_descriptor = place(image, b, b_layout, 16384, 0 if b_layout == "k0" else 32, shift)
            args = (image.view(np.uint32), a_descriptor, b_descriptor, Out(np.zeros(128 * n // 2, np.float32)))
            yield Case(f"c_wgmma<__nv_bfloat16,{n},{ta},{tb}>", 128, args, 32768, want, note)
        a, b = small_integers(generator, 64, 8), small_integers(generator, n, 8)
        for note, a_layout, b_layout, shift in [row[:1] + row[3:] for row in WGMMA_LAYOUTS if row[0] in WGMMA_TF32]:
            image = np.zeros(16384, np.uint16)
            descriptors = place_tf32(image, a, a_layout, 0, 0), place_tf32(image, b, b_layout, 16384, shift)
            args = (image.view(np.uint32), *descriptors, Out(np.zeros(128 * n // 2, np.float32)))
            yield Case(f"c_wgmma<float,{n},0,0>", 128, args, 32768, accumulators(a @ b.T), note)


def accumulators(d: np.ndarray) -> np.ndarray:
    """A 64 x n result as the threads of a warpgroup hold it."""
    n = d.shape[1]
    held = np.zeros((128, n // 2), np.float32)
    for thread in range(128):
        warp, group, quad = thread // 32, thread % 32 // 4, thread % 4
        for i in range(n // 2):
            held[thread, i] = d[warp * 16 + group + 8 * (i // 2 % 2), i // 4 * 8 + 2 * quad + i % 2]
    return held


def small_integers(generator: np.random.Generator, *shape: int) -> np.ndarray:
    return generator.integers(-8, 9, shape).astype(np.float32)


def cases(hopper: bool = True) -> list[Case]:
    """Every case, from one seed."""
    generator = np.random.default_rng(5)
    found = [c for make in (mma_cases, ldmatrix_cases, tf32_cases) for c in make(generator)]
    return found + ([c for make in (tma_cases, bulk_cases, wgmma_cases) for c in make(generator)] if hopper else [])


class Emulator:
    """Runs a case on the CPU."""

    def __init__(self, mode: str = "check") -> None:
        self.module = EmuModule(SOURCE, AMPERE + HOPPER, mode=mode)

    def __call__(self, case: Case) -> np.ndarray:
        args = [a.copy() if isinstance(a, np.ndarray) else a for a in case.args]
        self.module.kernel(case.entry)((1,), (case.block,), args, case.shared)
        return args[-1].array if isinstance(args[-1], Out) else args[-1]


class Gpu:
    """Runs a case with CuPy."""

    def __init__(self) -> None:
        import cupy

        self.cupy = cupy
        device = cupy.cuda.Device()
        major = int(device.compute_capability) // 10
        self.hopper = major == 9
        entries = AMPERE + (HOPPER if self.hopper else [])
        options = ("-std=c++17", *(["-arch=sm_90a"] if self.hopper else []))
        self.module = cupy.RawModule(code=flatten(SOURCE), options=options, name_expressions=entries)

    def __call__(self, case: Case) -> np.ndarray:
        kernel = self.module.get_function(case.entry)
        if case.shared > 48 << 10:
            kernel.max_dynamic_shared_size_bytes = case.shared
        args = [self._argument(a) for a in case.args]
        kernel((1,), (case.block,), tuple(args), shared_mem=case.shared)
        return args[-1].get()

    def _argument(self, argument: object) -> object:
        if isinstance(argument, TensorMap):
            self._kept = self.cupy.asarray(argument.array)
            return cuda_tensor_map(self._kept.data.ptr, argument)
        if isinstance(argument, Out):
            return self.cupy.asarray(argument.array)
        return self.cupy.asarray(argument) if isinstance(argument, np.ndarray) else argument


def cuda_tensor_map(address: int, tensor: TensorMap) -> np.ndarray:
    """A real CUtensorMap of 16-bit elements, as a size-1 array that CuPy passes by value. Needs the driver only."""
    driver = ctypes.CDLL("libcuda.so.1")
    room = np.zeros(128 + 64, np.uint8)
    start = -room.ctypes.data % 64
    rank, u64, u32 = len(tensor.dims), ctypes.c_uint64, ctypes.c_uint32
    swizzle_128b, uint16 = 3, 1
    status = driver.cuTensorMapEncodeTiled(
        ctypes.c_void_p(room.ctypes.data + start), uint16, u32(rank), ctypes.c_void_p(address),
        (u64 * rank)(*tensor.dims), (u64 * (rank - 1))(*tensor.strides), (u32 * rank)(*tensor.box),
        (u32 * rank)(*[1] * rank), 0, swizzle_128b if tensor.swizzle else 0, 0, 0,
    )  # fmt: skip
    if status:
        raise RuntimeError(f"cuTensorMapEncodeTiled: error {status}")
    return room[start : start + 128].copy().view("V128")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--gpu", action="store_true", help="also run every case on the GPU, through CuPy")
    parser.add_argument("--mode", choices=("check", "fast"), default="check", help="build of the emulator")
    options = parser.parse_args(arguments)
    emulator, gpu, failures = Emulator(options.mode), Gpu() if options.gpu else None, 0
    for case in cases(hopper=gpu is None or gpu.hopper):
        line, good = f"{case.label:60s}", True
        for name, run in (("emulator", emulator), ("gpu", gpu)):
            if run is None:
                continue
            same = np.array_equal(run(case).reshape(-1), case.want.reshape(-1))
            line += f"  {name} {'ok' if same else 'DIFFERS'}"
            good = good and same
        failures += not good
        print(line, flush=True)
    return failures


if __name__ == "__main__":
    sys.exit(main())
