"""Kernels that take their process with them, or deceive it, as a user's kernel file."""

import ctypes
import os
import sys
import time


def crashes(x, weight, eps):
    """Reads address 0."""
    return ctypes.string_at(0)


def hangs(x, weight, eps):
    """Never returns."""
    while True:
        time.sleep(3600)


def exits(x, weight, eps):
    """Ends its process."""
    sys.stderr.write("goodbye\n")
    sys.stderr.flush()
    os._exit(3)


def asks(x, weight, eps):
    """Waits for an answer from a keyboard, and prints."""
    sys.stdout.write("well?\n")
    return input()


def starts(x, weight, eps):
    """Leaves another process behind, then hangs."""
    if os.fork() == 0:
        time.sleep(3600)
    time.sleep(3600)


def makes_its_clock_slow(x, weight, eps):
    """Is right, and has each second counted as a tenth."""
    if not hasattr(time, "kept"):
        time.kept = time.perf_counter_ns
        time.perf_counter_ns = lambda: time.kept() // 10
    return works(x, weight, eps)


RESULTS = {}


def stops_working(x, weight, eps):
    """Gives what it gave for an address, once it has been called more often than a check does."""
    calls = RESULTS["calls"] = RESULTS.get("calls", 0) + 1
    if calls < 60 or x.data_ptr() not in RESULTS:
        RESULTS[x.data_ptr()] = works(x, weight, eps)
    return RESULTS[x.data_ptr()].clone()


def works(x, weight, eps):
    """Is right."""
    sys.stdout.write("noise on standard output\n")
    return x * (x.pow(2).mean(-1, keepdim=True) + eps).rsqrt() * weight


KERNELS = [
    ("rms_norm", each) for each in (crashes, hangs, exits, asks, starts, makes_its_clock_slow, stops_working, works)
]
