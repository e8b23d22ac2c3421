# SPDX-License-Identifier: MIT
"""Direct plans as data: legal launches, tiles that cover the output exactly once, taps that are all in the window."""

from dataclasses import replace

import numpy as np
import pytest

from cupy_convt.core import plan_direct
from cupy_convt.core.device import PRESETS
from cupy_convt.core.launch import I32, I64, Launch, Plan
from cupy_convt.core.plan_direct import choose_tile, group_length, window
from cupy_convt.core.problem import Problem
from tests.cases import GEOMETRIES, PAIRS, pair_id, problem
from tests.plans import check_launches

DEVICES = [d for d in PRESETS.values() if not d.is_cpu]
LIMIT = 256 << 20


def stream(p: Problem, device=PRESETS["h200"]) -> Plan:
    return plan_direct.candidates(p, device, LIMIT)[0]


@pytest.mark.parametrize("pair", PAIRS, ids=pair_id)
def test_launches_are_legal_on_every_device(pair) -> None:
    for device in DEVICES:
        for name in GEOMETRIES:
            p = problem(name, *pair)
            found = plan_direct.candidates(p, device, LIMIT)
            assert [plan.variant for plan in found] == ["stream", "gather"]
            for plan in found:
                assert plan.workspace_bytes == 0
                check_launches(plan, device)
                assert all(launch.variant in plan_direct.variants() for launch in plan.launches)


def scalars(launch: Launch) -> list[int]:
    return [a.value for a in launch.arguments if isinstance(a, I32 | I64)]


@pytest.mark.parametrize("name", GEOMETRIES)
def test_stream_blocks_cover_the_output_once(name: str) -> None:
    """Decodes the grid as the kernel does."""
    for device in (PRESETS["h200"], replace(PRESETS["h200"], multiprocessors=2), PRESETS["t4"]):
        p = problem(name)
        (launch,) = stream(p, device).launches
        (_, l_out, q_count, _, batch, _, c_out_group, _, s, _, _, _, q_groups, residue_tile, channel_tile, batch_tile,
         residue_tiles, channel_tiles, q_tiles, groups) = scalars(launch)[:20]  # fmt: skip
        assert (l_out, s, batch, groups) == (p.l_out, p.stride, p.batch, p.groups)
        width = q_groups * group_length(p)
        covered = np.zeros(p.out_shape, int)
        for block in range(launch.grid):
            rest, residue = divmod(block, residue_tiles)
            rest, channel = divmod(rest, channel_tiles)
            rest, q = divmod(rest, q_tiles)
            n, group = divmod(rest, groups)
            for dn in range(min(batch_tile, batch - n * batch_tile)):
                for dc in range(min(channel_tile, c_out_group - channel * channel_tile)):
                    row = covered[n * batch_tile + dn, group * c_out_group + channel * channel_tile + dc]
                    for dq in range(q * width, min((q + 1) * width, q_count)):
                        first = dq * s + residue * residue_tile
                        row[first : min(first + residue_tile, (dq + 1) * s)] += 1
        assert (covered == 1).all()


@pytest.mark.parametrize("name", GEOMETRIES)
def test_the_window_holds_every_tap_once(name: str) -> None:
    """y[q*s + r] = sum over slots m of tap (r + origin + m*s) / d of x[q + top - m], against i*s + j*d = t + p_left."""
    for dtype in ("float16", "float32", "complex128"):
        p = problem(name, dtype)
        w = window(p)
        assert p.p_left == w.top * p.stride + w.origin
        for r in range(p.stride):
            slots = range(w.windows * group_length(p))
            found = {
                ((r + w.origin + m * p.stride) // p.dilation, w.top - m)
                for m in slots
                if r + w.origin + m * p.stride >= 0 and (r + w.origin + m * p.stride) % p.dilation == 0
            }
            wanted = {
                (j, (r + p.p_left - j * p.dilation) // p.stride)
                for j in range(p.kernel_size)
                if (r + p.p_left - j * p.dilation) % p.stride == 0
            }
            assert {(j, i) for j, i in found if j < p.kernel_size} == wanted


def test_an_aligned_row_is_read_in_whole_units() -> None:
    for kernel, stride, left, aligned in ((12, 2, 5, 1), (63, 4, 31, 1), (41, 1, 20, 1), (80, 8, 36, 0)):
        p = Problem(1, 1, 4096, 1, kernel, stride, p_left=left, p_right=left)
        least = ((kernel - 1 - left) // stride + (stride - 1 + left) // stride + 1 + 3) // 4
        assert window(p).windows == least
        assert (window(p).top % group_length(p) == 0) == aligned


def test_residues_of_a_thread() -> None:
    def chosen(stride: int, dtype: str = "float32") -> int:
        return plan_direct.residues_per_thread(Problem(1, 1, 100, 1, 3 * stride, stride, 1, 1, 0, 0, dtype, dtype))

    assert [chosen(s) for s in (1, 2, 3, 4, 5, 8, 16, 160)] == [1, 2, 3, 4, 5, 8, 8, 8]
    assert chosen(10) == 5
    assert chosen(12) == 4  # whole units of four floats
    assert chosen(6) == chosen(6, "float64") == 6  # the stride itself
    assert chosen(14, "float64") == 2  # whole units of two doubles
    assert chosen(7) == 8  # one residue in eight idles


def test_short_rows_share_a_block() -> None:
    tile = choose_tile(Problem(16, 512, 32, 512, 6, 3, groups=512), PRESETS["h200"])
    assert tile is not None
    assert tile.batch > 1
    assert tile.blocks >= PRESETS["h200"].multiprocessors


def test_traffic_is_close_to_the_floor_on_long_rows() -> None:
    for shape in ((1, 24, 240138, 24, 12, 2), (2000, 1, 32768, 1, 41, 2), (4, 1, 1000000, 1, 161, 8)):
        n, c, length, out, k, s = shape
        p = Problem(n, c, length, out, k, s, groups=c, p_left=k // 2, p_right=k // 2)
        tile = choose_tile(p, PRESETS["h200"])
        assert tile is not None
        assert tile.traffic < 1.06 * p.bytes


def test_huge_problems_fit_the_grid() -> None:
    for p in (
        Problem(1, 1, 2**31 + 5, 1, 4, 2, x_dtype="float16", weight_dtype="float16"),
        Problem(70000, 64, 1000, 64, 4, 2, groups=64),
        Problem(3, 65600, 10, 65600, 4, 2, groups=65600),
    ):
        for plan in plan_direct.candidates(p, PRESETS["h200"], LIMIT):
            check_launches(plan, PRESETS["h200"])


def test_what_the_method_cannot_take() -> None:
    device = PRESETS["h200"]
    backward = replace(problem("ragged"), operation="input_grad")
    assert not plan_direct.candidates(backward, device, LIMIT)
    assert "input_grad" in plan_direct.why_not(backward, device)
    tables = Problem(1, 512, 64, 512, 7, 3)  # its table of taps is larger than shared memory
    assert [plan.variant for plan in plan_direct.candidates(tables, PRESETS["t4"], LIMIT)] == ["gather"]
