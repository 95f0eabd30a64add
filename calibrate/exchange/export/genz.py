"""GenZ: an entry of `system_configs` in Systems/system_configs.py.

GenZ (unit.py, LLM_inference/utils.py) multiplies `Flops` by 1e12, `Memory_BW` and `ICN` by 2^30, `Memory_size` by
2^30 (×1024 MB of 2^20), `ICN_LL` by 1e-6; its own efficiencies are 1 unless the caller sets them. Absent keys become
150 GB/s and 1 µs, so that a link that is not known is written as 0: a collective then fails, and nothing is invented.
"""

from calibrate.exchange.export.files import Export, File, commented
from calibrate.exchange.export.ledger import Ledger
from calibrate.exchange.export.source import Source


def write(source: Source) -> Export:
    """A Python file with `system_configs`; update GenZ's dict of that name with it, or pass the entry itself."""
    ledger = Ledger(source, "GenZ")
    link, latency = ledger.between(), ledger.between_latency()
    if link is None:
        ledger.leave_out("ICN", "no link known; written as 0, a collective divides by zero instead of taking 150 GB/s")
    if latency is None:
        ledger.leave_out("ICN_LL", "no latency known; written as 0, messages are priced by their bytes alone")
    entry: dict[str, float | bool] = {
        "Flops": ledger.sixteen_bit() / 1e12,
        "Memory_size": ledger.capacity() / 2**30,
        "Memory_BW": ledger.bandwidth() / 2**30,
        "ICN": (link or 0.0) / 2**30,
        "ICN_LL": (latency or 0.0) / 1e-6,
        "real_values": True,
    }
    provenance = ledger.provenance(
        folded="GenZ's factor 2^30 for GB, divided out; efficiency: use compute and memory efficiency 1 (ceff, meff); "
        "other dtypes are GenZ's multiples of the 16-bit rate"
    )
    body = "".join(f"        {name!r}: {value!r},\n" for name, value in entry.items())
    text = f"{commented(provenance)}\nsystem_configs = {{\n    {source.name!r}: {{\n{body}    }},\n}}\n"
    return Export((File.text(f"{source.name}.genz.py", text),), ledger.left_out)
