"""How the servers of a public benchmark were started, where a file of measured times does not say.

`servers.json` has rows for InferenceMAX (github.com/SemiAnalysisAI/InferenceX, before github.com/InferenceMAX), whose
scripts start one server for each run. A row holds for an engine, and for all models, devices and versions unless it
names some; rows that hold together add up, later ones first.
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

from pydantic import Field, TypeAdapter

from calibrate.serving.silicon import Case
from roofline.reading import parse_json, read_bytes
from roofline.record import Record
from roofline.serving.engine import UNKNOWN, Engine, engine_named
from roofline.serving.replay import Drafts
from roofline.serving.step import Parallel

FILE = Path(__file__).with_name("servers.json")
SPARE_TOKENS = 64
"""Tokens that TensorRT-LLM's servers add to a prompt and to one token of each request for the most of a pass."""
ACCEPTED = (0.85, 0.3)
"""Chance that each further draft is accepted where those before it were: AIConfigurator's default for the layers of
DeepSeek-V3 that predict several tokens (`nextn_accept_rates`); a third draft counts as never accepted. Published for
the first draft: 85 to 90 % over topics (DeepSeek-V3 Technical Report, arXiv 2412.19437, section 5.4.3), 81 to 82.3 %
of R1 in vLLM (pull request 12755). Further drafts repeat one layer; these benchmarks' prompts are random tokens."""


class Server(Record):
    """Options of some servers."""

    engine: str
    models: tuple[str, ...] = ()
    """Names of the catalogue; none is all, as below."""
    devices: tuple[str, ...] = ()
    """Beginnings of a system's name."""
    versions: tuple[str, ...] = ()
    described_by: str | None = None
    """Version of the engine's row that describes the server, for runs whose version is not stated."""
    chunk_tokens: int | None = Field(default=None, gt=0)
    prompts_a_pass: int | None = Field(default=None, gt=0)
    """A pass holds so many prompts of the run, and a token of each request."""
    cache_bits: dict[str, int] = {}
    expert_parallel: bool = False
    """Runs of unstated version divide experts by whole ones."""
    drafts: dict[str, int] = {}
    """Drafted tokens of a step, by how attention is spread: "divided" or "data"."""
    sources: tuple[str, ...]

    def holds(self, case: Case, model: str) -> bool:
        return (
            self.engine == case.engine
            and (not self.models or model in self.models)
            and (not self.devices or case.system.lower().startswith(self.devices))
            and (not self.versions or case.version in self.versions)
        )


@dataclass(frozen=True)
class Started:
    """How a row's server ran."""

    engine: Engine
    parallel: Parallel
    drafts: Drafts | None = None


@cache
def _servers() -> list[Server]:
    return TypeAdapter(list[Server]).validate_python(parse_json(read_bytes(FILE, mend="install roofcal again")))


def started(case: Case, model: str, layers: float) -> Started:
    """How the server of a row was started, of a model of the catalogue with so many layers.

    Raises ValueError for an unknown engine.
    """
    engine, parallel, drafts = engine_named(case.engine, case.version), case.parallel, None
    for server in _servers() if case.is_inferencemax else ():
        if not server.holds(case, model):
            continue
        unknown = case.version == UNKNOWN
        if server.described_by and unknown:
            engine = engine_named(case.engine, server.described_by)
        changes: dict[str, object] = {"cache_bits": engine.cache_bits | server.cache_bits}
        if server.prompts_a_pass:
            load = case.load
            changes["chunk_tokens"] = server.prompts_a_pass * load.prompt_tokens + load.concurrency + SPARE_TOKENS
        if server.chunk_tokens:
            changes["chunk_tokens"] = server.chunk_tokens
        engine = engine.model_copy(update=changes)
        if server.expert_parallel and unknown and parallel.moe_ep == 1:
            parallel = Parallel(parallel.attention_dp, 1, parallel.moe_tp)
        if count := server.drafts.get("data" if parallel.attention_dp > 1 else "divided"):
            drafts = Drafts(count, accepted_tokens(count), count / layers)
    return Started(engine, parallel, drafts)


def accepted_tokens(drafts: int) -> float:
    """Tokens of a step that verifies so many drafts, on average."""
    total, chance = 1.0, 1.0
    for i in range(drafts):
        chance *= ACCEPTED[i] if i < len(ACCEPTED) else 0.0
        total += chance
    return total
