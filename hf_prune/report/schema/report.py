"""What report.json holds: everything the card says, for programs."""

import json
from pathlib import Path
from typing import Any, Self

from pydantic import Field, ValidationError, field_validator

from hf_prune.errors import InvalidReport
from hf_prune.report.schema.course import (
    Certificate,
    Hardware,
    Healing,
    Latency,
    Learning,
    Merging,
    Repair,
    SearchSummary,
    Selection,
    Split,
)
from hf_prune.report.schema.model import Ends, LayerFate, LayerOrigin, LayerWidth, Member, Size, SourceCard
from hf_prune.report.schema.scores import Baseline, Generation, Retention, Speed, Stages, Task, Text
from hf_prune.report.schema.section import Count, Number, Section

VERSION = 1
"""Of the layout: keys and nesting. A reader of another version could not know what they mean."""


class Report(Section):
    """What was asked for, how the model was made, what it is, and what was measured; corpora and tasks by name.

    The corpus `all` stands for all text, and what is absent in an old report was not measured then.
    `command` has a line for every command that took part; `recipe` is what was asked for, without paths. From `parents`
    to `ends` there is something in models made of several parents only: their names, the best of them, who was the
    teacher on which corpus, and what every output layer is made of. `hypervolume` is (candidates so far, hypervolume of
    the front). `seconds` by stage of the run.
    """

    version: int = Field(VERSION, ge=1)
    hf_prune: str | None = None
    command: str | None = None
    recipe: dict[str, Any] = {}
    recipe_digest: str | None = None
    digest: str = ""
    sources: tuple[SourceCard, ...] = ()
    method: str = ""
    search: str = ""
    objective: str = "kl"
    seed: int = 0
    size: Size
    layers: tuple[LayerFate, ...]
    widths: tuple[LayerWidth, ...] | None = None
    own_code: bool = False
    parents: tuple[str, ...] = ()
    dense_parent: str | None = None
    teachers: dict[str, str] = {}
    origins: tuple[LayerOrigin, ...] = ()
    ends: Ends | None = None
    splits: dict[str, Split] = {}
    text: dict[str, Text] = {}
    baselines: tuple[Baseline, ...] = ()
    tasks: dict[str, Task] = {}
    stages: Stages | None = None
    generation: Generation | None = None
    speed: Speed | None = None
    retention: Retention | None = None
    tuning: Learning | None = None
    repair: Repair | None = None
    healing: Healing | None = None
    selection: Selection | None = None
    merging: Merging | None = None
    search_summary: SearchSummary | None = None
    certificate: Certificate | None = None
    front: tuple[Member, ...] | None = None
    hypervolume: tuple[tuple[Count, Number], ...] | None = None
    hardware: Hardware | None = None
    versions: dict[str, str] = {}
    latency: Latency | None = None
    seconds: dict[str, Number] = {}

    @property
    def push_to(self) -> str | None:
        """The repo that the recipe asked to publish to."""
        return self.recipe.get("push_to")

    @property
    def trusts_code(self) -> bool:
        """Whether the base brings code of its own."""
        return bool(self.recipe.get("trust_remote_code"))

    @classmethod
    def load(cls, path: Path, name: str | None = None) -> Self:
        """Read a report.json, perhaps a stranger's.

        Args:
            path: of the file.
            name: what an error calls it; default: its path.

        Raises:
            InvalidReport: it cannot be read; the message names the file and the field.
        """
        name = name or str(path)
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as e:
            raise InvalidReport(_complaint(name, getattr(e, "strerror", None) or "it is no text")) from None
        return cls.from_json(text, name)

    @classmethod
    def from_json(cls, text: str, name: str = "report.json") -> Self:
        """Read what `to_json` wrote; `name` is what an error calls it. Raises as `load` does."""
        try:
            return cls.model_validate_json(text)
        except ValidationError as e:
            raise InvalidReport(_complaint(name, _wrong(e))) from None

    @classmethod
    def from_dict(cls, raw: Any, name: str = "report.json") -> Self:
        """The same for JSON that is read already."""
        try:
            return cls.model_validate(raw)
        except ValidationError as e:
            raise InvalidReport(_complaint(name, _wrong(e))) from None

    def to_json(self) -> str:
        """JSON text as the standard has it."""
        return json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n"

    @field_validator("version")
    @classmethod
    def _known(cls, version: int) -> int:
        if version > VERSION:
            raise ValueError(f"this hf_prune reads version {VERSION}, not {version}; upgrade it")
        return version


def _complaint(name: str, what: str) -> str:
    return f"{name} holds no report of hf_prune ({what}); name one that compress wrote."


def _wrong(error: ValidationError) -> str:
    """The first field that is wrong and how; a later version explains all else."""
    found = error.errors(include_url=False, include_input=False)
    first = next((e for e in found if e["loc"] == ("version",)), found[0])
    field = ".".join(str(step)[:40] for step in first["loc"])
    what = first["msg"].removeprefix("Value error, ")
    return f"{field}: {what}" if field else what
