"""Every size of a front in a repo of its own, in one collection, with cards that name each other."""

import re

import pytest
import torch
from transformers import AutoModelForCausalLM

from hf_prune import hub
from hf_prune.errors import InvalidRecipe, PublishError
from hf_prune.pipeline import compress
from hf_prune.report import front_card
from hf_prune.report.schema.model import Member
from hf_prune.results import push_front
from tests import runs as small

SIZES = [Member(removed_ratio=r, layers=n, parameters=p, values={"kl": k}, knee=n == 4)
         for r, n, p, k in ((0.1, 5, 2_624_000, 0.1), (0.2, 4, 2_101_000, 0.2), (0.2, 4, 2_103_000, 0.3))]  # fmt: skip


def test_names_tell_sizes_apart():
    assert front_card.names("ns/small", SIZES) == ["ns/small-2.62M", "ns/small-2.10M", "ns/small-2.10M-2"]


def test_a_section_is_written_once(tmp_path):
    (tmp_path / "README.md").write_text("# A model\n\nText.\n")
    repos = front_card.names("ns/small", SIZES)
    front_card.tell_sizes(tmp_path, repos, SIZES, 1)
    once = (tmp_path / "README.md").read_text()
    front_card.tell_sizes(tmp_path, repos, SIZES, 1)
    assert (tmp_path / "README.md").read_text() == once
    assert once.startswith("# A model\n\nText.\n") and once.count("huggingface.co/ns/small-2") == 2
    assert "| ns/small-2.10M | 20.0 % | 4 | 0.200 | this one |" in once


def test_models_are_collected_once(hub_server):
    for name in ("a", "b"):
        hub_server.seed(f"ns/{name}", {"config.json": b"{}"})
    first = hub.collect("small", "ns", {"ns/a": "one"})
    assert first.changed and first.url.startswith(f"{hub_server.endpoint}/collections/ns/small-")
    assert not hub.collect("small", "ns", {"ns/a": "one"}).changed
    assert hub.collect("small", "ns", {"ns/a": "one", "ns/b": "two"}).changed
    (made,) = hub_server.collections.values()
    assert made["private"] and [(i["id"], i["note"]["text"]) for i in made["items"]] == [
        ("ns/a", "one"),
        ("ns/b", "two"),
    ]


def test_a_collection_of_somebody_else_is_a_sentence(hub_server):
    with pytest.raises(PublishError, match="may not write to the collection small"):
        hub.collect("small", "guest", {})


def test_what_is_no_front_is_told_before_anything_is_asked(tmp_path, hub_server):
    for folder, repo, words in ((tmp_path, "ns/small", "holds no front"), (tmp_path, "small", "NAMESPACE/small")):
        with pytest.raises(InvalidRecipe, match=words):
            list(push_front(folder, repo))
    assert not hub_server.requests


@pytest.mark.slow
def test_every_size_is_published_and_loads(tmp_path, hub_server):
    recipe = small.recipe(tmp_path, search="nsga2")
    done = small.finished(compress(recipe))
    front = done.report["front"]
    folder = tmp_path / "small"
    *repos, collection = push_front(folder, "ns/small", source=(recipe.base,))
    assert len(repos) == len(front) > 1 and all(r.changed for r in repos) and collection.changed
    (made,) = hub_server.collections.values()
    names = [item["id"] for item in made["items"]]
    assert names == [r.url.removeprefix(f"{hub_server.endpoint}/") for r in repos]
    for name, member in zip(names, front, strict=True):
        model = AutoModelForCausalLM.from_pretrained(name)
        assert model.config.num_hidden_layers == member["layers"]
        assert model(torch.tensor([[3, 4, 5]])).logits.isfinite().all()
        card = hub_server.storage.read(hub_server.repo(name), "README.md", "main").decode()
        linked = set(re.findall(r"huggingface.co/(ns/[\w.-]+)", card.partition(front_card.HEADING)[2]))
        assert linked == set(names) - {name} and "license" in card.split("---")[1]
    again = list(push_front(folder, "ns/small", source=(recipe.base,)))
    assert not any(r.changed for r in again)
