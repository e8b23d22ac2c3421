# SPDX-License-Identifier: MIT
"""The command `cupy-convt`: upsample a sound file, explain a choice, measure layers, examine the installation.

Exit codes: 0 done, 1 it failed while running, 2 bad usage, 130 interrupted. An error is one line on stderr.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn, TextIO

import cupy_convt
from cupy_convt import api, audio, cli_measure, doctor, spectrogram
from cupy_convt.cli_layers import METHODS, add_layer, device, layer, whole_positive
from cupy_convt.soundfiles import AudioError, UsageError, check_destinations, written_whole

_EPILOG = """examples:
  cupy-convt upsample speech_8k.wav speech_48k.wav --factor 6
  cupy-convt upsample in.flac out.flac --rate 96000 --plot spectrograms.png
  cupy-convt explain --x 1,512,87 --weight 512,256,16 --stride 8 --padding 4 --device h200
  cupy-convt tune --x 1,512,87 --weight 512,256,16 --stride 8 --padding 4
  cupy-convt bench
  cupy-convt doctor
"""


def _complain(message: object) -> None:
    text = " ".join(str(message).split())
    print(f"cupy-convt: error: {text}", file=sys.stderr)


class _Parser(argparse.ArgumentParser):
    """A parser whose complaints are one line."""

    def error(self, message: str) -> NoReturn:
        _complain(message)
        raise SystemExit(2)


def _make_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="cupy-convt",
        description="Transposed 1-D convolution for NumPy and CuPy arrays.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"cupy-convt {cupy_convt.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    up = commands.add_parser("upsample", help="up-sample a sound file by an integer", allow_abbrev=False)
    up.add_argument("source", metavar="IN", type=Path, help="sound file to read: WAV, FLAC, OGG, AIFF, ...")
    up.add_argument("target", metavar="OUT", type=Path, help="sound file to write; its extension names the format")
    goal = up.add_mutually_exclusive_group(required=True)
    goal.add_argument("--factor", metavar="F", type=whole_positive, help="so many times the samples")
    goal.add_argument("--rate", metavar="R", type=whole_positive, help="target rate in Hz, a multiple of IN's")
    up.add_argument("--method", choices=METHODS, default="auto", help="default: auto, the fastest by prediction")
    up.add_argument("--device", type=device, default="cpu", help="cpu (default), cuda or cuda:N")
    up.add_argument(
        "--half-width",
        metavar="W",
        type=whole_positive,
        default=64,
        help="reach of the filter in input samples (64)",
    )
    up.add_argument("--plot", metavar="PNG", type=Path, help="draw spectrograms of IN and OUT")
    up.add_argument("-f", "--overwrite", action="store_true", help="replace OUT and PNG if they exist")
    up.set_defaults(run=_upsample)

    ex = commands.add_parser("explain", help="which method a layer would take and why", allow_abbrev=False)
    add_layer(ex, required=True)
    ex.add_argument("--device", default="cpu", help="cpu (default), cuda, cuda:N, or a preset: t4, a100, h200, ...")
    ex.set_defaults(run=_explain)

    cli_measure.add_commands(commands)

    dr = commands.add_parser("doctor", help="what is installed, which device, and a self-check", allow_abbrev=False)
    dr.set_defaults(run=_doctor)
    return parser


class Progress:
    """Percentages on stderr: one line that is rewritten on a terminal, else a line every ten seconds.

    Work that ends within the first second leaves no trace.
    """

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream, self._clock = stream, clock
        self._terminal = stream.isatty()
        self._start = clock()
        self._next = self._start + (1.0 if self._terminal else 10.0)
        self._shown = False

    def __call__(self, done: int, total: int) -> None:
        """Note that `done` of `total` input samples are processed."""
        now = self._clock()
        if now < self._next:
            return
        left = (now - self._start) * (total - done) / done
        line = f"{100 * done // total:3d} %, {left:.0f} s left"
        self._stream.write(f"\r{line:24s}" if self._terminal else f"{line}\n")
        self._stream.flush()
        self._shown = True
        self._next = now + (0.1 if self._terminal else 10.0)

    def close(self) -> None:
        """Wipe the line of a terminal."""
        if self._terminal and self._shown:
            self._stream.write("\r" + " " * 24 + "\r")
            self._stream.flush()


def _upsample(options: argparse.Namespace) -> int:
    source, target, plot = options.source, options.target, options.plot
    targets = [("OUT", target)] + ([("--plot", plot)] if plot else [])
    check_destinations(source, targets, options.overwrite)
    if plot:
        spectrogram.check_plot(plot)
    progress = Progress(sys.stderr)
    try:
        result = audio.upsample_file(
            source,
            target,
            factor=options.factor,
            rate=options.rate,
            method=options.method,
            device=options.device,
            half_width=options.half_width,
            overwrite=options.overwrite,
            progress=progress,
        )
    finally:
        progress.close()
    channels = {1: "mono", 2: "stereo"}.get(result.channels, f"{result.channels} channels")
    print(f"{source}: {result.rate_in} Hz, {channels}, {result.subtype_in}, {result.duration:.2f} s")
    print(f"{target}: {result.rate_out} Hz, factor {result.factor}, {result.subtype_out}")
    if result.subtype_out != result.subtype_in:
        print(f"  {target.suffix} holds no {result.subtype_in}, so the samples are {result.subtype_out}")
    print(f"  {result.reason}")
    speed = result.duration / max(result.elapsed, 1e-9)
    print(f"  took {result.elapsed:.2f} s, {speed:.3g} times real time")
    if result.clipped:
        print(f"  clipped {result.clipped} samples that left the range of {result.subtype_out}")
    if plot:
        with written_whole(plot) as temporary:
            spectrogram.draw(source, target, temporary)
        print(f"{plot}: spectrograms of both")
    return 0


def _explain(options: argparse.Namespace) -> int:
    try:
        text = str(api.explain(device=options.device, **layer(options)))
    except (TypeError, ValueError) as error:
        raise UsageError(str(error)) from error
    except (ImportError, RuntimeError) as error:
        raise AudioError(f"device: cannot use {options.device!r}: {error}") from error
    print(text)
    return 0


def _doctor(options: argparse.Namespace) -> int:
    return 0 if doctor.examine(print, cupy_convt.__version__) else 1


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with these arguments, sys.argv[1:] by default, and return its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # file names need not be text
    try:
        options = _make_parser().parse_args(argv)
        code: int = options.run(options)
        sys.stdout.flush()
        return code
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 0
    except KeyboardInterrupt:
        _complain("interrupted")
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except UsageError as error:
        _complain(error)
        return 2
    except (AudioError, ValueError, OSError, RuntimeError, MemoryError) as error:
        _complain(error or type(error).__name__)
        return 1
