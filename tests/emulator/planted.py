# SPDX-License-Identifier: MIT
"""Bugs planted in the prototype kernels, and what the check build must say about each.

`python -m tests.emulator.planted [words]` prints, for every bug, what three ways of running find: the fast build in one
order, the fast build over many orders, the check build.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np

from cupy_convt.engines.source import flatten

from .prototypes import (
    KERNELS,
    Shape,
    ceil_div,
    convt_mma16,
    convt_shared,
    convt_tf32,
    convt_wgmma_manual,
    convt_wgmma_tma,
    i32,
    make_case,
)
from .runner import EmuError, EmuModule, Lazy, Out

LIMIT = {"bf16": 1e-2, "f16": 2e-3, "f32": 2e-3}
NUMBERS = "wrong result"  # the diagnosis of a bug that shows only in the numbers
MMA, DIRECT, WGMMA = "convt_mma.cu", "convt_direct.cu", "convt_wgmma.cu"


class WrongResult(AssertionError):
    """The launch went through but the numbers are off."""


@cache
def source(file: str) -> str:
    return flatten(KERNELS / file)


def edit(text: str, old: str, new: str, nth: int = 0) -> str:
    """Replace the nth occurrence."""
    parts = text.split(old)
    if len(parts) < nth + 2:
        raise ValueError(f"expected at least {nth + 1} of {old!r} in the source, got {len(parts) - 1}")
    return old.join(parts[: nth + 1]) + new + old.join(parts[nth + 1 :])


def check(case, y: np.ndarray, **options) -> None:
    error = case.error(y, **options)
    if not error < LIMIT[case.dtype]:
        raise WrongResult(f"{NUMBERS} (relative error {error:.1e})")


# ---- how to run a (mutated) prototype; a Run takes mode= and the emulator's launch options --------------------------
Run = Callable[..., None]
USUAL = (2, 70, 70, 40, 8, 4, 2)


def mma(code: str | None = None, shape: tuple = USUAL, dtype: str = "bf16", **options) -> None:
    case = make_case(Shape(*shape), dtype)
    check(case, convt_mma16(case, code=code, **options))


def tf32(code: str | None = None, shape: tuple = USUAL, **options) -> None:
    case = make_case(Shape(*shape), "f32")
    check(case, convt_tf32(case, code=code, **options))


def shared(code: str | None = None, shape: tuple = (2, 6, 150, 3, 4, 2, 1), **options) -> None:
    case = make_case(Shape(*shape), "f32")
    check(case, convt_shared(case, code=code, **options), with_bias=False)


def tma(code: str | None = None, shape: tuple = (1, 200, 136, 20, 8, 4, 2), **options) -> None:
    case = make_case(Shape(*shape), "bf16")
    check(case, convt_wgmma_tma(case, code=code, **options))


def manual(code: str | None = None, shape: tuple = (1, 200, 136, 20, 8, 4, 2), **options) -> None:
    case = make_case(Shape(*shape), "bf16")
    check(case, convt_wgmma_manual(case, code=code, **options))


RUNS: dict[str, tuple[Run, str]] = {
    "mma": (mma, MMA), "tf32": (tf32, MMA), "shared": (shared, DIRECT), "tma": (tma, WGMMA), "manual": (manual, WGMMA),
}  # fmt: skip


@cache
def small_module(mode: str) -> EmuModule:
    text = (KERNELS / "bugs.cu").read_text()
    entries = [line.split("void ")[1].split("(")[0] for line in text.splitlines() if line.startswith('extern "C"')]
    return EmuModule(KERNELS / "bugs.cu", entries, mode=mode)


def small(entry: str, *args, want=None, grid=1, block=32, mode="check", **options) -> None:
    """One kernel of bugs.cu on fresh copies of the arguments; the last array is the result."""
    fresh = [Out(np.zeros_like(a.array)) if isinstance(a, Out) else a.copy() for a in args]
    small_module(mode).kernel(entry)(np.atleast_1d(grid), (block,), fresh, **options)
    arrays = [a.array if isinstance(a, Out) else a for a in fresh if isinstance(a, Out | np.ndarray)]
    if want is not None and not np.array_equal(arrays[-1], want):
        raise WrongResult(NUMBERS)


def huge(entry: str, mode: str = "check", **options) -> None:
    """The last block of a 12 GB tensor, of which only the touched pages exist."""
    batch, channels, length = 3, 1000, 1000000
    count = batch * channels * length
    x, y = Lazy(count, np.float32), Lazy(count, np.float32)
    grid = (ceil_div(length, 256), channels, batch)
    last = grid[0] * grid[1] * grid[2] - 1
    small_module(mode).kernel(entry)(
        grid, (256,), (x, y, i32(batch), i32(channels), i32(length)), blocks=(last, 1), **options
    )
    if not (y.get(count - 64, 64) == 1).all():
        raise WrongResult(NUMBERS)


def ramp(count: int, dtype=np.int32) -> np.ndarray:
    return np.arange(1, count + 1).astype(dtype)


def empty(count: int, dtype=np.int32) -> Out:
    return Out(np.zeros(count, dtype))


# ---- the table ------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Bug:
    """`diagnosis` is a part of the check build's message; NUMBERS where only the result shows it."""

    name: str
    diagnosis: str
    run: Run
    hopper: bool = False


def mutant(name: str, diagnosis: str, prototype: str, *edits: tuple, **options) -> Bug:
    """A bug made by editing a prototype's text."""
    run, file = RUNS[prototype]

    def launch(**launch_options) -> None:
        text = source(file)
        for change in edits:
            text = edit(text, *change)
        run(text, **options, **launch_options)

    return Bug(name, diagnosis, launch, prototype in ("tma", "manual"))


def tiny(name: str, diagnosis: str, entry: str, *args, **options) -> Bug:
    """A bug that is a kernel of bugs.cu."""
    return Bug(name, diagnosis, lambda **launch_options: small(entry, *args, **options, **launch_options))


SYNC = "__syncthreads();"
LOAD_A = "if (step + STAGES - 1 < steps) loadA(step + STAGES - 1)"
ZERO_FILL = "*reinterpret_cast<u32*>(dst + pos * LD + cp2) = v"
FENCE_INIT = "    mbar_init_fence();\n  }\n  __syncthreads();"
WAIT_FULL = "mbar_wait(full + b, (st / STAGES) & 1)"
f32 = np.float32

BUGS = [
    # bounds
    mutant("global read 1 past the row end", "global out of bounds: read", "mma",
           ("g >= 0 && g < L", "g >= 0 && g <= L")),
    mutant("no upper bound on the store", "race between blocks", "mma", ("t >= 0 && t < Lout", "t >= 0"),
           shape=(2, 70, 70, 40, 9, 4, 2)),
    mutant("no lower bound on the store", "global out of bounds: write", "mma", ("t >= 0 && t < Lout", "t < Lout")),
    mutant("4 bytes too little dynamic shared memory", "shared out of bounds", "shared", cut=4),
    mutant("dynamic shared index past the tile", "shared out of bounds", "shared", ("i < W; i +=", "i < W + 1; i +=")),
    tiny("static shared row overflow", "array index out of bounds", "static_oob", ramp(32), empty(32), i32(1)),
    tiny("local array index 4 of 4", "array index out of bounds", "local_oob", ramp(4, f32), empty(32, f32), i32(4)),
    Bug("32-bit index arithmetic on 3e9 elements", "signed overflow", lambda **k: huge("int_overflow", **k)),
    # barriers and asynchronous copies
    mutant("no barrier before the tile is used", "uninitialised read: shared", "shared", (SYNC, ";")),
    mutant("no barrier before the tile is refilled", "race: write", "shared", (SYNC, ";", 1)),
    mutant("no barrier in the mma main loop", "race: read", "mma", (SYNC, ";")),
    mutant("cp.async waits for one group too few", "after write by cp.async", "mma",
           ("cp_async_wait<STAGES - 2>", "cp_async_wait<STAGES - 1>")),
    mutant("cp.async commit forgotten in the loop", "after write by cp.async", "mma",
           ("    cp_async_commit();\n    if (j == 0", "    if (j == 0")),
    mutant("prefetch overwrites the stage in use", "after write by cp.async", "mma",
           (LOAD_A, "if (step + STAGES < steps) loadA(step + STAGES)")),
    mutant("barrier after the prefetch instead of before", "race: write by cp.async", "mma",
           ("    __syncthreads();\n", ""), ("    const T* A = As", "    __syncthreads();\n    const T* A = As")),
    mutant("single-buffered x tile", "race", "mma", ("(c & 1) * rowsB", "0 * rowsB"), ("(c & 1) * rowsB", "0 * rowsB")),
    mutant("wait too short for one tap", "after write by cp.async", "tf32", ("j == 0 && J < STAGES - 1", "false"),
           shape=(1, 70, 70, 40, 2, 2, 0)),
    tiny("early return before a barrier", "divergent barrier", "early_exit", ramp(64), empty(64), i32(40), block=64,
         check_unwritten=False),
    tiny("barrier inside a divergent branch", "uninitialised read: shared", "barrier_in_branch", ramp(64), empty(64),
         block=64, want=ramp(64)[::-1]),
    # warp collectives
    tiny("full-mask shuffle in a half-warp branch", "deadlock / divergent barrier", "shfl_fullmask_in_branch", ramp(32),
         empty(32)),
    tiny("shuffle from a lane outside the mask", "which is not in mask", "shfl_inactive", ramp(32), empty(32)),
    tiny("warp-synchronous code without __syncwarp", "uninitialised read: shared", "warp_smem_nosync", ramp(32),
         empty(32), want=ramp(32).reshape(-1, 2)[:, ::-1].reshape(-1)),
    # initialisation
    mutant("out-of-range x not zero-filled", "uninitialised read: shared", "mma", (ZERO_FILL, f"if (v) {ZERO_FILL}")),
    tiny("partly initialised local array", NUMBERS, "stale_stack", ramp(8, f32), empty(32, f32), i32(7),
         want=np.tile(ramp(8, f32), 4)),
    tiny("y += x on an uninitialised output", "uninitialised read: arg1", "rmw_output", ramp(32, f32), empty(32, f32),
         i32(32), want=ramp(32, f32)),
    mutant("grid one tile short", "unwritten output", "shared", short=1),
    # alignment
    tiny("float4 load from x + 1", "misaligned access", "vec_misaligned", ramp(132, f32), empty(128, f32), i32(32),
         i32(1), want=ramp(129, f32)[1:]),
    mutant("cp.async rows aligned to 8 bytes", "misaligned access: cp.async", "mma", ("LD = BK + 8", "LD = BK + 4")),
    tiny("ldmatrix rows aligned to 8 bytes", "misaligned access: ldmatrix", "ldm_misaligned", ramp(640, np.uint16),
         empty(128, np.uint32)),
    # races in global memory, constness
    tiny("histogram without atomics", "race: read", "hist_noatomic", np.arange(32, dtype=i32) % 4,
         np.zeros(4, i32), i32(32), want=np.full(4, 8, i32)),
    tiny("partial sums of blocks without atomics", "race between blocks", "splitk_noatomic", np.ones(128, f32),
         np.zeros(32, f32), i32(0), want=np.full(32, 4, f32), grid=(1, 4)),
    mutant("two blocks write the same outputs", "race between blocks", "mma",
           ("q0 = blockIdx.x * BN", "q0 = blockIdx.x * (BN - 8)")),
    tiny("write through a const pointer", "write to const buffer", "write_const", ramp(32, f32), empty(32, f32)),
    # arithmetic, arguments
    tiny("shift by 32", "shift out of bounds", "shift_bug", ramp(32), empty(32), i32(32)),
    tiny("integer division by zero", "division by zero", "div_zero", ramp(32), empty(32), i32(0)),
    tiny("int scalar passed as int64", "the kernel's parameter is i4", "rmw_output", ramp(32, f32), empty(32, f32),
         np.int64(32)),
    # numbers only: the accesses are legal
    mutant("fragment index lane & 3", NUMBERS, "mma", ("(lane & 7)", "(lane & 3)")),
    mutant("wrong polyphase shift", NUMBERS, "mma", ("rowsB + (J - 1) - j)", "rowsB + j)")),
    # sm_90a
    mutant("consumer does not wait for a full stage", "uninitialised read: shared", "tma", (f"    {WAIT_FULL};\n", "")),
    mutant("producer does not wait for an empty stage", "mbarrier: more arrivals", "tma",
           ("if (st >= STAGES) mbar_wait(empty", "if (false) mbar_wait(empty")),
    mutant("wrong parity on a full stage", "after write by TMA", "tma", (WAIT_FULL, "mbar_wait(full + b, 0)")),
    mutant("expected bytes count only A", "after write by TMA", "tma",
           ("mbar_arrive_expect_tx(full + b, SBYTES)", "mbar_arrive_expect_tx(full + b, ABYTES)")),
    mutant("stage released before wgmma finished", "race: write by TMA", "tma", ("wgmma_wait<1>();", ";")),
    mutant("accumulator read before wgmma finished", "block exited with wgmma in flight", "tma",
           ("wgmma_wait<0>(); reg_fence(acc);", ";")),
    mutant("empty barrier expects 128, one arrival a warp", "deadlock / divergent barrier", "tma",
           ("mbar_init(empty + i, 4)", "mbar_init(empty + i, 128)")),
    mutant("no proxy fence before wgmma", "missing fence.proxy.async", "manual", ("      fence_proxy_async();\n", "")),
    mutant("no barrier between wgmma and refill", "race: write by cp.async", "manual",
           ("      __syncthreads();\n    }\n  }", "    }\n  }")),
    mutant("no wgmma.fence before the first wgmma", "wgmma without wgmma.fence", "manual",
           ("reg_fence(acc); wgmma_fence();", "reg_fence(acc);", 1)),
    mutant("mbarrier initialisation not fenced", "whose initialisation was not fenced", "tma",
           (FENCE_INIT, "  }\n  __syncthreads();")),
    mutant("no barrier after the mbarrier initialisation", "race: read", "tma",
           (FENCE_INIT, "    mbar_init_fence();\n  }")),
    mutant("producer loads one stage too many", "block exited with bulk copies in flight", "tma",
           ("for (int st = 0; st < steps; st++) {", "for (int st = 0; st <= steps; st++) {")),
    mutant("descriptor stride 512 instead of 1024", NUMBERS, "manual",
           ("gmma_desc(As + k * 32, 16, 1024, 1)", "gmma_desc(As + k * 32, 16, 512, 1)")),
    mutant("store forgets the swizzle", NUMBERS, "manual",
           ("(((kbyte >> 4) ^ (row & 7)) << 4)", "((kbyte >> 4) << 4)")),
    mutant("K advances 16 bytes instead of 32", NUMBERS, "manual", ("As + k * 32", "As + k * 16")),
    mutant("tile base not aligned to 1024", NUMBERS, "manual",
           ("*Bs = ct_smem + 8192", "*Bs = ct_smem + 8192 + 64"), extra=64),
]  # fmt: skip

# the same runs without a bug
CLEAN: dict[str, Run] = {name: run for name, (run, _) in RUNS.items()}
CLEAN["index64"] = lambda **k: huge("index64_ok", **k)


# ---- running a bug --------------------------------------------------------------------------------------------------
def find(run: Run, **options) -> str | None:
    """What a run reports; None if it went through with the right numbers."""
    try:
        run(**options)
    except EmuError as error:
        return str(error).split("\n", 1)[1].strip()
    except (WrongResult, TypeError) as error:
        return str(error)
    return None


def sweep(run: Run, **options) -> str | None:
    """The fast build over thread orders and timings of asynchronous copies."""
    orders = [("asc", 0), ("desc", 0), ("random", 1), ("random", 2), ("prio", 0), ("prio", 1), ("prio", 2)]
    for sched, seed in orders:
        for async_mode in ("late", "eager", "random"):
            block_order = "desc" if sched == "desc" else "asc"
            order = dict(sched=sched, seed=seed, async_mode=async_mode, block_order=block_order)
            found = find(run, mode="fast", **order, **options)
            if found:
                return f"{found.splitlines()[0]} [{sched}/{async_mode}]"
    return None


def main(words: list[str]) -> int:
    caught = {"fast": 0, "sweep": 0, "check": 0}
    bugs = [b for b in BUGS if not words or any(w in b.name for w in words)]
    for bug in bugs:
        ways = {"fast": find(bug.run, mode="fast"), "sweep": sweep(bug.run), "check": find(bug.run, mode="check")}
        print(f"* {bug.name}")
        for way, found in ways.items():
            caught[way] += found is not None
            print(f"    {way:5s}  {'-' if found is None else found.splitlines()[0][:180]}", flush=True)
    print(f"caught of {len(bugs)}: " + ", ".join(f"{way} {n}" for way, n in caught.items()))
    return len(bugs) - caught["check"]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
