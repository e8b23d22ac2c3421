# SPDX-License-Identifier: MIT
"""Arrays in emulated device memory are a kind of array of their own, which the GPU engine runs."""

from cupy_convt.engines import register
from tests.emulated import EmulatedArray, make_engine

register(lambda array: isinstance(array, EmulatedArray), "emulated", make_engine)
