"""Finds the device that a table was measured on, by the name in the file, in its folders or from the user.

Example: ``device_of([(path, "NVIDIA H200")], None).spec.name == "nvidia-h200-sxm"``
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from profiler.record.run import RequestError
from roofline.hardware.load import device_names, find_device, load_device
from roofline.hardware.spec import HardwareSpec


@dataclass(frozen=True)
class Device:
    """The device of an imported run."""

    name: str
    """The table's name for it, else the driver's name in the device file."""
    spec: HardwareSpec | None
    """The device file with its datasheet; None where no file describes it."""
    warnings: tuple[str, ...] = ()


def device_of(named: Sequence[tuple[Path, str | None]], option: str | None) -> Device:
    """The device of files, each with the name that it gives its device.

    `option` is a device file's name from the user. Raises RequestError, one line, where the files name several devices
    or none, or where `option` contradicts them.
    """
    names = sorted({name for _, name in named if name})
    if len(names) > 1:
        raise RequestError(f"the files are of {' and '.join(names)}; import each device by itself")
    name = names[0] if names else None
    own = find_device(name) if name else None
    if option is not None:
        try:
            spec = load_device(option)
        except ValueError as error:
            raise RequestError(f"--device: {error}") from error
        if own is not None and own.name != spec.name:
            raise RequestError(f"--device {option}: the table is of {name}, which is {own.name}; leave --device out")
        return Device(name or _driver_name(spec), spec)
    if name is None:
        return _by_folder([path for path, _ in named])
    unknown = () if own else (f"no device file describes {name!r}; name one with --device to add its datasheet",)
    return Device(name, own, unknown)


def _driver_name(spec: HardwareSpec) -> str:
    return spec.matches[0] if spec.matches else spec.name


def _by_folder(paths: Sequence[Path]) -> Device:
    """The device that folders name, as "a100" or "H100"; without a datasheet where several devices have that word."""
    words = {word: whole for path in paths for word, whole in _folder_words(path).items()}
    if not words:
        raise RequestError(f"{paths[0]} does not say which device it is of; add --device, as nvidia-h100-sxm")
    if len(words) > 1:
        raise RequestError(f"the files' folders name {' and '.join(sorted(words))}; import each device by itself")
    ((word, whole),) = words.items()
    fitting = [name for name in device_names() if word in name.split("-")]
    if len(fitting) == 1:
        spec = load_device(fitting[0])
        return Device(_driver_name(spec), spec)
    return Device(whole, None, (f"{whole!r} may be {', '.join(fitting)}; say which with --device to get a datasheet",))


def _folder_words(path: Path) -> dict[str, str]:
    """The word of the innermost folder that occurs in device files' names: {"h100": "H100"}; empty where none does."""
    known = {word for name in device_names() for word in name.split("-") if re.fullmatch(r"[a-z]+[0-9]+[a-z]*", word)}
    known = {word for word in known if not word.startswith(("sxm", "xeon"))}
    for part in reversed(path.resolve().parts[:-1]):
        for word in re.findall("[A-Za-z0-9]+", part):
            if word.lower() in known:
                return {word.lower(): word}
    return {}
