"""Whether the results fit on the disk.

Example: ``disk_findings(shutil.disk_usage("results").free, "results")``
"""

from profiler.findings.finding import Finding

DISK_WARN_BYTES = 1 << 30
"""A run takes megabytes, a GPU campaign some hundred of them."""


def disk_findings(free_bytes: int, folder: str) -> tuple[Finding, ...]:
    """At most one finding, about the free space under a folder."""
    if free_bytes >= DISK_WARN_BYTES:
        return ()
    what = f"{free_bytes / 2**20:.0f} MiB free for results under {folder}"
    return (Finding(severity="warns", what=what, mend="free some space, or choose another folder with --results"),)
