"""The paper's table for Llama-2-7B on an A6000, for the tests of its views."""

from pathlib import Path

from roofline.hardware.spec import HardwareSpec
from roofline.paper.rules import PaperShape
from roofline.paper.table import PaperResult, paper_table

DATA = Path(__file__).parent / "data" / "paper"
SHAPE = PaperShape(hidden=4096, intermediate=11008, layers=32, heads=32, kv_heads=32, vocabulary=32000)


def paper(*, flash: bool = False, weights: int = 16) -> PaperResult:
    spec = HardwareSpec.model_validate_json((DATA / "llm-viewer-a6000.json").read_text("utf-8"))
    assert spec.datasheet is not None
    return paper_table(SHAPE, spec.datasheet, 1, 2048, weights, 16, 16, use_flash=flash)
