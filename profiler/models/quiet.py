"""Keeps `transformers` and the hub client off stderr while they do what was asked; errors still come as exceptions.

Their log lines speak of training, generation and missing optional packages, which are no news to our user.

Example: ``with quiet(): AutoConfig.from_pretrained(folder)``
"""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

LOGGERS = ("transformers", "huggingface_hub")


def silence() -> None:
    """Drop their log lines below ERROR for the rest of the process; for a program that owns its stderr."""
    for name in LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)


@contextmanager
def quiet() -> Iterator[None]:
    """Drop log lines below ERROR and Python warnings of the libraries that load models."""
    levels = {name: logging.getLogger(name).level for name in LOGGERS}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        silence()
        try:
            yield
        finally:
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)
