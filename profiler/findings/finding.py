"""One thing that spoils a measurement, and how to mend it.

The files beside this one hold the rules: functions of a reading, so that recorded readings test them. Severities:

- "note": worth knowing when figures are compared; nothing needs to be done,
- "warns": figures are usable, with more noise or a lower peak than the device can give,
- "invalidates": what is measured now is not this device's speed; `doctor` exits with 4.

Example: ``Finding(severity="note", what="ECC is off", mend="nvidia-smi -e 1").what``
"""

from profiler.record.measurement import Severity
from roofline.record import Record


class Finding(Record):
    """One thing that was noticed."""

    severity: Severity
    what: str
    """With its figure, in one line."""
    mend: str
    """What to do about it, in one line."""


class Found:
    """Findings as a function of rules collects them."""

    def __init__(self) -> None:
        self._findings: list[Finding] = []

    def add(self, severity: Severity, what: str, mend: str) -> None:
        self._findings.append(Finding(severity=severity, what=what, mend=mend))

    def all(self) -> tuple[Finding, ...]:
        return tuple(self._findings)
