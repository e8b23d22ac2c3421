# SPDX-License-Identifier: MIT
"""Run kernels/*.cu on the CPU: compile with g++, launch on NumPy arrays or emulated device memory.

    module = EmuModule(code=kernel_source("stem"), entries=["stem"], defines={"CONVT_X": "float"})
    x, y = DeviceBuffer.from_host(array), DeviceBuffer(array.nbytes)
    module.kernel("stem")((8,), (256,), (x, y, np.int32(n)), shared_bytes)
    y.to_host(np.float32)

`mode="check"` (the default) reports wrong accesses, races, divergent barriers and unwritten results as EmuError, and
with counters=True it counts memory traffic into `kernel.stats`; `mode="fast"` only finds what faults or changes the
numbers.
"""

from __future__ import annotations

import ctypes
import itertools
import struct
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from cupy_convt.engines.source import flatten

from . import build
from .build import CompileError
from .counters import ArgumentTraffic, GlobalCount, LaunchStats, SharedCount
from .memory import At, DeviceBuffer, EmuError, Lazy, Out, TensorMap

__all__ = ["At", "CompileError", "DeviceBuffer", "EmuError", "EmuKernel", "EmuModule", "LaunchStats", "Lazy"]
__all__ += ["Out", "TensorMap"]

DEFAULT_SHARED_LIMIT = 48 << 10
SCHEDULES = {"asc": 0, "desc": 1, "random": 2, "prio": 3}
ASYNC_MODES = {"late": 0, "eager": 1, "random": 2}
_TENSOR_MAP_MAGIC = 0x50414D554D45


def _structure(name: str, fields: str) -> type[ctypes.Structure]:
    kinds = {"u64": ctypes.c_uint64, "i32": ctypes.c_int, "u32": ctypes.c_uint, "i64": ctypes.c_longlong}
    kinds |= {"ptr": ctypes.c_void_p, "str": ctypes.c_char_p, "dim": ctypes.c_uint * 3}
    pairs = [field.split(":") for field in fields.split()]
    return type(name, (ctypes.Structure,), {"_fields_": [(n, kinds[k]) for n, k in pairs]})


# field by field the structs of emu/cuda_emu.h
_Buf = _structure(
    "_Buf",
    "p:ptr n:u64 flags:ptr cells:ptr name:str ro:i32 assume_init:i32 canary:i32 pad:i32 load_sectors:u64"
    " store_sectors:u64 load_bytes:u64 store_bytes:u64 load_sectors_distinct:u64 store_sectors_distinct:u64",
)
_Stats = _structure(
    "_Stats",
    "switches:u64 ldmatrix:u64 ldmatrix_conflicts:u64 mma:u64 complete:u64 "
    + " ".join(f"{c}{i}:u64" for c in ("gl", "gs", "sl", "ss") for i in range(3)),
)
_Cfg = _structure(
    "_Cfg",
    "grid:dim block:dim smem:u32 sched:i32 seed:i32 block_order:i32 async_mode:i32 poison:i32 block_first:i64"
    " block_count:i64 preempt:i32 timeout:i32 bufs:ptr nbufs:i32 counters:i32 epoch:u32",
)
_epochs = itertools.count(1)
_libraries: dict[Path, ctypes.CDLL] = {}
_stacks: int | None = None  # one arena of fiber stacks for the process: its guard pages would exhaust vm.max_map_count


def _load(path: Path) -> ctypes.CDLL:
    global _stacks
    if path not in _libraries:
        library = ctypes.CDLL(str(path))
        library.emu_err.restype = ctypes.c_char_p
        library.emu_err.argtypes = [ctypes.c_int, ctypes.POINTER(ctypes.c_uint64)]
        library.emu_cell_size.restype = ctypes.c_size_t
        library.emu_stats.argtypes = [ctypes.POINTER(_Stats)]
        library.emu_stacks.restype = ctypes.c_void_p
        library.emu_stacks.argtypes = [ctypes.c_void_p]
        _stacks = library.emu_stacks(_stacks)
        if not _stacks:
            raise MemoryError("no memory for the fiber stacks")
        _libraries[path] = library
    return _libraries[path]


class EmuModule:
    """Entries of one kernel source, compiled. `code` is flattened text; `path` is read and flattened instead.

    An entry is an extern "C" name or a name expression such as "kernel<float, 4>". counters=True builds for the traffic
    counters of `EmuKernel.stats`, at up to three times the run time of a check build.
    """

    def __init__(
        self,
        path: str | Path | None = None,
        entries: Sequence[str] = (),
        mode: str = "check",
        defines: Mapping[str, object] | Sequence[str] = (),
        code: str | None = None,
        extra: Sequence[str] = (),
        counters: bool = False,
    ) -> None:
        if code is None and path is None:
            raise TypeError("expected code or path, got neither")
        if not entries:
            raise TypeError("entries: expected at least one, got none")
        if mode not in build.MODE_FLAGS:
            raise ValueError(f"mode: expected one of {sorted(build.MODE_FLAGS)}, got {mode!r}")
        if counters and mode != "check":
            raise ValueError(f"counters: expected mode 'check', got {mode!r}")
        self.mode, self.entries, self.counters = mode, tuple(entries), counters
        extra = [*extra, *(build.COUNTER_FLAGS if counters else ())]
        text = flatten(path) if code is None else code
        stem = Path(path).stem if path is not None else "".join(c for c in self.entries[0] if c.isalnum() or c == "_")
        self.path = build.build_shared_object(text, self.entries, mode, defines, extra, stem[:40])
        self.library = _load(self.path)

    def kernel(self, entry: str) -> EmuKernel:
        """One entry, ready to launch."""
        if entry not in self.entries:
            raise KeyError(f"entry: expected one of {self.entries}, got {entry!r}")
        return EmuKernel(self, entry, self.entries.index(entry))

    def line_of(self, offset: int) -> str:
        """file:line of a code address, from the debug information."""
        command = ["addr2line", "-e", str(self.path), "-C", "-s", "-i", hex(offset - 1)]
        try:
            lines = subprocess.run(command, capture_output=True, text=True).stdout.split("\n")
        except FileNotFoundError:
            return f"{self.path.name}+{offset:#x}"
        return next((line for line in lines if line and "emu" not in line), lines[0])


class EmuKernel:
    """One kernel entry; call it like a cupy.RawKernel. `stats` holds the counters of the last launch."""

    def __init__(self, module: EmuModule, entry: str, index: int) -> None:
        self.module, self.entry = module, entry
        self._launch = getattr(module.library, f"ct_launch_{index}")
        self._launch.argtypes = [ctypes.POINTER(ctypes.c_void_p), ctypes.POINTER(_Cfg)]
        signature = getattr(module.library, f"ct_signature_{index}")
        signature.restype = ctypes.c_char_p
        self.signature: tuple[str, ...] = tuple(signature().decode().split())
        self.stats = LaunchStats()
        self.max_dynamic_shared_size_bytes = DEFAULT_SHARED_LIMIT  # as in CuPy: more must be asked for

    def __call__(
        self,
        grid: Sequence[int],
        block: Sequence[int],
        args: Sequence[object],
        shared_bytes: int = 0,
        *,
        sched: str = "asc",
        seed: int = 0,
        block_order: str = "asc",
        async_mode: str = "late",
        blocks: tuple[int, int] | None = None,
        preempt: int = 0,
        align: int | None = None,
        names: Sequence[str] | None = None,
        check_unwritten: bool = True,
        inspect: Callable[[], None] | None = None,
        timeout: int = 60,
    ) -> None:
        """Launch and wait.

        sched, block_order, async_mode and seed choose one legal execution order; blocks=(first, count) runs a part of
        the grid; preempt=n yields at every n-th shared access or so; align is that of arrays' copies (fast mode: 16,
        so that the end lies near the guard page); inspect runs after a successful launch, before arrays' copies go.
        """
        if shared_bytes > self.max_dynamic_shared_size_bytes:
            raise EmuError(
                f"{self.entry}\n  invalid launch: {shared_bytes} bytes of dynamic shared memory,"
                f" max_dynamic_shared_size_bytes is {self.max_dynamic_shared_size_bytes}"
            )
        check = self.module.mode == "check"
        bound = _Arguments(self.signature, args, names, align or (256 if check else 16), self.entry)
        buffers = bound.describe(self.module.library.emu_cell_size() if check else 0)
        config = _Cfg(
            grid=(ctypes.c_uint * 3)(*grid, *[1] * (3 - len(grid))),
            block=(ctypes.c_uint * 3)(*block, *[1] * (3 - len(block))),
            smem=shared_bytes, sched=SCHEDULES[sched], seed=seed, block_order=SCHEDULES[block_order],
            async_mode=ASYNC_MODES[async_mode], poison=1, block_first=-1 if blocks is None else blocks[0],
            block_count=0 if blocks is None else blocks[1], preempt=preempt, timeout=timeout,
            bufs=ctypes.cast(buffers, ctypes.c_void_p), nbufs=len(bound.buffers), counters=int(self.module.counters),
            epoch=next(_epochs) & 0xFFFFFFFF,
        )  # fmt: skip
        status = self._launch(bound.pointers, ctypes.byref(config))
        self.stats = self._read_stats(bound, buffers)
        bound.copy_back(check)
        errors = self._errors() if status else []
        if not status and check and blocks is None and check_unwritten:
            errors = bound.unwritten()
        if errors:
            raise EmuError(f"{self.entry} [{self.module.mode}]\n  " + "\n  ".join(errors))
        if inspect:
            inspect()

    def _errors(self) -> list[str]:
        library, errors = self.module.library, []
        for i in range(library.emu_nerr()):
            offset = ctypes.c_uint64()
            message = library.emu_err(i, ctypes.byref(offset)).decode()
            errors.append(message + (f"  @ {self.module.line_of(offset.value)}" if offset.value else ""))
        return errors

    def _read_stats(self, bound: _Arguments, buffers: ctypes.Array) -> LaunchStats:
        raw = _Stats()
        self.module.library.emu_stats(ctypes.byref(raw))
        counts = [[int(getattr(raw, f"{c}{i}")) for i in range(3)] for c in ("gl", "gs", "sl", "ss")]
        traffic = tuple(
            ArgumentTraffic(
                b.name.decode(),
                tuple(bound.uses[i]),
                b.n,
                b.load_sectors,
                b.store_sectors,
                b.load_bytes,
                b.store_bytes,
                b.load_sectors_distinct,
                b.store_sectors_distinct,
            )
            for i, b in enumerate(buffers[: len(bound.buffers)])
        )
        return LaunchStats(
            raw.switches, raw.ldmatrix, raw.ldmatrix_conflicts, raw.mma, bool(raw.complete), GlobalCount(*counts[0]),
            GlobalCount(*counts[1]), SharedCount(*counts[2]), SharedCount(*counts[3]), traffic,
        )  # fmt: skip


class _Arguments:
    """The arguments of one launch, checked against the kernel's signature and put where the kernel can reach them.

    The signature has one word for a parameter: p<const><element bytes>, i4, u8, f4, s<bytes of a struct>. CuPy
    would pass a Python int as 8 bytes and a float as double whatever the parameter is; here that is a TypeError.
    """

    def __init__(self, signature: Sequence[str], args: Sequence[object], names, align: int, entry: str) -> None:
        if len(args) != len(signature):
            raise TypeError(f"{entry}: {len(signature)} parameters {tuple(signature)}, got {len(args)} arguments")
        self.align = align
        self.buffers: list[DeviceBuffer] = []
        self.names: list[str] = []
        self.uses: list[list[int]] = []  # argument indices that point into each buffer
        self.const: list[bool] = []
        self._copies: dict[tuple[int, int], tuple[int, np.ndarray, Out | None]] = {}
        self._storage: list[object] = []
        self.pointers = (ctypes.c_void_p * max(1, len(args)))()
        for i, (argument, word) in enumerate(zip(args, signature, strict=True)):
            name = names[i] if names else f"arg{i}"
            if word[0] == "p":
                cell: object = ctypes.c_void_p(self._pointer(i, name, argument, word[1] == "1", int(word[2:])))
            elif word[0] == "s":
                cell = self._struct(i, name, argument, int(word[1:]))
            else:
                cell = self._scalar(name, argument, word)
            self._storage.append(cell)
            self.pointers[i] = ctypes.addressof(cell)

    def _pointer(self, index: int, name: str, argument: object, const: bool, itemsize: int) -> int:
        if argument is None:
            return 0
        offset = 0
        if isinstance(argument, At):
            argument, offset = argument.buffer, argument.offset
        if isinstance(argument, DeviceBuffer):
            self._use(index, argument.name if argument.name else name, argument, const)
            return argument.ptr + offset
        output = argument if isinstance(argument, Out) else None
        array = argument.array if isinstance(argument, Out) else argument
        if not isinstance(array, np.ndarray) or not array.flags.c_contiguous:
            raise TypeError(f"{name}: expected a C-contiguous ndarray or a DeviceBuffer, got {type(array).__name__}")
        if itemsize not in (0, array.itemsize):
            raise TypeError(f"{name}: the kernel's pointer is to {itemsize}-byte elements, got dtype {array.dtype}")
        if output and const:
            raise TypeError(f"{name}: expected an input for a const pointer, got Out")
        return self._array(index, name, array, const, output).ptr + offset * array.itemsize

    def _array(self, index: int, name: str, array: np.ndarray, const: bool, output: Out | None) -> DeviceBuffer:
        key = (array.ctypes.data, array.nbytes)
        if key in self._copies:
            buffer = self.buffers[self._copies[key][0]]
            self._use(index, name, buffer, const)
            return buffer
        for _, other, _ in self._copies.values():
            if np.may_share_memory(array, other):
                raise TypeError(f"{name}: overlaps another argument; pass both as At(one buffer, offset)")
        buffer = DeviceBuffer(array.nbytes, name, align=self.align)
        if output is None:
            buffer.set(array)
        self._copies[key] = (len(self.buffers), array, output)
        self._use(index, name, buffer, const)
        return buffer

    def _use(self, index: int, name: str, buffer: DeviceBuffer, const: bool) -> None:
        for i, known in enumerate(self.buffers):
            if known is buffer:
                self.uses[i].append(index)
                self.const[i] = self.const[i] and const
                return
        self.buffers.append(buffer)
        self.names.append(name)
        self.uses.append([index])
        self.const.append(const)

    def _struct(self, index: int, name: str, argument: object, size: int) -> ctypes.Array:
        if isinstance(argument, TensorMap):
            raw = self._tensor_map(index, name, argument)
        else:
            raw = argument.tobytes() if isinstance(argument, np.void | np.ndarray) else bytes(argument)
        if len(raw) != size:
            raise TypeError(f"{name}: the kernel's parameter has {size} bytes, got {len(raw)}")
        # a by-value struct may be declared with an alignment of 64 bytes
        room = ctypes.create_string_buffer(size + 64)
        self._storage.append(room)
        cell = (ctypes.c_char * size).from_buffer(room, -ctypes.addressof(room) % 64)
        ctypes.memmove(cell, raw, size)
        return cell

    def _tensor_map(self, index: int, name: str, tensor: TensorMap) -> bytes:
        base = self._array(index, name, tensor.array, True, None).ptr

        def padded(values: Sequence[int], length: int, filler: int) -> list[int]:
            return [*values, *[filler] * (length - len(values))]

        packed = struct.pack(
            "<QQ5II4Q5HBB", _TENSOR_MAP_MAGIC, base, *padded(tensor.dims, 5, 1), len(tensor.dims),
            *padded(tensor.strides, 4, 0), *padded(tensor.box, 5, 1), tensor.array.itemsize, tensor.swizzle,
        )  # fmt: skip
        return packed.ljust(128, b"\0")

    @staticmethod
    def _scalar(name: str, argument: object, word: str) -> ctypes.Array:
        if not isinstance(argument, np.generic):
            raise TypeError(f"{name}: expected a NumPy scalar for {word}, got {type(argument).__name__}")
        kind = {"i": "i", "u": "u", "f": "f", "b": "u"}.get(argument.dtype.kind)
        if (kind, argument.itemsize) != (word[0], int(word[1:])):
            raise TypeError(f"{name}: the kernel's parameter is {word}, got {argument.dtype}")
        return ctypes.create_string_buffer(argument.tobytes(), argument.itemsize)

    def describe(self, cell_size: int) -> ctypes.Array:
        """The C structs of the launch's buffers."""
        table = (_Buf * max(1, len(self.buffers)))()
        for entry, buffer, name, const in zip(table, self.buffers, self.names, self.const, strict=False):
            entry.p, entry.n, entry.name = buffer.ptr, buffer.nbytes, name.encode()
            entry.flags = buffer._flags or None
            entry.cells = buffer.cells(cell_size) if cell_size and not const else None
            entry.ro, entry.assume_init, entry.canary = int(const), int(not buffer.tracked), int(not buffer.large)
        return table

    def copy_back(self, check: bool) -> None:
        """After the launch: arrays behind non-const pointers take the kernel's results."""
        for i, array, _ in self._copies.values():
            if not self.const[i] and array.size:
                array.reshape(-1)[:] = self.buffers[i].view(array.dtype, array.size)
        if not check:  # nobody saw the stores
            for buffer, const in zip(self.buffers, self.const, strict=True):
                if not const:
                    buffer.mark_written()

    def unwritten(self) -> list[str]:
        """Complaints about Out arrays that the kernel did not fill."""
        errors = []
        for i, array, output in self._copies.values():
            if output is None or output.partial:
                continue
            missing, unseen = self.buffers[i].unwritten(), self.buffers[i].changed_unseen()
            if unseen:
                errors.append(f"emulator: {unseen} bytes of {self.names[i]} changed without an instrumented store")
            elif missing:
                name, size = self.names[i], array.nbytes
                errors.append(f"unwritten output: {missing} of {size} bytes of {name} were never written")
        return errors
