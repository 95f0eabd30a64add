"""Tells which module is running: every module's `forward` is entered and left under the module's path.

The same paths serve the trace, where they are kept on a stack, and the device, where they are profiler ranges.
A wrapped `forward` keeps `nn.Module.__call__` on its fast path, which hooks do not.

Example: ``with entered(model, torch._C._profiler._RecordFunctionFast): model(**inputs)``
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import wraps
from typing import Any

from torch import nn

PREFIX = "roofcal:"
"""Starts the name of each of our profiler ranges, so that no operator or module of a user is taken for one."""


@contextmanager
def entered(model: nn.Module, enter: Callable[[str], AbstractContextManager[Any]]) -> Iterator[None]:
    """Run every module's forward inside ``enter(path)``; the model itself has path ""."""
    modules = list(model.named_modules())
    had = {path for path, module in modules if "forward" in vars(module)}
    originals = [module.forward for _, module in modules]
    for (path, module), forward in zip(modules, originals, strict=True):

        @wraps(forward)
        def inside(*args: Any, _forward: Any = forward, _path: str = path, **kwargs: Any) -> Any:
            with enter(_path):
                return _forward(*args, **kwargs)

        module.forward = inside
    try:
        yield
    finally:
        for (path, module), forward in zip(modules, originals, strict=True):
            if path in had:
                module.forward = forward
            else:
                del module.forward
