"""From a repo name to a published card: the whole command against a Hub, and the published model in other hands."""

import io
import json
import os
import subprocess
import sys

import numpy as np
import pyarrow
import pytest
from huggingface_hub import ModelCard
from pyarrow import parquet
from safetensors.numpy import load, save

from tests.hub.samples import adapter, dataset, model
from tests.runs import DEPTH, FLAGS, base, command, leftovers, prose, text

pytestmark = pytest.mark.slow

STRANGER = """
import sys
class Blocked:
    def find_spec(self, name, *_):
        if name.split(".")[0] == "hf_prune":
            raise ImportError(name)
sys.meta_path.insert(0, Blocked())
from transformers import AutoModelForCausalLM, AutoTokenizer
model, info = AutoModelForCausalLM.from_pretrained(sys.argv[1], output_loading_info=True)
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
assert not any(info.values()), info
said = model.generate(**tokenizer("The cat", return_tensors="pt"), max_new_tokens=5, do_sample=False)
assert said.shape[1] >= 3 and "hf_prune" not in sys.modules
print(model.config.num_hidden_layers)
"""


def loaded_by_a_stranger(name):
    done = subprocess.run([sys.executable, "-c", STRANGER, str(name)], capture_output=True, text=True, cwd="/")
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def wikitext():
    """Salesforce/wikitext in small: the layout of the real one, prose in every split."""
    files = dataset("wikitext-2-raw-v1")
    for seed, name in enumerate(n for n in files if n.endswith(".parquet")):
        out = io.BytesIO()
        parquet.write_table(pyarrow.table({"text": prose(seed)}), out)
        files[name] = out.getvalue()
    return files


def columns(config, **texts):
    """A dataset repo of one split, whose rows have several columns."""
    out = io.BytesIO()
    parquet.write_table(pyarrow.table(texts), out)
    head = f"---\nconfigs:\n- config_name: {config}\n  data_files:\n  - split: train\n    path: {config}/train-*\n---\n"
    return {f"{config}/train-00000-of-00001.parquet": out.getvalue(), "README.md": head.encode()}


@pytest.fixture
def hub(hub_server):
    hub_server.seed("ns/base", model(num_hidden_layers=DEPTH))
    hub_server.seed("Salesforce/wikitext", wikitext(), kind="dataset")
    hub_server.seed("openai/gsm8k", columns("main", question=prose(3), answer=prose(4)), kind="dataset")
    code = columns("default", response=prose(5), prompt=prose(6))
    hub_server.seed("bigcode/self-oss-instruct-sc2-exec-filter-50k", code, kind="dataset")
    return hub_server


def test_one_command_from_a_repo_to_a_published_model(hub, tmp_path):
    base_at = f"ns/base@{hub.repo('ns/base').head}"
    compress = ["compress", base_at, "--ratio", "0.3", *FLAGS, "--output", tmp_path / "small", "--push-to", "ns/small"]
    done = command(*compress)
    assert done.returncode == 0, done.stderr
    made = hub.repo("ns/small")
    assert made.private and loaded_by_a_stranger("ns/small") < DEPTH and leftovers(tmp_path) == []

    card = ModelCard(hub.storage.read(made, "README.md").decode())
    assert card.data.base_model == "ns/base" and card.data.license == "apache-2.0" and "pruned" in card.data.tags
    report = json.loads(hub.storage.read(made, "report.json"))
    assert report["sources"][0]["revision"] == hub.repo("ns/base").head and base_at in card.text
    texts = {split: set(s["corpora"]) for split, s in report["splits"].items()}
    named = {"wikitext-2-raw-v1", "gsm8k", "self-oss-instruct-sc2-exec-filter-50k"}
    assert texts == {"search": {*named, "own_samples"}, "selection": {*named, "own_samples"}, "report": named}
    origins = {name: c["origin"] for name, c in report["splits"]["search"]["corpora"].items()}
    assert origins["gsm8k"] == "openai/gsm8k:main (train)" and origins["own_samples"].startswith(
        "own samples of ns/base"
    )
    for name in made.at("main").tree:
        content = hub.storage.read(made, name)
        assert str(tmp_path).encode() not in content and os.environ["HF_TOKEN"].encode() not in content, name

    head, asked = made.head, len(hub.seen("POST .*/commit/"))
    again = command(*compress)
    assert again.returncode == 0 and "already holds the result" in again.stderr
    assert hub.repo("ns/small").head == head and len(hub.seen("POST .*/commit/")) == asked

    proposed = command("push", tmp_path / "small", "ns/base", "--create-pr", "--format", "json")
    assert proposed.returncode == 0 and json.loads(proposed.stdout)["changed"]
    assert hub.repo("ns/base").head == report["sources"][0]["revision"] and len(hub.repo("ns/base").pulls) == 1


def test_a_base_with_an_adapter(hub, tmp_path):
    hub.seed("ns/lora", adapter())
    done = command("compress", "ns/base+ns/lora", "--keep-layers", 4, *FLAGS, "--data", text(tmp_path / "t.txt"),
                   "--output", tmp_path / "small", "--push-to", "ns/small", "--public", "-q")  # fmt: skip
    assert done.returncode == 0, done.stderr
    made = hub.repo("ns/small")
    assert not made.private and loaded_by_a_stranger("ns/small") == 4
    assert ModelCard(hub.storage.read(made, "README.md").decode()).data.base_model == ["ns/base", "ns/lora"]
    assert done.stdout.strip() == str(tmp_path / "small") and done.stderr == ""


def broken_weights():
    files = model(num_hidden_layers=DEPTH)
    state = load(files["model.safetensors"])
    state["model.norm.weight"] = np.full_like(state["model.norm.weight"], np.nan)
    return {**files, "model.safetensors": save(state, {"format": "pt"})}


def without(name):
    return {n: c for n, c in model(num_hidden_layers=DEPTH).items() if n != name}


def reconfigured(**changes):
    files = model(num_hidden_layers=DEPTH)
    return {**files, "config.json": json.dumps(json.loads(files["config.json"]) | changes).encode()}


STRANGE = {"model_type": "strange", "auto_map": {"AutoConfig": "m.C", "AutoModelForCausalLM": "m.M"}}
FOREIGN = {"model_type": "bloom", "architectures": ["BloomForCausalLM"]}
CUT = model(num_hidden_layers=DEPTH) | {"model.safetensors": model()["model.safetensors"][:9000]}
SPOILED = {
    "pickles": (without("model.safetensors") | {"pytorch_model.bin": b"x"}, 4, "--allow-pickle"),
    "own code": (reconfigured(**STRANGE) | {"m.py": b""}, 4, "--trust-remote-code"),
    "no family": (reconfigured(**FOREIGN), 3, "bloom"),
    "no tokenizer": (without("tokenizer.json"), 4, "tokenizer"),
    "truncated": (CUT, 4, "model.safetensors of ns/spoiled is cut short"),
    "nan": (broken_weights(), 4, "model.norm.weight holds NaN"),
}


@pytest.mark.parametrize("kind", SPOILED)
def test_a_base_that_cannot_be_used_is_refused_in_one_sentence(hub_server, tmp_path, kind):
    files, code, words = SPOILED[kind]
    hub_server.seed("ns/spoiled", files)
    done = command("compress", "ns/spoiled", *FLAGS, "--data", text(tmp_path / "t.txt"), "--output", tmp_path / "small")
    assert done.returncode == code and words in done.stderr.splitlines()[-1], done.stderr
    assert done.stderr.splitlines()[-1].startswith("Error: ") and "Traceback" not in done.stderr
    assert not (tmp_path / "small").exists() and not list(tmp_path.glob(".hf-prune-*"))


def test_who_may_not_read_a_repo_is_told_what_to_do(hub_server, tmp_path):
    hub_server.seed("other/gated", model(), gated=True)
    hub_server.seed("other/private", model(), private=True)
    for repo, words in (("other/gated", "gated"), ("other/private", "does not exist or"), ("ns/none", "no folder"),
                        ("ns/base@nobranch", "nobranch")):  # fmt: skip
        hub_server.seed("ns/base", model())
        done = command("plan", repo)
        assert done.returncode == 4 and words in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr


def test_the_command_line_builds_and_measures_again(tmp_path):
    source, data = base(tmp_path / "base"), text(tmp_path / "t.txt")
    done = command("compress", source, "--search", "nsga2", *FLAGS, "--data", data, "--output", tmp_path / "small",
                   "--format", "json")  # fmt: skip
    assert done.returncode == 0, done.stderr
    events = [json.loads(line, parse_constant=pytest.fail) for line in done.stdout.splitlines()]
    assert [e["event"] for e in events if e["event"] != "Scored"][-3:] == ["Assembled", "Reported", "Finished"] or (
        events[-1]["event"] == "Finished"
    )
    front = json.loads((tmp_path / "small/front.json").read_text(), parse_constant=pytest.fail)["front"]
    for pick, member in (("knee", next(m for m in front if m["knee"])), ("#1", front[1])):
        out = tmp_path / f"picked-{member['digest']}-{pick.strip('#')}"
        built = command("assemble", tmp_path / "small/front.json", "--pick", pick, "--source", source, "--output", out)
        assert built.returncode == 0, built.stderr
        assert loaded_by_a_stranger(out) == member["layers"]
    wrong = command("assemble", tmp_path / "small/front.json", "--pick", "#99", "--source", source)
    assert wrong.returncode == 2 and "#99 names no member" in wrong.stderr

    measured = command("report", tmp_path / "small", "--base", source, "--data", data, "--report-sequences", 3)
    assert measured.returncode == 0, measured.stderr
    report = json.loads((tmp_path / "small/report.json").read_text())
    assert report["splits"]["report"]["windows"] == 3 and report["splits"]["search"]["windows"] == 4
