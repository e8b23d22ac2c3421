# SPDX-License-Identifier: MIT
"""`python -m cupy_convt` is the command `cupy-convt`."""

import sys

from cupy_convt.cli import main

if __name__ == "__main__":
    sys.exit(main())
