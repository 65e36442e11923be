"""What may leave this machine: recipes, command lines and free text without paths and tokens."""

import os
import re
import shlex
from collections.abc import Iterable, Mapping
from typing import Any

PATH_OPTIONS = {"--output", "-o", "--recipe", "-r", "--config", "--journal"}
ABSOLUTE = re.compile(r"(?<![\w.:/])(?:~|[A-Za-z]:[\\/]|\\\\|/)[^\s'\",;:)]*[\\/][^\s'\",;:)]*")
RECIPE_LEFT_OUT = {"output", "commit_message", "overwrite", "gguf", "gguf_apart", "track"}


def public_recipe(recipe: Mapping[str, Any], local: Iterable[str] = ()) -> dict[str, Any]:
    """The recipe without what is nobody's business: paths become names, the output folder and messages go.

    Args:
        recipe: a recipe as a mapping.
        local: names of sources known to be local folders; tells `models/x` the folder from `models/x` the repo.
    """
    local = set(local)
    public: dict[str, Any] = {}
    for key, value in recipe.items():
        if key in RECIPE_LEFT_OUT:
            continue
        if isinstance(value, list | tuple):
            named = _public_model if key == "variants" else public_source
            public[key] = [named(x, local) if isinstance(x, str) else x for x in value]
        elif key == "base":
            public[key] = _public_model(str(value), local)
        else:
            public[key] = without_paths(value) if isinstance(value, str) else value
    return public


def public_command(command: str, local: Iterable[str] = ()) -> str:
    """The command line with paths reduced to names; empty when it cannot be read."""
    try:
        words = shlex.split(command)
    except ValueError:
        return ""
    local, public, previous = set(local), [], ""
    for word in words:
        option, equals, value = word.partition("=") if word.startswith("-") else ("", "", word)
        is_path = (option or previous) in PATH_OPTIONS
        if option and not equals:
            public.append(word)
        else:
            parts = "+".join(public_source(x, local, is_path) for x in value.split("+"))
            public.append(f"{option}{equals}{parts}")
        previous = word
    return shlex.join(public)


def without_paths(text: Any) -> str:
    """Free text in which absolute paths and home folders are reduced to their last name."""
    return ABSOLUTE.sub(lambda m: _last_name(m[0]), str(text))


def public_source(text: str, local: Iterable[str] = (), is_path: bool = False) -> str:
    """A source, data set or file as others may know it: a Hub name as it is, a path as its last name.

    `text` counts as a path when told so, when it is spelled like one, when it ends like a file, when it exists here,
    or when its last name is one of `local`.
    """
    name = _last_name(text)
    spelled = re.match(r"[/~.\\]|[A-Za-z]:[\\/]", text) or "\\" in text or text.count("/") > 1
    if text.startswith("self:"):
        return f"self:{_last_name(text)}"
    path = is_path or spelled or re.search(r"\.(jsonl?|txt|ya?ml)$", text)
    return name if path or name in local or ("/" in text and os.path.exists(text)) else text


def _public_model(text: str, local: Iterable[str]) -> str:
    """A model, perhaps with an adapter behind a plus sign."""
    return "+".join(public_source(x, local) for x in text.split("+"))


def _last_name(path: str) -> str:
    return re.split(r"[\\/]", path.rstrip("\\/"))[-1] or "/"
