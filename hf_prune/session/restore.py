"""What a cut took, given back: the stages `tune`, `repair` and `heal` of the pipeline.

All keep what they have in the run's folder, so that an interrupted run goes on from there.
"""

import json
import os
import shutil
import warnings
from collections.abc import Generator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from hf_prune.assembly.assemble import Parent, quiet, write, write_live
from hf_prune.atomic_files import write_text
from hf_prune.blueprint import Blueprint
from hf_prune.evaluation.objectives import values
from hf_prune.evaluation.teachers import Teachers
from hf_prune.events import Advanced, Event, Healed, Repaired, Stage, Tell, Tuned, watched
from hf_prune.models.experts import stacked
from hf_prune.recipe import Recipe
from hf_prune.recovery.heal import Course, Healing, heal
from hf_prune.recovery.mixes import midway, tune, tune_repair
from hf_prune.recovery.repair import STRENGTHS, Shares, evenly, weakened
from hf_prune.session.found import Found, Rival
from hf_prune.session.job import Job

ADAPTER = "adapter"
"""Folder of a LoRA that is kept apart from the weights."""


def tuned(job: Job, found: Found) -> Generator[Event, None, Found]:
    """Learn the weights of the winner's mixes, and go as far towards them as the selection split agrees.

    Args:
        job: the run.
        found: its winner is a bare cut as the search found it, which becomes one of those it is compared with.
    """
    yield Stage("tune", f"{job.recipe.tune.steps} steps on {job.recipe.data.sequences} windows")
    blueprint, summary = yield from watched(lambda tell: _tune(job, found.cut, tell))
    yield Tuned(summary["before"], summary["after"], summary["kept"])
    if not summary["kept"]:
        return replace(found, tuning=summary)
    searched = Rival("searched", found.cut, job.removed(found.cut), (), "hf_prune, as searched")
    return replace(found, cut=blueprint, winner=blueprint, rivals=(*found.rivals, searched), tuning=summary)


def _tune(job: Job, cut: Blueprint, tell: Tell) -> tuple[Blueprint, dict[str, Any]]:
    recipe, evaluator, evidence = job.recipe, job.evaluator, job.learning
    path = job.home / "tuned" / f"{recipe.search_digest}-{cut.digest}-{recipe.tune.steps}-{evidence.items}.json"
    if path.is_file():
        done = Blueprint.from_json(path.read_text(encoding="utf-8"))
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        done = tune(evaluator, cut, evidence, recipe.tune.steps,
                    lambda done, total, loss: tell(Advanced("tune", done, total, loss)),
                    path.with_suffix(".safetensors")).blueprint  # fmt: skip
        write_text(path, done.to_json())
    tried = [midway(cut, done, share) for share in STRENGTHS]
    before, *after = (values(m, job.columns)[0] for m in evaluator.evaluate([cut, *tried], job.selection))
    best = after.index(min(after))
    return tried[best], {**_learning(job, before, after[best]), "strength": STRENGTHS[best]}


def _learning(job: Job, before: float, after: float) -> dict[str, Any]:
    """What gradient descent learned from, and what the selection split says to it."""
    recipe, evidence = job.recipe, job.learning
    return {
        "steps": recipe.tune.steps,
        "windows": evidence.sequences,
        "items": evidence.items,
        "objective": recipe.search.objective,
        "before": before,
        "after": after,
        "kept": after < before,
    }


def repaired(job: Job, found: Found) -> Generator[Event, None, Found]:
    """Refit what is left of the winner, and keep that if the selection windows agree.

    Args:
        job: the run.
        found: its winner is the bare cut; one that is repaired already stays as it is.
    """
    recipe = job.recipe
    if found.winner != found.cut:
        return found
    yield Stage("repair", f"{recipe.repair.reach}, on at most {recipe.repair.sequences} windows")
    blueprint, summary = yield from watched(lambda tell: _repair(job, found.cut, tell))
    yield Repaired(summary["kl_before"], summary["kl_after"], summary["kept"])
    return replace(found, winner=blueprint if summary["kept"] else found.cut, repair=summary)


def _repair(job: Job, cut: Blueprint, tell: Tell) -> tuple[Blueprint, dict[str, Any]]:
    """Refitted; where the search asks tasks, as far as its objective is best on the selection split."""
    windows = job.recipe.repair.sequences
    done = job.repaired(cut, windows, lambda done, total: tell(Advanced("repair", done, total)))
    whole = done.blueprint
    strengths = STRENGTHS if job.searched else STRENGTHS[-1:]
    bare, *ways = _judged(job, [cut, *(weakened(job.bank, whole, evenly(whole, s)) for s in strengths)])
    best = min(ways, key=lambda way: way.worth)
    strength, learning = strengths[ways.index(best)], None
    if job.recipe.tune.steps and job.learning.items:
        shares = _shares(job, whole, strength, tell)
        ways += _judged(job, [weakened(job.bank, whole, shares)])
        taken = [list(pair) if spec.repair else None for spec, pair in zip(whole.layers, shares, strict=True)]
        learning = {**_learning(job, best.worth, ways[-1].worth), "shares": taken}
        best = min(best, ways[-1], key=lambda way: way.worth)
    _let_go(job, [whole, *(way.blueprint for way in ways)], best.blueprint)
    return best.blueprint, {
        "reach": job.recipe.repair.reach,
        "windows": len(job.training(windows).tokens),
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


def _judged(job: Job, blueprints: Sequence[Blueprint]) -> list[_Way]:
    """By what the search minimises where that asks tasks, else by KL."""
    measured = job.evaluator.evaluate(blueprints, job.selection)
    worth = [values(m, job.columns)[0] if job.searched else m.kl for m in measured]
    return [_Way(b, w, m.kl) for b, w, m in zip(blueprints, worth, measured, strict=True)]


def _shares(job: Job, whole: Blueprint, strength: float, tell: Tell) -> Shares:
    """How much of each correction to take, learned as the mixes are."""
    recipe, evidence = job.recipe, job.learning
    name = f"{recipe.search_digest}-{whole.digest}-{recipe.tune.steps}-{evidence.items}-{strength}.safetensors"
    return tune_repair(job.evaluator, whole, strength, evidence, recipe.tune.steps,
                       lambda done, total, loss: tell(Advanced("repair", done, total, loss)),
                       job.home / "repairs" / name)  # fmt: skip


def _let_go(job: Job, ways: Sequence[Blueprint], taken: Blueprint) -> None:
    """Forget the weights of all ways but one."""
    kept = {spec.repair for spec in taken.layers}
    for spec in (spec for way in ways for spec in way.layers):
        if spec.repair not in kept:
            job.bank.forget(spec)


@dataclass(frozen=True, eq=False)
class Training:
    """What training brought: figures for the report, the model as it was trained, parameters and bytes stored."""

    summary: dict[str, Any]
    model: PreTrainedModel
    stored: tuple[int, int] | None


def healed(job: Job, folder: Path) -> Generator[Event, None, Training]:
    """Train the assembled model and put the better weights into its folder.

    Args:
        job: the run; its recipe asks for healing.
        folder: holds the assembled model.
    """
    recipe = job.recipe
    yield Stage("heal", f"{recipe.heal.tokens:,} tokens, {recipe.heal.method}")
    done = yield from watched(lambda tell: _heal(job, folder, job.home / f"heal-{recipe.digest}", tell))
    yield Healed(done.before, done.after, done.tokens, done.kept)
    stored = _stored(job, folder, done) if done.kept else None
    summary = {
        "method": recipe.heal.method,
        "objective": {"kl": recipe.heal.kl, "ce": recipe.heal.ce, "top_k": recipe.heal.top_k},
        "before": done.before,
        "after": done.after,
        "kept": done.kept,
        "merged": stored is not None,
        "tokens": done.tokens,
        "distinct_tokens": min(done.tokens, job.training(_windows(recipe)).tokens.numel()),
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


def _heal(job: Job, folder: Path, home: Path, tell: Tell) -> Healing:
    recipe = job.recipe
    # All weights are trained in float32, a LoRA is float32 beside weights as they are.
    dtype = torch.float32 if recipe.heal.method == "full" else job.dtype
    with quiet(), warnings.catch_warnings():
        # Of peft, about transformers' names for what it uses.
        warnings.simplefilter("ignore", FutureWarning)
        student = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, local_files_only=True, trust_remote_code=recipe.trust.remote_code
        ).to(job.device)
        train, held = job.training(_windows(recipe)), job.evidence["selection"]
        teacher, whose = job.bank.model, None
        if len(job.parents) > 1:
            whose = tuple([job.teacher(c) for c in windows.corpora] for windows in (train, held))

            def teacher(tokens: torch.Tensor, numbers: Sequence[int]) -> torch.Tensor:
                return Teachers.of(job.bank, job.evaluator.dense, len(tokens), numbers).say(tokens)

        return heal(
            student,
            teacher,
            job.parent.family,
            train.tokens,
            held.tokens,
            course(recipe),
            home,
            lambda done, total, loss: tell(Advanced("heal", done, total, loss)),
            whose,
        )


def _stored(job: Job, folder: Path, done: Healing) -> tuple[int, int] | None:
    """Merge into the folder's weights, tensor by tensor for a LoRA; or lay the adapter beside them."""
    recipe = job.recipe
    if recipe.heal.method != "full":
        done.model.save_pretrained(folder / ADAPTER)
        (folder / ADAPTER / "README.md").unlink(missing_ok=True)
        if recipe.heal.keep_adapter:
            _named_base(folder / ADAPTER / "adapter_config.json", recipe.publish.repo)
            return None
    merged = folder / "merged"
    merged.mkdir()
    # Tensor by tensor, no adapter of stacked experts is merged.
    plain = recipe.heal.method == "lora" and not stacked(job.bank.model)
    adapter = folder / ADAPTER if plain else None
    parent = Parent.open(job.parent.source, folder, adapter, trust_remote_code=recipe.trust.remote_code)
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
