"""A finished run beside its dense parent: numbers, layers, pictures, and what both say."""

import base64
import json
import re
from collections.abc import Sequence
from contextlib import suppress
from html import escape
from pathlib import Path

from hf_prune.app.markup import note, picture, strip, table
from hf_prune.app.runs import Run, public
from hf_prune.blueprint import Blueprint
from hf_prune.errors import HfPruneError, InvalidRecipe
from hf_prune.methods import METHODS
from hf_prune.planning import describe_target
from hf_prune.report import tables, verdicts
from hf_prune.report.fates import fates
from hf_prune.report.redaction import public_source
from hf_prune.report.schema.model import Front, Member
from hf_prune.report.schema.report import Report
from hf_prune.report.schema.scores import total
from hf_prune.report.text import report_lines

CAPTIONS = {
    "layers": "What became of every layer",
    "parents": "Which parent gives what to every layer",
    "widths": "Width of every layer",
    "search": "Course of the search",
    "front": "Quality against size",
    "comparison": "Other ways to the same size, report split",
    "capabilities": "What every stage can do",
    "healing": "Course of the training",
}
LONGEST_PAGE = 10**6
"""Characters of what is shown of a report."""
MOST_WORDS = 400
"""Characters of a prompt."""
NEW_TOKENS = 60
MOST_LISTED = 20
"""Runs in a list, the latest ones."""


def html(report: Report) -> str:
    """Strip, table and verdicts of a report."""
    found = [
        layers(report),
        table(tables.header(report), tables.table(report), "dense beside pruned", numbers=True),
    ]
    for line in report_lines(report):
        found.append(note(line, "warn" if line.startswith("Warning") else "plain"))
    page = "".join(found)
    return (
        page if len(page) <= LONGEST_PAGE else note("This report is too long for a page; read its report.json.", "bad")
    )


def layers(report: Report) -> str:
    """What became of the layers."""
    removed = verdicts.percent(1 - report.size.pruned.parameters / report.size.dense.parameters)
    return strip(report.layers, f"{removed} of all parameters are gone. Layers of the original model.")


def files(run: Run, address: str, strangers: bool) -> str:
    """Where a result lies, how large it is, and the link that sends it."""
    found = [p for p in run.result.rglob("*") if p.is_file()]
    size = verdicts.amount(sum(p.stat().st_size for p in found), "B")
    here = "" if strangers else f" It lies in <code>{escape(str(run.result))}</code>."
    link = f"<a class='file' href='{escape(address)}' download>Download all of it as a zip ({escape(size)})</a>"
    return f"<div class='note good'>{link}: the model, its card, figures and report in {len(found)} files.{here}</div>"


def listed(runs: Sequence[tuple[Run, str]]) -> str:
    """Runs and their states as a table; nothing where there are none."""
    rows = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in _row(*one))}</tr>" for one in runs[:MOST_LISTED])
    return f"<h4>Your runs</h4><div class='wide'><table><tbody>{rows}</tbody></table></div>" if rows else ""


def _row(run: Run, state: str) -> tuple[str, str]:
    """What was asked for, and how it ended."""
    base = "+".join(map(public_source, run.recipe.base.split("+")))
    how = METHODS[run.recipe.method].title
    name = escape(public(f"{base}: {how}, {describe_target(run.recipe)}"))
    said = state
    if state == "done":
        with suppress(HfPruneError):
            if found := total(run.report().text):
                dense, pruned = (verdicts.significant(m.perplexity) for m in (found.dense, found.pruned))
                said = f"perplexity {dense} → {pruned}"
    return f"<a href='?run={escape(run.id)}'>{name}</a>", escape(said)


def pictures(folder: Path) -> str:
    """The figures of a finished folder, each with a link to keep it."""
    paths = [folder / "figures" / f"{name}.png" for name in CAPTIONS]
    shown = [picture(p.read_bytes(), p.name, CAPTIONS[p.stem]) for p in paths if p.is_file()]
    return f"<div class='pictures'>{''.join(shown)}</div>"


def front(folder: Path) -> tuple[Member, ...]:
    """Models of the Pareto front of a finished folder; none without one."""
    path = folder / "front.json"
    return Front.load(path).front if path.is_file() else ()


def card(folder: Path) -> str:
    """The model card as Markdown without its head, its pictures in it."""
    text = (folder / "README.md").read_text(encoding="utf-8")
    text = re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.DOTALL)
    return re.sub(r"!\[([^\]]*)\]\((figures/\w+\.png)\)", lambda m: _inside(m[1], folder / m[2]), text)


def _inside(words: str, path: Path) -> str:
    if not path.is_file():
        return ""
    return f"![{words}](data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()})"


def said(run: Run, prompt: str) -> str:
    """What the dense parent and the result say to a prompt, side by side."""
    if not prompt.strip() or len(prompt) > MOST_WORDS:
        raise InvalidRecipe(f"Write a prompt of 1 to {MOST_WORDS} characters.")
    from hf_prune.app.workers import ask

    dense, pruned = ask(spoken, str(run.result), prompt)
    return _column("dense", prompt, dense) + _column("pruned", prompt, pruned)


def spoken(folder: str, prompt: str) -> tuple[str, str]:
    """Greedy continuations of the dense parent and of the model in a finished folder.

    Needs a process that may load both.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from hf_prune.assembly.assemble import assemble
    from hf_prune.models.noise import quiet
    from hf_prune.report.samples import greedy
    from hf_prune.results import open_parents

    made = Blueprint.from_json((Path(folder) / "blueprint.json").read_text(encoding="utf-8"))
    recipe = Run(Path(folder).parent).recipe
    parent = open_parents(made, Path(folder), (recipe.base, *recipe.variants))[0]
    with quiet():
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        pruned = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", local_files_only=True, use_safetensors=True)
    dense = assemble(Blueprint.identity(parent.source, parent.depth), [parent])
    tokens = torch.tensor([tokenizer(prompt)["input_ids"]])
    texts = [greedy(model.eval(), tokens, NEW_TOKENS)[0] for model in (dense, pruned)]
    return tuple(tokenizer.decode(t) for t in texts)


def _column(name: str, prompt: str, text: str) -> str:
    words = f"<span class='quiet'>{escape(prompt)}</span>{escape(text)}"
    return f"<div class='said'><h4>{escape(name)}</h4><p>{words}</p></div>"


def member(report: Report, front: Sequence[Member], number: object) -> str:
    """Layers and numbers of a model of the front.

    Raises:
        InvalidRecipe: there is no such model.
    """
    if not isinstance(number, int) or not 0 <= number < len(front):
        raise InvalidRecipe("There is no such model on the front; click one of the points.")
    found = front[number]
    name = f"#{number}{', the knee' if found.knee else ''}"
    value = verdicts.significant(found.value(report.objective))
    row = (name, found.layers, verdicts.percent(found.removed_ratio), value)
    specs = Blueprint.from_json(json.dumps(found.blueprint)).layers
    shown = strip(fates(specs, report.size.dense.layers), f"Model {name} of the front.")
    header = ("model", "layers", "parameters removed", "objective of the search")
    return shown + table(header, [row], "model of the front", numbers=True)


def earlier(name: str, strangers: bool) -> str:
    """The page of a result on the Hub or, for the person at this machine, in a folder: numbers and pictures.

    Raises:
        InvalidRecipe: the name is none, or (InvalidReport) there is no result behind it.
        SourceError: the repo cannot be read.
    """
    from hf_prune import hub
    from hf_prune.app.forms import REPO

    name = name.strip()
    here = Path(name.partition("@")[0]).exists()
    if here and strangers or not here and not REPO.fullmatch(name):
        raise InvalidRecipe("Name a repo that hf_prune published, like me/small.")
    folder = hub.fetch_report(name)
    return html(Report.load(folder / "report.json", name)) + pictures(folder)


def pushed(folder: str, name: str, private: bool) -> str:
    """Publish a finished folder; its address."""
    from hf_prune import hub

    return hub.push(folder, name.strip(), private=private).url
