"""BLIS (inference-sim): an entry of hardware_config.json.

`TFlopsPeak`, `TFlopsFP8` × 1e12, `BwPeakTBs` × 1e12, links × 1e9, `MemoryGiB` × 2^30 (sim/latency/roofline.go). Unknown
keys are refused, `_comment` is accepted (hw_config_strict_test.go) and carries the provenance. Its MFUs multiply the
peak; these peaks are what is reached already, so that both are 1. A `TFlopsFP8` of 0 means that there is none.
"""

import json

from calibrate.exchange.export.files import Export, File, json_text
from calibrate.exchange.export.ledger import FP8, Ledger
from calibrate.exchange.export.source import Source


def write(source: Source) -> Export:
    """A hardware_config.json with this device alone: copy the entry, or the file, to its place in BLIS."""
    ledger = Ledger(source, "BLIS")
    entry: dict[str, str | float] = {
        "TFlopsPeak": ledger.sixteen_bit() / 1e12,
        "BwPeakTBs": ledger.bandwidth() / 1e12,
        "mfuPrefill": 1.0,
        "mfuDecode": 1.0,
        "MemoryGiB": ledger.capacity() / 2**30,
    }
    for name, value, unit, then in (
        ("TFlopsFP8", ledger.matrix_or_none(*FP8), 1e12, "takes it that there is no FP8 unit"),
        ("IntraNodeBwGBps", ledger.between(), 1e9, "prices traffic between nodes as within one"),
        ("InterNodeBwGBps", ledger.network(), 1e9, "prices traffic between nodes as within one"),
    ):
        if value is None:
            ledger.leave_out(name, f"not known; BLIS {then}")
        else:
            entry[name] = value / unit
    provenance = ledger.provenance(folded="efficiency: mfuPrefill and mfuDecode are 1, the rates are the values")
    commented = {"_comment": json.dumps(provenance, ensure_ascii=False), **entry}
    return Export(
        (File.text(f"{source.name}.hardware_config.json", json_text({source.name: commented})),), ledger.left_out
    )
