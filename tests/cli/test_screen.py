"""Screen: events on a terminal, values as JSON, plan and report as tables."""

import io
import json
import math
from dataclasses import asdict

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from hf_prune.blueprint import Fidelity, Genome, Outcome, Trial
from hf_prune.cli.screen import Screen
from hf_prune.events import Advanced, Exported, Healed, Pushed, Repaired, Scored, Stage, Started, Tuned
from hf_prune.recipe import Recipe
from hf_prune.report.schema.report import Report
from hf_prune.report.text import event_dict, plain, report_lines

EVENTS = (
    Started(Recipe.of(base="m"), "ns/m", 16, "remove 4 layers [of 16]", 9),
    Stage("search"),
    Scored((Outcome(Trial((0,), Fidelity(4)), (2.5,)),), 3, 9, 2.5),
    Scored((Outcome(Trial((1,), Fidelity(4)), (0.125,)),), 9, 9, 0.125),
    Tuned(0.5, 0.375, True),
    Stage("repair", "all"),
    Advanced("repair", 7, 12),
    Repaired(0.25, 0.125, True),
    Stage("assemble", "12 layers"),
    Stage("heal", "1,000 tokens, lora"),
    Advanced("heal", 5, 244, 1.75),
    Healed(1.75, 1.8, 1000, False),
    Exported("small/small-Q8_0.gguf", True, "Certified with llama.cpp (llama): ..."),
    Pushed("https://hub/me/small", "abc", False),
)


def shown(terminal: bool) -> str:
    out = io.StringIO()
    with Screen(Console(file=out, force_terminal=terminal, width=120, color_system=None)) as screen:
        for event in EVENTS:
            screen.show(event)
            screen.progress.refresh()
    return out.getvalue()


def test_a_terminal_shows_progress_and_the_best_or_the_loss_so_far():
    text = shown(terminal=True)
    assert "3/9" in text and "best 2.5" in text and "9/9" in text and "best 0.125" in text
    assert "7/12" in text and "5/244" in text and "loss 1.75" in text


def test_where_there_is_no_value_none_is_shown():
    out = io.StringIO()
    with Screen(Console(file=out, force_terminal=True, width=100)) as screen:
        screen.show(Scored((), 3, 9, math.inf))
        assert screen.progress.tasks[0].fields["figure"] == ""


def test_without_a_terminal_there_is_one_line_per_stage():
    assert shown(terminal=False).splitlines() == [
        "ns/m: remove 4 layers [of 16], at most 9 evaluations",
        "search",
        "tuned: objective on the selection split 0.5 -> 0.375",
        "repair: all",
        "repaired: KL on the selection split 0.25 -> 0.125",
        "assemble: 12 layers",
        "heal: 1,000 tokens, lora",
        "healed on 1,000 tokens: loss on the selection split 1.75 -> 1.8; no better, so the weights stay as they were",
        "exported: small/small-Q8_0.gguf. Certified with llama.cpp (llama): ...",
        "unchanged: https://hub/me/small (abc)",
    ]


def test_a_quiet_console_shows_nothing():
    out = io.StringIO()
    with Screen(Console(file=out, quiet=True)) as screen:
        for event in EVENTS:
            screen.show(event)
    assert out.getvalue() == ""


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.tuples(inner) | st.dictionaries(st.text(), inner),
)


@given(values)
def test_plain_values_are_strict_json(value):
    assert json.loads(json.dumps(plain(value), allow_nan=False)) == plain(value)


@pytest.mark.parametrize(("value", "text"), [(math.inf, "inf"), (-math.inf, "-inf"), (math.nan, "nan")])
def test_what_json_lacks_is_written_out(value, text):
    assert plain({"a": (value,)}) == {"a": [text]}


@pytest.mark.parametrize("event", EVENTS, ids=lambda e: type(e).__name__)
def test_every_event_keeps_all_its_fields(event):
    found = event_dict(event)
    assert found.pop("event") == type(event).__name__
    assert set(found) == set(type(event).__dataclass_fields__)
    json.dumps(found, allow_nan=False)


def test_genomes_and_fidelities_survive():
    genome: Genome = (0, 3, 1)
    outcome = Outcome(Trial(genome, Fidelity(8, 2)), (0.5, math.inf))
    assert event_dict(Scored((outcome,), 1, 2, 0.5))["outcomes"] == [
        {
            "trial": {"genome": [0, 3, 1], "fidelity": asdict(Fidelity(8, 2))},
            "values": [0.5, "inf"],
        }
    ]


def test_a_report_that_must_not_be_used_says_so():
    size = {"layers": 2, "parameters": 10, "bytes": 20, "kv_bytes_per_token": 4}
    report = {
        "size": {"dense": size, "pruned": size, "asked_ratio": 0.25, "removed_ratio": 0.2},
        "layers": [{"source": 0, "fate": "kept"}],
        "certificate": {"ok": False},
    }
    lines = report_lines(Report.from_dict(report))
    assert lines[0].startswith("Warning: ") and "Do not use" in lines[0]
    assert any("25.0 %" in line for line in lines[1:])
