"""No microbenchmark's test depends on the caches and the memory of the machine that it runs on."""

import os
from pathlib import Path

import pytest
from pretended_hosts import HOSTS, pretend

from profiler.devices.host import VARIABLE


@pytest.fixture(scope="module", autouse=True)
def some_host(tmp_path_factory: pytest.TempPathFactory) -> object:
    """A host with 32 MiB of L3, unless the whole run pretends another one."""
    with pytest.MonkeyPatch.context() as patch:
        if VARIABLE not in os.environ:
            pretend(patch, tmp_path_factory.mktemp("host"), HOSTS["l3-32m"])
        yield


@pytest.fixture
def small_host(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One with 1 MiB of L3, which any operand gets past."""
    pretend(monkeypatch, tmp_path, HOSTS["l3-1m"])
