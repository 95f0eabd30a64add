"""Scenarios of decoding: verification of drafts, growing contexts, early exit, and experts."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from calibrate.scenarios.quantity import Quantity, derived, interpolated
from calibrate.scenarios.scenario import Curve, Measured, Pass, Row, Step, require_context
from profiler.record.run import ModelFacts
from roofline.graph.op import Kind, Op, OpGraph, experts_hit
from roofline.units import number, percent


def tokens_per_pass(drafted: int, acceptance: float) -> float:
    """Expected tokens of a pass that verifies drafts (Leviathan et al., arXiv 2211.17192, equation 1)."""
    if acceptance == 1:
        return drafted + 1.0
    return float((1 - acceptance ** (drafted + 1)) / (1 - acceptance))


@dataclass(frozen=True)
class Verify:
    """It measures passes that verify drafted tokens against a decode step, and the acceptance that repays them.

    The draft is the model's own first layers (self-speculation, LayerSkip, arXiv 2404.16710).

    Args:
        tokens: drafted tokens.
        context: cached tokens.
        batch: sequences.
        draft_layers: layers of the draft; a quarter of the model's if not given.
        acceptance: probabilities that a drafted token is accepted.
    """

    tokens: Sequence[int] = (1, 2, 4, 8)
    context: int = 512
    batch: int = 1
    draft_layers: int | None = None
    acceptance: Sequence[float] = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)

    def steps(self, facts: ModelFacts) -> list[Step]:
        require_context(facts)
        if any(not 0 <= share <= 1 for share in self.acceptance):
            raise ValueError("an acceptance lies between 0 and 1")
        if self._depth(facts) >= facts.layers:
            raise ValueError(f"a draft of {self._depth(facts)} layers needs a model with more than its {facts.layers}")
        return [self._base, self._draft(facts), *map(self._verify, self.tokens)]

    def _depth(self, facts: ModelFacts) -> int:
        return self.draft_layers or max(1, facts.layers // 4)

    @property
    def _base(self) -> Step:
        return Step(1, self.context, self.batch)

    def _draft(self, facts: ModelFacts) -> Step:
        return self._base._replace(change=leave_after(self._depth(facts)))

    def _verify(self, tokens: int) -> Step:
        return self._base._replace(query=tokens + 1, logits="all")

    def results(self, measured: Measured) -> Iterator[Curve | str]:
        base, draft = measured.wall(self._base), measured.wall(self._draft(measured.facts))
        passes = [Row(tokens, measured.wall(self._verify(tokens)), "verification") for tokens in self.tokens]
        draft_rows = [
            Row(tokens, derived(lambda one, k=tokens: k * one, draft), "draft of these tokens")
            for tokens in self.tokens
        ]
        rows = [Row(0, base, "verification"), *passes, *draft_rows]
        yield Curve("one pass", "drafted tokens k", "s", rows, "It computes k + 1 tokens with the logits of all.")
        ratio = [Row(row.x, derived(lambda some, one: some / one, row.quantity, base)) for row in passes]
        note = "k + 1 would be the time of as many decode steps."
        yield Curve("verification ÷ decode step, T(k)/T(1)", "drafted tokens k", "×", ratio, note)
        faster = [
            Row(
                share,
                derived(
                    lambda some, one, own, k=k, share=share: tokens_per_pass(k, share) * one / (k * own + some),
                    measured.wall(self._verify(k)),
                    base,
                    draft,
                ),
                f"k = {k}",
            )
            for k in self.tokens
            for share in self.acceptance
        ]
        depth = f"The draft runs {self._depth(measured.facts)} of {measured.facts.layers} layers."
        yield Curve("tokens a second ÷ without drafts", "acceptance", "×", faster, depth)
        best = max((row for row in faster if row.quantity.measured), key=_measured, default=None)
        if best is not None:
            yield f"most: {best.quantity.measured:.2f}× with {best.series} at an acceptance of {best.x:g}"


def _measured(row: Row) -> float:
    return row.quantity.measured or 0.0


def leave_after(layers: int) -> str:
    """Return the change of a model that leaves after so many layers."""
    return f"early_exit:after_layers={layers}"


@dataclass(frozen=True)
class Length:
    """It measures the time of a decode step by its context, and what it is worth to know a request's length.

    A scheduler that knows lengths runs the shortest request first (as with predicted ones, arXiv 2408.15792). Beside
    first come, first served, the mean wait in a queue of equal priority falls by E[min(S, S')] ÷ E[S], where S and S'
    are the times of two requests.

    Args:
        context: cached tokens of the steps, from the shortest prompt on.
        batch: sequences.
        mean: mean length of an output in tokens; lengths are taken as geometric.
    """

    context: Sequence[int] = (64, 256, 512, 1024)
    batch: int = 1
    mean: int = 128

    def steps(self, facts: ModelFacts) -> list[Step]:
        require_context(facts)
        if len(set(self.context)) < 2:
            raise ValueError("a growth needs two contexts or more")
        return [self._step(context) for context in sorted(set(self.context))]

    def _step(self, context: int) -> Step:
        return Step(1, context, self.batch)

    def results(self, measured: Measured) -> Iterator[Curve | str]:
        contexts = sorted(set(self.context))
        times = [measured.wall(self._step(context)) for context in contexts]
        steps = zip(contexts, times, strict=True)
        rows = [Row(context, time) for context, time in steps]
        yield Curve("decode step", "cached tokens", "s", rows, f"One new token of {self.batch} sequences.")
        places, first = [float(context) for context in contexts], contexts[0]

        def request(*of: float, tokens: int) -> float:
            return sum(interpolated(first + i, places, list(of)) for i in range(tokens))

        lengths = [context - first for context in contexts[1:]]
        rows = [
            Row(tokens, derived(lambda *of, tokens=tokens: request(*of, tokens=tokens), *times)) for tokens in lengths
        ]
        yield Curve("all decode steps of a request", "tokens of its output", "s", rows, f"Its prompt has {first}.")

        def waits(*of: float) -> float:
            sums, ends = 0.0, [0.0]
            for i in range(lengths[-1]):
                sums += interpolated(first + i, places, list(of))
                ends.append(sums)
            return _expected(ends, 1 - (1 - 1 / self.mean) ** 2) / _expected(ends, 1 / self.mean)

        worth = [Row(self.mean, derived(waits, *times))]
        note = f"Lengths are geometric, cut at {lengths[-1]} tokens; about 0.5 if all tokens take equally long."
        yield Curve("mean wait, shortest first ÷ first come", "mean length of an output", "×", worth, note)


def _expected(by_length: Sequence[float], stops: float) -> float:
    """Expectation of a value by length, where each token is the last one with a probability, and the longest is cut."""
    total, left = 0.0, 1.0
    for value in by_length[1:-1]:
        total += left * stops * value
        left *= 1 - stops
    return total + left * by_length[-1]


@dataclass(frozen=True)
class EarlyExit:
    """It measures the time of a decode step that leaves after some of the layers.

    The decision to leave, and keys and values of the layers that are left out, are not counted (CALM, arXiv
    2207.07061).

    Args:
        layers: layers that run; a quarter, a half and three quarters of the model's if not given.
        context: cached tokens.
        batch: sequences.
    """

    layers: Sequence[int] = ()
    context: int = 256
    batch: int = 1

    def steps(self, facts: ModelFacts) -> list[Step]:
        require_context(facts)
        if beyond := [layers for layers in self.layers if layers >= facts.layers]:
            raise ValueError(f"leaving after {beyond[0]} layers: the model has {facts.layers}; use fewer")
        return [self._step(0), *map(self._step, self._depths(facts))]

    def _depths(self, facts: ModelFacts) -> list[int]:
        quarters = (round(facts.layers * share) for share in (0.25, 0.5, 0.75))
        return sorted(set(self.layers) or {layers for layers in quarters if 1 <= layers < facts.layers})

    def _step(self, layers: int) -> Step:
        return Step(1, self.context, self.batch, change=leave_after(layers) if layers else "")

    def results(self, measured: Measured) -> Iterator[Curve | str]:
        whole, total = measured.wall(self._step(0)), measured.facts.layers
        depths = self._depths(measured.facts)
        rows = [*(Row(layers, measured.wall(self._step(layers))) for layers in depths), Row(total, whole)]
        yield Curve("decode step", "layers that run", "s", rows, f"With {self.context} cached tokens.")
        faster = [Row(row.x, derived(lambda part, all_: all_ / part, row.quantity, whole)) for row in rows[:-1]]
        yield Curve("tokens a second ÷ with all layers", "layers that run", "×", faster, "If every token leaves there.")
        if depths:
            least = depths[0]

            def fixed(part: float, all_of_it: float) -> float:
                return (part - least * (all_of_it - part) / (total - least)) / all_of_it

            share = derived(fixed, rows[0].quantity, whole)
            if share.measured is not None:
                yield f"{percent(share.measured)} of a step belongs to no layer: the embedding, the head, the host"


@dataclass(frozen=True)
class Experts:
    """It measures the distinct experts that a batch hits, and the time of their products.

    Args:
        batch: sequences that decode.
        context: cached tokens.
    """

    batch: Sequence[int] = (1, 2, 4, 8, 16)
    context: int = 64

    def steps(self, facts: ModelFacts) -> list[Step]:
        require_context(facts)
        if not facts.experts:
            raise ValueError("the model has no experts; choose a mixture of experts")
        return list(map(self._step, self.batch))

    def _step(self, batch: int) -> Step:
        return Step(1, self.context, batch)

    def results(self, measured: Measured) -> Iterator[Curve | str]:
        passes = {
            batch: measured.passes[self._step(batch)] for batch in self.batch if self._step(batch) in measured.passes
        }
        hits = {batch: distinct_experts(one.graph) for batch, one in passes.items()}
        rows = [Row(batch, hit) for batch, hit in hits.items()]
        note = "Measured: those that the router of the random weights chose. Predicted: uniform routing."
        yield Curve("distinct experts of a layer", "sequences", "", rows, note)
        times = {batch: experts_time(one) for batch, one in passes.items()}
        rows = [Row(batch, time) for batch, time in times.items()]
        yield Curve("products of all experts", "sequences", "s", rows, "Device time in a decode step, all layers.")
        each = [
            Row(
                batch,
                derived(lambda time, hit: time / hit, times[batch], hits[batch]),
                note=number(hits[batch].measured),
            )
            for batch in passes
        ]
        yield Curve("products ÷ distinct experts", "sequences", "s", each, "Constant where weights are the limit.")


def distinct_experts(graph: OpGraph) -> Quantity:
    """Mean distinct experts that the products of a pass read, beside those of uniform routing."""
    found = [(share_read(op, graph) * op.dims["groups"], op) for op in graph.ops if op.kind is Kind.GROUPED_MATMUL]
    count = sum(op.count for _, op in found)
    if not count:
        return Quantity()
    tokens = graph.workload.batch * graph.workload.query_tokens
    uniform = [float(experts_hit(op.dims["groups"], op.dims["m"] / tokens, tokens)) * op.count for _, op in found]
    return Quantity(sum(hit * op.count for hit, op in found) / count, 0.0, sum(uniform) / count)


def share_read(op: Op, graph: OpGraph) -> float:
    """Part of an operation's largest weight that it reads."""
    reads = [(access.bytes, graph.tensors[access.tensor]) for access in op.reads]
    weights = [(size, tensor.storage_bytes) for size, tensor in reads if tensor.role == "weight"]
    size, whole = max(weights, key=lambda pair: pair[1])
    return min(1.0, size / whole)


def experts_time(one: Pass) -> Quantity:
    """Device time of all products with experts of a pass."""
    layers = [layer for layer in one.report.layers if layer.kind == Kind.GROUPED_MATMUL.value]
    halves = [
        (layer.measured_s_high - layer.measured_s_low) / 2
        for layer in layers
        if layer.measured_s_low is not None and layer.measured_s_high is not None
    ]
    predicted = [layer.predicted_s for layer in layers if layer.predicted_s is not None]
    return Quantity(
        sum(layer.measured_s for layer in layers) if layers else None,
        sum(halves) if len(halves) == len(layers) else None,
        sum(predicted) if layers and len(predicted) == len(layers) else None,
    )
