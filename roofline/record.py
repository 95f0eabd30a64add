"""The base of every record: immutable, validated when it is made, and strict about what it does not know.

A file from a newer roofcal is refused by its schema number before its unknown fields are complained about. No figure of
a record is NaN or infinite.
"""

from collections.abc import Mapping
from typing import Any, Self

from pydantic import BaseModel, ConfigDict


class Record(BaseModel):
    """An immutable value; an unknown field or an impossible value is an error that names the field."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """A copy with other values, not validated; what was computed from the old ones does not come along."""
        copy = super().model_copy(update=update, deep=deep)
        for name in vars(copy).keys() - type(self).model_fields.keys():
            del vars(copy)[name]
        return copy
