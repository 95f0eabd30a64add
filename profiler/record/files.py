"""Files of a run's folder: written atomically, validated when they are read, with one writer at a time.

A file is written under another name and renamed, so that no reader sees half of one: links are followed, modes kept,
and what is no regular file (a device, a pipe) is written through. A record of a newer roofcal is
refused by its `schema_version`, before its unknown fields are. A `Journal` puts each line on the disk before the next.
A `Lock` ends with its process, even if that is killed.
"""

import errno
import fcntl
import json
import os
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from profiler.record.run import InvalidMeasurement, RequestError
from roofline import reading
from roofline.reading import DAMAGED, MOST_BYTES, Unreadable, one_line, read_bytes
from roofline.record import Record

R = TypeVar("R", bound=Record)
T = TypeVar("T")

RUN_FILE = "run.json"
MEASUREMENTS = "measurements.parquet"
"""A run's table of passes."""
KERNELS, HARDWARE = "kernels.parquet", "hardware.parquet"
HARDWARE_JOURNAL = "hardware.jsonl"
SUITE, SUITE_JOURNAL = "suite.parquet", "suite.jsonl"
PARENT = "ROOFCAL_ENDS_WITH"
"""Environment variable with the process that a command, and so its run, must not outlive."""
MOST_JOURNAL_BYTES = 512 << 20
"""Bytes of a journal: a cell with 2,000 operations and 300 samples of each has some 20 MB."""
MOST_LINKS = 40
"""Links that are followed, as by Linux itself (path_resolution(7))."""
KERNELS_MEND = "restore it, or import it again: python -m profiler import"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a name to write to; if the block succeeds, the file durably replaces `path` in one step.

    A link is followed, the mode of an existing file is kept, and a device, a pipe or a file that cannot be renamed over
    (one in a folder that cannot be written, or mounted by itself) is written through. Raises RequestError where the
    disk refuses, for a folder, and for no name at all.
    """
    try:
        target, is_through = _target(path)
        if is_through:
            with tempfile.TemporaryDirectory() as folder:
                whole = Path(folder) / "whole"
                yield whole
                _write_through(target, whole.read_bytes())
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{target.name}.partial")
        try:
            _create(partial, stat.S_IMODE(target.stat().st_mode) if target.exists() else None)
            yield partial
            with partial.open("rb+") as file:
                os.fsync(file.fileno())
            partial.replace(target)
            sync_folder(target.parent)
        finally:
            with suppress(OSError):  # the folder itself may be what could not be made
                partial.unlink()
    except OSError as error:
        why = error.strerror or error
        raise RequestError(f"cannot write {path}: {why}; free some space or choose another folder") from error


def _target(path: Path) -> tuple[Path, bool]:
    """The file that a path leads to, and whether it has to be written through."""
    require_file_name(path)
    real = path
    for _ in range(MOST_LINKS):
        # What lies there is the kernel's: /dev/stdout leads to /proc/self/fd/1, whose own target is no path.
        absolute = Path(os.path.abspath(real))  # noqa: PTH100 - `resolve` would follow the links
        if absolute.is_relative_to("/proc") or (
            absolute.is_relative_to("/dev") and not absolute.is_relative_to("/dev/shm")
        ):
            return real, True
        if not real.is_symlink():
            break
        real = real.parent / real.readlink()
    else:
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
    if not real.exists():
        return real, False
    if real.is_dir():
        raise RequestError(f"cannot write {path}: it is a folder; name a file")
    if not os.access(real, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    cannot_rename = not os.access(real.parent, os.W_OK) or real.is_mount()
    return real, not real.is_file() or cannot_rename


def require_file_name(path: Path) -> None:
    """Raise RequestError for a path that names no file: the empty one, a folder's, one that ends in "..", a control
    character."""
    if path.name in ("", "..") or str(path) == ".":
        raise RequestError(f"cannot write {str(path)!r}: it names no file; give a file's name")
    if not str(path).isprintable():
        raise RequestError(f"cannot write {str(path)!r}: the name holds a control character; choose another name")


def _create(partial: Path, mode: int | None) -> None:
    """Create an empty file of a mode, or of the default one, so that its content is never readable by more people."""
    with suppress(FileNotFoundError):
        partial.unlink()  # of a process that was killed
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    descriptor = os.open(partial, flags, 0o666 if mode is None else 0o600)
    try:
        if mode is not None:
            os.fchmod(descriptor, mode)
    finally:
        os.close(descriptor)


def _write_through(target: Path, content: bytes) -> None:
    """Write to what is not replaced: from the start of a regular file, behind what a redirected output holds."""
    is_own = not stat.S_ISREG(target.stat().st_mode) or target.is_relative_to("/proc") or target.is_relative_to("/dev")
    with target.open("ab" if is_own else "wb", buffering=0) as file:
        while content:
            content = content[file.write(content) :]
        with suppress(OSError):  # a pipe or a device has nothing to be made durable
            os.fsync(file.fileno())


def make_folder(path: Path) -> None:
    """Make a folder where there is none. Raises RequestError where it cannot be made, or written."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        if not os.access(path, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise RequestError(f"cannot write results under {path}: {error.strerror}; choose another folder") from error


def require_separate(outputs: Mapping[str, Path | None], inputs: Iterable[Path] = ()) -> None:
    """Raise RequestError where an output would overwrite an input or another output, also through a link.

    Args: option -> the file that it writes, None where it is not given; the files that are read.
    """
    seen: dict[tuple[object, ...], str] = {_identity(path): f"{path}, which is read" for path in inputs}
    for option, path in outputs.items():
        if path is None:
            continue
        require_file_name(path)
        identity = _identity(path)
        if (other := seen.get(identity)) is not None and not _is_special(path):
            raise RequestError(f"{option} {path} would overwrite {other}; name another file")
        seen[identity] = f"what {option} writes"


def _identity(path: Path) -> tuple[object, ...]:
    """A key that is the same for all names of one file."""
    try:
        status = path.stat()
    except ValueError:  # no file has such a name, as one with a null byte
        return (str(path),)
    except OSError:
        return (os.path.realpath(path),)
    return status.st_dev, status.st_ino


def _is_special(path: Path) -> bool:
    """Return whether a path leads to a device or a pipe, which several outputs may be written to."""
    try:
        return not stat.S_ISREG(path.stat().st_mode) and not stat.S_ISDIR(path.stat().st_mode)
    except OSError:
        return False


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path`, whole or not at all."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable; a file's own fsync does not."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def requested() -> Iterator[None]:
    """Within it, what cannot be read is a request that cannot be done."""
    try:
        yield
    except Unreadable as error:
        raise RequestError(str(error)) from error


def read_record(path: Path, record: type[R], newest: int, mend: str = "restore the file", most: int = MOST_BYTES) -> R:
    """`roofline.reading.read_record`, which raises RequestError here."""
    with requested():
        return reading.read_record(path, record, newest, mend, most)


class Journal:
    """Lines of JSON, each on the disk when `append` returns.

    `kill -9` can leave an unterminated last line, which is ignored. Any other line that cannot be decoded was not
    written by roofcal and is refused.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, content: Mapping[str, Any], about: str) -> None:
        """Add a line. Raises RequestError where the disk refuses; the lines before are then kept.

        Raises InvalidMeasurement, which names `about`, where a figure is not finite: JSON has no such number.
        """
        rest = encoded(content, about)
        try:
            with self.path.open("ab", buffering=0) as file:  # unbuffered: closing must not write what was truncated
                start = file.tell()
                try:
                    while rest:
                        rest = rest[file.write(rest) :]
                    os.fsync(file.fileno())
                except OSError:
                    os.ftruncate(file.fileno(), start)  # half a line in the middle would spoil the whole file
                    raise
        except OSError as error:
            raise RequestError(f"cannot write {self.path}: {error.strerror}; what came before it is kept") from error

    def read(self, decode: Callable[[bytes], T]) -> list[T]:
        """Return all whole lines, decoded, in the order in which they were written; none where there is no file.

        Raises RequestError, which names the line, where `decode` raises one of `DAMAGED`.
        """
        decoded = []
        for number, line in enumerate(self.lines(), start=1):
            try:
                decoded.append(decode(line))
            except DAMAGED as error:
                where = f"{self.path} line {number}"
                raise RequestError(
                    f"{where} is damaged ({one_line(error)}); delete the line to go on without it"
                ) from error
        return decoded

    def lines(self) -> list[bytes]:
        """Return all whole lines as they are, none without a file. Raises RequestError where it cannot be read."""
        return self._content().split(b"\n")[:-1]

    def drop_torn_line(self) -> None:
        """Remove an unterminated last line, so that the next one starts on a new line."""
        content = self._content()
        whole = content.rfind(b"\n") + 1
        if whole != len(content):
            try:
                with self.path.open("rb+") as file:
                    file.truncate(whole)
                    os.fsync(file.fileno())
            except OSError as error:
                raise RequestError(f"cannot write {self.path}: {error.strerror}") from error

    def rewrite(self, contents: Iterable[tuple[Mapping[str, Any], str]]) -> None:
        """Replace all lines by these arguments of `append`; the file is always the old or the new one."""
        lines = b"".join(encoded(content, about) for content, about in contents)
        with replacing(self.path) as partial:
            partial.write_bytes(lines)

    def _content(self) -> bytes:
        if not os.path.lexists(self.path):
            return b""
        with requested():
            return read_bytes(self.path, MOST_JOURNAL_BYTES)


def encoded(content: Mapping[str, Any], about: str) -> bytes:
    """The line of a journal. Raises InvalidMeasurement as `Journal.append` does."""
    try:
        return json.dumps(content, allow_nan=False, separators=(",", ":")).encode() + b"\n"
    except ValueError as error:
        raise InvalidMeasurement(f"{about}: a measured figure is not a finite number") from error


class LockHeld(RequestError):
    """Another process holds a lock."""


class Lock:
    """A lock on `path` from construction until `release`. Raises LockHeld where another process holds it.

    Unlike filelock, it removes its file when it is released, and it fails where a file system has no such locks
    instead of using a soft one, which would outlive a process that is killed.
    """

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
                raise LockHeld(
                    f"{self.path.parent} is being written by process {holder}; wait until it ends"
                ) from error
            except OSError as error:
                os.close(descriptor)
                raise RequestError(f"cannot lock {self.path}: {error.strerror}; choose another file system") from error
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

    @property
    def descriptor(self) -> int:
        """The open file: a child that inherits it holds the lock too, until both have ended. Raises RuntimeError once
        it is released."""
        if self._descriptor is None:
            raise RuntimeError(f"{self.path} has been released")
        return self._descriptor

    def release(self) -> None:
        """Let the next process write; further calls do nothing."""
        if self._descriptor is not None:
            self.path.unlink(missing_ok=True)
            os.close(self._descriptor)
            self._descriptor = None
