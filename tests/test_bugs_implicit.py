# SPDX-License-Identifier: MIT
"""Bugs planted in the kernels of the implicit GEMM and of weight streaming: their tests must find each."""

import pytest

from cupy_convt.core.implicit_tiles import tile_of
from cupy_convt.core.launch import Variant
from cupy_convt.engines.source import kernel_source
from tests import test_kernels_implicit, test_plan_weight_stream
from tests.emulated import compiled
from tests.emulator.runner import EmuError, EmuKernel, EmuModule

SYNC = "__syncthreads();\n"
NUMBERS = None
#: Kernel, an edit of its source, and what the checks then say; NUMBERS where only the result is wrong.
BUGS: dict[str, tuple[str, str, str, str | None]] = {
    "tiles read before they are stored": (
        "implicit_gemm",
        f"  next_x.store(x_tiles);\n  {SYNC}",
        "  next_x.store(x_tiles);\n",
        "race|shared",
    ),
    "tiles stored while others read them": (
        "implicit_gemm",
        f"      {SYNC}    }}\n",
        "    }\n",
        "race|shared",
    ),
    "every part sums the first": ("implicit_gemm", "block.part * part_steps", "0 * part_steps", NUMBERS),
    "a ring one barrier short": ("implicit_gemm_mma", "      __syncthreads();  //", "      //", "race|shared|cp.async"),
    "weights not waited for": (
        "implicit_gemm_mma",
        "      cp_async_wait<STAGES - 2>();\n      __sync",
        "      __sync",
        "cp.async",
    ),
    "units of x not waited for": (
        "implicit_gemm_mma",
        "    if (last_group)\n      cp_async_wait<0>();\n    else\n      cp_async_wait<STAGES - 2>();\n",
        "",
        "cp.async",
    ),
    "one x tile stored while the last is read": (
        "implicit_gemm_mma",
        "    __syncthreads();  // nobody reads the x tile",
        "    // nobody reads the x tile",
        "race",
    ),
    "units of another row of the batch": ("implicit_gemm_mma", "++column.n, column.u", "column.u", NUMBERS),
    "places of a row's end kept for the next": ("implicit_gemm_mma", "lo = hi, hi +=", "hi +=", "race"),
    "x of another tap": ("implicit_gemm_mma", "tap = first_step % taps", "tap = 0 * taps", NUMBERS),
    "sums of parts in one place": (
        "implicit_gemm_mma",
        "blockIdx.x * (i64)channel_tile",
        "0 * (i64)channel_tile",
        "race",
    ),
    "sums read before they are staged": ("implicit_finish", f"  {SYNC}", "", "race|shared"),
    "a part left out": ("implicit_finish", "tile_size, part_count);", "tile_size, part_count - 1);", NUMBERS),
    "a channel of the next slice": ("implicit_finish", "min(slice,", "min(slice + 1,", "shared out of bounds"),
    "inputs read before they are stored": ("weight_stream", f"  {SYNC}\n", "\n", "race|shared"),
    "sums staged over inputs in use": ("weight_stream", f"    {SYNC}#pragma", "#pragma", "race"),
    "a warp left out": ("weight_stream", "k < WARPS; ++k", "k < WARPS - 1; ++k", NUMBERS),
    "weights beyond the row": ("weight_stream", "(max(0, row - base - lane) + 31) / 32", "UNIT", "out of bounds"),
    "taps of an input too many": ("weight_stream_finish", "i >= l_in ?", "i > l_in ?", "out of bounds"),
    "taps in another order of phases": ("weight_stream_finish", "* inverse %", "* 1 %", NUMBERS),
}


def run(kernel: str) -> None:
    """What the tests of the kernel check, on a few problems."""
    if kernel.startswith("weight_stream"):
        for name in ("vocoder", "ragged, odd rows", "dilated, coprime"):
            problem = test_plan_weight_stream.problem_of(name, ("float32", "float32"), 2, 4)
            test_plan_weight_stream.check(problem, test_plan_weight_stream.SMALL)
    else:
        dtype = "bfloat16" if kernel == "implicit_gemm_mma" else "float32"
        problem = test_kernels_implicit.problem_of(dtype, 2, 130, 40, 20, 6, 2, p_left=2, p_right=2)
        plans = test_kernels_implicit.in_parts(problem)
        least = tile_of(problem, plans[-1])
        test_kernels_implicit.check(problem, [plan for plan in plans if tile_of(problem, plan) == least])


@pytest.mark.slow
@pytest.mark.parametrize("bug", BUGS)
def test_the_tests_see_what_would_go_wrong(bug: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel, before, after, report = BUGS[bug]
    code = kernel_source(kernel)
    assert code.count(before) == 1, bug

    def wrong(variant: Variant, *rest: object) -> EmuKernel:
        if variant[0] != kernel:
            return compiled(variant, *rest)
        return EmuModule(code=code.replace(before, after), entries=[kernel], defines=dict(variant[1])).kernel(kernel)

    monkeypatch.setattr("tests.emulated.compiled", wrong)
    with pytest.raises(EmuError if report else AssertionError, match=report):
        run(kernel)
