"""Sections that are a file of their own, perhaps a stranger's: read with care, written whole."""

import json
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import Field, ValidationError, field_validator

from hf_prune.errors import InvalidReport
from hf_prune.report.schema.section import Section

VERSION = 1
"""Of the layout: keys and nesting. A reader of another version could not know what they mean."""


class Document(Section):
    """A section with the version of its layout."""

    longest: ClassVar[int] = 1 << 28
    """Characters of the JSON: what is made of it has some for each."""
    version: int = Field(VERSION, ge=1)

    @classmethod
    def load(cls, path: Path, name: str | None = None) -> Self:
        """Read a file.

        Args:
            path: of the file.
            name: what an error calls it; default: its path.

        Raises:
            InvalidReport: it cannot be read; the message names the file and the field.
        """
        try:
            if path.stat().st_size > cls.longest:
                raise cls._refusal(name or str(path), f"it is longer than {cls.longest} bytes")
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as e:
            raise cls._refusal(name or str(path), getattr(e, "strerror", None) or "it is no text") from None
        return cls.from_json(text, name or str(path))

    @classmethod
    def from_json(cls, text: str, name: str = "This") -> Self:
        """Read what `to_json` wrote; `name` is what an error calls it. Raises as `load` does."""
        if len(text) > cls.longest:
            raise cls._refusal(name, f"it is longer than {cls.longest} characters")
        try:
            return cls.model_validate_json(text)
        except ValidationError as e:
            raise cls._refusal(name, _wrong(e)) from None

    @classmethod
    def from_dict(cls, raw: Any, name: str = "This") -> Self:
        """The same for JSON that is read already."""
        try:
            return cls.model_validate(raw)
        except ValidationError as e:
            raise cls._refusal(name, _wrong(e)) from None

    def to_json(self) -> str:
        """JSON text as the standard has it."""
        return json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n"

    @classmethod
    def _refusal(cls, name: str, what: str) -> InvalidReport:
        kind = cls.__name__.lower()
        return InvalidReport(f"{name} holds no {kind} of hf_prune ({what}); name one that compress wrote.")

    @field_validator("version")
    @classmethod
    def _known(cls, version: int) -> int:
        if version > VERSION:
            raise ValueError(f"this hf_prune reads version {VERSION}, not {version}; upgrade it")
        return version


def _wrong(error: ValidationError) -> str:
    """The first field that is wrong and how; a later version explains all else."""
    found = error.errors(include_url=False, include_input=False)
    first = next((e for e in found if e["loc"] == ("version",)), found[0])
    field = ".".join(str(step)[:40] for step in first["loc"])
    what = first["msg"].removeprefix("Value error, ")
    return f"{field}: {what}" if field else what
