import os

import pytest

from hf_prune.errors import scrub
from hf_prune.recipe import Recipe
from hf_prune.report.redaction import public_command, public_recipe, without_paths


@pytest.mark.parametrize(
    ("base", "public"),
    [
        ("/home/jane/models/tiny", "tiny"),
        ("/home/jane/models/tiny/", "tiny"),
        ("~/models/tiny", "tiny"),
        ("./tiny", "tiny"),
        ("../models/tiny", "tiny"),
        ("a/b/tiny", "tiny"),
        (r"C:\Users\Jane\tiny", "tiny"),
        ("ns/model", "ns/model"),
        ("ns/model@main", "ns/model@main"),
        ("ns/model+/home/jane/lora", "ns/model+lora"),
        ("/home/jane/tiny+ns/lora@v1", "tiny+ns/lora@v1"),
        ("gpt2", "gpt2"),
    ],
)
def test_a_base_path_becomes_a_name(base, public):
    assert public_recipe({"base": base})["base"] == public


def test_a_relative_folder_that_looks_like_a_repo(tmp_path, monkeypatch):
    assert public_recipe({"base": "models/tiny"})["base"] == "models/tiny"
    assert public_recipe({"base": "models/tiny"}, local=["tiny"])["base"] == "tiny"
    monkeypatch.chdir(tmp_path)
    os.makedirs("models/tiny")
    assert public_recipe({"base": "models/tiny"})["base"] == "tiny"


def test_a_whole_recipe():
    recipe = Recipe.of(
        base="/home/jane/tiny", output="/home/jane/out", ratio=0.25, tasks=("secret/cloze.jsonl", "ns/quiz:all"),
        data=("/home/jane/text", "Salesforce/wikitext:wikitext-2-raw-v1"), commit_message="for jane",
        push_to="ns/small",
    ).changed()  # fmt: skip
    assert public_recipe(recipe) == {
        "base": "tiny", "ratio": 0.25, "data": ["text", "Salesforce/wikitext:wikitext-2-raw-v1"],
        "tasks": ["cloze.jsonl", "ns/quiz:all"], "push_to": "ns/small",
    }  # fmt: skip


def test_untouched_values_keep_their_type():
    recipe = {"ratio": 0.25, "seed": 3, "drop": ["3,6", "21-28"], "rules": ["keep", "difference:0.5"], "norms": "kept"}
    assert public_recipe(recipe) == recipe


@pytest.mark.parametrize(
    ("command", "public"),
    [
        ("/usr/bin/hf-prune compress /home/jane/tiny --ratio 0.25", "hf-prune compress tiny --ratio 0.25"),
        ("hf-prune compress ns/base@main --output runs/out", "hf-prune compress ns/base@main --output out"),
        (
            "hf-prune compress ns/base -o runs/out --push-to ns/small",
            "hf-prune compress ns/base -o out --push-to ns/small",
        ),
        ("hf-prune compress '/home/Jane Doe/my model' --data=/srv/text", "hf-prune compress 'my model' --data=text"),
        ("hf-prune compress 'unfinished", ""),
    ],
)
def test_a_command_loses_its_paths(command, public):
    assert public_command(command) == public


def test_free_text_keeps_links_and_fractions():
    text = "from https://huggingface.co/ns/data, tokens/s and 1/2, kept in /home/jane/x/wiki.jsonl or ~/y/z.txt"
    assert without_paths(text) == "from https://huggingface.co/ns/data, tokens/s and 1/2, kept in wiki.jsonl or z.txt"


def test_tokens_are_blotted_out():
    assert scrub("login hf_" + "Ab1" * 11 + " then") == "login *** then"
    assert scrub("the package hf_prune") == "the package hf_prune"
