"""Scenarios of what surrounds a pass: attention kernels, offloaded weights, adapters, a cold start, energy."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from calibrate.scenarios.prefill import load_kv
from calibrate.scenarios.quantity import UNKNOWN, Quantity, derived
from calibrate.scenarios.scenario import Curve, Measured, Row, Step, require_context
from profiler.record.measurement import Window
from profiler.record.run import ModelFacts


@dataclass(frozen=True)
class Attention:
    """It measures the time and bytes that fused attention saves against attention in single operations.

    Args:
        prompt: tokens of a prefill.
    """

    prompt: Sequence[int] = (128, 512)

    def steps(self, facts: ModelFacts) -> list[Step]:
        return [Step(prompt, attn=attn) for prompt in self.prompt for attn in ("sdpa", "eager")]

    def results(self, measured: Measured) -> Iterator[Curve | str]:
        ways = {"sdpa": "fused (sdpa)", "eager": "single operations (eager)"}
        asked = [(Step(prompt, attn=attn), name) for attn, name in ways.items() for prompt in self.prompt]
        rows = [Row(step.query, measured.wall(step), name) for step, name in asked]
        yield Curve("prefill", "prompt", "s", rows, "The whole pass.")
        moved = [
            Row(step.query, Quantity(sum(layer.bytes for layer in measured.passes[step].report.layers), 0.0), name)
            for step, name in asked
            if step in measured.passes
        ]
        yield Curve("bytes read and written", "prompt", "B", moved, "Counted from the operations that ran.")
        saved = [
            Row(prompt, measured.ratio(Step(prompt, attn="eager"), Step(prompt, attn="sdpa"))) for prompt in self.prompt
        ]
        yield Curve("single operations ÷ fused", "prompt", "×", saved, "Of the time of the whole pass.")


@dataclass(frozen=True)
class Offload:
    """It measures the time of a decode step whose weights, or keys and values, lie in the memory of the host.

    Each offloaded layer's weights are copied to the device before the layer runs (FlexGen, arXiv 2303.06865). A copy
    that goes on beside the layers hides in the longer of both times.

    Args:
        share: parts of the repeated layers whose weights are offloaded.
        context: cached tokens.
        batch: sequences.
    """

    share: Sequence[float] = (0.5, 1.0)
    context: int = 256
    batch: int = 1

    def steps(self, facts: ModelFacts) -> list[Step]:
        require_context(facts)
        if any(not 0 < share <= 1 for share in self.share):
            raise ValueError("an offloaded part lies between 0 and 1")
        return [self._base, *map(self._offloaded, self.share), *map(self._load, self.share), self._load_kv]

    @property
    def _base(self) -> Step:
        return Step(1, self.context, self.batch)

    @property
    def _load_kv(self) -> Step:
        return load_kv(self.context)._replace(batch=self.batch)

    def _offloaded(self, share: float) -> Step:
        return self._base._replace(change=f"offload:weights={share:g}")

    def _load(self, share: float) -> Step:
        return Step(1, change=f"load:what=weights,share={share:g}")

    def results(self, measured: Measured) -> Iterator[Curve | str]:
        base = measured.wall(self._base)
        rows = [Row(0, base, "copy, then run")]
        rows += [Row(share, measured.wall(self._offloaded(share)), "copy, then run") for share in self.share]
        loads = [Row(share, measured.load(self._load(share)), "the copy alone") for share in self.share]
        hidden = [Row(row.x, derived(max, base, row.quantity), "copy beside the layers, at best") for row in loads]
        note = f"With {self.context} cached tokens. At best the longer of step and copy hides the other."
        yield Curve("decode step with offloaded weights", "part of the layers", "s", [*rows, *loads, *hidden], note)
        slower = [
            Row(row.x, derived(lambda some, none: some / none, row.quantity, base), row.series)
            for row in (*rows[1:], *hidden)
        ]
        yield Curve("decode step ÷ all on the device", "part of the layers", "×", slower, "Weights offloaded.")
        cache = measured.load(self._load_kv)
        together = [
            Row("on the device", base),
            Row("copy, then run", derived(lambda a, b: a + b, base, cache)),
            Row("copy beside the layers, at best", derived(max, base, cache)),
        ]
        note = f"{self.context} tokens of {self.batch}; from the times of a step and of a copy of its cache."
        yield Curve("decode step with an offloaded cache", "keys and values", "s", together, note)


@dataclass(frozen=True)
class Adapters:
    """It measures the time that LoRA adapters add to a decode step, and the time to load one.

    Args:
        rank: widths of the adapters, which are beside every linear layer of the repeated ones.
        context: cached tokens.
        batch: sequences, which share one adapter, or have one each.
    """

    rank: Sequence[int] = (8, 16, 64)
    context: int = 128
    batch: int = 4

    def steps(self, facts: ModelFacts) -> list[Step]:
        require_context(facts)
        own = [self._own(rank) for rank in self.rank if self.batch > 1]
        return [self._base, *map(self._shared, self.rank), *own, *map(self._load, self.rank)]

    @property
    def _base(self) -> Step:
        return Step(1, self.context, self.batch)

    def _shared(self, rank: int) -> Step:
        return self._base._replace(change=f"lora:rank={rank}")

    def _own(self, rank: int) -> Step:
        return self._base._replace(change=f"lora:rank={rank},adapters={self.batch}")

    def _load(self, rank: int) -> Step:
        return Step(1, change=f"load:what=adapter,rank={rank}")

    def results(self, measured: Measured) -> Iterator[Curve | str]:
        base, one = measured.wall(self._base), "one adapter for all sequences"
        rows = [Row(0, base, one), *(Row(rank, measured.wall(self._shared(rank)), one) for rank in self.rank)]
        if self.batch > 1:
            rows += [Row(rank, measured.wall(self._own(rank)), "an adapter for each sequence") for rank in self.rank]
        yield Curve("decode step", "rank", "s", rows, f"{self.batch} sequences, {self.context} cached tokens.")
        more = [Row(row.x, derived(lambda a, b: a / b, row.quantity, base), row.series) for row in rows[1:]]
        yield Curve("decode step ÷ without adapters", "rank", "×", more, "Not merged into the weights.")
        loads = [Row(rank, measured.load(self._load(rank))) for rank in self.rank]
        yield Curve("loading an adapter from the host's memory", "rank", "s", loads, "Both factors of all layers.")
        steps = [Row(row.x, derived(lambda a, b: a / b, row.quantity, base)) for row in loads]
        yield Curve("loading an adapter ÷ decode step", "rank", "×", steps, "Steps that one swap costs.")


@dataclass(frozen=True)
class ColdStart:
    """It measures the time until a new process has the weights, and of its first pass.

    Args:
        prompt: tokens of the pass.
        processes: fresh processes that are measured.
    """

    prompt: int = 128
    processes: int = 3

    def steps(self, facts: ModelFacts) -> list[Step]:
        return [self._step]

    @property
    def _step(self) -> Step:
        return Step(self.prompt, change=f"fresh:processes={self.processes}")

    def results(self, measured: Measured) -> Iterator[Curve | str]:
        if self._step not in measured.passes:
            return
        one = measured.passes[self._step]
        rows = []
        for name, samples in one.result.fresh.items():
            ordered = sorted(samples)
            middle = ordered[len(ordered) // 2]
            predicted = one.wall.predicted if name == "second pass" else None
            rows.append(Row(name, Quantity(middle, (ordered[-1] - ordered[0]) / 2, predicted)))
        steady = Row("steady pass", one.wall)
        note = f"Median of {self.processes} processes, ± half their range; libraries were imported before."
        yield Curve("a new process", "what", "s", [*rows, steady], note)
        first = next((row.quantity for row in rows if row.x == "first pass"), UNKNOWN)
        more = Row("first pass", derived(lambda a, b: a / b, Quantity(first.measured, first.half), one.wall))
        yield Curve("first pass ÷ steady pass", "what", "×", [more], "Steady: the median of passes in this run.")


@dataclass(frozen=True)
class Energy:
    """It measures the joules of a token, where the device tells its energy.

    Args:
        prompt: tokens of a prefill.
        context: cached tokens of a decode step.
        batch: sequences.
    """

    prompt: int = 512
    context: int = 512
    batch: Sequence[int] = (1, 8)

    def steps(self, facts: ModelFacts) -> list[Step]:
        decodes = [Step(1, self.context, batch) for batch in self.batch] if facts.keeps_cache else []
        return [*(Step(self.prompt, 0, batch) for batch in self.batch), *decodes]

    def results(self, measured: Measured) -> Iterator[Curve | str]:
        chip = self._limit_w(measured)
        rows = []
        for step in self.steps(measured.facts):
            if step not in measured.passes:
                continue
            one = measured.passes[step]
            power_w, tokens = mean_power_w(one.result.windows), step.query * step.batch
            times = one.wall
            joules = Quantity(
                None if power_w is None or times.measured is None else power_w * times.measured / tokens,
                None if power_w is None or times.half is None else power_w * times.half / tokens,
                None if chip is None or times.predicted is None else chip * times.predicted / tokens,
            )
            rows.append(Row(step.batch, joules, "decode" if step.context else "prefill"))
        note = "Measured: mean power beside the passes × their time. Predicted: the power limit × the predicted time."
        yield Curve("energy of a token", "sequences", "J", rows, note)
        if all(row.quantity.measured is None for row in rows):
            yield "this device tells neither its energy nor its power, so that joules a token are unknown"

    def _limit_w(self, measured: Measured) -> float | None:
        chip = measured.spec.chip
        return chip.power_w.value if chip is not None and chip.power_w is not None else None


def mean_power_w(windows: Sequence[Window]) -> float | None:
    """Energy ÷ time over all windows that tell it, else the mean of the power readings; None where neither is told."""
    told = [(window.energy_j, window.duration_s) for window in windows if window.energy_j is not None]
    if told and sum(time for _, time in told) > 0:
        return float(sum(energy for energy, _ in told) / sum(time for _, time in told))
    read = [window.power_w for window in windows if window.power_w is not None]
    return float(sum(read) / len(read)) if read else None
