# SPDX-License-Identifier: MIT
"""Arrays in emulated device memory are a kind of array of their own, which the GPU engine runs."""

import os

from cupy_convt.engines import register
from tests.emulated import EmulatedArray, make_engine

# what this machine has measured must not decide what the tests see
os.environ["CUPY_CONVT_CACHE_DIR"] = os.devnull

register(lambda array_class: issubclass(array_class, EmulatedArray), "emulated", make_engine)
