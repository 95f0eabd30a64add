"""LLM-Viewer: an entry of `hardware_params` in hardwares/hardware_params.py.

Its roofline (roofline_model.py) is OPs ÷ min(intensity × bandwidth, peak), both SI, without factors. It looks up
`onchip_buffer` for every model and uses it only as a bound on the block of its fused attention; `INT8` only where
weights, activations and KV cache have 8 bits or fewer.
"""

from calibrate.exchange.export.files import Export, File, commented
from calibrate.exchange.export.ledger import Ledger
from calibrate.exchange.export.source import Source


def write(source: Source) -> Export:
    """A Python file with `hardware_params`; update LLM-Viewer's dict of that name with it."""
    ledger = Ledger(source, "LLM-Viewer")
    entry = {"bandwidth": ledger.bandwidth(), "FP16": ledger.sixteen_bit()}
    eight = ledger.matrix_or_none("int8", "float8_e4m3fn", "float8_e4m3fnuz")
    if eight is None:
        ledger.leave_out("INT8", "no 8-bit matrix peak; LLM-Viewer stops with a KeyError where everything is 8-bit")
    else:
        entry["INT8"] = eight
    entry["onchip_buffer"] = ledger.on_chip()
    provenance = ledger.provenance(
        folded=f"efficiency: the {source.origin} rates are the values; FP16 is that of {ledger.sixteen}"
    )
    body = "".join(f"        {name!r}: {value!r},\n" for name, value in entry.items())
    text = f"{commented(provenance)}\nhardware_params = {{\n    {source.name!r}: {{\n{body}    }},\n}}\n"
    return Export((File.text(f"{source.name}.llm_viewer.py", text),), ledger.left_out)
