"""What report.json holds: old reports are read to the last key, broken ones are refused in a sentence, nobody reads one
by its keys."""

import ast
import json
import math
import re
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from hf_prune.app import results
from hf_prune.data.bundled import bundled_folder
from hf_prune.errors import HfPruneError, InvalidReport
from hf_prune.report import tables
from hf_prune.report.card import write_card
from hf_prune.report.compose import FIGURES
from hf_prune.report.schema.course import BaseCheck, Overflow, ParentCheck, TimeBudget
from hf_prune.report.schema.document import VERSION
from hf_prune.report.schema.model import Front, VocabularyCut
from hf_prune.report.schema.report import Report
from hf_prune.report.schema.scores import BesideParents, Gain, TokenCost
from hf_prune.report.schema.section import Section
from hf_prune.report.text import report_lines

PACKAGE = Path(__file__).parents[2] / "hf_prune"
HERE = Path(__file__).parent
VERSION1 = (HERE / "version1.json").read_text(encoding="utf-8")
"""Every section that version 0.1.0 wrote, and the card that it made of them."""
RAW = json.loads(VERSION1)


def sections(value):
    """A report and all that is in it, down to the last section."""
    if isinstance(value, Section):
        yield value
        value = dict(value)
    if isinstance(value, dict):
        value = tuple(value.values())
    for inner in value if isinstance(value, tuple | list) else ():
        yield from sections(inner)


def places(node, path=()):
    """Paths of everything in a JSON value."""
    inner = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in inner:
        yield (*path, key)
        yield from places(value, (*path, key))


def changed(path, change):
    """The old report, with `change(container, key)` done at one place."""
    raw = node = json.loads(VERSION1)
    for key in path[:-1]:
        node = node[key]
    change(node, path[-1])
    return raw


def test_an_old_report_is_read_and_written_again_byte_for_byte():
    found = Report.from_json(VERSION1)
    assert found.to_json() == VERSION1 and Report.from_dict(RAW).to_dict() == RAW
    assert not [section for section in sections(found) if section.model_extra], "every key has a field"
    known = {type(section) for section in sections(found)}
    later = {BaseCheck, BesideParents, ParentCheck, Overflow, Gain, TimeBudget, TokenCost, VocabularyCut}
    assert not set(every_section()) - known - later, "every section is in the old report"


def test_the_card_of_an_old_report_tells_what_it_holds_but_speeds_that_nobody_compared(tmp_path):
    pictures = {name: f"figures/{file}" for name, file in FIGURES.items()}
    card = write_card(Report.from_json(VERSION1), tmp_path, pictures)
    assert card.read_bytes() == (HERE / "version1.md").read_bytes()


def every_section(model=Report):
    """Classes of sections that a report may have, without generic ones."""
    found = [] if model.__pydantic_generic_metadata__["args"] else [model]
    todo = [field.annotation for field in model.model_fields.values()]
    while todo:
        kind = todo.pop()
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            found += every_section(kind)
        todo += get_args(kind)
    return found


def test_what_is_not_known_is_kept():
    raw = json.loads(VERSION1)
    raw["mood"] = raw["size"]["pruned"]["mood"] = raw["stages"]["text"]["all"]["cut"]["mood"] = {"good": [1, None]}
    raw["front"][0]["mood"] = "good"
    found = Report.from_dict(raw).replace(seed=7)
    assert found.to_dict() == {**raw, "seed": 7}


def test_numbers_that_json_lacks_have_a_spelling():
    last = Report.from_json(VERSION1).baselines[-1]
    assert last.perplexity == math.inf and last.ci == (math.inf, math.inf) and math.isnan(last.kl)
    assert last.to_dict()["perplexity"] == "inf" and last.to_dict()["kl"] is None
    broken = Report.from_json(VERSION1.replace('"seed": 0', '"seed": 0, "mood": NaN, "size_of": [1e999]'))
    assert json.loads(broken.to_json())["mood"] is None and json.loads(broken.to_json())["size_of"] == ["inf"]


def refused(text, *words):
    with pytest.raises(InvalidReport) as caught:
        Report.from_json(text, "theirs/report.json")
    said = str(caught.value)
    assert isinstance(caught.value, HfPruneError) and said.startswith("theirs/report.json holds no report of hf_prune")
    assert said.endswith("compress wrote.") and "\n" not in said and all(word in said for word in words), said


@pytest.mark.parametrize(
    ("path", "value", "field"),
    [
        (("size",), None, "size: "),
        (("size", "dense", "layers"), "many", "size.dense.layers: "),
        (("size", "dense", "parameters"), 0, "size.dense.parameters: "),
        (("size", "pruned", "bytes"), 10**40, "size.pruned.bytes: "),
        (("layers", 2, "fate"), "eaten", "layers.2.fate: "),
        (("text", "all", "pruned"), [1], "text.all.pruned: "),
        (("text", "all", "kl_ci"), [1, 2, 3], "text.all.kl_ci: "),
        (("tasks", "math_cloze", "dense"), {}, "tasks.math_cloze.dense.accuracy: "),
        (("stages", "names", 1), "cooked", "stages.names.1: "),
        (("stages", "text", "all", "healed"), None, "stages: the stage healed"),
        (("stages", "harness", "arc_easy", "cut", "metrics"), {}, "stages: stages differ"),
        (("widths", 0, "of_heads"), 0, "widths.0.of_heads: "),
        (("recipe",), ["base"], "recipe: "),
        (("version",), 2, f"version: this hf_prune reads version {VERSION}, not 2"),
    ],
)
def test_what_is_broken_is_named(path, value, field):
    refused(json.dumps(changed(path, lambda node, key: node.__setitem__(key, value))), field)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '"report"', "[" * 99_999, '{"seed": 1' + "0" * 5000 + "}"])
def test_what_is_no_report_at_all_is_refused(text):
    refused(text)


def test_a_later_version_is_named_whatever_else_it_changed():
    refused('{"version": 9, "size": {}}', "version: ")


def test_a_file_that_cannot_be_read_is_refused(tmp_path):
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    for name in ("none.json", "binary.json", "."):
        with pytest.raises(InvalidReport, match=re.escape(str(tmp_path / name))):
            Report.load(tmp_path / name)


def test_a_front_is_refused_as_a_report_is():
    with pytest.raises(InvalidReport, match=r"^their.json holds no front of hf_prune \(front.1.layers: .*\.$"):
        member = {"removed_ratio": 0.5, "layers": 2, "parameters": 9, "kl": 0.5}
        Front.from_json(json.dumps({"version": 1, "front": [member, {**member, "layers": "two"}]}), "their.json")
    found = Front.from_dict({"front": [{**member, "note": "mine"}]}).front[0]
    assert (found.value("kl"), found.value("text"), found.note) == (0.5, 0.5, "mine")
    assert found.to_dict() == {**member, "note": "mine"}


ANYTHING = st.recursive(
    st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from([None, "inf", "7", -1, 0]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=150)
@given(st.sampled_from(list(places(RAW))), ANYTHING, st.booleans())
def test_whatever_a_stranger_writes_is_shown_or_refused(tmp_path_factory, path, value, gone):
    change = (lambda node, key: node.pop(key)) if gone else (lambda node, key: node.__setitem__(key, value))
    try:
        found = Report.from_dict(changed(path, change))
    except InvalidReport:
        return
    assert tables.table(found) and tables.stage_table(found) and results.html(found) and report_lines(found) is not None
    write_card(found, tmp_path_factory.getbasetemp())
    assert Report.from_json(found.to_json()).to_json() == found.to_json()


OTHER = {
    "LABELS",
    *("paths FIGURES seen texts event trial outcome card public point report.seconds report.recipe".split()),
    *("OPTIONS", "stamp", "logits", "session.evidence.windows"),
}
"""Mappings beside reports that have keys of the same names: figures and their files, stages as they were observed,
events, what a model card says, a recipe, options by name, candidates of a journal, windows by split, seconds by stage
of a run, what a GGUF file says of itself."""


def look_ups(root=PACKAGE):
    """Where modules that read reports look something up by a name that is a field of a section, or a part of one."""
    fields = {name for model in every_section() for name in model.model_fields}
    folders = [root / "report", root / "app", root / "cli"]
    files = [*(p for f in folders for p in sorted(f.rglob("*.py"))), root / "results.py", root / "pipeline.py"]
    found = []
    for path in files:
        if path.parent.name == "schema" or path.name == "lm_eval.py":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Load):
                base, key = node.value, node.slice
            elif (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr == "get"
                and node.args
            ):
                base, key = node.func.value, node.args[0]
            else:
                continue
            named = isinstance(key, ast.JoinedStr) or isinstance(key, ast.Constant) and key.value in fields
            if named and ast.unparse(base) not in OTHER:
                found.append(f"{path.relative_to(root)}:{node.lineno}: {ast.unparse(node)}")
    return found


def test_nobody_reads_a_report_by_its_keys():
    # `Result.front` hands out the JSON of a user's own report.
    assert [line for line in look_ups() if "self.report.get('front')" not in line] == []


def test_the_template_of_cards_names_fields_that_are_there():
    template = (bundled_folder("model_cards") / "default.md").read_text(encoding="utf-8")
    named = set(re.findall(r"\breport\.(\w+)", template))
    assert named and named <= set(Report.model_fields)
