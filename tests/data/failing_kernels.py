"""Kernels that take their process with them, as a user's kernel file."""

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


def works(x, weight, eps):
    """Is right."""
    sys.stdout.write("noise on standard output\n")
    return x * (x.pow(2).mean(-1, keepdim=True) + eps).rsqrt() * weight


KERNELS = [("rms_norm", each) for each in (crashes, hangs, exits, asks, starts, works)]
