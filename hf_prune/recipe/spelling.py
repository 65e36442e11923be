"""How a field may be written: flat (`heal_rank: 8`, `--heal-rank 8`) or in its group (`heal: {rank: 8}`)."""

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from hf_prune.data.plain_yaml import read_yaml
from hf_prune.errors import InvalidRecipe
from hf_prune.recipe.fields import Fields, Group


@dataclass(frozen=True)
class Option:
    """A field as flags, flat YAML and reports know it.

    `path` is the way to it, ("heal", "rank") or ("seed",); `about` says what its group is for.
    """

    name: str
    path: tuple[str, ...]
    field: FieldInfo
    about: str = ""

    @property
    def flag(self) -> str:
        """How the command line spells it: `--heal-rank`, `--variant`."""
        return "--" + (self._extra.get("flag") or self.name.replace("_", "-"))

    @property
    def first(self) -> bool:
        """Whether most people need it."""
        return bool(self._extra.get("first"))

    def of(self, model: BaseModel) -> Any:
        """Its value in a recipe."""
        for name in self.path:
            model = getattr(model, name)
        return model

    @property
    def _extra(self) -> Mapping[str, Any]:
        return self.field.json_schema_extra or {}


def options_of(model: type[BaseModel], within: tuple[str, ...] = ()) -> Iterator[Option]:
    """Every field of a model, those of its groups included, in the order of the definition."""
    about = model.__doc__[0].lower() + model.__doc__[1:].removesuffix(".") if within else ""
    for name, field in model.model_fields.items():
        path = (*within, name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, Group):
            yield from options_of(field.annotation, path)
        else:
            yield Option((field.json_schema_extra or {}).get("flat") or name, path, field, about)


OPTIONS = {option.name: option for option in options_of(Fields)}
"""By flat name."""
GROUPS: dict[str, type[Group]] = {
    option.path[0]: Fields.model_fields[option.path[0]].annotation for option in OPTIONS.values() if option.path[1:]
}
FLAT = {option.path: option.name for option in OPTIONS.values()}


def flatten(asked: Mapping[Any, Any]) -> dict[str, Any]:
    """Fields spelled flat, in groups, or both, by their flat names; values are not looked at.

    Raises:
        ValueError: an unknown key, or a field that is spelled twice with different values.
    """
    flat: dict[str, Any] = {}
    words: dict[str, str] = {}
    for key, value in asked.items():
        for said, name, one in _entries(key, value):
            if name in flat and not _same(name, flat[name], one):
                raise ValueError(f"{words[name]} and {said} are one field with two values; leave one of them out")
            flat[name], words[name] = one, said
    return flat


def _entries(key: Any, value: Any) -> Iterator[tuple[str, str, Any]]:
    """How it was spelled, its flat name, its value; of everything that stands behind a key."""
    group = GROUPS.get(key)
    if isinstance(value, Group):
        value = {name: getattr(value, name) for name in value.model_fields_set}
    if group and isinstance(value, Mapping):
        for name, one in value.items():
            if name not in group.model_fields:
                raise ValueError(_unknown(name, key))
            yield f"{key}.{name}", FLAT[key, name], one
    elif key in OPTIONS:
        yield key, key, value
    elif group and group.main:
        yield key, FLAT[key, group.main], value
    elif group:
        raise ValueError(f"{key} is a group and takes fields, not a value: {', '.join(group.model_fields)}")
    else:
        raise ValueError(_unknown(key))


def _same(name: str, one: Any, other: Any) -> bool:
    """Whether two spellings of a value, such as 1M and 1000000, mean the same."""
    reader = TypeAdapter(OPTIONS[name].field.rebuild_annotation())
    try:
        return reader.validate_python(one) == reader.validate_python(other)
    except ValidationError:
        return False


def _unknown(key: Any, group: str = "") -> str:
    """An unknown key with the nearest right name, of its own group if that has one that is near."""
    written = str(key)[:60]
    said = f"unknown key {written!r}" + (f" in {group}" if group else "")
    if group and (near := difflib.get_close_matches(written, GROUPS[group].model_fields, 1)):
        return f"{said}; did you mean {near[0]!r}?"
    places: dict[str, list[str]] = {name: [] for name in Fields.model_fields}
    for option in OPTIONS.values():
        for name in {option.name, option.path[-1]}:
            places.setdefault(name, []).extend([".".join(option.path)] if option.path[1:] else [])
    if near := difflib.get_close_matches(written, places, 1, 0.4):
        where = " or ".join(places[near[0]])
        if near[0] == written:
            return f"{said}; it is {where}" if where else f"{said}; it stands outside of groups"
        return f"{said}; did you mean {near[0]!r}?" + (f" It is {where}" if where else "")
    return f"{said}; known keys: {', '.join(GROUPS[group].model_fields if group else Fields.model_fields)}"


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Flat names in their groups, in the order of the definition; unknown ones stay as they are, at the end."""
    nested: dict[str, Any] = {}
    for name, option in OPTIONS.items():
        if name in flat:
            place = nested.setdefault(option.path[0], {}) if option.path[1:] else nested
            place[option.path[-1]] = flat[name]
    return nested | {name: value for name, value in flat.items() if name not in OPTIONS}


def spelled(name: str) -> str:
    """How the command line spells a field, by its flat name: `--heal-lr`, `--variant`."""
    return OPTIONS[name].flag


def flagged(name: str, value: Any) -> list[str]:
    """A field and its value on the command line: `["--variant", "a", "--variant", "b"]`, `["--repair"]`."""
    if isinstance(value, bool):
        return [spelled(name) if value else f"--no-{spelled(name)[2:]}"]
    return [word for one in (value if isinstance(value, list) else [value]) for word in (spelled(name), str(one))]


def read(path: str | Path) -> Mapping[Any, Any]:
    """The keys and values of a YAML file.

    Raises:
        InvalidRecipe: no such file, no YAML, or no mapping.
    """
    try:
        raw = read_yaml(Path(path).read_text(encoding="utf-8-sig")) or {}
    except FileNotFoundError:
        raise InvalidRecipe(f"There is no recipe file {path} here; check the path given as --recipe.") from None
    except (OSError, ValueError) as e:
        problem = getattr(e, "strerror", None) or e
        raise InvalidRecipe(f"Cannot read the recipe {path}: {problem}.") from None
    if not isinstance(raw, Mapping):
        raise InvalidRecipe(f"The recipe {path} must be a mapping of keys to values.")
    return raw
