"""One writer a run folder: a lock that the system drops when its process dies, however it dies.

Example: ``with Lock(folder / ".lock"): ...``; a second process gets a RequestError that names the first.
"""

import fcntl
import os
from pathlib import Path

from profiler.record.errors import RequestError


class Lock:
    """Holds `path` locked from construction until `release`. Raises RequestError where another process holds it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = self._acquire()

    def _acquire(self) -> int:
        while True:
            try:
                descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            except OSError as error:
                raise RequestError(f"cannot write {self.path.parent}: {error.strerror}") from error
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                holder = os.read(descriptor, 32).decode(errors="replace").strip() or "another process"
                os.close(descriptor)
                raise RequestError(
                    f"{self.path.parent} is being written by process {holder}; wait until it ends"
                ) from error
            if self._is_current(descriptor):
                try:
                    os.ftruncate(descriptor, 0)
                    os.write(descriptor, str(os.getpid()).encode())
                except OSError as error:
                    os.close(descriptor)
                    raise RequestError(f"cannot write {self.path}: {error.strerror}; free some space") from error
                return descriptor
            os.close(descriptor)  # the last holder removed the file between our open and our lock

    def _is_current(self, descriptor: int) -> bool:
        try:
            return self.path.stat().st_ino == os.fstat(descriptor).st_ino
        except FileNotFoundError:
            return False

    def release(self) -> None:
        """Let the next writer in; harmless when called twice."""
        if self._descriptor is not None:
            self.path.unlink(missing_ok=True)
            os.close(self._descriptor)
            self._descriptor = None
