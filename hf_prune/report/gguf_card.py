"""What a card says of GGUF files: in the repo of the weights, or in one of their own."""

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from hf_prune import hub
from hf_prune.assembly.gguf.stamp import read_stamp
from hf_prune.atomic_files import write_text
from hf_prune.errors import InvalidRecipe
from hf_prune.hub.folders import read_card
from hf_prune.hub.listing import listing
from hf_prune.report.markdown import code

HEADING = "## With llama.cpp or Ollama"
SUFFIX = "-GGUF"
CARRIED = ("LICENSE", "NOTICE")
"""Beginnings of the names of files that go wherever the weights go."""


def push(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool = True,
    revision: str | None = None,
    create_pr: bool = False,
    commit_message: str | None = None,
    gguf_apart: bool = False,
) -> str:
    """Publish a finished folder; doing it twice changes nothing.

    Args:
        folder: what `compress`, `heal_folder` or `assemble_blueprint` wrote.
        repo_id: where it goes, ns/name; created if it is not there.
        private: whether a new repo is.
        revision: branch to push to.
        create_pr: as a pull request.
        commit_message: of the upload.
        gguf_apart: GGUF files go into `repo_id`-GGUF, not beside the weights.

    Returns:
        The address.

    Raises:
        InvalidRecipe: the folder holds no finished model.
        PublishError: the Hub does not take it.
    """
    if not (Path(folder) / "config.json").is_file():
        raise InvalidRecipe(f"{folder} is not a finished model folder (no config.json); run compress first.")
    how = {"private": private, "revision": revision, "create_pr": create_pr, "commit_message": commit_message}
    return publish(Path(folder), repo_id, gguf_apart=gguf_apart, **how)[0].url


def publish(folder: Path, repo_id: str, *, gguf_apart: bool = False, **how: Any) -> list[hub.PushResult]:
    """Push a finished folder; its GGUF files beside the weights, or into a repo of their own.

    Args:
        folder: of the result; its card says how to run the files that lie beside the weights.
        repo_id: of the weights.
        gguf_apart: GGUF files go into `repo_id` with -GGUF.
        how: as `hub.push` takes it.

    Raises:
        InvalidRecipe: see `apart` and `tell_gguf`.
        PublishError: see `hub.push`.
    """
    tell_gguf(folder, repo_id + SUFFIX * gguf_apart)
    if not gguf_apart:
        return [hub.push(folder, repo_id, **how)]
    with TemporaryDirectory() as scratch:
        weights, files = apart(folder, repo_id, Path(scratch))
        return [hub.push(folder, repo_id, files=weights, **how), hub.push(folder, repo_id + SUFFIX, files=files, **how)]


def tell_gguf(folder: Path, repo_id: str) -> None:
    """Put into the card of a folder how to run the GGUF files in it; a second time nothing changes, and without such
    files and such a section nothing happens.

    Raises:
        InvalidRecipe: there are some, and the repo is named without its namespace, by which it is run.
    """
    card, files = folder / "README.md", sorted(folder.glob("*.gguf"))
    if not card.is_file() or not files and HEADING not in card.read_text(encoding="utf-8"):
        return
    text = _without(card.read_text(encoding="utf-8"))
    section = _section(files, repo_id) if files else ""
    write_text(card, f"{text.rstrip()}\n\n{section}".rstrip() + "\n")


def apart(folder: Path, repo_id: str, scratch: Path) -> tuple[dict[str, Path], dict[str, Path]]:
    """Files by their paths in the repo of the weights and in that of the GGUF files, `repo_id` with -GGUF.

    Args:
        folder: a finished result.
        repo_id: of the weights, NAMESPACE/NAME.
        scratch: an empty folder for the card.

    Raises:
        InvalidRecipe: there is no GGUF file, or no namespace.
    """
    every = listing(folder)
    files = {name: path for name, path in every.items() if name.endswith(".gguf")}
    if not files:
        raise InvalidRecipe(f"{folder} holds no GGUF file; write one with: hf-prune export {folder} --format gguf")
    stated = read_card((folder / "README.md").read_text(encoding="utf-8")) if "README.md" in every else {}
    head = {k: v for k, v in stated.items() if k.startswith("license") or k in ("language", "pipeline_tag")}
    head |= {"base_model": repo_id, "base_model_relation": "quantized", "tags": ["gguf", "hf-prune"]}
    name = repo_id.partition("/")[2] or repo_id
    lines = [f"---\n{yaml.safe_dump(head, sort_keys=False, allow_unicode=True)}---\n", f"# {name}{SUFFIX}\n",
             f"[{repo_id}](https://huggingface.co/{repo_id}) as GGUF. Its card says how it was made.\n",
             _section(sorted(files.values()), repo_id + SUFFIX)]  # fmt: skip
    write_text(scratch / "README.md", "\n".join(lines))
    about = {n: p for n, p in every.items() if n.startswith(CARRIED)}
    weights = {n: p for n, p in every.items() if n not in files}
    return weights, {**about, **files, "README.md": scratch / "README.md"}


def _section(files: list[Path], repo_id: str) -> str:
    if "/" not in repo_id:
        raise InvalidRecipe(f"A GGUF file is run by the full name of its repo; write NAMESPACE/{repo_id}.")
    rows = [f"| {code(p.name)} | {p.stat().st_size / 1e6:,.0f} MB | {_certified(read_stamp(p))} |" for p in files]
    kind = files[0].stem.rpartition("-")[2]
    return "\n".join((
        HEADING, "", "```bash", f"ollama run hf.co/{repo_id}:{kind}", f"llama-cli -hf {repo_id}:{kind}", "```", "",
        "| file | size | read by llama.cpp |", "|---|---|---|", *rows, "",
    ))  # fmt: skip


def _certified(stamp: Mapping[str, Any] | None) -> str:
    try:
        tokens, logits = stamp["tokens"], stamp["logits"]
        texts, loss, top = int(tokens["texts"]), float(logits["kl"]), float(logits["same_top"])
    # Of a file of another program, or of one that no llama.cpp has read.
    except (KeyError, TypeError, ValueError):
        return "**not certified**: no llama.cpp has read it before it was published"
    return (
        f"certified: {texts} hard texts in the same tokens as in transformers, {loss:.2g} nats a token between their "
        f"predictions, the same most probable token at {top:.1%}"
    )


def _without(text: str) -> str:
    """A card without that section."""
    before, found, after = text.partition(f"\n{HEADING}\n")
    if not found:
        return text
    _, more, rest = after.partition("\n## ")
    return before + (f"\n## {rest}" if more else "")
