# SPDX-License-Identifier: MIT
"""Sound files: formats and sample formats, opening, and writing so that a file is whole or not there."""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

#: Bits of the integer sample formats; the others are floating point or companded.
INTEGER_BITS = {"PCM_S8": 8, "PCM_U8": 8, "PCM_16": 16, "PCM_24": 24, "PCM_32": 32}
#: Bytes of a sample; other sample formats take at most one.
_SAMPLE_BYTES = {"PCM_16": 2, "PCM_24": 3, "PCM_32": 4, "FLOAT": 4, "DOUBLE": 8}
#: Extensions that are not libsndfile's name of the format.
_FORMATS = {"AIF": "AIFF", "WAVE": "WAV", "OGA": "OGG"}
#: File formats whose headers hold a 32-bit length.
_LIMITED = ("WAV", "WAVEX", "AIFF", "AU")


class AudioError(Exception):
    """A sound file that cannot be read, written or up-sampled; the message says which and why."""


class UsageError(AudioError):
    """A request that no file could satisfy: two destinations that are one, a rate that is no multiple."""


def soundfile() -> Any:
    """The package soundfile.

    Raises:
        AudioError: it is not installed, or finds no libsndfile.
    """
    try:
        import soundfile as module
    except (ImportError, OSError) as error:
        raise AudioError(
            f"sound files need the package soundfile (pip install 'cupy-convt[audio]'): {error}"
        ) from error
    return module


def _same_file(a: Path, b: Path) -> bool:
    return os.path.realpath(a) == os.path.realpath(b) or (a.exists() and b.exists() and os.path.samefile(a, b))


def check_destinations(source: Path, targets: list[tuple[str, Path]], overwrite: bool) -> None:
    """Refuse to write over the source, over another result, over anything unasked, or where there is no directory.

    Raises:
        UsageError: two of the files are the same.
        AudioError: a destination exists and `overwrite` is false, is not a regular file, or has no directory.
    """
    taken = [("the input", source)]
    for name, target in targets:
        for other_name, other in taken:
            if _same_file(target, other):
                raise UsageError(f"{name}: expected another file than {other_name}, got {str(target)!r} for both")
        taken.append((name, target))
        if target.exists():
            if not stat.S_ISREG(target.stat().st_mode):
                raise AudioError(f"{name}: expected a file to write, got {str(target)!r}, which is not a regular file")
            if not overwrite:
                raise AudioError(f"{name}: {str(target)!r} exists; --overwrite replaces it")
        elif not Path(os.path.realpath(target)).parent.is_dir():
            raise AudioError(f"{name}: expected an existing directory, got {str(target.parent)!r}")


@contextmanager
def written_whole(target: Path) -> Iterator[Path]:
    """A temporary path beside `target`, renamed to it when the block ends, removed when it raises.

    Raises:
        AudioError: the file cannot be created there.
    """
    target = Path(os.path.realpath(target))
    temporary = target.with_name(f".{target.stem[:40]}.{secrets.token_hex(4)}{target.suffix}")
    try:
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    except OSError as error:
        raise AudioError(f"cannot write {str(target)!r}: {error.strerror}") from error
    try:
        yield temporary
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def target_format(target: Path, source: Any) -> tuple[str, str]:
    """File format by the extension of `target`, and the source's sample format where that can hold it, else its usual.

    Raises:
        UsageError: the extension stands for no file format.
    """
    module = soundfile()
    known = module.available_formats()
    extension = target.suffix[1:].upper()
    name = _FORMATS.get(extension, extension)
    if name not in known or name == "RAW":
        listed = ", ".join(f".{known_name.lower()}" for known_name in sorted(known) if known_name != "RAW")
        raise UsageError(f"OUT: expected an extension among {listed}, got {target.name!r}")
    return name, source.subtype if module.check_format(name, source.subtype) else module.default_subtype(name)


def to_samples(y: Any, subtype: str) -> tuple[Any, int]:
    """Floating-point samples in [-1, 1) as what the sample format stores, and how many of them had to be clipped.

    Integers are scaled by 2^(bits - 1), as reading them is, and rounded to nearest; they are returned left-justified in
    int16 or int32, as libsndfile takes them. Floating-point formats keep everything; companded ones clip at 1.

    Shape:
        y and result: (L, channels).
    """
    if subtype in ("FLOAT", "DOUBLE"):
        return y, 0
    if subtype not in INTEGER_BITS:
        return np.clip(y, -1, 1), int(np.count_nonzero(np.abs(y) > 1))
    bits = INTEGER_BITS[subtype]
    full = 2.0 ** (bits - 1)
    scaled = np.rint(y.astype(np.float64) * full)
    outside = ~((scaled >= -full) & (scaled <= full - 1))  # NaN counts as outside
    word = np.int16 if bits <= 16 else np.int32
    whole = np.nan_to_num(np.clip(scaled, -full, full - 1)).astype(word)
    return whole << (8 * word().itemsize - bits), int(np.count_nonzero(outside))


def _why(error: Exception) -> str:
    """What libsndfile said, without the temporary name it was said of."""
    return str(getattr(error, "error_string", error)).removeprefix("Error : ").strip().rstrip(".")


def open_sound(path: Path, name: str = "IN") -> Any:
    """The sound file as an open soundfile.SoundFile; `name` is what messages call it.

    Raises:
        AudioError: it does not exist or cannot be read.
    """
    module = soundfile()
    if not path.exists():
        raise AudioError(f"{name}: expected a sound file, got {str(path)!r}, which does not exist")
    try:
        return module.SoundFile(os.fsencode(path))
    except (module.SoundFileError, TypeError, OSError) as error:
        raise AudioError(f"{name}: cannot read {str(path)!r}: {_why(error)}") from error


def read_samples(source: Any, path: Path, count: int, dtype: str) -> Any:
    """The next `count` samples, fewer at the end of the file.

    Shape:
        result: (count, channels).

    Raises:
        AudioError: the file is damaged.
    """
    try:
        return source.read(count, dtype=dtype, always_2d=True)
    except (soundfile().SoundFileError, OSError) as error:
        raise AudioError(f"IN: cannot read {str(path)!r} to its end: {_why(error)}") from error


@contextmanager
def new_sound(target: Path, rate: int, channels: int, frames: int, format_subtype: tuple[str, str]) -> Iterator[Any]:
    """A sound file for `frames` samples of each channel, open for writing; it becomes `target` when the block ends.

    Raises:
        AudioError: the file cannot be created, or its format cannot hold that rate, those channels or that length.
    """
    module = soundfile()
    file_format, subtype = format_subtype
    nbytes = frames * channels * _SAMPLE_BYTES.get(subtype, 1)
    if file_format in _LIMITED and nbytes >= 2**32 - 4096:
        raise AudioError(
            f"OUT: expected less than 4 GiB of samples in a {file_format} file, got {nbytes / 2**30:.1f} GiB; "
            "use the extension .w64, .rf64 or .caf"
        )
    with written_whole(target) as temporary:
        try:
            opened = module.SoundFile(os.fsencode(temporary), "w", rate, channels, subtype, format=file_format)
        except (module.SoundFileError, ValueError, TypeError, OverflowError, OSError) as error:
            what = f"{file_format}, {subtype}, {rate} Hz, {channels} channel{'s' if channels > 1 else ''}"
            raise AudioError(f"OUT: cannot write {str(target)!r} ({what}): {_why(error)}") from error
        with opened as writer:
            yield writer


def write_samples(writer: Any, y: Any) -> int:
    """Append floating-point samples; how many of them had to be clipped.

    Shape:
        y: (L, channels).

    Raises:
        AudioError: they cannot be written.
    """
    samples, clipped = to_samples(y, writer.subtype)
    try:
        writer.write(samples)
    except (soundfile().SoundFileError, OSError, AssertionError) as error:  # soundfile asserts that all were written
        raise AudioError(f"OUT: cannot write the samples: {_why(error) or 'the disk may be full'}") from error
    return clipped
