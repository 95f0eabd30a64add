"""The size of one forward pass: how many sequences, how many new tokens, how many already cached.

Example: ``Workload(batch=1, query_tokens=1, context_tokens=512, dtype="bfloat16").phase == "decode"``
"""

from typing import Literal

from pydantic import Field

from roofline.record import Record

Phase = Literal["prefill", "decode", "chunk"]
Logits = Literal["last", "all"]


class Workload(Record):
    """One pass of a model. `context_tokens` are in the KV cache before the pass starts."""

    batch: int = Field(gt=0)
    """Sequences in the batch."""
    query_tokens: int = Field(gt=0)
    """New tokens of each sequence."""
    context_tokens: int = Field(ge=0)
    """Tokens of each sequence already cached."""
    dtype: str
    """Weights and activations, by torch's name: "bfloat16", "float32", …"""
    logits: Logits = "last"
    """Which new tokens get logits: the last of each sequence, where the model can leave out the others; or all, which
    the verification of drafted tokens needs."""

    @property
    def phase(self) -> Phase:
        """Prefill has no context; decode adds one token to a context; anything else is a chunk."""
        if self.context_tokens == 0:
            return "prefill"
        return "decode" if self.query_tokens == 1 else "chunk"

    @property
    def key(self) -> str:
        """A short name that is unique among workloads, for file names and joins."""
        end = "-all-logits" if self.logits == "all" else ""
        return f"{self.phase}-b{self.batch}-q{self.query_tokens}-c{self.context_tokens}-{self.dtype}{end}"
