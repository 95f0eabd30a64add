"""The formats that specs are exported to: a visible list; a new one is a file and a row.

Example: ``find("genz").write(source).files[0].content``
"""

from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches

from calibrate.exchange.export import aiconfigurator, blis, genz, infersim, llm_analysis, llm_viewer, vidur
from calibrate.exchange.export.files import Export
from calibrate.exchange.export.source import Source


@dataclass(frozen=True, slots=True)
class Format:
    """One format."""

    name: str
    """As --to takes it."""
    what: str
    """Tool and file, in one line."""
    write: Callable[[Source], Export]
    """Makes the files. Raises ValueError, one line: a figure that the format cannot do without."""
    folder: bool = False
    """More than a file and its provenance: --out is a folder."""


FORMATS = (
    Format("llm-viewer", "LLM-Viewer: entry of hardware_params (Python)", llm_viewer.write),
    Format("genz", "GenZ: entry of system_configs (Python)", genz.write),
    Format("llm-analysis", "llm-analysis: file of gpu_configs (JSON)", llm_analysis.write),
    Format("aiconfigurator", "AIConfigurator: system yaml and op tables (parquet)", aiconfigurator.write, folder=True),
    Format("vidur", "Vidur: mlp.csv and attention.csv of its models", vidur.write, folder=True),
    Format("infersim", "InferSim: GPU entry (Python) and tables of MFU (CSV)", infersim.write, folder=True),
    Format("blis", "BLIS inference-sim: hardware_config.json", blis.write),
)


def find(name: str) -> Format:
    """The format of a name. Raises ValueError, one line with the nearest names."""
    known = {one.name: one for one in FORMATS}
    if name in known:
        return known[name]
    plain = {one.replace("-", ""): one for one in known}
    word = "".join(character for character in name.lower() if character.isalnum())
    near = [plain[one] for one in get_close_matches(word, plain, n=3, cutoff=0.6)]
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(known)}"
    raise ValueError(f"no format {name!r} to export to; {hint}")
