"""Cards of the sizes of one front, which name each other."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from hf_prune.atomic_files import write_text
from hf_prune.hub.folders import read_card
from hf_prune.report.markdown import md
from hf_prune.report.schema.model import Member
from hf_prune.report.verdicts import amount, percent, significant

HEADING = "## Every size of this front"


def names(repo_id: str, front: Sequence[Member]) -> list[str]:
    """A repo for every member, by its parameters: ns/name-2.62M; the same size a second time gets its number, too."""
    sizes = [amount(member.parameters) for member in front]
    return [f"{repo_id}-{s}{f'-{i}' if s in sizes[:i] else ''}" for i, s in enumerate(sizes)]


def note(member: Member) -> str:
    """What a collection says of a size."""
    knee = "; the knee of the front" if member.knee else ""
    return f"{percent(member.removed_ratio)} removed, {member.layers} layers{knee}"


def tell_sizes(folder: Path, repos: Sequence[str], front: Sequence[Member], mine: int) -> None:
    """Put into the card of a folder which other sizes there are; a second time nothing changes."""
    path = folder / "README.md"
    before = path.read_text(encoding="utf-8").partition(f"\n{HEADING}\n")[0]
    write_text(path, f"{before.rstrip()}\n\n{_section(repos, front, mine)}\n")


def write_member_card(folder: Path, whole: str, repos: Sequence[str], front: Sequence[Member], mine: int) -> None:
    """The card of a size that was searched, and not measured like the result itself.

    Args:
        folder: of the assembled model.
        whole: the text of the result's card, whose licence, language and base hold for all sizes.
        repos: of all sizes.
        front: of all sizes, in the same order.
        mine: which of them it is.
    """
    member, repo = front[mine], repos[mine]
    head = yaml.safe_dump({"library_name": "transformers", **read_card(whole)}, sort_keys=False, allow_unicode=True)
    knee = next((r for r, m in zip(repos, front, strict=True) if m.knee), None)
    measured = f" What was measured on held-out text stands in the card of {_link(knee)}." if knee else ""
    text = f"""---
{head}---

# {md(repo.rpartition("/")[2])}

One of {len(front)} sizes that one search found: {member.layers} layers and {amount(member.parameters)} parameters,
{percent(member.removed_ratio)} fewer than the dense model; KL to it {significant(member.value("kl"))} nats per token on
the text of the search. This size was neither repaired nor trained.{measured}

## Use it

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{repo}")
tokenizer = AutoTokenizer.from_pretrained("{repo}")
```
"""
    write_text(folder / "README.md", text)
    tell_sizes(folder, repos, front, mine)


def notes(repos: Sequence[str], front: Sequence[Member]) -> Mapping[str, str]:
    """What a collection says of every repo."""
    return {repo: note(member) for repo, member in zip(repos, front, strict=True)}


def _section(repos: Sequence[str], front: Sequence[Member], mine: int) -> str:
    rows = [
        f"| {md(repo) if i == mine else _link(repo)} | {percent(m.removed_ratio)} | {m.layers} | "
        f"{significant(m.value('kl'))} | {'this one' if i == mine else 'the knee' if m.knee else ''} |"
        for i, (repo, m) in enumerate(zip(repos, front, strict=True))
    ]
    return "\n".join((HEADING, "", "| | removed | layers | KL on the search text | |", "|---|---|---|---|---|", *rows))


def _link(repo: str) -> str:
    return f"[{md(repo)}](https://huggingface.co/{repo})"
