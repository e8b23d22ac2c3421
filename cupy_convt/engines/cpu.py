# SPDX-License-Identifier: MIT
"""The CPU engine: NumPy and SciPy run the plan, and the definition as loops to judge every engine by."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache, partial

import numpy as np

from cupy_convt.core.device import PRESETS, DeviceSpec
from cupy_convt.core.plan_cpu import CpuPlan, candidates
from cupy_convt.core.problem import Problem, is_complex
from cupy_convt.core.tiles_cpu import threads
from cupy_convt.engines import (
    Run,
    cpu_dense,
    cpu_direct,
    cpu_fft,
    cpu_fft_pack,
    cpu_openvino,
    cpu_phases,
    cpu_phases_pack,
    cpu_toeplitz,
    cpu_toeplitz_pack,
)
from cupy_convt.engines.cpu_arrays import Pieces, apply_activation, real_weight
from cupy_convt.engines.cpu_threads import Array, cores
from cupy_convt.engines.dtypes import named_dtype
from cupy_convt.engines.layout import Layout


@lru_cache(maxsize=1)
def _this_cpu() -> DeviceSpec:
    preset, library = PRESETS["cpu"], cpu_openvino.available()
    half = 2 * preset.fp32 if library and cpu_openvino.bfloat16() else 0.0
    return replace(preset, multiprocessors=cores(), fp16=half, convolutions=library)


def _by_blas(problem: Problem, plan: CpuPlan, device: DeviceSpec) -> CpuPlan:
    """A plan for what a library cannot do for the plan that asks for it, within the same memory."""
    plans = candidates(problem, device, plan.workspace_bytes)
    return next(other for other in plans if other.variant == "columns")


def _packs_by_tile(problem: Problem, plan: CpuPlan) -> bool:
    """Whether tiles pack a weight that is not kept themselves, each what no other one needs."""
    if plan.method == "fft":
        return cpu_fft_pack.packs_by_tile(problem, plan)
    if plan.block:
        return cpu_toeplitz_pack.packs_by_tile(problem, plan)
    return plan.form is not None and cpu_phases_pack.packs_by_tile(problem, plan)


@lru_cache(maxsize=1024)
def _way(problem: Problem, plan: CpuPlan) -> tuple[bool, bool]:
    """Whether tiles pack a weight that is not kept themselves, and whether they are shared among the cores."""
    return _packs_by_tile(problem, plan), threads(problem, cores()) > 1


class CpuEngine:
    """Runs CpuPlans on NumPy arrays."""

    def device(self) -> DeviceSpec:
        """This machine, as the planner sees it."""
        return _this_cpu()

    def home(self, *arrays: Array | None) -> int | None:
        """There is one CPU."""
        return 0

    def complaint(self, name: str, array: Array) -> str | None:
        """NumPy arrays can always be used."""
        return None

    def empty(self, shape: tuple[int, ...], dtype: str) -> Array:
        """A new uninitialised array."""
        return np.empty(shape, named_dtype(dtype))

    def asarray(self, values: Array) -> Array:
        """The values as an array of this engine's kind."""
        return values

    def writeable(self, array: Array) -> bool:
        """Whether the array may be written to."""
        return array.flags.writeable

    def overlaps(self, a: Array, b: Array) -> bool:
        """Whether two arrays may share memory, judged by their bounds."""
        return np.may_share_memory(a, b)

    def ready(self, plan: CpuPlan) -> None:
        """There is nothing to compile."""

    def seconds(self, call: Callable[[], object]) -> float:
        """Wall-clock time of one call."""
        start = time.perf_counter()
        call()
        return time.perf_counter() - start

    def pack(self, problem: Problem, plan: CpuPlan, weight: Array) -> object:
        """What the plan wants of the weight; good for any x, and any plan with the same packing_key."""
        if not plan.packing_key:
            return weight  # as it lies in memory; converted a tile at a time where it has to be
        if plan.subpixel:
            return cpu_openvino.Convolution(problem, plan.subpixel, weight)
        real = real_weight(problem, weight)
        if plan.method == "fft":
            return cpu_fft_pack.pack(problem, plan, real)
        if plan.form:
            return cpu_phases_pack.pack(problem, plan, real)
        if plan.block:
            return cpu_toeplitz_pack.pack(problem, plan, real)
        return real

    def bind(
        self,
        problem: Problem,
        plan: CpuPlan,
        x: Layout,
        weight: Layout,
        bias: Layout | None,
        out: Layout,
        *,
        settled: bool = False,
    ) -> Run:
        """The plan, ready to be run; `settled` makes x contiguous: BLAS may sum in another order where it is not."""
        if not settled and len(x.shape) == 3:
            return partial(self.run, problem, plan)

        def run(x: Array, weight: Array, bias: Array | None, out: Array, packed: object | None = None) -> None:
            x, out = (x, out) if x.ndim == 3 else (x[None], out[None])
            self.run(problem, plan, np.ascontiguousarray(x) if settled else x, weight, bias, out, packed)

        return run

    def run(
        self,
        problem: Problem,
        plan: CpuPlan,
        x: Array,
        weight: Array,
        bias: Array | None,
        out: Array,
        packed: object | None = None,
    ) -> None:
        """Write the result of the problem into `out`.

        Shape:
            x: (N, C_in, L_in), weight: (C_in, C_out/g, K), bias: (C_out,) in the dtype of out, out: (N, C_out, L_out).
        """
        if out.size == 0:
            return
        packs_by_tile, parallel = _way(problem, plan)
        by_tile = packed is None and packs_by_tile
        operand = real_weight(problem, weight) if by_tile else packed
        if operand is None:
            operand = self.pack(problem, plan, weight)
        if plan.subpixel:
            assert isinstance(operand, (np.ndarray, cpu_openvino.Convolution))
            if cpu_openvino.can_run(operand):
                cpu_openvino.run(problem, plan, x, operand, bias, out)
                return
            plan = _by_blas(problem, plan, self.device())
            operand = self.pack(problem, plan, weight)
        assert isinstance(operand, np.ndarray)
        pieces = Pieces(problem, x, bias, out)
        if plan.method == "fft":
            cpu_fft.run(pieces, plan, operand, packed=not by_tile, parallel=parallel)
        elif plan.method == "direct":
            cpu_direct.run(pieces, plan, operand, parallel=parallel)
        elif plan.form:
            cpu_phases.run(pieces, plan, operand, packed=not by_tile, parallel=parallel)
        elif plan.block:
            cpu_toeplitz.run(pieces, plan, operand, packed=not by_tile, parallel=parallel)
        else:
            cpu_dense.run(pieces, plan, operand, parallel=parallel)


def reference(problem: Problem, x: Array, weight: Array, bias: Array | None = None) -> Array:
    """The definition as loops, in float64 or complex128: the judge of every engine.

    F[n,co,i*s + j*d] += x[n,ci,i] * w[ci,co',j] for every ci, co' and j, then crop, bias and activation.
    """
    wide = np.complex128 if is_complex(problem.out_dtype) else np.float64
    x, weight = x.astype(wide), weight.astype(wide)
    full: Array = np.zeros((problem.batch, problem.c_out, problem.l_full), wide)
    reach = (problem.l_in - 1) * problem.stride + 1
    for ci in range(problem.c_in):
        group = ci // problem.c_in_group
        for channel in range(problem.c_out_group):
            for j in range(problem.kernel_size):
                first = j * problem.dilation
                samples = full[:, group * problem.c_out_group + channel, first : first + reach : problem.stride]
                samples += x[:, ci] * weight[ci, channel, j]
    out: Array = np.zeros(problem.out_shape, wide)
    first, stop = max(problem.p_left, 0), min(problem.p_left + problem.l_out, problem.l_full)
    if first < stop:
        out[:, :, first - problem.p_left : stop - problem.p_left] = full[:, :, first:stop]
    if bias is not None:
        out += bias.astype(wide)[:, None]
    if problem.activation is not None:
        apply_activation(out, *problem.activation)
    return out
