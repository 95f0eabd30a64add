"""The division of a graph's operations among the ranks of tensor parallelism, found from its dataflow.

The scheme is Megatron's (Shoeybi et al., arXiv 1909.08053, section 3): a product with a weight divides its output
(column) where that reaches, through work on single features or heads only, another product with a weight, which then
divides its input (row) and leaves partial sums. Every tensor is whole on each rank, divided (a share of its features
or heads), or partial (to be summed over the ranks). Operations are followed in order; where one needs all features of
a divided tensor (a norm over the full width, the choice of experts, a convolution), the products that divided it are
kept whole, and all is followed again, until nothing changes. So low-rank projections in front of a norm, routers and
state-space mixers stay whole without being known by name.

- Attention takes its heads of what is whole or divided; key-value heads are divided, or copied if they are fewer
  than the ranks, each rank keeping at least one. Where the keys and values of a cache are read as heads, a rank holds
  its heads only; a cache of latents, or of states, is whole.
- Partial sums pass through what is linear (scaling, gathering, summing, adding others) and are summed where they are
  smallest: once for an attention and once for a feed-forward, experts and shared experts together.
- An embedding whose row numbers come from outside divides its rows. What nobody reads at the end is gathered.
"""

from collections.abc import Iterable, Sequence
from math import ceil, isclose

from roofline.graph.dataflow import GATHERS, Dataflow
from roofline.graph.linear import is_side
from roofline.graph.op import PRODUCTS, Access, Kind, Op, OpGraph
from roofline.whatif import tensor_parallel_rules as rules
from roofline.whatif.tensor_parallel_rules import WHOLE, Labels, Plan, Shares, State


def plan(graph: OpGraph, degree: int) -> Plan:
    """The plan of one of `degree` ranks; whether heads and widths divide is not checked."""
    flow = Dataflow(graph)
    whole: frozenset[int] = frozenset()
    padded: frozenset[int] = frozenset()
    while True:
        attempt = _Pass(flow, degree, whole, padded)
        attempt.run()
        if attempt.blocked <= whole and attempt.heads <= padded:
            attempt.plan.padded = padded
            return attempt.plan
        padded |= attempt.heads if attempt.blocked <= whole else frozenset()
        whole |= attempt.blocked


class _Pass:
    """Follows the operations once, with some of them kept whole."""

    def __init__(self, flow: Dataflow, degree: int, whole: frozenset[int], padded: frozenset[int]) -> None:
        graph = flow.graph
        self.graph, self.flow, self.degree = graph, flow, degree
        self.kept_whole, self.padded = whole, padded
        self.tokens = graph.workload.batch * graph.workload.query_tokens
        self.labels: Labels = rules.head_labels(graph, degree, whole)
        self.plan = Plan([Shares([1.0] * len(op.reads), [1.0] * len(op.writes)) for op in graph.ops])
        self.blocked: set[int] = set()
        self.heads: set[int] = set()
        """Column products whose output nobody reads, such as logits: their width need not divide."""
        self.states: dict[int, State] = {}
        self.static = {tensor.id for tensor in graph.tensors if tensor.role == "weight"}
        """Weights, and tensors made of weights alone."""
        self.rows: set[int] = set()  # of these, rows that were picked for each token, such as biases of experts
        self.blank: set[int] = set()  # set to a constant: as good as partial
        self.done: set[tuple[int, int]] = set()

    def run(self) -> None:
        for i, op in enumerate(self.graph.ops):
            written = {access.tensor for access in op.writes}
            if self._is_static(op):
                self.static |= written
                picked = op.name in GATHERS or any(a.tensor in self.rows for a in op.reads)
                self.rows |= written if picked else set()
            else:
                self._step(i, op)
            self.blank = self.blank | written if not op.reads else self.blank - written
        self._gather_outputs()
        self._share_static()
        self.plan.whole = [
            i
            for i, op in enumerate(self.graph.ops)
            if op.kind in PRODUCTS and i not in self.plan.split and any(a.tensor in self.static for a in op.reads)
        ]

    def state(self, tensor: int) -> State:
        """The part of a tensor that a rank has now."""
        state = self.states.get(tensor)
        if state is None:
            is_heads = self.graph.tensors[tensor].role == "kv" and self.labels.of(tensor)
            share = self.labels.share(tensor) if is_heads else 1.0
            return State(share=share) if share < 1 else WHOLE
        if state.origins & self.blocked or (state.sums and self.done.issuperset(state.sums)):
            return WHOLE
        return state

    def _is_static(self, op: Op) -> bool:
        """Return whether an operation works on weights alone, even if at rows that the tokens pick."""
        read = [a.tensor for a in (op.reads[:1] if op.name in GATHERS else op.reads)]
        fixed = bool(read) and self.static.issuperset(read) and op.kind not in PRODUCTS | {Kind.EMBEDDING}
        return fixed and not any(a.tensor in self.states for a in op.writes)

    def _step(self, i: int, op: Op) -> None:
        states = [WHOLE if a.tensor in self.static else self.state(a.tensor) for a in op.reads]
        if any(state.sums for state in states):
            if rules.is_linear(op, states, self.static, self.blank):
                self._pass_sums(i, op, states)
                return
            for state in states:
                self._sum(state)
            states = [WHOLE if state.sums else state for state in states]
        if op.kind in PRODUCTS:
            self._product(i, op, states)
        elif op.kind is Kind.ATTENTION:
            self._attention(i, op, states)
        elif op.kind is Kind.EMBEDDING:
            self._embedding(i, op, states)
        elif rules.is_featurewise(op, states, self.static, self.labels):
            self._featurewise(i, op, states)
        else:
            self._stay_whole(op, states)

    def _pass_sums(self, i: int, op: Op, states: Sequence[State]) -> None:
        """The result is partial too; it is summed itself, unless its sources are smaller or needed anyway."""
        points = tuple(dict.fromkeys(p for state in states for p in state.sums if p not in self.done))
        sources = {a.tensor for a, state in zip(op.reads, states, strict=True) if state.sums}
        target = max(op.writes, key=lambda a: a.bytes)
        size = sum(a.bytes for at, tensor in points for a in self.graph.ops[at].writes if a.tensor == tensor)
        alone = all(all(r <= i for r in self.flow.readers[t]) for t in sources - {target.tensor})
        moves = target.bytes <= size and alone and any(r > i for r in self.flow.readers[target.tensor])
        self._write(op, State(sums=((i, target.tensor),) if moves else points))

    def _sum(self, state: State) -> None:
        for point in state.sums:
            if point not in self.done:
                self.done.add(point)
                self.plan.summed.setdefault(point[0], []).append(point[1])

    def _product(self, i: int, op: Op, states: list[State]) -> None:
        weights = [j for j, a in enumerate(op.reads) if a.tensor in self.static]
        inputs = [j for j in range(len(op.reads)) if j not in weights]
        if not weights or not inputs:
            self._activation_product(i, op, states)
            return
        x = max(inputs, key=lambda j: op.reads[j].bytes)
        state = states[x]
        if state.share < 1 and not self._can_contract(op, op.reads[x], state):
            self._keep_whole([state])
            state = WHOLE
        if state.share < 1:
            self._row(i, op, x, weights, state)
            return
        out = op.writes[0].tensor
        share = self.labels.share(out)
        if i in self.padded:
            share = ceil(op.dims["n"] / self.degree) / op.dims["n"]
        if i in self.kept_whole or op.dims.get("n", 0) < self.degree or share == 1:
            self._write(op, WHOLE)
            return
        self._split(i, op, "column", [share if j in weights else 1.0 for j in range(len(op.reads))], share)
        mixed, tokens = self.labels.is_mixed(out), op.dims.get("m", 0)
        self._write(op, State(share, frozenset({i}), tokens=tokens, is_product=True, is_mixed=mixed))

    def _split(self, i: int, op: Op, how: str, reads: list[float], share: float) -> None:
        self.plan.split[i] = how
        self.plan.shares[i] = Shares(reads, [share] * len(op.writes), share, share)

    def _can_contract(self, op: Op, x: Access, state: State) -> bool:
        """Return whether a product can divide its input: all of a rank's part, in equal shares, and worked on since.

        Two products in a row are a bottleneck (a low rank, an adapter): the first one stays whole.
        """
        equal = isclose(state.share, 1 / self.degree) and not state.is_mixed
        return equal and not state.is_product and x.bytes == self.graph.tensors[x.tensor].storage_bytes

    def _row(self, i: int, op: Op, x: int, weights: list[int], state: State) -> None:
        share, matrix = state.share, max(weights, key=lambda j: op.reads[j].bytes)
        width = op.dims.get("n", 0) * op.dims.get("groups", 1)
        largest = {True: 4 * width, False: 8 * width}  # bytes of one scale, or one bias, for each output
        bias = [j for j in weights if j != matrix and op.reads[j].bytes <= largest[is_side(self.graph, op.reads[j])]]
        divided = {x, *weights} - set(bias)
        added = min(op.vector_flops, op.dims.get("b", 1) * op.dims.get("m", 0) * op.dims.get("n", 0)) if bias else 0
        vector = (added + share * (op.vector_flops - added)) / op.vector_flops if op.vector_flops else 1.0
        self.plan.split[i] = "row"
        reads = [share if j in divided else 1.0 for j in range(len(op.reads))]
        self.plan.shares[i] = Shares(reads, [1.0] * len(op.writes), share, vector)
        self._write(op, State(sums=((i, op.writes[0].tensor),)))

    def _activation_product(self, i: int, op: Op, states: list[State]) -> None:
        """Attention in pieces: a batch of heads, of which a rank has its own."""
        if all(state.share == 1 for state in states) or self.labels.pieces.get(i, 1) % self.degree:
            self._stay_whole(op, states)
            return
        share = 1 / self.degree
        large = [a.bytes * 2 > op.writes[0].bytes for a in op.reads]  # else a mask that all heads share
        self._split(i, op, "heads", [share if j < 2 or large[j] else 1.0 for j in range(len(op.reads))], share)
        self._write(op, State(share, self._origins(states), tokens=self.tokens, is_scores=True))

    def _attention(self, i: int, op: Op, states: list[State]) -> None:
        if i in self.kept_whole or "heads" not in op.dims:
            self._stay_whole(op, states)
            return
        share, kv = 1 / self.degree, self.labels.kv_share(rules.kv_heads(self.graph, op))
        self._split(i, op, "heads", [share, kv, kv, *[1.0] * len(op.reads)][: len(op.reads)], share)
        self._write(op, State(share, self._origins(states) | {i}, tokens=self.tokens))

    def _embedding(self, i: int, op: Op, states: list[State]) -> None:
        table = next((j for j, a in enumerate(op.reads) if a.tensor in self.static), None)
        numbers = [a.tensor for a in op.reads if a.tensor not in self.static]
        outside = all(not self.flow.writers[t] and self.graph.tensors[t].role == "activation" for t in numbers)
        self._stay_whole(op, states)
        if table is None or not numbers or not outside or i in self.kept_whole or not op.dims.get("rows"):
            return
        row_bytes = op.writes[0].bytes / op.dims["rows"]
        rows = round(self.graph.tensors[op.reads[table].tensor].storage_bytes / row_bytes)
        if rows >= self.degree:
            self.plan.split[i] = "rows"
            self.plan.shares[i].reads[table] = ceil(rows / self.degree) / rows
            self._write(op, State(sums=((i, op.writes[0].tensor),)))

    def _featurewise(self, i: int, op: Op, states: list[State]) -> None:
        divided = [s for s in states if s.share < 1]
        has_label = any(self.labels.of(a.tensor) for a in op.writes)
        labelled = [share for a in op.writes if self.labels.of(a.tensor) and (share := self.labels.share(a.tensor)) < 1]
        cached = any(self.graph.tensors[a.tensor].role == "kv" for a in op.writes)
        into = [s for a in op.writes if (s := self.state(a.tensor)).share < 1] if op.kind is Kind.COPY else []
        starts = op.kind is Kind.COPY and cached and labelled and i not in self.kept_whole
        if not divided and not into and not starts:
            self._write(op, WHOLE)
            return
        mixed = any(self.labels.is_mixed(a.tensor) for a in op.writes)
        share = max(labelled, default=1.0) if has_label else max(s.share for s in (*divided, *into))
        reads = rules.read_shares(op, states, share, self.static, self.rows)
        self.plan.shares[i] = Shares(reads, [share] * len(op.writes), share, share)
        origins = self._origins(states) | (frozenset() if divided else {i})
        tokens, scores = max((s.tokens for s in divided), default=self.tokens), any(s.is_scores for s in divided)
        made = State(share, origins, tokens=tokens, is_scores=scores, is_mixed=mixed)
        self._write(op, made if share < 1 else WHOLE)

    def _keep_whole(self, states: Iterable[State]) -> None:
        self.blocked.update(*(state.origins for state in states))

    def _stay_whole(self, op: Op, states: Iterable[State]) -> None:
        self._keep_whole(states)
        self._write(op, WHOLE)

    def _origins(self, states: Iterable[State]) -> frozenset[int]:
        return frozenset().union(*(state.origins for state in states))

    def _write(self, op: Op, state: State) -> None:
        for a in op.writes:
            self.states[a.tensor] = state

    def _gather_outputs(self) -> None:
        """Outputs of the model, which nobody in the graph reads, are put together."""
        for i, op in enumerate(self.graph.ops):
            unread = [a for a in op.writes if not any(r > i for r in self.flow.readers[a.tensor])]
            if len(unread) < len(op.writes):
                continue
            for a in unread:
                state = self.state(a.tensor)
                if self.graph.tensors[a.tensor].role == "kv" or self.flow.writers[a.tensor][-1] != i:
                    continue
                if state.sums:
                    self._sum(state)
                elif state.share < 1:
                    self.plan.gathered.setdefault(i, []).append(a.tensor)
                    self.heads |= {o for o in state.origins if self.graph.ops[o].dims.get("n", 0) % self.degree}

    def _share_static(self) -> None:
        """Tensors made of weights alone are made as far as they are read."""
        wanted: dict[int, float] = {}
        for i in range(len(self.graph.ops) - 1, -1, -1):
            op, shares = self.graph.ops[i], self.plan.shares[i]
            made = [wanted.get(a.tensor, 1.0) for a in op.writes]
            if op.writes and all(a.tensor in self.static for a in op.writes) and max(made) < 1:
                share = max(made)
                reads = [share if a.tensor in self.static else 1.0 for a in op.reads]
                self.plan.shares[i] = shares = Shares(reads, made, share, share)
            for a, share in zip(op.reads, shares.reads, strict=True):
                if a.tensor in self.static:
                    wanted[a.tensor] = max(share, wanted.get(a.tensor, 0.0))
