"""Runs small enough for a test: a tiny random model, invented text, and the command line in a process of its own."""

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from hf_prune.app import workers
from hf_prune.cli.main import main
from hf_prune.data.tasks import bundled_tasks
from hf_prune.events import Event, Finished, Stage
from hf_prune.pipeline import compress
from hf_prune.recipe import Recipe
from tests.hub.samples import model

DEPTH = 6
SMALL = {"length": 32, "sequences": 4, "selection_sequences": 4, "report_sequences": 6, "evaluations": 24,
         "population": 4, "offspring": 6, "task_items": 4}  # fmt: skip
TASKS = tuple(map(str, bundled_tasks()))
FLAGS = [part for name, value in SMALL.items() for part in (f"--{name.replace('_', '-')}", str(value))]
WORDS = "the cat sat on a mat and saw that no dog had been there since noon".split()


def base(folder: Path, seed: int = 0, **config: object) -> Path:
    """A model folder of six lively layers."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in model(seed=seed, num_hidden_layers=DEPTH, **config).items():
        (folder / name).write_bytes(content)
    return folder


def finished(events: Iterable[Event]) -> Finished:
    """The last word of a run that came to its end."""
    (last,) = [e for e in events if isinstance(e, Finished)]
    return last


def prose(seed: int = 0, sentences: int = 400) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, rng.integers(6, 14))).capitalize() + "." for _ in range(sentences)]


def text(path: Path) -> Path:
    """A .txt file of paragraphs."""
    path.write_text("\n\n".join(prose()))
    return path


def recipe(home: Path, **changes: object) -> Recipe:
    """A run in `home`: base and text are made there unless given."""
    fields = {"output": str(home / "small"), "tasks": TASKS, **SMALL, **changes}
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


class Command:
    """`hf-prune ...` in a process of its own, forked from one that has imported what is slow to import; the face of
    subprocess.Popen."""

    def __init__(self, *arguments: object, **environment: str) -> None:
        self._home = tempfile.TemporaryDirectory()
        self._said = [Path(self._home.name, name) for name in ("out", "err")]
        workers.warm()
        self._process = workers.start(_main, list(map(str, arguments)), environment, *map(str, self._said))

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def send_signal(self, how: int) -> None:
        # It may have ended since.
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.pid, how)

    def communicate(self, timeout: float = 600) -> tuple[str, str]:
        self._process.join(timeout)
        assert self.poll() is not None, f"still at work after {timeout} s"
        return tuple(path.read_text() if path.exists() else "" for path in self._said)


def _main(arguments: list[str], environment: dict[str, str], *said: str) -> None:
    for number, path in enumerate(said, 1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    os.environ |= environment
    sys.argv = ["hf-prune", *arguments]
    main()


def command(*arguments: object, **environment: str) -> subprocess.CompletedProcess:
    """Run it and wait."""
    process = Command(*arguments, **environment)
    out, err = process.communicate()
    return subprocess.CompletedProcess(arguments, process.returncode, out, err)


def leftovers(home: Path) -> list[str]:
    """Names of anything that is neither finished nor given."""
    return sorted(p.name for p in home.rglob("*") if p.name.endswith((".partial", ".old", ".tmp", ".run")))


def searched(wanted: Recipe) -> str:
    """Search and choose; what would be built, in the words of the next stage, which is not begun."""
    with contextlib.closing(compress(wanted)) as events:
        return next(e.detail for e in events if isinstance(e, Stage) and e.name == "assemble")
