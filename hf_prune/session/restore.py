"""What a cut takes, given back: the stages `library`, `tune`, `repair` and `heal` of the pipeline.

All keep what they have in the run's folder, so that an interrupted run goes on from there.
"""

import json
import os
import shutil
import warnings
from collections.abc import Generator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from hf_prune.assembly.assemble import Parent, write, write_live
from hf_prune.atomic_files import write_text
from hf_prune.blueprint import Blueprint
from hf_prune.evaluation.objectives import values
from hf_prune.evaluation.teachers import Teachers
from hf_prune.events import Advanced, Event, Healed, Repaired, Stage, Tell, Tuned, stream_work
from hf_prune.models.experts import stacked
from hf_prune.models.noise import quiet
from hf_prune.recipe import Recipe
from hf_prune.recovery.heal import Course, Healing, heal
from hf_prune.recovery.mixes import midway, tune, tune_repair
from hf_prune.recovery.repair import STRENGTHS, Shares, evenly, weaken
from hf_prune.session.baselines import Baseline
from hf_prune.session.selection import Winner
from hf_prune.session.session import Session

ADAPTER = "adapter"
"""Folder of a LoRA that is kept apart from the weights."""


def make_libraries(session: Session) -> Generator[Event, None, None]:
    """Make the level libraries that the method needs, and those of its baselines; time them where time counts."""
    kinds, depth = session.inputs.method.libraries(session.recipe), session.inputs.depth
    if not kinds:
        return
    windows = session.recipe.width.sequences
    yield Stage("library", f"levels of {depth} layers on at most {windows} windows")

    def work(tell: Tell) -> None:
        for number, kind in enumerate(kinds):
            session.library(kind, partial(_layer_done, tell, number * depth, depth * len(kinds)))

    yield from stream_work(work)
    if session.recipe.size.latency is not None:
        yield Stage("latency", "prefill and decode at every level, on this device")
        session.latencies  # noqa: B018 - measured here, under its own stage
    session.clock.lap("library")


def _layer_done(tell: Tell, before: int, steps: int, done: int, total: int) -> None:
    tell(Advanced("library", before + done, steps))


def tune_mixes(session: Session, winner: Winner) -> Generator[Event, None, Winner]:
    """Learn the weights of the winner's mixes, and go as far towards them as the selection split agrees.

    Args:
        session: the run.
        winner: its blueprint is a bare cut as the search found it, which becomes one of those it is compared with.
    """
    yield Stage("tune", f"{session.recipe.tune.steps} steps on {session.recipe.data.sequences} windows")
    blueprint, summary = yield from stream_work(lambda tell: _tune(session, winner.cut, tell))
    yield Tuned(summary["before"], summary["after"], summary["kept"])
    if not summary["kept"]:
        return replace(winner, tuning=summary)
    searched = Baseline("searched", winner.cut, session.inputs.removed(winner.cut), (), "hf_prune, as searched")
    baselines = (*winner.baselines, searched)
    return replace(winner, cut=blueprint, blueprint=blueprint, baselines=baselines, tuning=summary)


def _tune(session: Session, cut: Blueprint, tell: Tell) -> tuple[Blueprint, dict[str, Any]]:
    recipe, evaluator, evidence = session.recipe, session.evaluator, session.evidence.learning
    path = session.workdir.tuned(recipe.search_digest, cut.digest, f"{recipe.tune.steps}-{evidence.items}")
    if path.is_file():
        done = Blueprint.from_json(path.read_text(encoding="utf-8"))
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        done = tune(
            evaluator,
            cut,
            evidence,
            recipe.tune.steps,
            lambda done, total, loss: tell(Advanced("tune", done, total, loss)),
            path.with_suffix(".safetensors"),
        ).blueprint
        write_text(path, done.to_json())
    tried = [midway(cut, done, share) for share in STRENGTHS]
    before, *after = (
        values(m, session.columns)[0] for m in evaluator.evaluate([cut, *tried], session.evidence.selection)
    )
    best = after.index(min(after))
    return tried[best], {**_learning(session, before, after[best]), "strength": STRENGTHS[best]}


def _learning(session: Session, before: float, after: float) -> dict[str, Any]:
    """What gradient descent learned from, and what the selection split says to it."""
    recipe, evidence = session.recipe, session.evidence.learning
    return {
        "steps": recipe.tune.steps,
        "windows": evidence.sequences,
        "items": evidence.items,
        "objective": recipe.search.objective,
        "before": before,
        "after": after,
        "kept": after < before,
    }


def repair_cut(session: Session, winner: Winner) -> Generator[Event, None, Winner]:
    """Refit what is left of the winner, and keep that if the selection windows agree.

    Args:
        session: the run.
        winner: its blueprint is the bare cut; one that is repaired already stays as it is.
    """
    recipe = session.recipe
    if winner.blueprint != winner.cut:
        return winner
    yield Stage("repair", f"{recipe.repair.reach}, on at most {recipe.repair.sequences} windows")
    blueprint, summary = yield from stream_work(lambda tell: _repair(session, winner.cut, tell))
    yield Repaired(summary["kl_before"], summary["kl_after"], summary["kept"])
    return replace(winner, blueprint=blueprint if summary["kept"] else winner.cut, repair=summary)


def _repair(session: Session, cut: Blueprint, tell: Tell) -> tuple[Blueprint, dict[str, Any]]:
    """Refitted; where the search asks tasks, as far as its objective is best on the selection split."""
    windows = session.recipe.repair.sequences
    done = session.repaired(cut, windows, lambda done, total: tell(Advanced("repair", done, total)))
    whole = done.blueprint
    strengths = STRENGTHS if session.evidence.searched else STRENGTHS[-1:]
    bare, *ways = _judged(session, [cut, *(weaken(session.bank, whole, evenly(whole, s)) for s in strengths)])
    best = min(ways, key=lambda way: way.worth)
    strength, learning = strengths[ways.index(best)], None
    if session.recipe.tune.steps and session.evidence.learning.items:
        shares = _shares(session, whole, strength, tell)
        ways += _judged(session, [weaken(session.bank, whole, shares)])
        taken = [list(pair) if spec.repair else None for spec, pair in zip(whole.layers, shares, strict=True)]
        learning = {**_learning(session, best.worth, ways[-1].worth), "shares": taken}
        best = min(best, ways[-1], key=lambda way: way.worth)
    _let_go(session, [whole, *(way.blueprint for way in ways)], best.blueprint)
    return best.blueprint, {
        "reach": session.recipe.repair.reach,
        "windows": len(session.evidence.training(windows).tokens),
        "strength": strength,
        "learning": learning,
        "kl_before": bare.kl,
        "kl_after": best.kl,
        "kept": best.worth < bare.worth,
        "fits": [asdict(f) for f in done.fits],
    }


@dataclass(frozen=True, eq=False)
class _Way:
    """A model, and what the selection split says to it: what is to be least, and KL in nats per token."""

    blueprint: Blueprint
    worth: float
    kl: float


def _judged(session: Session, blueprints: Sequence[Blueprint]) -> list[_Way]:
    """By what the search minimises where that asks tasks, else by KL."""
    measured = session.evaluator.evaluate(blueprints, session.evidence.selection)
    worth = [values(m, session.columns)[0] if session.evidence.searched else m.kl for m in measured]
    return [_Way(b, w, m.kl) for b, w, m in zip(blueprints, worth, measured, strict=True)]


def _shares(session: Session, whole: Blueprint, strength: float, tell: Tell) -> Shares:
    """How much of each correction to take, learned as the mixes are."""
    recipe, evidence = session.recipe, session.evidence.learning
    how = f"{recipe.tune.steps}-{evidence.items}-{strength}"
    return tune_repair(
        session.evaluator,
        whole,
        strength,
        evidence,
        recipe.tune.steps,
        lambda done, total, loss: tell(Advanced("repair", done, total, loss)),
        session.workdir.shares(recipe.search_digest, whole.digest, how),
    )


def _let_go(session: Session, ways: Sequence[Blueprint], taken: Blueprint) -> None:
    """Forget the weights of all ways but one."""
    kept = {spec.repair for spec in taken.layers}
    for spec in (spec for way in ways for spec in way.layers):
        if spec.repair not in kept:
            session.bank.forget(spec)


@dataclass(frozen=True, eq=False)
class Training:
    """What training brought: figures for the report, the model as it was trained, parameters and bytes stored."""

    summary: dict[str, Any]
    model: PreTrainedModel
    stored: tuple[int, int] | None


def heal_model(session: Session, built: Blueprint, folder: Path) -> Generator[Event, None, Training]:
    """Train the assembled model and put the better weights into its folder.

    Args:
        session: the run; its recipe asks for healing.
        built: what was assembled.
        folder: holds the assembled model.
    """
    recipe = session.recipe
    yield Stage("heal", f"{recipe.heal.tokens:,} tokens, {recipe.heal.method}")
    home = session.workdir.healing(recipe.training_digest, built.digest)
    done = yield from stream_work(lambda tell: _heal(session, folder, home, tell))
    yield Healed(done.before, done.after, done.tokens, done.kept)
    stored = _stored(session, folder, done) if done.kept else None
    summary = {
        "method": recipe.heal.method,
        "objective": {"kl": recipe.heal.kl, "ce": recipe.heal.ce, "top_k": recipe.heal.top_k},
        "before": done.before,
        "after": done.after,
        "kept": done.kept,
        "merged": stored is not None,
        "tokens": done.tokens,
        "distinct_tokens": min(done.tokens, session.evidence.training(_windows(recipe)).tokens.numel()),
        "tokens_per_s": done.tokens / done.seconds if done.seconds else None,
        "curve": [list(point) for point in done.curve],
    }
    return Training(summary, done.model, stored)


def course(recipe: Recipe) -> Course:
    """The recipe's fields that say how to train."""
    return Course(
        tokens=recipe.heal.tokens,
        method=recipe.heal.method,
        rank=recipe.heal.rank,
        alpha=recipe.heal.alpha,
        kl=recipe.heal.kl,
        ce=recipe.heal.ce,
        top_k=recipe.heal.top_k,
        rate=recipe.heal.lr,
        batch=recipe.heal.batch,
        checks=recipe.heal.checks,
        patience=recipe.heal.patience,
        seed=recipe.seed,
        checkpointing=recipe.heal.gradient_checkpointing,
    )


def _windows(recipe: Recipe) -> int:
    return -(-recipe.heal.tokens // recipe.data.length)


def _heal(session: Session, folder: Path, home: Path, tell: Tell) -> Healing:
    recipe = session.recipe
    # All weights are trained in float32, a LoRA is float32 beside weights as they are.
    dtype = torch.float32 if recipe.heal.method == "full" else session.dtype
    with quiet(), warnings.catch_warnings():
        # Of peft, about transformers' names for what it uses.
        warnings.simplefilter("ignore", FutureWarning)
        student = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, local_files_only=True, trust_remote_code=recipe.trust.remote_code, use_safetensors=True
        ).to(session.device)
        train, held = session.evidence.training(_windows(recipe)), session.evidence.windows["selection"]
        teacher, whose = session.bank.model, None
        if len(session.inputs.parents) > 1:
            whose = tuple([session.teacher(c) for c in windows.corpora] for windows in (train, held))

            def teacher(tokens: torch.Tensor, numbers: Sequence[int]) -> torch.Tensor:
                return Teachers.of(session.bank, session.evaluator.dense, len(tokens), numbers).say(tokens)

        return heal(
            student,
            teacher,
            session.inputs.base.family,
            train.tokens,
            held.tokens,
            course(recipe),
            home,
            lambda done, total, loss: tell(Advanced("heal", done, total, loss)),
            whose,
            session.limit("heal", "heal"),
        )


def _stored(session: Session, folder: Path, done: Healing) -> tuple[int, int] | None:
    """Merge into the folder's weights, tensor by tensor for a LoRA; or lay the adapter beside them."""
    recipe = session.recipe
    if recipe.heal.method != "full":
        done.model.save_pretrained(folder / ADAPTER)
        (folder / ADAPTER / "README.md").unlink(missing_ok=True)
        if recipe.heal.keep_adapter:
            _named_base(folder / ADAPTER / "adapter_config.json", recipe.publish.repo)
            return None
    merged = folder / "merged"
    merged.mkdir()
    # Tensor by tensor, no adapter of stacked experts is merged.
    plain = recipe.heal.method == "lora" and not stacked(session.bank.model)
    adapter = folder / ADAPTER if plain else None
    parent = Parent.open(session.inputs.base.source, folder, adapter, trust_remote_code=recipe.trust.remote_code)
    if adapter:
        stored = write(Blueprint.identity(parent.source, parent.depth), [parent], merged)
    else:
        model = done.model.merge_and_unload() if recipe.heal.method != "full" else done.model
        stored = write_live(model, parent, merged)
    del parent
    for old in folder.glob("model*.safetensors*"):
        old.unlink()
    for new in merged.glob("model*.safetensors*"):
        os.replace(new, folder / new.name)
    shutil.rmtree(merged)
    shutil.rmtree(folder / ADAPTER, ignore_errors=True)
    return stored


def _named_base(path: Path, repo: str | None) -> None:
    """The adapter belongs to the weights beside it; a path of this machine means nothing elsewhere."""
    raw = json.loads(path.read_text(encoding="utf-8"))
    write_text(path, json.dumps({**raw, "base_model_name_or_path": repo or ".."}, indent=2) + "\n")
