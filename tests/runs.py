"""Runs small enough for a test: a tiny random model, invented text, and the command line in a process of its own."""

import contextlib
import functools
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from hf_prune.events import Stage
from hf_prune.pipeline import compress
from hf_prune.recipe import Recipe
from tests.hub.samples import model

DEPTH = 6
SMALL = {"length": 32, "sequences": 4, "selection_sequences": 4, "report_sequences": 6, "evaluations": 24,
         "population": 4, "offspring": 6, "task_items": 4}  # fmt: skip
FLAGS = [part for name, value in SMALL.items() for part in (f"--{name.replace('_', '-')}", str(value))]
WORDS = "the cat sat on a mat and saw that no dog had been there since noon".split()


def base(folder: Path, seed: int = 0, **config: object) -> Path:
    """A model folder of six lively layers."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in model(seed=seed, num_hidden_layers=DEPTH, **config).items():
        (folder / name).write_bytes(content)
    return folder


def prose(seed: int = 0, sentences: int = 400) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, rng.integers(6, 14))).capitalize() + "." for _ in range(sentences)]


def text(path: Path) -> Path:
    """A .txt file of paragraphs."""
    path.write_text("\n\n".join(prose()))
    return path


def recipe(home: Path, **changes: object) -> Recipe:
    """A run in `home`: base and text are made there unless given."""
    fields = {"output": str(home / "small"), **SMALL, **changes}
    if "base" not in fields:
        fields["base"] = str(base(home / "base"))
    if "data" not in fields:
        fields["data"] = (str(text(home / "text.txt")),)
    return Recipe.of(**fields)


def adapter(folder: Path, of: Path, seed: int = 5) -> Path:
    """A LoRA with something in it."""
    torch.manual_seed(seed)
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(of), LoraConfig(r=2, target_modules=["q_proj", "down_proj"], lora_alpha=4)
    )
    for name, p in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p, std=0.05)
    model.save_pretrained(folder)
    return folder


def relatives(home: Path) -> Path:
    """A base, a full variant of it, an adapter and text, all in `home`."""
    base(home / "base")
    base(home / "tuned", seed=3)
    adapter(home / "lora", home / "base")
    text(home / "text.txt")
    return home


def stitching(home: Path, name: str = "out", **changes: object) -> Recipe:
    """A run over those relatives."""
    variants = (str(home / "tuned"), str(home / "lora"))
    fixed = {
        "base": str(home / "base"),
        "variants": variants,
        "method": "stitch",
        "drop_layers": 2,
        "evaluations": 40,
        "data": (str(home / "text.txt"),),
        "baselines": ("shortgpt", "greedy", "removal", "selection"),
    }
    return recipe(home, **{**fixed, "output": str(home / name), **changes})


def start(*arguments: object, **environment: str) -> subprocess.Popen:
    """`hf-prune ...` in a process of its own."""
    command = [sys.executable, "-m", "hf_prune.cli", *map(str, arguments)]
    env = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    # A test run started in the background ignores SIGINT, and its children would inherit that.
    listen = functools.partial(signal.signal, signal.SIGINT, signal.default_int_handler)
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env, preexec_fn=listen
    )


def command(*arguments: object, **environment: str) -> subprocess.CompletedProcess:
    """The same, waited for."""
    process = start(*arguments, **environment)
    out, err = process.communicate(timeout=300)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def leftovers(home: Path) -> list[str]:
    """Names of anything that is neither finished nor given."""
    return sorted(p.name for p in home.rglob("*") if p.name.endswith((".partial", ".old", ".tmp", ".run")))


def searched(wanted: Recipe) -> str:
    """Search and choose; what would be built, in the words of the next stage, which is not begun."""
    with contextlib.closing(compress(wanted)) as events:
        return next(e.detail for e in events if isinstance(e, Stage) and e.name == "assemble")
