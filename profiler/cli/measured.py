"""The spec of this device from an earlier run, as --hardware names it.

Example: ``measured_spec(Path("results/DEVICE/RUN/spec.json"), run.environment).calibrated``
"""

from pathlib import Path

from profiler.record.errors import RequestError
from profiler.record.run import Environment
from roofline.hardware.load import load_device
from roofline.hardware.spec import HardwareSpec


def measured_spec(path: Path, environment: Environment) -> HardwareSpec:
    """The device's figures and laws. Raises RequestError, one line: another device's, or nothing measured in it."""
    try:
        spec = load_device(path)
    except ValueError as error:
        raise RequestError(f"--hardware: {error}") from error
    if spec.measured is None:
        raise RequestError(f"--hardware: {path} holds nothing measured; leave it out, or name the spec.json of a run")
    if environment.device not in (spec.name, *spec.matches):
        raise RequestError(f"--hardware: {path} is of {spec.name}, and this is {environment.device}; leave it out")
    return spec
