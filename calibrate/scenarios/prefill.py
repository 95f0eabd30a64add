"""Scenarios of prompts: in chunks, beside decoding sequences, behind a reused prefix, and sent to another device."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from calibrate.scenarios.quantity import Quantity, derived, interpolated
from calibrate.scenarios.scenario import Curve, Measured, Row, Step, require_context
from profiler.record.run import ModelFacts
from roofline.units import bytes_per_s, number, seconds, size

LOAD_KV = "load:what=kv"
MOST_CHUNKS = 4
"""Chunks of a prompt that are all measured; of more, the first, the middle one and the last."""


@dataclass(frozen=True)
class Mixed:
    """It measures the time of a step that runs a chunk of a prompt beside decoding sequences.

    The tokens of both go through each product with weights at once; attention runs for each sequence (Orca, OSDI 2022;
    Sarathi-Serve, arXiv 2403.02310).

    Args:
        chunk: tokens of the chunk.
        sequences: sequences that decode.
        context: cached tokens of each of these sequences.
    """

    chunk: Sequence[int] = (32, 128)
    sequences: Sequence[int] = (1, 8)
    context: int = 256

    def steps(self, facts: ModelFacts) -> list[Step]:
        require_context(facts)
        mixed = [self._mixed(chunk, count) for chunk in self.chunk for count in self.sequences]
        return [*map(self._decode, self.sequences), *map(Step, self.chunk), *mixed]

    def _decode(self, count: int) -> Step:
        return Step(1, self.context, count)

    def _mixed(self, chunk: int, count: int) -> Step:
        return Step(chunk, decoding=count, decoding_context=self.context)

    def results(self, measured: Measured) -> Iterator[Curve | str]:
        alone = [Row(chunk, measured.wall(Step(chunk)), "no decoding sequence") for chunk in self.chunk]
        rows = [
            Row(chunk, measured.wall(self._mixed(chunk, count) if chunk else self._decode(count)), _sequences(count))
            for count in self.sequences
            for chunk in (0, *self.chunk)
        ]
        yield Curve(
            "one step", "tokens of the chunk", "s", [*alone, *rows], f"Each sequence has {self.context} cached tokens."
        )
        added = [
            Row(
                chunk,
                derived(
                    lambda both, decode, prefill: (both - decode) / prefill,
                    measured.wall(self._mixed(chunk, count)),
                    measured.wall(self._decode(count)),
                    measured.wall(Step(chunk)),
                ),
                _sequences(count),
            )
            for count in self.sequences
            for chunk in self.chunk
        ]
        note = "Below 1 the step is shorter than a step of each kind one after the other."
        yield Curve("time that the chunk adds ÷ its time alone", "tokens of the chunk", "×", added, note)


def _sequences(count: int) -> str:
    return f"{count} decoding"


@dataclass(frozen=True)
class Chunked:
    """It measures the time of a prompt in chunks, and how long each keeps other sequences waiting.

    Args:
        prompt: tokens of the prompt.
        chunk: tokens of a chunk; the last one of a prompt may be shorter, and is taken as a share of a whole one.
    """

    prompt: int = 512
    chunk: Sequence[int] = (64, 128, 256, 512)

    def steps(self, facts: ModelFacts) -> list[Step]:
        if any(chunk < self.prompt for chunk in self.chunk):
            require_context(facts)
        if too_long := [chunk for chunk in self.chunk if chunk > self.prompt]:
            raise ValueError(f"a chunk of {too_long[0]} tokens is longer than the prompt of {self.prompt}")
        whole = [Step(self.prompt)]
        return list(dict.fromkeys([*whole, *(step for chunk in self.chunk for step in self._measured(chunk))]))

    def _starts(self, chunk: int) -> list[int]:
        return list(range(0, self.prompt, chunk))

    def _measured(self, chunk: int) -> list[Step]:
        starts = self._starts(chunk)
        if len(starts) > MOST_CHUNKS:
            starts = [starts[0], starts[len(starts) // 2], starts[-1]]
        return [Step(chunk, start) for start in starts]

    def results(self, measured: Measured) -> Iterator[Curve | str]:
        whole, total, longest = measured.wall(Step(self.prompt)), [], []
        for chunk in self.chunk:
            steps, parts = self._measured(chunk), self._starts(chunk)
            places = [float(step.context) for step in steps]

            def together(*times: float, parts: list[int] = parts, places: list[float] = places) -> float:
                whole_chunks = sum(interpolated(start, places, list(times)) for start in parts)
                last = self.prompt - parts[-1]  # a shorter last chunk counts in proportion to its tokens
                return whole_chunks - times[-1] * (1 - last / (parts[1] if len(parts) > 1 else self.prompt))

            times = [measured.wall(step) for step in steps]
            total.append(Row(chunk, derived(together, *times)))
            longest.append(Row(chunk, derived(max, *times) if len(times) > 1 else times[0]))
        yield Curve(
            "the whole prompt", "tokens of a chunk", "s", total, f"All chunks of {self.prompt} tokens, added up."
        )
        share = [Row(row.x, derived(lambda a, b: a / b, row.quantity, whole)) for row in total]
        yield Curve("the whole prompt ÷ at once", "tokens of a chunk", "×", share, "Above 1 the chunks cost time.")
        yield Curve("longest step", "tokens of a chunk", "s", longest, "A sequence that decodes waits so long.")


@dataclass(frozen=True)
class Prefix:
    """It measures a prompt whose beginning is cached, and whether to load that cache or to compute it again.

    Args:
        prompt: tokens of the prompt.
        shared: parts of it that are cached.
    """

    prompt: int = 512
    shared: Sequence[float] = (0.5, 0.75, 0.9375)

    def steps(self, facts: ModelFacts) -> list[Step]:
        require_context(facts)
        if any(not 0 < share < 1 for share in self.shared):
            raise ValueError("shared parts of a prompt lie between 0 and 1")
        if not all(0 < cached < self.prompt for cached in self._cached()):
            raise ValueError(f"a prompt of {self.prompt} tokens is too short for these parts; use a longer one")
        return [Step(self.prompt), *map(self._rest, self._cached()), *map(load_kv, self._cached())]

    def _cached(self) -> list[int]:
        return [round(share * self.prompt) for share in self.shared]

    def _rest(self, cached: int) -> Step:
        return Step(self.prompt - cached, cached)

    def results(self, measured: Measured) -> Iterator[Curve | str]:
        whole = measured.wall(Step(self.prompt))
        rows = [Row(0, whole), *(Row(cached, measured.wall(self._rest(cached))) for cached in self._cached())]
        yield Curve("prefill behind a cached prefix", "cached tokens", "s", rows, f"The rest of {self.prompt} tokens.")
        saved = [Row(row.x, derived(lambda rest, all_of_it: 1 - rest / all_of_it, row.quantity, whole)) for row in rows]
        yield Curve("saved part of the prefill", "cached tokens", "×", saved[1:], "1 − its time ÷ that of the whole.")
        even, loads = [], []
        for cached in self._cached():
            rest, load = self._rest(cached), load_kv(cached)
            if (kv_bytes := measured.loaded_bytes(load)) is None:
                continue
            spare = derived(lambda all_of_it, part: all_of_it - part, whole, measured.wall(rest))
            note = size(kv_bytes)
            needed = derived(lambda seconds, of=kv_bytes: of / seconds, spare)
            even.append(Row(cached, needed if (needed.measured or 1.0) > 0 else Quantity(), note=note))
            loads.append(Row(cached, measured.load(load), "load from the host's memory", note))
            loads.append(Row(cached, spare, "compute again", note))
        yield Curve(
            "load or compute the prefix",
            "cached tokens",
            "s",
            loads,
            "To compute: what the prefix adds to the prefill.",
        )
        note = "A link or store below this bandwidth takes longer to bring the keys and values than to compute them."
        yield Curve("break-even bandwidth", "cached tokens", "B/s", even, note)
        yield from _cheaper(loads)


def _cheaper(rows: Sequence[Row]) -> Iterator[str]:
    """A sentence on the longest prefix."""
    if len(rows) < 2:
        return
    load, compute = rows[-2].quantity.measured, rows[-1].quantity.measured
    if load is None or compute is None:
        return
    verdict = "loading is faster" if load < compute else "computing again is faster"
    yield f"{number(float(rows[-1].x))} tokens: load {seconds(load)}, compute {seconds(max(compute, 0.0))}: {verdict}"


def load_kv(tokens: int) -> Step:
    """Return the step that brings the keys and values of so many tokens from the host's memory."""
    return Step(1, tokens, change=LOAD_KV)


@dataclass(frozen=True)
class Disaggregate:
    """It measures the bytes of keys and values that a prompt leaves, and their time over each link.

    Prefill and decode on different devices (DistServe, arXiv 2401.09670; Splitwise, arXiv 2311.18677) pay if the
    transfer is short beside the prefill.

    Args:
        prompt: tokens of the prompt.
        network: bytes/s of links that the device's file does not list; those of 100 and 400 Gbit/s if not given.
    """

    prompt: Sequence[int] = (128, 512)
    network: Sequence[float] = (12.5e9, 50e9)

    def steps(self, facts: ModelFacts) -> list[Step]:
        require_context(facts)
        return [step for prompt in self.prompt for step in (Step(prompt), load_kv(prompt))]

    def results(self, measured: Measured) -> Iterator[Curve | str]:
        sent, token, share = [], [], []
        for prompt in self.prompt:
            load = load_kv(prompt)
            if (kv_bytes := measured.loaded_bytes(load)) is None:
                continue
            sent.append(Row(prompt, Quantity(kv_bytes, 0.0)))
            ways = {"host's memory": measured.load(load)}
            for name, link in measured.links.items():
                latency_s = link.latency_s.value if link.latency_s else 0.0
                ways[name] = Quantity(predicted=kv_bytes / link.bandwidth.value + latency_s)
            ways |= {bytes_per_s(rate): Quantity(predicted=kv_bytes / rate) for rate in self.network}
            for name, way in ways.items():
                token.append(Row(prompt, derived(lambda s, of=prompt: s / of, way), name))
                share.append(Row(prompt, derived(lambda a, b: a / b, way, measured.wall(Step(prompt))), name))
        yield Curve("keys and values of a prompt", "prompt", "B", sent, "Counted from the cache that the pass fills.")
        note = "Over a link: bytes ÷ bandwidth, and its latency once. The host's memory is measured."
        yield Curve("transfer of one token's keys and values", "prompt", "s", token, note)
        yield Curve(
            "transfer ÷ prefill", "prompt", "×", share, "Below 1 the transfer can hide behind the next prefill."
        )
