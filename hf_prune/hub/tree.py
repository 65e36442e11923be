"""The Hub's model tree: what was made out of a base."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from huggingface_hub import HfApi

from hf_prune.errors import InvalidRecipe
from hf_prune.hub.names import parse
from hf_prune.hub.retries import Retry, explain

Relation = Literal["finetune", "adapter", "merge"]
RELATIONS: tuple[Relation, ...] = ("finetune", "adapter", "merge")


@dataclass(frozen=True, slots=True)
class Relative:
    """A repo that names a base as what it was made from; `downloads` of the last 30 days."""

    repo: str
    relation: Relation
    downloads: int
    license: str | None


def relatives(base: str, most: int, *, sleep: Callable[[float], None] | None = None) -> list[Relative]:
    """The most downloaded fine-tunes, adapters and merges of a repo, at most `most` of them all together.

    Args:
        base: a repo's name.
        most: how many.
        sleep: pause between tries, in seconds.

    Raises:
        InvalidRecipe: the base is no repo.
        SourceError: the Hub cannot be asked.
    """
    name, extra = parse(base)
    if name.folder is not None or extra is not None:
        raise InvalidRecipe(f"The model tree knows repos of the Hub, and {base} is none; name the repo it comes from.")
    call = Retry(sleep) if sleep else Retry()
    try:
        found = [r for relation in RELATIONS for r in call(_listed, name.repo, relation, most)]
    except Exception as e:
        raise explain(e, name.repo) from e
    found.sort(key=lambda r: (-r.downloads, r.repo))
    unique: dict[str, Relative] = {}
    for relative in found:
        unique.setdefault(relative.repo, relative)
    return list(unique.values())[:most]


def search(words: str, most: int = 20, *, sleep: Callable[[float], None] | None = None) -> list[str]:
    """Names of text-generation repos with safetensors that match some words, the most downloaded first.

    Raises:
        SourceError: the Hub cannot be asked.
    """
    call = Retry(sleep) if sleep else Retry()
    try:
        return call(_named, words.strip()[:100], most)
    except Exception as e:
        raise explain(e, "models") from e


def _named(words: str, most: int) -> list[str]:
    models = HfApi().list_models(search=words, filter=["text-generation", "safetensors"], sort="downloads", limit=most)
    return [m.id for m in models]


def _listed(repo: str, relation: Relation, most: int) -> list[Relative]:
    models = HfApi().list_models(
        filter=f"base_model:{relation}:{repo}", sort="downloads", limit=most, expand=["downloads", "tags"]
    )
    return [Relative(m.id, relation, m.downloads or 0, _license(m.tags or ())) for m in models]


def _license(tags: list[str] | tuple[str, ...]) -> str | None:
    return next((t.removeprefix("license:") for t in tags if t.startswith("license:")), None)
