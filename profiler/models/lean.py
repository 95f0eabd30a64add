"""Loads `transformers` without two things that its import does for others and that take half a second.

- `scipy.optimize`, for the losses of object detectors: what they take of it is loaded when it is first called.
- The list of what each of its 3,300 model files exports is read from disk twice: the second is made from the first.

Where another version does neither, nothing is changed. Import this module before anything of `transformers`.

Example: ``import profiler.models.lean; from transformers import PreTrainedModel``
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import transformers
from transformers.utils import import_utils


def assign(*args: Any, **kwargs: Any) -> Any:
    """`scipy.optimize.linear_sum_assignment`."""
    from scipy.optimize import linear_sum_assignment

    return linear_sum_assignment(*args, **kwargs)


@contextmanager
def _optimize_later() -> Iterator[None]:
    name = "scipy.optimize"
    if name in sys.modules:
        yield
        return
    stand_in = ModuleType(name)
    stand_in.linear_sum_assignment = assign  # type: ignore[attr-defined]
    sys.modules[name] = stand_in
    try:
        yield
    finally:
        del sys.modules[name]


@contextmanager
def _exports_once() -> Iterator[None]:
    define = import_utils.define_import_structure
    folder = Path(transformers.__file__).parent / "models"

    def known(path: Any, prefix: str | None = None) -> Any:
        if prefix is not None or Path(path) != folder / "__init__.py":
            return define(path, prefix)
        all_of_it = define(folder, prefix="models")
        return {
            needs: {name.removeprefix("models."): found for name, found in files.items() if name.startswith("models.")}
            for needs, files in all_of_it.items()
        }

    import_utils.define_import_structure = known
    try:
        yield
    finally:
        import_utils.define_import_structure = define


with _optimize_later(), _exports_once():
    import transformers.modeling_utils
