# SPDX-License-Identifier: MIT
"""Counters of one launch: traffic of global memory in 32-byte sectors, of shared memory in wavefronts."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class GlobalCount:
    """Warp-wide global accesses of one direction.

    sectors: distinct 32-byte sectors, summed over the requests. sectors_min: the same had every request's bytes lain
    together, ceil(distinct bytes / 32).
    """

    requests: int = 0
    sectors: int = 0
    sectors_min: int = 0


@dataclass(frozen=True)
class SharedCount:
    """Warp-wide shared accesses of one direction; wavefronts over wavefronts_min is the bank conflict factor."""

    requests: int = 0
    wavefronts: int = 0
    wavefronts_min: int = 0


@dataclass(frozen=True)
class ArgumentTraffic:
    """Traffic of one buffer in one launch.

    load_sectors and store_sectors are summed over requests (a sector asked for by two warps counts twice, as caches
    are not modelled); the others count what was touched at least once, the traffic that no cache can save.
    """

    name: str
    arguments: tuple[int, ...]
    nbytes: int
    load_sectors: int = 0
    store_sectors: int = 0
    load_bytes_distinct: int = 0
    store_bytes_distinct: int = 0
    load_sectors_distinct: int = 0
    store_sectors_distinct: int = 0


@dataclass(frozen=True)
class LaunchStats:
    """What one launch did. The traffic counters need EmuModule(counters=True); `counted` says whether they hold."""

    switches: int = 0
    ldmatrix: int = 0
    ldmatrix_conflicts: int = 0
    mma: int = 0
    counted: bool = False
    global_load: GlobalCount = GlobalCount()
    global_store: GlobalCount = GlobalCount()
    shared_load: SharedCount = SharedCount()
    shared_store: SharedCount = SharedCount()
    buffers: tuple[ArgumentTraffic, ...] = field(default=())

    def argument(self, which: int | str) -> ArgumentTraffic:
        """Traffic of the buffer behind one argument, by position or by buffer name."""
        for buffer in self.buffers:
            if which == buffer.name or which in buffer.arguments:
                return buffer
        raise KeyError(f"expected one of {[b.name for b in self.buffers]} or a pointer argument's index, got {which!r}")

    @property
    def sectors(self) -> int:
        """All sectors moved by the launch, loads and stores."""
        return self.global_load.sectors + self.global_store.sectors

    @property
    def compulsory_sectors(self) -> int:
        """Sectors if every touched sector were read once and written once."""
        return sum(b.load_sectors_distinct + b.store_sectors_distinct for b in self.buffers)
