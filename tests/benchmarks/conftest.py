"""Benchmarks run on all cores, as users do; the tests beside them have one thread each."""

import os

if os.environ.get("OMP_NUM_THREADS") == "1":  # set by tests/conftest.py; torch is not loaded yet
    del os.environ["OMP_NUM_THREADS"]
