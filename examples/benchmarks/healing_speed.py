"""What training costs: heal against a bare transformers Trainer, and a round of training-aware selection in FLOPs.

Throughput: tokens per second of `heal` and of the stock Trainer on the same cut model with the same LoRA, batch and
precision; once with the text's cross-entropy alone, once with a teacher (the bare way: KL of full distributions).
Rounds alternate; the figure is the ratio of medians. Selection: matrix-multiplication FLOPs, counted by torch, of
judging candidates after a training on so many tokens each, with the dense model's pass and the measurement, against
those of the training alone (forward and backward of every layer and of the head).

    OMP_NUM_THREADS=2 python examples/benchmarks/healing_speed.py
    python examples/benchmarks/healing_speed.py --device cuda --batch 64 --steps 50
"""

import argparse
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from torch.utils.flop_counter import FlopCounterMode
from transformers import PrinterCallback, Trainer, TrainingArguments

from hf_prune.assembly.assemble import quiet
from hf_prune.blueprint import Blueprint
from hf_prune.data.bundled import demo_folder
from hf_prune.recipe import Recipe
from hf_prune.recovery.heal import Course, heal, lora_targets
from hf_prune.recovery.short_training import BATCH, Candidate, Lesson, TrainingAware
from hf_prune.session.session import Session, open_session

CUTS = (
    (3, 6, 7, 11),
    (3, 4, 7, 11),
    (4, 6, 7, 11),
    (3, 4, 6, 11),
    (3, 5, 7, 11),
    (3, 6, 8, 11),
    (2, 3, 6, 11),
    (5, 6, 7, 8),
)
"""Eight cuts as a search finds them, and one contiguous."""


def main() -> None:
    """Measure and print two markdown tables."""
    a = arguments()
    demo = demo_folder()
    named = {"base": str(demo / "storymath-16l"), "data": (str(demo / "text"),)}
    session = open_session(Recipe.of(**named, device=a.device))
    train = session.evidence.training(a.batch * a.steps).tokens
    print(
        f"{session.dtype}, {session.device}, {torch.get_num_threads()} threads, "
        f"batch {a.batch} x {train.shape[1]} tokens\n"
    )
    throughput(a, session, train)
    selection(a, session)


def arguments() -> argparse.Namespace:
    """Command line."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--device", default="auto")
    p.add_argument("--batch", type=int, default=16)
    p.add_argument("--steps", type=int, default=12)
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--tokens", type=int, default=10_000, help="per candidate of the selection")
    return p.parse_args()


def cut(session: Session, dropped: tuple[int, ...]) -> Blueprint:
    """The model without these layers."""
    scorer = session.deletions(len(dropped))
    return scorer.blueprint(scorer.space.from_removed(dropped))


def throughput(a: argparse.Namespace, session: Session, train: torch.Tensor) -> None:
    """Alternate the ways, print the ratios."""
    ways = {
        "heal, cross-entropy": (ours, False),
        "bare Trainer, cross-entropy": (bare, False),
        "heal, distillation": (ours, True),
        "bare Trainer, distillation": (bare, True),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(a.rounds + 1):
        for name, (way, teaches) in ways.items():
            seconds[name].append(way(a, session, train, teaches))
    # The first round warms up.
    medians = {name: statistics.median(s[1:]) for name, s in seconds.items()}
    tokens = a.steps * a.batch * train.shape[1]
    print("| way | tokens per second (median) | of the bare Trainer's |\n|---|---:|---:|")
    for name, value in medians.items():
        other = medians["bare Trainer, " + name.partition(", ")[2]]
        print(f"| {name} | {tokens / value:,.0f} | {other / value:.2f} x |")


def ours(a: argparse.Namespace, session: Session, train: torch.Tensor, teaches: bool) -> float:
    """Seconds of `heal`, with one look at two windows at its end."""
    student, teacher, family = session.assembled(cut(session, CUTS[0])), session.bank.model, session.inputs.base.family
    losses = {"kl": float(teaches), "ce": float(not teaches)}
    course = Course(train.numel(), rank=32, **losses, batch=a.batch, checks=1)
    home = Path(tempfile.mkdtemp())
    with quiet():
        done = heal(student, teacher, family, train, train[:2], course, home)
    shutil.rmtree(home)
    return done.seconds


def bare(a: argparse.Namespace, session: Session, train: torch.Tensor, teaches: bool) -> float:
    """Seconds of the stock Trainer, nothing saved and nothing evaluated."""
    student = session.assembled(cut(session, CUTS[0]))
    student.name_or_path = student.config.name_or_path = ""
    targets = lora_targets(student, session.inputs.base.family)
    config = LoraConfig(r=32, lora_alpha=64, target_modules=targets)
    home = tempfile.mkdtemp()
    arguments = TrainingArguments(
        output_dir=home,
        per_device_train_batch_size=a.batch,
        max_steps=a.steps,
        learning_rate=1e-3,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=session.device.type == "cpu",
        remove_unused_columns=False,
        dataloader_pin_memory=False,
    )
    rows = [{"input_ids": row, "labels": row} for row in train]
    kind = Taught if teaches else Trainer
    with quiet():
        trainer = kind(model=get_peft_model(student, config), args=arguments, train_dataset=rows)
        trainer.teacher = session.bank.model
        trainer.remove_callback(PrinterCallback)
        started = time.monotonic()
        trainer.train()
    shutil.rmtree(home)
    return time.monotonic() - started


class Taught(Trainer):
    """The usual few lines of distillation."""

    def compute_loss(self, model, inputs, return_outputs=False, **_):
        """KL of full distributions."""
        tokens = inputs["input_ids"]
        with torch.no_grad():
            wanted = self.teacher(input_ids=tokens, use_cache=False).logits[:, :-1].float().log_softmax(-1)
        said = model(input_ids=tokens, use_cache=False).logits[:, :-1].float().log_softmax(-1)
        return torch.nn.functional.kl_div(said, wanted, log_target=True, reduction="none").sum(-1).mean()


def selection(a: argparse.Namespace, session: Session) -> None:
    """Count FLOPs of a round, and of the training in it."""
    recipe, evaluator = session.recipe, session.evaluator
    blueprints = [cut(session, c) for c in CUTS]
    train = session.evidence.training(-(-a.tokens // recipe.data.length)).tokens
    rows = slice(recipe.data.sequences, recipe.data.sequences + recipe.data.selection_sequences)
    with tempfile.TemporaryDirectory() as home:
        started = time.monotonic()
        with FlopCounterMode(display=False) as whole:
            aware = TrainingAware(evaluator, Lesson.of(evaluator.dense, train), Path(home))
            for blueprint in blueprints:
                aware.scores(blueprint, a.tokens, rows)
        seconds = time.monotonic() - started
    with FlopCounterMode(display=False) as pure:
        lesson = Lesson.of(evaluator.dense, train)
    teacher = pure.get_total_flops()
    with FlopCounterMode(display=False) as pure:
        for blueprint in blueprints:
            with Candidate(evaluator.dense, evaluator.bank, blueprint, 0, everywhere=True) as candidate:
                for step in range(max(1, a.tokens // (BATCH * recipe.data.length))):
                    candidate.learn(lesson, step)
    total, plain = whole.get_total_flops(), pure.get_total_flops()
    print(
        f"\n{len(blueprints)} candidates, {a.tokens:,} tokens each, measured on "
        f"{recipe.data.selection_sequences} windows\n"
    )
    print("| | GFLOPs | of the training alone |\n|---|---:|---:|")
    print(f"| training alone, all layers | {plain / 1e9:,.0f} | 1.00 x |")
    print(f"| **the whole round** ({seconds:.0f} s) | {total / 1e9:,.0f} | **{total / plain:.2f} x** |")
    print(f"| of which the dense model's pass | {teacher / 1e9:,.0f} | {teacher / plain:.2f} x |")


if __name__ == "__main__":
    main()
