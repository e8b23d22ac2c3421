# SPDX-License-Identifier: MIT
"""Benchmarks: real layers, honest rivals, results as committed files."""
