"""Module paths where there is little room: the middle goes, and what is left still says which path it is.

Example: ``shortened(["model.layers.*.self_attn.q_proj"], 23) == ["model…self_attn.q_proj"]``
"""

from collections.abc import Collection, Sequence

Cut = tuple[str, str]
"""What stays before and after the "…"."""


def shortened(paths: Sequence[str], width: int) -> list[str]:
    """Paths of at most `width` characters, cut at dots where possible, and none that could be another's.

    Only where `width` is too small to tell two paths apart do they look alike.
    """
    chosen = {path: path if len(path) <= width else _cut(path, set(paths), width) for path in paths}
    return [chosen[path] for path in paths]


def _cut(path: str, paths: Collection[str], width: int) -> str:
    cuts = [cut for cut in (*_at_dots(path), *_anywhere(path, width)) if len("…".join(cut)) <= width]
    sure = (cut for cut in cuts if sum(other.startswith(cut[0]) and other.endswith(cut[1]) for other in paths) == 1)
    return "…".join(next(sure, cuts[0]))


def _at_dots(path: str) -> list[Cut]:
    """Whole parts of a path, the best first: its start and more than one part of its end, as long as possible."""
    parts = path.split(".")
    cuts = [(parts[:i], parts[-j:]) for i in range(len(parts)) for j in range(1, len(parts) - i)]
    cuts.sort(key=lambda cut: (bool(cut[0]), cut[1][0] != "*", len(cut[1]) > 1, sum(map(len, cut[0] + cut[1]))))
    return [(".".join(start), ".".join(end)) for start, end in reversed(cuts)]


def _anywhere(path: str, width: int) -> list[Cut]:
    """Cuts within a word that fill the width, those with a third of it at the start first."""
    kept = max(width - 1, 0)
    heads = sorted(range(kept + 1), key=lambda head: abs(head - kept // 3))
    return [(path[:head], path[len(path) - (kept - head) :]) for head in heads]
