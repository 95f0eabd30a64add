"""The list of all serving kernels. Another family is its file and a line here; a provider is a row of its family.

Example: ``family_named("rms_norm").provider("inductor")``
"""

from difflib import get_close_matches

from profiler.kernels.serving import (
    attention,
    caches,
    collective,
    experts,
    paged,
    products,
    recurrent,
    rows,
    sampling,
    weight_only,
)
from profiler.kernels.serving.contract import Family, NotInstalled

FAMILIES: list[Family] = [
    *products.FAMILIES,
    *weight_only.FAMILIES,
    *experts.FAMILIES,
    *attention.FAMILIES,
    *paged.FAMILIES,
    *rows.FAMILIES,
    *caches.FAMILIES,
    *recurrent.FAMILIES,
    *sampling.FAMILIES,
    *collective.FAMILIES,
]
"""All families, in the order in which tables show them."""


def family_named(name: str) -> Family:
    """Return the family. Raises ValueError, one line with the nearest names."""
    known = {family.name: family for family in FAMILIES}
    if name not in known:
        raise ValueError(f"no kernel family {name!r}; {_nearest(name, list(known))}")
    return known[name]


def check_provider(name: str) -> None:
    """Raise ValueError, one line with the nearest names, where no family has such a provider."""
    known = list(dict.fromkeys(provider.name for family in FAMILIES for provider in family.providers))
    if name not in known:
        raise ValueError(f"no provider {name!r}; {_nearest(name, known)}")


def versions() -> dict[str, str | None]:
    """Return each package that some provider needs, with its version; None: not installed."""
    found: dict[str, str | None] = {}
    for provider in (provider for family in FAMILIES for provider in family.providers):
        try:
            found[provider.package] = provider.version
        except NotInstalled:
            found[provider.package] = None
    return found


def _nearest(name: str, known: list[str]) -> str:
    near = get_close_matches(name, known, n=3, cutoff=0.4)
    return f"nearest: {', '.join(near)}" if near else f"known: {', '.join(known)}"
