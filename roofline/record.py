"""The base of every record: immutable, validated when it is made, and strict about what it does not know.

A file from a newer roofcal is refused by its schema number before its unknown fields are complained about.
"""

from pydantic import BaseModel, ConfigDict


class Record(BaseModel):
    """An immutable value; an unknown field or an impossible value is an error that names the field."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)
