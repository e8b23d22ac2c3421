# SPDX-License-Identifier: MIT
"""FFT plans in the emulator that the common geometries do not reach: matrices at every frequency, tiles, filters longer
than the input; and memory as the plan says."""

from dataclasses import replace

import numpy as np
import pytest

from cupy_convt.core import fft_tiles, plan_fft
from cupy_convt.core.device import PRESETS
from cupy_convt.core.fft_blocks import Blocks
from cupy_convt.core.launch import At, Gemm, Plan
from cupy_convt.core.plan_fft_matrices import split
from cupy_convt.core.problem import Problem
from tests.cases import PAIRS, operands, pair_id
from tests.emulated import EmulatorRuntime, empty, over, run_steps, to_device, to_host
from tests.emulator.memory import Lazy
from tests.test_kernels import check

H200 = PRESETS["h200"]
LAYERS = {
    "one block": Problem(3, 4, 20, 5, 30, 2, p_left=3, p_right=2, has_bias=True),
    "blocks": Problem(1, 3, 300, 2, 16, 2, p_left=5, p_right=4),
    "batch of blocks": Problem(2, 3, 300, 4, 12, 1, p_right=3, has_bias=True),
    "groups": Problem(2, 8, 30, 6, 40, 3, groups=2, p_left=1),
    "dilated": Problem(1, 3, 40, 3, 9, 2, 3),
}


class Measured(EmulatorRuntime):
    """Counts the bytes that are allocated."""

    allocated = 0

    def empty(self, shape: tuple[int, ...], dtype: str):
        found = super().empty(shape, dtype)
        self.allocated += found.nbytes
        return found


def run(p: Problem, plan: Plan) -> tuple[np.ndarray, int]:
    """The result, and the bytes that were allocated beside the caller's arrays."""
    from cupy_convt.engines.runtime import GpuEngine

    runtime = Measured()
    x, weight, bias = operands(p)
    out = empty(p.out_shape, p.out_dtype)
    GpuEngine(runtime).run(p, plan, to_device(x), to_device(weight), None if bias is None else to_device(bias), out)
    return to_host(out), runtime.allocated


def matrices(p: Problem, limit: int = 1 << 28) -> list[Plan]:
    """The plan by complex products and the one by three real ones."""
    found = [plan for plan in plan_fft.candidates(p, H200, limit) if any(isinstance(s, Gemm) for s in plan.steps)]
    assert [plan.variant.split("matrices")[0] for plan in found] == ["", "three-product "]
    return found


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("pair", PAIRS, ids=pair_id)
def test_matrices_at_every_frequency_give_the_definition(name: str, pair: tuple[str, str]) -> None:
    p = replace(LAYERS[name], x_dtype=pair[0], weight_dtype=pair[1])
    for plan in matrices(p):
        check(p, plan, run(p, plan)[0])


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("dtype", ["float32", "complex128"])
def test_small_tiles_of_matrices_agree_and_obey_the_limit(
    name: str, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fft_tiles, "LEAST_BUDGET", 1)
    p = replace(LAYERS[name], x_dtype=dtype, weight_dtype=dtype)
    for form, whole in enumerate(matrices(p)):
        tiled = matrices(p, whole.workspace_bytes // 2)[form]
        assert len(tiled.steps) > len(whole.steps)
        y, allocated = run(p, tiled)
        check(p, tiled, y)
        assert allocated <= tiled.workspace_bytes + sum(w.bytes for w in tiled.packing_workspaces)


@pytest.mark.parametrize("taps", [1, 2, 100, 3000])
def test_any_number_of_taps(taps: int) -> None:
    p = Problem(1, 1, 50, 1, taps, 2, has_bias=True)
    for plan in plan_fft.candidates(p, H200, 1 << 28):
        check(p, plan, run(p, plan)[0])


def test_planes_reach_past_two_to_the_31() -> None:
    """One spectrum among planes of 2^31 numbers and more."""
    p = Problem(1, 3, 50, 3, 16_000)
    bins, pitch = 8192, 2**18 + 1
    blocks = Blocks(2 * bins, bins, 0, 0, True)
    rng = np.random.default_rng(3)
    spectra = (rng.standard_normal(bins) + 1j * rng.standard_normal(bins)).astype(np.complex64)
    count = 3 * bins * pitch
    assert count > 3 * 2**31
    planes = over(Lazy(count, np.dtype(np.float32)), (count,), np.dtype(np.float32))
    runtime = EmulatorRuntime(check_unwritten=False)
    places = [np.arange(bins) * pitch + plane * bins * pitch for plane in range(3)]
    for weight in (False, True):
        launch = split(p, blocks, 1, "spectra", At("planes", 0), pitch, weight)
        run_steps(runtime, [launch], {"spectra": to_device(spectra), "planes": planes})
        parts = spectra.real, spectra.imag
        wanted = (parts[0], parts[1] - parts[0], sum(parts)) if weight else (sum(parts), *parts)
        for place, values in zip(places, wanted, strict=True):
            np.testing.assert_array_equal(np.asarray(planes[place]), values)
