# SPDX-License-Identifier: MIT
import numpy as np
import pytest
import scipy.signal
from hypothesis import given, settings
from hypothesis import strategies as st

import cupy_convt as ct
from cupy_convt import signal
from cupy_convt.signal import anti_image_filter

ml_dtypes = pytest.importorskip("ml_dtypes")

DEFAULTS = (64, 0.95, 10.0)
#: (dtype, largest error of a sine of amplitude 1): float64 shows the filter's ripple, the others their rounding.
PRECISIONS = [
    ("float64", 2e-5),
    ("complex128", 2e-5),
    ("float32", 2e-5),
    ("complex64", 2e-5),
    ("float16", 4e-3),
    ("bfloat16", 3e-2),
]


def dtype_of(name):
    return ml_dtypes.bfloat16 if name == "bfloat16" else np.dtype(name)


def gain(taps, factor, points=1 << 18):
    """|H| / factor over frequency in units of the input's Nyquist frequency."""
    response = np.abs(np.fft.rfft(taps, points)) / factor
    return np.linspace(0, factor, response.size), response


@pytest.mark.parametrize("factor", [2, 3, 6, 7, 16])
def test_default_filter_has_the_stated_response(factor):
    frequency, response = gain(anti_image_filter(factor, *DEFAULTS), factor)
    decibels = 20 * np.log10(np.maximum(response, 1e-12))
    assert np.abs(decibels[frequency <= 0.9]).max() < 0.0002
    assert decibels[frequency >= 1].max() < -99
    assert np.interp(0.95, frequency, decibels) == pytest.approx(-6.02, abs=0.05)


@pytest.mark.parametrize("beta", [4.0, 8.0, 12.0])
def test_beta_sets_the_attenuation(beta):
    frequency, response = gain(anti_image_filter(4, 64, 0.8, beta), 4)
    edge = 0.8 + 1.03 * (9 * beta + 1) / (2.285 * 2 * 64 * np.pi) / 2  # half the width of the transition
    assert 20 * np.log10(response[frequency > edge].max()) == pytest.approx(-(9 + 9 * beta), abs=4)


@pytest.mark.parametrize("factor", [1, 2, 5, 12])
def test_filter_is_symmetric_and_each_phase_sums_to_one(factor):
    taps = anti_image_filter(factor, *DEFAULTS)
    assert taps.shape == (2 * 64 * factor + 1,)
    np.testing.assert_array_equal(taps, taps[::-1])
    np.testing.assert_allclose([taps[phase::factor].sum() for phase in range(factor)], 1, rtol=0, atol=1e-14)


@pytest.mark.parametrize("factor", [2, 3, 6, 7])
@pytest.mark.parametrize("cycles", [0.01, 0.2, 0.31, 0.44])
def test_a_sine_is_interpolated_to_the_ripple_of_the_filter(factor, cycles):
    length = 600  # cycles are per input sample; 0.45 is 0.9 of Nyquist
    y = ct.upsample(np.sin(2 * np.pi * cycles * np.arange(length)), factor)
    ideal = np.sin(2 * np.pi * cycles * np.arange(length * factor) / factor)
    inside = slice(65 * factor, -65 * factor)
    assert np.abs(y - ideal)[inside].max() < 4e-5


@pytest.mark.parametrize("cycles", [0.05, 0.3, 0.45, 0.49, 0.499])
def test_images_are_99_db_down(cycles):
    factor, length = 4, 4096
    y = ct.upsample(np.cos(2 * np.pi * cycles * np.arange(length)), factor)
    inside = y[100 * factor : -100 * factor]
    spectrum = np.abs(np.fft.rfft(inside * scipy.signal.get_window(("kaiser", 20.0), inside.size)))
    frequency = np.arange(spectrum.size) / inside.size * factor  # cycles per input sample
    level = scipy.signal.get_window(("kaiser", 20.0), inside.size).sum() / 2  # a cosine of amplitude 1
    assert 20 * np.log10(spectrum[frequency > 0.502].max() / level) < -99


@pytest.mark.parametrize(("dtype", "bound"), PRECISIONS)
def test_every_dtype_keeps_its_precision(dtype, bound):
    t = np.arange(400)
    x = np.exp(0.3j * t) if dtype.startswith("complex") else np.sin(0.3 * t)
    y = ct.upsample(x.astype(dtype_of(dtype)), 3)
    assert y.dtype == dtype_of(dtype)
    assert y.shape == (1200,)
    fine = np.arange(1200) / 3
    ideal = np.exp(0.3j * fine) if dtype.startswith("complex") else np.sin(0.3 * fine)
    assert np.abs(y.astype(ideal.dtype) - ideal)[200:-200].max() < bound


def test_samples_stay_at_their_times():
    rng = np.random.default_rng(0)
    noise = rng.standard_normal(2000)
    band = scipy.signal.firwin(201, 0.8)  # nothing above 0.9 of Nyquist
    x = scipy.signal.fftconvolve(noise, band, "same")
    y = ct.upsample(x, 5)
    assert np.abs(y[::5] - x)[70:-70].max() < 2e-4 * np.abs(x).max()
    lags = [np.dot(y[shift::5][:1900], x[:1900]) for shift in range(5)]
    assert np.argmax(lags) == 0


def test_an_impulse_gives_the_filter_centred_on_it():
    x = np.zeros(300)
    x[150] = 1
    y = ct.upsample(x, 4)
    taps = anti_image_filter(4, *DEFAULTS)
    np.testing.assert_allclose(y[600 - 256 : 600 + 257], taps, atol=1e-14)
    assert np.abs(y[: 600 - 256]).max() < 1e-14
    assert np.abs(y[600 + 257 :]).max() < 1e-14


@pytest.mark.parametrize("factor", [2, 6, 9])
def test_a_constant_stays_that_constant(factor):
    y = ct.upsample(np.full(400, 2.5), factor)
    np.testing.assert_allclose(y[64 * factor : -65 * factor], 2.5, rtol=1e-13)


@settings(deadline=None, max_examples=40)
@given(
    factor=st.integers(1, 9),
    length=st.integers(1, 70),
    half_width=st.integers(1, 40),
    rolloff=st.floats(0.3, 1.0),
    beta=st.floats(1.0, 14.0),
    method=st.sampled_from(["auto", "direct", "gemm", "fft"]),
)
def test_equals_scipy_upfirdn_and_resample_poly(factor, length, half_width, rolloff, beta, method):
    x = np.random.default_rng(length).standard_normal((2, length))
    y = ct.upsample(x, factor, half_width=half_width, rolloff=rolloff, beta=beta, method=method)
    assert y.shape == (2, length * factor)
    if factor == 1:
        np.testing.assert_array_equal(y, x)
        return
    taps = anti_image_filter(factor, half_width, rolloff, beta)
    reach = half_width * factor
    full = scipy.signal.upfirdn(taps, x, up=factor)
    full = np.pad(full, ((0, 0), (0, factor)))
    np.testing.assert_allclose(y, full[:, reach : reach + length * factor], atol=1e-12)
    np.testing.assert_allclose(y, scipy.signal.resample_poly(x, factor, 1, axis=1, window=taps / factor), atol=1e-12)


@pytest.mark.parametrize("axis", [0, 1, 2, -1, -2, -3])
def test_any_axis(axis):
    x = np.random.default_rng(0).standard_normal((3, 4, 5))
    y = ct.upsample(x, 3, axis=axis)
    expected = np.moveaxis(ct.upsample(np.moveaxis(x, axis, -1).copy(), 3), -1, axis)
    assert y.shape[axis] == x.shape[axis] * 3
    np.testing.assert_allclose(y, expected, atol=1e-14)


def test_complex_is_its_two_parts():
    rng = np.random.default_rng(0)
    x = rng.standard_normal(90) + 1j * rng.standard_normal(90)
    np.testing.assert_allclose(ct.upsample(x, 4), ct.upsample(x.real, 4) + 1j * ct.upsample(x.imag, 4), atol=1e-13)


@pytest.mark.parametrize("shape", [(0, 5), (2, 0, 5), (0, 0, 7)])
def test_an_empty_batch_gives_an_empty_result(shape):
    assert ct.upsample(np.zeros(shape, np.float32), 4).shape == (*shape[:-1], shape[-1] * 4)


@pytest.mark.parametrize("factor", [1, 3])
def test_odd_layouts_are_inputs_like_any_other(factor):
    base = np.random.default_rng(0).standard_normal(200).astype(np.float32)
    expected = ct.upsample(base[::-2].copy(), factor)
    swapped = base[::-2].astype(">f4")
    swapped.flags.writeable = False
    for x in (base[::-2], swapped):
        y = ct.upsample(x, factor)
        assert y.dtype == np.float32
        assert y.dtype.isnative
        assert not np.shares_memory(x, y)
        np.testing.assert_array_equal(y, expected)


def test_the_filter_is_made_once_for_each_dtype_and_parameter():
    x = np.zeros(50, np.float32)
    first = signal.upsampling_operator(x, 3)
    assert signal.upsampling_operator(np.ones(70, np.float32), 3) is first
    assert signal.upsampling_operator(x.astype(np.float64), 3) is not first
    assert signal.upsampling_operator(x, 3, beta=9.0) is not first
    assert signal.upsampling_operator(x, 3, method="direct") is not first
    for factor in range(2, 30):
        signal.upsampling_operator(x, factor, half_width=2)
    assert len(signal._filters) <= signal._KEPT_FILTERS


@pytest.mark.parametrize(
    ("error", "match", "x", "arguments"),
    [
        (TypeError, r"x: expected a NumPy or CuPy array, got list", [1.0, 2.0], {"factor": 2}),
        (TypeError, r"x: expected a dtype among .*got int64", np.arange(4), {"factor": 2}),
        (TypeError, r"factor: expected an int, got 2.0", np.ones(4), {"factor": 2.0}),
        (ValueError, r"factor: expected an int >= 1, got 0", np.ones(4), {"factor": 0}),
        (ValueError, r"half_width: expected an int >= 1, got 0", np.ones(4), {"factor": 2, "half_width": 0}),
        (ValueError, r"rolloff: expected a number > 0 and <= 1, got 1.5", np.ones(4), {"factor": 2, "rolloff": 1.5}),
        (ValueError, r"rolloff: expected .* got nan", np.ones(4), {"factor": 2, "rolloff": float("nan")}),
        (TypeError, r"rolloff: expected a number, got '1'", np.ones(4), {"factor": 2, "rolloff": "1"}),
        (ValueError, r"beta: expected a number > 0 and <= 100, got 0", np.ones(4), {"factor": 2, "beta": 0}),
        (TypeError, r"beta: expected a number, got True", np.ones(4), {"factor": 2, "beta": True}),
        (ValueError, r"axis: expected -1 to 0 for 1 axes, got 1", np.ones(4), {"factor": 2, "axis": 1}),
        (TypeError, r"axis: expected an int, got 0.0", np.ones(4), {"factor": 2, "axis": 0.0}),
        (ValueError, r"x: expected at least one axis", np.array(1.0), {"factor": 2}),
        (
            ValueError,
            r"x: expected at least one sample along axis -1, got shape \(3, 0\)",
            np.ones((3, 0)),
            {"factor": 2},
        ),
        (ValueError, r"method: expected one of .*got 'best'", np.ones(4), {"factor": 2, "method": "best"}),
        (ValueError, r"method: expected one of .*got 'best'", np.ones(4), {"factor": 1, "method": "best"}),
    ],
)
def test_refusals(error, match, x, arguments):
    with pytest.raises(error, match=match):
        ct.upsample(x, **arguments)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "complex64"])
def test_cupy_arrays_agree_with_numpy_arrays(dtype):
    cupy = pytest.importorskip("cupy")
    try:
        cupy.cuda.Device().compute_capability  # noqa: B018
    except cupy.cuda.runtime.CUDARuntimeError:
        pytest.skip("no CUDA device")
    x = np.random.default_rng(0).standard_normal((2, 500)).astype(dtype)
    y = ct.upsample(cupy.asarray(x), 3)
    assert isinstance(y, cupy.ndarray)
    tolerance = 2e-2 if dtype == "float16" else 1e-5
    np.testing.assert_allclose(y.get(), ct.upsample(x, 3), atol=tolerance)
