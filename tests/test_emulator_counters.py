# SPDX-License-Identifier: MIT
"""The traffic counters of the emulator against patterns counted by hand."""

from functools import cache
from pathlib import Path

import numpy as np
import pytest

from tests.emulator.counters import GlobalCount, SharedCount
from tests.emulator.runner import At, DeviceBuffer, EmuModule, LaunchStats

SOURCE = Path(__file__).parent / "emulator" / "kernels" / "counters.cu"
ENTRIES = tuple(
    line.split("void ")[1].split("(")[0] for line in SOURCE.read_text().splitlines() if line.startswith('extern "C"')
)
FLOAT = 4


@cache
def module(wide: str = "double2", counters: bool = True) -> EmuModule:
    return EmuModule(SOURCE, ENTRIES, defines={"CT_WIDE": wide}, counters=counters)


def launch(entry, *args, grid=1, block=32, shared_bytes=0, wide="double2", counters=True, **options) -> LaunchStats:
    kernel = module(wide, counters).kernel(entry)
    kernel((grid,), (block,), args, shared_bytes, check_unwritten=False, **options)
    return kernel.stats


def filled(nbytes: int) -> DeviceBuffer:
    return DeviceBuffer.from_host(np.zeros(nbytes, np.uint8))


i32 = np.int32


STRIDED = [(1, 0, 4), (1, 1, 5), (1, 7, 5), (1, 8, 4), (2, 0, 8), (3, 0, 12), (8, 0, 32), (9, 0, 32)]


@pytest.mark.parametrize(("stride", "offset", "sectors"), STRIDED)
def test_sectors_of_a_strided_warp(stride, offset, sectors):
    strided, plain = GlobalCount(requests=1, sectors=sectors, sectors_min=4), GlobalCount(1, 4, 4)
    stats = launch("strided_load", filled(4096), filled(4096), i32(stride), i32(offset))
    assert (stats.global_load, stats.global_store, stats.counted) == (strided, plain, True)
    stats = launch("strided_store", filled(4096), filled(4096), i32(stride), i32(offset))
    assert (stats.global_load, stats.global_store) == (plain, strided)


def test_broadcast_is_one_sector():
    stats = launch("strided_load", filled(4096), filled(4096), i32(0), i32(5))
    assert stats.global_load == GlobalCount(1, 1, 1)


def test_misaligned_view_costs_a_sector():
    stats = launch("strided_load", At(filled(4096), 4), filled(4096), i32(1), i32(0))
    assert stats.global_load == GlobalCount(1, 5, 4)
    assert stats.argument(0).load_sectors == 5


def test_several_warps_and_blocks_add_up():
    stats = launch("strided_load", filled(4096), filled(4096), i32(2), i32(0), grid=2, block=64)
    assert stats.global_load == GlobalCount(4, 32, 16)
    assert stats.global_store == GlobalCount(4, 16, 16)


SECTORS = dict(float=4, float2=8, double=8, float4=16, double2=16, uint4=16, __half=2, __nv_bfloat16=2)


@pytest.mark.parametrize(("wide", "sectors"), SECTORS.items())
def test_wide_access_is_one_request(wide, sectors):
    stats = launch("wide_copy", filled(4096), filled(4096), wide=wide)
    assert stats.global_load == stats.global_store == GlobalCount(1, sectors, sectors)


def test_vector_copy_misaligned_in_the_sector():
    stats = launch("vector_copy", At(filled(4096), 16), filled(4096))
    assert stats.global_load == GlobalCount(1, 17, 16)


def test_unequal_trip_counts_share_their_turns():
    # turns of 32, 32 and 6 lanes
    stats = launch("ragged_loop", filled(4096), filled(4096), i32(70))
    assert stats.global_load == GlobalCount(3, 4 + 4 + 1, 4 + 4 + 1)


def test_guards_do_not_shift_the_turns():
    # lanes 0.., 8.., 16.., 24..31 in turns 0..3: 4, 3, 2 and 1 sectors
    stats = launch("guarded_loop", filled(4096), filled(4096), i32(4))
    assert stats.global_load == GlobalCount(4, 10, 10)


def test_both_sides_of_a_branch_then_one_store():
    stats = launch("branches", filled(4096), filled(4096), filled(4096))
    assert stats.global_load == GlobalCount(2, 8, 4)  # 16 lanes, every other word: 4 sectors where 2 would do
    assert stats.global_store == GlobalCount(1, 4, 4)


def test_break_from_an_inner_loop_reconverges():
    outer = 3
    stats = launch("nested_break", filled(4096), filled(4096), i32(outer))
    inner = GlobalCount(4 * outer, 10 * outer, 10 * outer)
    assert stats.global_load == GlobalCount(inner.requests + outer, inner.sectors + outer, inner.sectors_min + outer)


def test_exited_lanes_belong_to_the_accesses_they_made():
    stats = launch("early_exit", filled(4096), filled(4096), i32(5))
    assert stats.global_load == GlobalCount(2, 5, 5)
    assert stats.global_store == GlobalCount(2, 5, 5)


@pytest.mark.parametrize("sched", ["asc", "desc", "random", "prio"])
def test_counters_do_not_depend_on_the_schedule(sched):
    stats = launch("ragged_loop", filled(4096), filled(4096), i32(70), sched=sched, seed=3)
    assert stats.global_load == GlobalCount(3, 9, 9)


@pytest.mark.parametrize(("stride", "wavefronts"), [(0, 1), (1, 1), (2, 2), (4, 4), (8, 8), (32, 32), (33, 1), (3, 1)])
def test_shared_bank_conflicts(stride, wavefronts):
    stats = launch("shared_stride", filled(4096), i32(stride))
    assert stats.shared_load == SharedCount(1, wavefronts, 1)
    assert stats.shared_store == SharedCount(33, 33, 33)


@pytest.mark.parametrize(("wide", "stride", "wavefronts", "least"), [
    ("float4", 1, 4, 4), ("float4", 2, 8, 4), ("float4", 0, 4, 4), ("double", 1, 2, 2), ("double", 2, 4, 2),
    ("float", 1, 1, 1), ("float", 2, 1, 1),  # stride 2 of 32 words wraps round: 16 words, each for two lanes
])  # fmt: skip
def test_wide_shared_accesses_go_by_halves_and_quarters(wide, stride, wavefronts, least):
    stats = launch("shared_wide", filled(4096), i32(stride), shared_bytes=512, wide=wide)
    assert stats.shared_load == SharedCount(1, wavefronts, least)
    assert stats.shared_store == SharedCount(1, least, least)


@pytest.mark.parametrize(("stride", "wavefronts"), [(1, 1), (2, 1), (4, 2), (64, 32)])
def test_two_halves_of_a_word_are_one_word(stride, wavefronts):
    assert launch("shared_half", filled(4096), i32(stride)).shared_load == SharedCount(1, wavefronts, 1)


def test_async_copy_counts_both_sides():
    stats = launch("async_copy", filled(4096), filled(4096), shared_bytes=512)
    assert stats.global_load == GlobalCount(1, 16, 16)
    assert stats.shared_store == SharedCount(1, 4, 4)
    assert stats.shared_load == SharedCount(1, 4, 1)  # stride 4


@pytest.mark.parametrize(("row", "wavefronts"), [(8, 4), (64, 32), (72, 4)])
def test_ldmatrix_rows(row, wavefronts):
    stats = launch("fragments", filled(8192), filled(4096), i32(row), shared_bytes=32 * row * 2)
    assert stats.shared_load == SharedCount(1, wavefronts, 4)
    assert stats.ldmatrix_conflicts == wavefronts - 4


def test_traffic_by_argument_tells_moved_from_compulsory():
    x, y = filled(4096), filled(4096)
    stats = launch("twice", x, y, grid=3)
    source, result = stats.argument(0), stats.argument(y.name)
    assert (source.load_sectors, source.load_sectors_distinct, source.load_bytes_distinct) == (4 * 6, 4, 128)
    assert (result.store_sectors, result.store_sectors_distinct, result.store_bytes_distinct) == (4 * 6, 12, 384)
    assert source.store_sectors == result.load_sectors == 0
    assert (stats.sectors, stats.compulsory_sectors) == (48, 16)


def test_one_buffer_behind_two_arguments():
    buffer = filled(4096)
    stats = launch("strided_load", buffer, At(buffer, 1024), i32(1), i32(0))
    assert stats.buffers[0].arguments == (0, 1)
    assert (stats.argument(1).load_sectors, stats.argument(1).store_sectors) == (4, 4)


def test_counters_are_opt_in():
    stats = launch("strided_load", filled(4096), filled(4096), i32(1), i32(0), counters=False)
    assert not stats.counted
    assert stats.global_load == GlobalCount()
