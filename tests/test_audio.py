# SPDX-License-Identifier: MIT
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import cupy_convt as ct
from cupy_convt import audio, soundfiles, spectrogram

soundfile = pytest.importorskip("soundfile")

SPEECH = Path(__file__).parents[1] / "examples" / "audio" / "speech_8k.wav"


def noise(length, channels=1, scale=0.3, seed=0):
    return scale * np.random.default_rng(seed).uniform(-1, 1, (length, channels))


def write(path, samples, rate=8000, subtype="PCM_16", **options):
    soundfile.write(path, samples, rate, subtype=subtype, **options)
    return path


def quantised(path):
    """What a reader of the file sees, (L, channels)."""
    return soundfile.read(path, dtype="float64", always_2d=True)[0]


@pytest.mark.parametrize(
    ("extension", "subtype", "step"),
    [
        ("wav", "PCM_U8", 2.0**-7),
        ("wav", "PCM_16", 2.0**-15),
        ("wav", "PCM_24", 2.0**-23),
        ("wav", "PCM_32", 2.0**-31),
        ("wav", "FLOAT", 2.0**-23),
        ("wav", "DOUBLE", 2.0**-50),
        ("flac", "PCM_16", 2.0**-15),
        ("flac", "PCM_24", 2.0**-23),
        ("aiff", "PCM_S8", 2.0**-7),
        ("aif", "PCM_16", 2.0**-15),
        ("w64", "PCM_24", 2.0**-23),
    ],
)
@pytest.mark.parametrize("channels", [1, 2, 5])
def test_every_sample_format_is_kept_and_exact_to_half_a_step(tmp_path, extension, subtype, step, channels):
    source = write(
        tmp_path / f"in.{'aiff' if extension == 'aif' else extension}", noise(700, channels), subtype=subtype
    )
    target = tmp_path / f"out.{extension}"
    result = audio.upsample_file(source, target, factor=3)
    info = soundfile.info(target)
    assert (info.samplerate, info.channels, info.frames, info.subtype) == (24000, channels, 2100, subtype)
    assert (result.rate_in, result.rate_out, result.factor, result.channels) == (8000, 24000, 3, channels)
    assert (result.frames, result.subtype_in, result.subtype_out, result.clipped) == (700, subtype, subtype, 0)
    assert result.duration == pytest.approx(700 / 8000)
    ideal = ct.upsample(quantised(source), 3, axis=0)
    # half a step of the format, and the rounding of float32 arithmetic where it is finer than that
    wide = subtype in ("PCM_24", "PCM_32", "DOUBLE")
    assert np.abs(quantised(target) - ideal).max() <= step / 2 + (1e-15 if wide else 3e-7)


@settings(deadline=None, max_examples=40)
@given(
    frames=st.integers(1, 900),
    channels=st.integers(1, 3),
    factor=st.integers(1, 5),
    half_width=st.integers(1, 70),
    block=st.integers(1, 1200),
    method=st.sampled_from(["auto", "direct", "gemm", "fft"]),
)
def test_blocks_put_together_are_the_one_shot_result(
    tmp_path_factory, frames, channels, factor, half_width, block, method
):
    folder = tmp_path_factory.mktemp("blocks")
    source = write(folder / "in.wav", noise(frames, channels, seed=frames), subtype="DOUBLE")
    seen = []
    result = audio.upsample_file(
        source,
        folder / "out.wav",
        factor=factor,
        half_width=half_width,
        method=method,
        block_samples=block,
        progress=lambda done, total: seen.append((done, total)),
    )
    expected = ct.upsample(quantised(source), factor, axis=0, half_width=half_width)
    np.testing.assert_allclose(quantised(folder / "out.wav"), expected, rtol=0, atol=1e-14)
    assert result.frames == frames
    assert seen[-1] == (frames, frames)
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})


def test_direct_blocks_are_the_one_shot_result_bit_for_bit(tmp_path):
    source = write(tmp_path / "in.wav", noise(5000, 2), subtype="FLOAT")
    audio.upsample_file(source, tmp_path / "out.wav", factor=4, method="direct", block_samples=3000)
    samples = soundfile.read(source, dtype="float32")[0]
    expected = ct.upsample(samples, 4, axis=0, method="direct")
    np.testing.assert_array_equal(soundfile.read(tmp_path / "out.wav", dtype="float32")[0], expected)


def test_memory_does_not_grow_with_the_file(tmp_path, monkeypatch):
    shapes = set()
    upsample = audio.signal.upsample

    def record(x, *arguments, **options):
        shapes.add(x.shape)
        return upsample(x, *arguments, **options)

    monkeypatch.setattr(audio.signal, "upsample", record)
    source = write(tmp_path / "in.wav", noise(20_000, 2))
    audio.upsample_file(source, tmp_path / "out.wav", factor=4, block_samples=8000)
    assert shapes == {(2, 1000 + 2 * 64)}
    shapes.clear()
    audio.upsample_file(source, tmp_path / "again.wav", factor=4)
    assert shapes == {(2, 20_000 + 2 * 64)}


def test_the_file_formats_own_sample_format_where_the_sources_does_not_fit(tmp_path):
    source = write(tmp_path / "in.wav", noise(400), subtype="FLOAT")
    result = audio.upsample_file(source, tmp_path / "out.flac", factor=2)
    assert (result.subtype_in, result.subtype_out) == ("FLOAT", "PCM_16")
    assert soundfile.info(tmp_path / "out.flac").subtype == "PCM_16"


def test_clipped_samples_are_counted_and_do_not_wrap_round(tmp_path):
    square = np.where(np.arange(800) // 20 % 2, 32767 / 32768, -1.0)  # overshoots between its samples
    source = write(tmp_path / "in.wav", square)
    result = audio.upsample_file(source, tmp_path / "out.wav", factor=4)
    ideal = np.rint(ct.upsample(quantised(source), 4, axis=0) * 32768)
    outside = int(((ideal > 32767) | (ideal < -32768)).sum())
    assert outside > 100
    assert result.clipped == pytest.approx(outside, abs=2)
    error = np.abs(quantised(tmp_path / "out.wav") * 32768 - np.clip(ideal, -32768, 32767))
    assert error.max() <= 1
    kept = audio.upsample_file(write(tmp_path / "f.wav", square, subtype="FLOAT"), tmp_path / "g.wav", factor=4)
    assert kept.clipped == 0
    assert np.abs(quantised(tmp_path / "g.wav")).max() > 1.05


def test_to_samples():
    y = np.array([[-1.5, -1.0, -0.5, 0.0, 0.5, 1.0, np.nan]]).T
    samples, clipped = soundfiles.to_samples(y, "PCM_16")
    assert samples.dtype == np.int16
    assert samples[:, 0].tolist() == [-32768, -32768, -16384, 0, 16384, 32767, 0]
    assert clipped == 3
    samples, clipped = soundfiles.to_samples(y, "PCM_24")
    assert samples.dtype == np.int32
    assert samples[:, 0].tolist()[:6] == [-(2**31), -(2**31), -(2**30), 0, 2**30, (2**23 - 1) << 8]
    assert clipped == 3
    samples, clipped = soundfiles.to_samples(y[:6], "VORBIS")
    assert (samples.min(), samples.max(), clipped) == (-1, 1, 1)
    samples, clipped = soundfiles.to_samples(y, "FLOAT")
    assert samples is y
    assert clipped == 0


@pytest.mark.parametrize(
    ("factor", "rate", "expected"), [(6, None, 6), (1, None, 1), (None, 48000, 6), (None, 8000, 1), (None, 16000, 2)]
)
def test_pick_factor(factor, rate, expected):
    assert audio.pick_factor(8000, factor, rate) == expected


@pytest.mark.parametrize(
    ("factor", "rate", "match"),
    [
        (None, 44100, r"a multiple of the input's 8000 Hz \(nearest: 40000 and 48000\), got 44100"),
        (None, 4000, r"\(nearest: 8000\), got 4000"),
        (0, None, r"factor: expected an int >= 1, got 0"),
        (None, None, r"either a factor or a rate"),
        (2, 16000, r"either a factor or a rate"),
    ],
)
def test_pick_factor_refuses(factor, rate, match):
    with pytest.raises(soundfiles.UsageError, match=match):
        audio.pick_factor(8000, factor, rate)


def test_factor_one_copies(tmp_path):
    source = write(tmp_path / "in.wav", noise(300, 2), subtype="PCM_24")
    result = audio.upsample_file(source, tmp_path / "out.wav", factor=1)
    np.testing.assert_array_equal(quantised(tmp_path / "out.wav"), quantised(source))
    assert "copied" in result.reason


@pytest.mark.parametrize("name", ["grüße 日本語 🎵.wav", "with space.wav", "-dash.wav", os.fsdecode(b"latin-\xe9.wav")])
def test_any_file_name(tmp_path, name):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / name).write_bytes(write(tmp_path / "plain.wav", noise(100)).read_bytes())
    audio.upsample_file(tmp_path / "in" / name, tmp_path / name, factor=2)
    assert soundfile.info(os.fsencode(tmp_path / name)).frames == 200


class TestDestinations:
    """A destination is whole or not there, and nothing else is ever touched."""

    @pytest.fixture
    def source(self, tmp_path):
        return write(tmp_path / "in.wav", noise(3000))

    def test_an_existing_one_is_kept_without_overwrite(self, source, tmp_path):
        target = tmp_path / "out.wav"
        target.write_bytes(b"precious")
        with pytest.raises(soundfiles.AudioError, match=r"exists; --overwrite replaces it"):
            audio.upsample_file(source, target, factor=2)
        assert target.read_bytes() == b"precious"
        audio.upsample_file(source, target, factor=2, overwrite=True)
        assert soundfile.info(target).frames == 6000

    @pytest.mark.parametrize("link", ["symbolic", "hard", "same"])
    def test_the_source_is_never_the_destination(self, source, tmp_path, link):
        before = source.read_bytes()
        target = source if link == "same" else tmp_path / "link.wav"
        if link == "symbolic":
            target.symlink_to(source)
        elif link == "hard":
            target.hardlink_to(source)
        with pytest.raises(soundfiles.UsageError, match=r"expected another file than the input"):
            audio.upsample_file(source, target, factor=2, overwrite=True)
        assert source.read_bytes() == before

    def test_a_link_stays_a_link(self, source, tmp_path):
        (tmp_path / "elsewhere").mkdir()
        (tmp_path / "out.wav").symlink_to(tmp_path / "elsewhere" / "real.wav")
        audio.upsample_file(source, tmp_path / "out.wav", factor=2)
        assert (tmp_path / "out.wav").is_symlink()
        assert soundfile.info(tmp_path / "elsewhere" / "real.wav").frames == 6000

    @pytest.mark.parametrize("failure", [KeyboardInterrupt, RuntimeError])
    @pytest.mark.parametrize("existing", [False, True])
    def test_an_interruption_leaves_no_trace(self, source, tmp_path, failure, existing):
        target = tmp_path / "out.wav"
        if existing:
            target.write_bytes(b"precious")
        names = sorted(os.listdir(tmp_path))
        during = []

        def stop(done, total):
            during.extend(os.listdir(tmp_path))
            if done > 500:
                raise failure

        with pytest.raises(failure):
            audio.upsample_file(
                source, target, factor=2, overwrite=True, progress=stop, half_width=8, block_samples=500
            )
        assert len(set(during)) == len(names) + 1
        assert sorted(os.listdir(tmp_path)) == names
        assert not existing or target.read_bytes() == b"precious"

    def test_a_new_file_has_the_usual_permissions(self, source, tmp_path):
        old = os.umask(0o027)
        try:
            audio.upsample_file(source, tmp_path / "out.wav", factor=2)
        finally:
            os.umask(old)
        assert (tmp_path / "out.wav").stat().st_mode & 0o777 == 0o640

    def test_a_device_is_not_replaced(self, source):
        with pytest.raises(soundfiles.AudioError, match=r"not a regular file"):
            soundfiles.check_destinations(source, [("OUT", Path("/dev/null"))], True)

    def test_two_results_in_one_file(self, source, tmp_path):
        targets = [("OUT", tmp_path / "a.png"), ("--plot", tmp_path / "." / "a.png")]
        with pytest.raises(soundfiles.UsageError, match=r"--plot: expected another file than OUT"):
            soundfiles.check_destinations(source, targets, True)

    def test_a_missing_directory(self, source, tmp_path):
        with pytest.raises(soundfiles.AudioError, match=r"OUT: expected an existing directory, got .*nowhere"):
            audio.upsample_file(source, tmp_path / "nowhere" / "out.wav", factor=2)


def test_unreadable_sources(tmp_path):
    with pytest.raises(soundfiles.AudioError, match=r"IN: expected a sound file, got .*which does not exist"):
        audio.upsample_file(tmp_path / "in.wav", tmp_path / "out.wav", factor=2)
    (tmp_path / "in.wav").write_text("not a sound")
    with pytest.raises(soundfiles.AudioError, match=r"IN: cannot read .*[Ff]ormat not recogni"):
        audio.upsample_file(tmp_path / "in.wav", tmp_path / "out.wav", factor=2)
    write(tmp_path / "in.wav", np.zeros((0, 1)))
    with pytest.raises(soundfiles.AudioError, match=r"IN: expected at least one sample, got an empty file"):
        audio.upsample_file(tmp_path / "in.wav", tmp_path / "out.wav", factor=2)
    assert os.listdir(tmp_path) == ["in.wav"]


def test_a_damaged_file_is_an_error(tmp_path):
    source = write(tmp_path / "in.flac", noise(20_000), subtype="PCM_16")
    source.write_bytes(source.read_bytes()[:8000])
    with pytest.raises(soundfiles.AudioError, match=r"IN: cannot read .*in.flac' to its end"):
        audio.upsample_file(source, tmp_path / "out.wav", factor=2, block_samples=4000)
    assert os.listdir(tmp_path) == ["in.flac"]


def test_a_file_shorter_than_its_header_says_gives_what_there_is(tmp_path):
    source = write(tmp_path / "in.wav", noise(20_000), subtype="PCM_16")
    source.write_bytes(source.read_bytes()[: 44 + 2 * 9001])
    assert audio.upsample_file(source, tmp_path / "out.wav", factor=2, block_samples=4000).frames == 9001
    assert soundfile.info(tmp_path / "out.wav").frames == 18_002


def test_unwritable_targets(tmp_path):
    source = write(tmp_path / "in.wav", noise(300), rate=48000)
    for name in ("out.xyz", "out", "out.raw"):
        with pytest.raises(soundfiles.UsageError, match=r"OUT: expected an extension among .*\.flac.*got 'out"):
            audio.upsample_file(source, tmp_path / name, factor=2)
    with pytest.raises(
        soundfiles.AudioError, match=r"OUT: cannot write .*out.flac' \(FLAC, PCM_16, 960000 Hz, 1 channel\)"
    ):
        audio.upsample_file(source, tmp_path / "out.flac", factor=20)
    with pytest.raises(soundfiles.AudioError, match=r"OUT: cannot write"):
        audio.upsample_file(source, tmp_path / "out.wav", factor=100_000)
    assert os.listdir(tmp_path) == ["in.wav"]


def test_more_than_four_gigabytes_need_another_format(tmp_path, monkeypatch):
    source = write(tmp_path / "in.wav", noise(300), rate=8000, subtype="DOUBLE")
    with pytest.raises(soundfiles.AudioError, match=r"less than 4 GiB .*got 4.5 GiB; use the extension .w64"):
        audio.upsample_file(source, tmp_path / "out.wav", factor=2_000_000)


def test_a_full_disk_is_an_error(tmp_path, monkeypatch):
    source = write(tmp_path / "in.wav", noise(3000))

    def fail(self, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(soundfile.SoundFile, "write", fail)
    with pytest.raises(soundfiles.AudioError, match=r"OUT: cannot write the samples: .*No space left"):
        audio.upsample_file(source, tmp_path / "out.wav", factor=2)
    assert os.listdir(tmp_path) == ["in.wav"]


def test_the_method_that_is_reported_is_the_one_that_runs(tmp_path):
    source = write(tmp_path / "in.wav", noise(3000))
    for method in ("direct", "gemm", "fft"):
        result = audio.upsample_file(source, tmp_path / f"{method}.wav", factor=2, method=method)
        assert result.reason.startswith(f"{method}/")
        assert f"method={method!r} was asked for" in result.reason
    auto = audio.upsample_file(source, tmp_path / "auto.wav", factor=2)
    assert "faster than" in auto.reason


class TestSpectrogram:
    """The picture shows what was measured."""

    def test_levels_and_frequencies(self):
        samples = 0.1 * np.sin(2 * np.pi * 1000 * np.arange(8000) / 8000)[:, None].astype(np.float32)
        times, frequencies, decibels = spectrogram.power_db(np.repeat(samples, 2, axis=1), 8000)
        assert decibels.shape == (frequencies.size, times.size)
        middle = decibels[:, times.size // 2]
        assert frequencies[middle.argmax()] == pytest.approx(1.0, abs=0.02)
        assert middle.max() == pytest.approx(-20, abs=0.5)
        assert np.median(middle) < -110
        assert times[-1] == pytest.approx(1, abs=0.05)

    @pytest.mark.parametrize("length", [1, 2, 30, 255])
    def test_short_sounds(self, length):
        times, frequencies, decibels = spectrogram.power_db(np.ones((length, 1), np.float32), 8000)
        assert decibels.shape == (frequencies.size, times.size)
        assert np.isfinite(decibels).all()

    def test_before_and_after_are_drawn(self, tmp_path):
        image = pytest.importorskip("matplotlib.image")
        audio.upsample_file(SPEECH, tmp_path / "after.wav", factor=6)
        spectrogram.draw(SPEECH, tmp_path / "after.wav", tmp_path / "p.png")
        pixels = image.imread(tmp_path / "p.png")[..., :3]
        assert min(pixels.shape[:2]) > 700
        half = pixels[:, : int(0.85 * pixels.shape[1])]
        bright = (half[..., 0] > 0.7) & (half[..., 2] < 0.6)
        rows = np.flatnonzero(bright.sum(axis=1) > 20) / half.shape[0]
        # sound fills the upper picture and only the foot, below the old Nyquist frequency, of the lower one
        assert rows.min() < 0.35
        assert not ((rows > 0.42) & (rows < 0.82)).any()
        assert (rows > 0.86).any()

    def test_only_the_start_of_long_sounds_is_read(self, tmp_path, monkeypatch):
        monkeypatch.setattr(spectrogram, "SHOWN_SECONDS", 0.5)
        samples, rate, cut = spectrogram._read(write(tmp_path / "in.wav", noise(8000)))
        assert (samples.shape, rate, cut) == ((4000, 1), 8000, True)

    def test_other_extensions_are_refused(self, tmp_path):
        with pytest.raises(soundfiles.UsageError, match=r"ends in .png, got 'a.jpg'"):
            spectrogram.check_plot(tmp_path / "a.jpg")
