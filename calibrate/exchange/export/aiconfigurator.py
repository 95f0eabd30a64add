"""AIConfigurator: a system yaml and the op tables under its data_dir, laid out as its `systems` folder.

All SI in the yaml; its GEMM speed of light is max(2mnk ÷ *_tc_flops, bytes ÷ mem_bw), its memory operations
bytes ÷ (mem_bw × mem_bw_empirical_scaling_factor) + mem_empirical_constant_latency (sdk/perf_database.py). What roofcal
does not know (GPUs in a node, NCCL's memory) stays a comment to fill in.
"""

import math

from calibrate.exchange.export.aiconfigurator_tables import tables
from calibrate.exchange.export.files import Export, File, commented
from calibrate.exchange.export.ledger import FP8, Ledger
from calibrate.exchange.export.source import Source

UNKNOWN = "not known to roofcal; AIConfigurator stops where it needs it, fill it in"


def write(source: Source) -> Export:
    """<name>.yaml and data/<name>/<family>/<framework>/<version>/<op>_perf.parquet."""
    ledger = Ledger(source, "AIConfigurator")
    if ledger.sixteen != "bfloat16":
        raise ValueError(ledger.refusal("matrix peak of bfloat16"))
    gpu = {
        "mem_bw": ledger.bandwidth(),
        "mem_bw_empirical_scaling_factor": 1.0,
        "mem_empirical_constant_latency": 0.0,
        "mem_capacity": ledger.capacity(),
        "bfloat16_tc_flops": ledger.sixteen_bit(),
        "float16_tc_flops": ledger.matrix_or_none("float16"),
        "int8_tc_flops": ledger.matrix_or_none("int8"),
        "fp8_tc_flops": ledger.matrix_or_none(*FP8),
        "fp4_tc_flops": ledger.matrix_or_none("float4_e2m1fn_x2"),
        "power": ledger.chip("power_w", "W"),
        "sm_version": None,
    }
    node = {
        "num_gpus_per_node": None,
        "inter_node_bw": ledger.network(),
        "intra_node_bw": ledger.between(),
        "pcie_bw": ledger.link("pcie"),
        "p2p_latency": ledger.between_latency(),
    }
    misc = dict.fromkeys(("nccl_mem", "other_mem", "nccl_version"))
    lines = [f"data_dir: data/{source.name}"]
    for title, section in (("gpu", gpu), ("node", node), ("misc", misc)):
        lines.append(f"{title}:" if any(value is not None for value in section.values()) else f"{title}: {{}}")
        for name, value in section.items():
            if value is None:
                ledger.leave_out(f"{title}.{name}", _then(name))
                lines.append(f"  # {name}: {_then(name)}")
            else:
                lines.append(f"  {name}: {number(value)}")
    op_tables, range_ = tables(source, ledger)
    provenance = ledger.provenance(
        folded="efficiency: mem_bw_empirical_scaling_factor 1 and constant latency 0, as the bare roofline has it",
        valid=f"op tables: {range_}",
        priced=True,
    )
    main = File.text(f"{source.name}.yaml", commented(provenance) + "\n" + "\n".join(lines) + "\n")
    return Export((main, *(table(provenance) for table in op_tables)), ledger.left_out)


def _then(name: str) -> str:
    if name in ("fp8_tc_flops", "fp4_tc_flops"):
        return f"no such peak; AIConfigurator takes {2 if name.startswith('fp8') else 4} × bfloat16_tc_flops instead"
    return UNKNOWN


def number(value: float) -> str:
    """A number as YAML 1.1 reads it back, to the bit: "1e-05" would be a string there."""
    if not math.isfinite(value):
        raise ValueError(f"{value} is no number of a system file")
    if value == int(value):
        return str(int(value))
    text = repr(value)
    mantissa, exponent, power = text.partition("e")
    return text if not exponent or "." in mantissa else f"{mantissa}.0e{power}"
