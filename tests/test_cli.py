# SPDX-License-Identifier: MIT
import io
import os
import re
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest

import cupy_convt as ct
from cupy_convt import audio, cli

soundfile = pytest.importorskip("soundfile")

ROOT = Path(__file__).parents[1]
SPEECH = ROOT / "examples" / "audio" / "speech_8k.wav"


def command(*arguments, **options):
    """The command in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "cupy_convt", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=ROOT,
        check=False,
        **options,
    )


@pytest.fixture
def run(capsys):
    """The command in this process: exit code, stdout, stderr."""

    def call(*arguments):
        code = cli.main([str(a) for a in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture
def tone(tmp_path):
    """A second of stereo at 8 kHz, 16 bits."""
    time_axis = np.arange(8000) / 8000
    samples = 0.5 * np.stack([np.sin(2 * np.pi * f * time_axis) for f in (440, 1000)], axis=1)
    soundfile.write(tmp_path / "in.wav", samples, 8000, subtype="PCM_16")
    return tmp_path / "in.wav"


def refused(result, code, match):
    """The command failed with that code and one line."""
    got, out, err = result
    assert got == code
    assert out == ""
    assert re.fullmatch(r"cupy-convt: error: [^\n]+\n", err), err
    assert re.search(match, err), err


class TestUpsample:
    """Files in, files out."""

    def test_the_speech_clip_in_a_process(self, tmp_path):
        done = command("upsample", SPEECH, tmp_path / "out.wav", "--rate", "48000", "--plot", tmp_path / "p.png")
        assert (done.returncode, done.stderr) == (0, "")
        lines = done.stdout.splitlines()
        assert re.search(r"speech_8k\.wav: 8000 Hz, mono, PCM_16, 14\.73 s$", lines[0])
        assert re.search(r"out\.wav: 48000 Hz, factor 6, PCM_16$", lines[1])
        assert re.search(r"^  (direct|gemm|fft)/\w+: predicted .* on .*CPU, .*faster than", lines[2])
        assert re.search(r"^  took [\d.]+ s, [\d.e+]+ times real time$", lines[3])
        assert re.search(r"p\.png: spectrograms of both$", lines[-1])
        x, y = (soundfile.read(path)[0] for path in (SPEECH, tmp_path / "out.wav"))
        assert y.size == 6 * x.size
        np.testing.assert_allclose(y, ct.upsample(x, 6).clip(-1, 32767 / 32768), atol=0.51 / 32768)
        assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
        assert sorted(os.listdir(tmp_path)) == ["out.wav", "p.png"]

    @pytest.mark.parametrize("goal", [("--factor", "3"), ("--rate", "24000")])
    def test_factor_or_rate(self, run, tone, goal):
        code, out, err = run("upsample", tone, tone.with_name("out.flac"), *goal)
        assert (code, err) == (0, "")
        assert "stereo, PCM_16, 1.00 s" in out
        info = soundfile.info(tone.with_name("out.flac"))
        assert (info.samplerate, info.channels, info.frames, info.subtype) == (24000, 2, 24000, "PCM_16")

    @pytest.mark.parametrize("method", ["direct", "gemm", "fft"])
    def test_method(self, run, tone, method):
        code, out, _ = run("upsample", tone, tone.with_name("out.wav"), "--factor", "2", "--method", method)
        assert code == 0
        assert re.search(rf"^  {method}/.*method='{method}' was asked for$", out, re.MULTILINE)

    def test_half_width_sets_the_filter(self, run, tone):
        run("upsample", tone, tone.with_name("out.wav"), "--factor", "2", "--half-width", "5")
        x, y = (soundfile.read(tone.with_name(name))[0] for name in ("in.wav", "out.wav"))
        np.testing.assert_allclose(y, ct.upsample(x, 2, axis=0, half_width=5), atol=0.51 / 32768)
        assert np.abs(y - ct.upsample(x, 2, axis=0)).max() > 2 / 32768

    def test_clipping_is_reported(self, run, tmp_path):
        soundfile.write(tmp_path / "in.wav", np.where(np.arange(400) // 20 % 2, 0.999, -1.0), 8000)
        code, out, _ = run("upsample", tmp_path / "in.wav", tmp_path / "out.wav", "--factor", "4")
        assert code == 0
        assert int(re.search(r"clipped (\d+) samples that left the range of PCM_16", out)[1]) > 50

    def test_another_sample_format_is_reported(self, run, tmp_path):
        soundfile.write(tmp_path / "in.wav", np.zeros(400), 8000, subtype="FLOAT")
        code, out, _ = run("upsample", tmp_path / "in.wav", tmp_path / "out.flac", "--factor", "4")
        assert code == 0
        assert ".flac holds no FLOAT, so the samples are PCM_16" in out

    def test_names_outside_ascii(self, tone):
        target = tone.with_name("größer 音.wav")
        done = command("upsample", tone, target, "--factor", "2", env={**os.environ, "PYTHONIOENCODING": "ascii"})
        assert (done.returncode, done.stderr) == (0, "")
        assert soundfile.info(target).frames == 16000

    def test_overwrite(self, run, tone):
        target, plot = tone.with_name("out.wav"), tone.with_name("p.png")
        target.write_text("precious")
        refused(run("upsample", tone, target, "--factor", "2"), 1, r"OUT: .*out.wav' exists; --overwrite replaces it")
        assert target.read_text() == "precious"
        assert run("upsample", tone, target, "--factor", "2", "-f")[0] == 0
        plot.write_text("precious")
        again = run("upsample", tone, tone.with_name("b.wav"), "--factor", "2", "--plot", plot)
        refused(again, 1, r"--plot: .*p.png' exists")
        assert not tone.with_name("b.wav").exists()
        assert plot.read_text() == "precious"

    @pytest.mark.parametrize(
        ("arguments", "code", "match"),
        [
            (("nope.wav", "o.wav", "--factor", "2"), 1, r"IN: expected a sound file, got .*nope.wav'"),
            (("text.wav", "o.wav", "--factor", "2"), 1, r"IN: cannot read .*text.wav'.*[Ff]ormat not recogni"),
            (("empty.wav", "o.wav", "--factor", "2"), 1, r"IN: expected at least one sample, got an empty file"),
            (("in.wav", "no/o.wav", "--factor", "2"), 1, r"OUT: expected an existing directory, got .*no'"),
            (
                ("in.wav", "o.flac", "--factor", "100"),
                1,
                r"OUT: cannot write .*o.flac' \(FLAC, PCM_16, 800000 Hz, 2 channels\)",
            ),
            (("in.wav", "folder.wav", "--factor", "2", "-f"), 1, r"OUT: .*folder.wav', which is not a regular file"),
            (("in.wav", "in.wav", "--factor", "2", "-f"), 2, r"OUT: expected another file than the input"),
            (("in.wav", "o.wav", "--rate", "44100"), 2, r"rate: .*8000 Hz \(nearest: 40000 and 48000\), got 44100"),
            (("in.wav", "o.wav", "--rate", "4000"), 2, r"rate: .*\(nearest: 8000\), got 4000"),
            (("in.wav", "o.xyz", "--factor", "2"), 2, r"OUT: expected an extension among .*got 'o.xyz'"),
            (("in.wav", "o.wav", "--factor", "2", "--plot", "p.jpg"), 2, r"--plot: .*\.png, got 'p.jpg'"),
            (("in.wav", "o.wav", "--factor", "2", "--plot", "o.wav"), 2, r"--plot: expected another file than OUT"),
        ],
    )
    def test_failures(self, run, tone, monkeypatch, arguments, code, match):
        monkeypatch.chdir(tone.parent)
        Path("text.wav").write_text("not a sound")
        Path("folder.wav").mkdir()
        soundfile.write("empty.wav", np.zeros((0, 1)), 8000)
        names = sorted(os.listdir())
        before = tone.read_bytes()
        refused(run("upsample", *arguments), code, match)
        assert sorted(os.listdir()) == names
        assert tone.read_bytes() == before

    @pytest.mark.parametrize(
        ("arguments", "match"),
        [
            ((), r"required: IN, OUT"),
            (("a.wav",), r"required: OUT"),
            (("a.wav", "b.wav"), r"one of the arguments --factor --rate is required"),
            (("a.wav", "b.wav", "--factor", "2", "--rate", "16000"), r"--rate: not allowed with argument --factor"),
            (("a.wav", "b.wav", "--factor", "0"), r"--factor: expected an int >= 1, got 0"),
            (("a.wav", "b.wav", "--factor", "1.5"), r"--factor: expected an int, got '1.5'"),
            (("a.wav", "b.wav", "--rate", "48k"), r"--rate: expected an int, got '48k'"),
            (("a.wav", "b.wav", "--factor", "2", "--half-width", "-1"), r"--half-width: expected an int >= 1, got -1"),
            (
                ("a.wav", "b.wav", "--factor", "2", "--device", "gpu"),
                r"--device: expected cpu, cuda or cuda:N, got 'gpu'",
            ),
            (("a.wav", "b.wav", "--factor", "2", "--method", "best"), r"--method: invalid choice: 'best'"),
            (("a.wav", "b.wav", "--fact", "2"), r"--factor --rate is required|unrecognized"),
        ],
    )
    def test_bad_usage(self, run, arguments, match):
        refused(run("upsample", *arguments), 2, match)

    def test_a_device_that_is_not_there(self, run, tone, monkeypatch):
        def fail(device):
            raise ImportError("No module named 'cupy'")

        monkeypatch.setattr(audio.api, "cuda_arrays", fail)
        result = run("upsample", tone, tone.with_name("out.wav"), "--factor", "2", "--device", "cuda:3")
        refused(result, 1, r"device: cannot use 'cuda:3': No module named 'cupy'")
        assert not tone.with_name("out.wav").exists()

    @pytest.mark.parametrize(("module", "extra"), [("soundfile", "audio"), ("matplotlib", "plot")])
    def test_a_missing_package_names_its_extra(self, run, tone, monkeypatch, module, extra):
        monkeypatch.setitem(sys.modules, module, None)
        result = run("upsample", tone, tone.with_name("o.wav"), "--factor", "2", "--plot", tone.with_name("p.png"))
        refused(result, 1, rf"need the package {module} \(pip install 'cupy-convt\[{extra}\]'\)")
        assert not tone.with_name("o.wav").exists()

    def test_control_c_leaves_nothing_behind(self, tmp_path):
        soundfile.write(tmp_path / "in.wav", np.zeros((3_000_000, 2)), 8000)
        arguments = ["upsample", tmp_path / "in.wav", tmp_path / "out.w64", "--factor", "60"]
        running = subprocess.Popen(
            [sys.executable, "-m", "cupy_convt", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            # whoever runs the tests in the background may have told its children to ignore interrupts
            preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
        )
        try:
            deadline = time.monotonic() + 30
            while sum(path.stat().st_size for path in tmp_path.glob(".out*")) < 1 << 20:
                assert running.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.01)
            running.send_signal(signal.SIGINT)
            out, err = running.communicate(timeout=30)
        finally:
            running.kill()
        assert (running.returncode, out, err) == (130, "", "cupy-convt: error: interrupted\n")
        assert os.listdir(tmp_path) == ["in.wav"]


class Stream(io.StringIO):
    """A stderr that may be a terminal."""

    def __init__(self, terminal):
        super().__init__()
        self.terminal = terminal

    def isatty(self):
        return self.terminal


class TestProgress:
    """Percentages for those who wait."""

    @pytest.mark.parametrize("terminal", [True, False])
    def test_short_work_is_silent(self, terminal):
        now = iter(np.arange(0, 0.99, 0.01))
        stream = Stream(terminal)
        progress = cli.Progress(stream, lambda: next(now))
        for done in range(1, 90):
            progress(done, 100)
        progress.close()
        assert stream.getvalue() == ""

    def test_a_terminal_has_one_line_that_is_wiped(self):
        now = iter([0.0, 0.5, 2.0, 2.05, 3.0])
        stream = Stream(True)
        progress = cli.Progress(stream, lambda: next(now))
        for done in (10, 40, 41, 60):
            progress(done, 80)
        progress.close()
        shown = stream.getvalue().split("\r")
        assert [part.strip() for part in shown] == ["", "50 %, 2 s left", "75 %, 1 s left", "", ""]
        assert "\n" not in stream.getvalue()

    def test_elsewhere_a_line_every_ten_seconds(self):
        now = iter(range(0, 1000, 1))
        stream = Stream(False)
        progress = cli.Progress(stream, lambda: float(next(now)))
        for done in range(1, 36):
            progress(done, 100)
        progress.close()
        assert stream.getvalue().splitlines() == [" 10 %, 90 s left", " 20 %, 80 s left", " 30 %, 70 s left"]

    @pytest.mark.parametrize("terminal", [True, False])
    def test_the_command_reports_to_stderr(self, tone, monkeypatch, terminal):
        stream = Stream(terminal)
        monkeypatch.setattr(sys, "stderr", stream)
        now = iter(range(0, 100_000, 7))
        monkeypatch.setattr(cli.Progress.__init__, "__defaults__", (lambda: float(next(now)),))
        upsample_file = audio.upsample_file
        monkeypatch.setattr(audio, "upsample_file", lambda *a, **k: upsample_file(*a, **k, block_samples=2000))
        assert cli.main(["upsample", str(tone), str(tone.with_name("out.wav")), "--factor", "2"]) == 0
        shown = stream.getvalue()
        assert re.match(r"\r? *\d+ %, \d+ s left *[\r\n]", shown)
        assert shown.endswith("\r" + " " * 24 + "\r" if terminal else "s left\n")


class TestExplain:
    """The chooser's reasons on the command line."""

    def test_prints_what_the_api_says(self, run):
        arguments = "--x 2,8,50 --weight 8,3,6 --stride 3 --padding 2 --output-padding 1 --groups 2 --dilation 2"
        arguments += " --crop 1,2 --dtype float64 --method direct"
        code, out, err = run("explain", *arguments.split())
        expected = ct.explain(
            (2, 8, 50),
            (8, 3, 6),
            stride=3,
            padding=2,
            output_padding=1,
            groups=2,
            dilation=2,
            crop=(1, 2),
            dtype="float64",
            method="direct",
        )
        assert (code, out, err) == (0, f"{expected}\n", "")

    def test_names_and_presets(self, run):
        arguments = (
            "--x 8,50 --weight 8,3,6 --padding causal --activation leaky_relu:0.2 --precision ieee --device h200"
        )
        code, out, _ = run("explain", *arguments.split())
        expected = ct.explain(
            (8, 50), (8, 3, 6), padding="causal", activation=("leaky_relu", 0.2), precision="ieee", device="h200"
        )
        assert (code, out) == (0, f"{expected}\n")
        assert "on H200" in out

    @pytest.mark.parametrize(
        ("arguments", "match"),
        [
            ("--x 1,2,3", r"required: --weight"),
            ("--x 1,2,3 --weight 2,2", r"--weight: expected C_in,C_out/groups,K, got '2,2'"),
            ("--x 1,b,3 --weight 2,2,2", r"--x: expected N,C_in,L or C_in,L, got '1,b,3'"),
            ("--x 1,2,3 --weight 3,2,2", r"x: expected C_in = 3"),
            ("--x 1,2,3 --weight 2,2,2 --dtype int8", r"expected a dtype among .*got int8"),
            ("--x 1,2,3 --weight 2,2,2 --stride 0", r"stride: expected an int >= 1, got 0"),
            ("--x 1,2,3 --weight 2,2,2 --stride 1.5", r"--stride: expected an int, got '1.5'"),
            ("--x 1,2,3 --weight 2,2,2 --padding full", r"padding: expected .*got 'full'"),
            ("--x 1,2,3 --weight 2,2,2 --padding -1", r"padding: expected an int >= 0, got -1"),
            ("--x 1,2,3 --weight 2,2,2 --activation leaky_relu:x", r"--activation: expected .*got 'leaky_relu:x'"),
            ("--x 1,2,3 --weight 2,2,2 --device abacus", r"device: expected .*got 'abacus'"),
        ],
    )
    def test_bad_usage(self, run, arguments, match):
        refused(run("explain", *arguments.split()), 2, match)

    def test_a_device_that_is_not_there(self, run, monkeypatch):
        def fail(*arguments, **options):
            raise RuntimeError("cudaErrorNoDevice: no CUDA-capable device is detected")

        monkeypatch.setattr(cli.api, "explain", fail)
        result = run("explain", "--x", "1,2,3", "--weight", "2,2,2", "--device", "cuda")
        refused(result, 1, r"device: cannot use 'cuda': cudaErrorNoDevice")

    def test_a_reader_that_stops_reading(self):
        reader, writer = os.pipe()
        os.close(reader)
        arguments = [sys.executable, "-m", "cupy_convt", "explain", "--x", "1,2,3", "--weight", "2,2,2"]
        with os.fdopen(writer, "wb") as stdout:
            done = subprocess.run(arguments, stdout=stdout, stderr=subprocess.PIPE, cwd=ROOT, timeout=60, check=False)
        assert (done.returncode, done.stderr) == (1, b"")


class TestCommand:
    """The command as a whole."""

    def test_version(self, run):
        assert run("--version") == (0, f"cupy-convt {ct.__version__}\n", "")

    @pytest.mark.parametrize(
        "arguments", [("--help",), ("upsample", "--help"), ("explain", "--help"), ("doctor", "-h")]
    )
    def test_help(self, run, arguments):
        code, out, err = run(*arguments)
        assert (code, err) == (0, "")
        assert out.startswith("usage: cupy-convt")

    @pytest.mark.parametrize(
        ("arguments", "match"), [((), r"required: COMMAND"), (("play",), r"COMMAND: invalid choice: 'play'")]
    )
    def test_unknown_commands(self, run, arguments, match):
        refused(run(*arguments), 2, match)

    def test_exit_codes_leave_the_process(self, tmp_path):
        assert command("--version").returncode == 0
        failed = command("upsample", tmp_path / "a.wav", tmp_path / "b.wav", "--factor", "2")
        assert (failed.returncode, failed.stdout) == (1, "")
        assert failed.stderr.startswith("cupy-convt: error: IN: ")
        assert command("upsample").returncode == 2
