"""Which roofcal this is.

Example: ``roofcal_version()`` → "0.1.0"
"""

import importlib.metadata
import tomllib
from pathlib import Path


def roofcal_version() -> str:
    """Of the installed distribution; of the checkout where it is run without being installed."""
    try:
        return importlib.metadata.version("roofcal")
    except importlib.metadata.PackageNotFoundError:
        return str(tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]["version"])
