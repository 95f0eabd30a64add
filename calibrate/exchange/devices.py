"""The device that a table was measured on: as the file, its folders or the user name it, with its datasheet, if any.

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
    """The table's name for it, else the device file's driver name."""
    spec: HardwareSpec | None
    """Its datasheet; None where no file describes it."""
    warnings: tuple[str, ...] = ()


def device_of(named: Sequence[tuple[Path, str | None]], asked: str | None) -> Device:
    """The one device of some files. `asked`: name of a device file, for tables whose own name is not enough.

    Raises RequestError, one line: several devices, none, or an asked one that contradicts the table.
    """
    names = sorted({name for _, name in named if name})
    if len(names) > 1:
        raise RequestError(f"the files are of {' and '.join(names)}; import each device by itself")
    spec = find_device(names[0]) if names else None
    if asked is not None:
        return _asked(asked, names[0] if names else None, spec)
    if names:
        if spec is not None:
            return Device(names[0], spec)
        return Device(names[0], None, (f"no device file describes {names[0]!r}; with --device it gets a datasheet",))
    return _by_folder([path for path, _ in named])


def _asked(asked: str, name: str | None, own: HardwareSpec | None) -> Device:
    try:
        spec = load_device(asked)
    except ValueError as error:
        raise RequestError(f"--device: {error}") from error
    if own is not None and own.name != spec.name:
        raise RequestError(f"--device {asked}: the table is of {name}, which is {own.name}; leave --device out")
    return Device(name or (spec.matches[0] if spec.matches else spec.name), spec)


def _by_folder(paths: Sequence[Path]) -> Device:
    """The device that folders name, as "a100" or "H100"; without a datasheet where that means several."""
    words = {word: whole for path in paths for word, whole in _folder_words(path).items()}
    if not words:
        raise RequestError(f"{paths[0]} does not say which device it is of; add --device, such as nvidia-h100-sxm")
    if len(words) > 1:
        raise RequestError(f"the files' folders name {' and '.join(sorted(words))}; import each device by itself")
    ((word, whole),) = words.items()
    fitting = [name for name in device_names() if word in name.split("-")]
    if len(fitting) == 1:
        spec = load_device(fitting[0])
        return Device(spec.matches[0] if spec.matches else spec.name, spec)
    return Device(whole, None, (f"{whole!r} may be {', '.join(fitting)}; say which with --device to get a datasheet",))


def _folder_words(path: Path) -> dict[str, str]:
    """The innermost folder's word that device files are named by: {"h100": "H100"}; empty where none is."""
    known = {word for name in device_names() for word in name.split("-") if re.fullmatch(r"[a-z]+[0-9]+[a-z]*", word)}
    known = {word for word in known if not word.startswith(("sxm", "xeon"))}
    for part in reversed(path.resolve().parts[:-1]):
        for word in re.findall("[A-Za-z0-9]+", part):
            if word.lower() in known:
                return {word.lower(): word}
    return {}
