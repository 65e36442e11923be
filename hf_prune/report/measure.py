"""A finished folder measured beside its dense parent, its bare cut and the baselines."""

from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, PreTrainedModel

from hf_prune.assembly.base_check import stock_model
from hf_prune.assembly.certificate import CERTIFIED, TOLERANCE
from hf_prune.blueprint import Blueprint
from hf_prune.data.byte_counts import bytes_said
from hf_prune.data.task_scores import score
from hf_prune.errors import BrokenCheckpoint, ReloadMismatch
from hf_prune.evaluation import speed
from hf_prune.evaluation.evaluator import Evaluator
from hf_prune.events import Advanced, Event, stream_work
from hf_prune.hub.adapters import read_adapter
from hf_prune.hub.names import shown
from hf_prune.models.checkpoint import Checkpoint
from hf_prune.models.noise import quiet
from hf_prune.report import lm_eval, stages, statistics
from hf_prune.report.all_tokens import bits_with_all_tokens
from hf_prune.report.benchmarks import write_benchmarks
from hf_prune.report.lm_eval import HarnessScores
from hf_prune.report.retention import Standings, retention, standings
from hf_prune.report.schema.course import Healing
from hf_prune.report.schema.scores import BesideParents, Speed, TokenCost
from hf_prune.report.stages import Observed, observe
from hf_prune.session.restore import ADAPTER
from hf_prune.session.selection import Winner
from hf_prune.session.session import Session


def check_weights(folder: Path) -> None:
    """Whether a result has weights and a config that run no code when read; a result of ours never needs others.

    Raises:
        UnsafeSource: the weights of its model or adapter are pickles, or its config.json names code on the Hub.
        BrokenCheckpoint, SourceError: there are none, or they cannot be read.
    """
    Checkpoint.open(folder)
    if (folder / ADAPTER).is_dir():
        beside = folder / ADAPTER
        read_adapter(
            f"{folder.name}/{ADAPTER}", [p.name for p in beside.iterdir()], lambda n: (beside / n).read_bytes()
        )


def load_result(folder: Path, dtype: torch.dtype | str = "auto", *, trust_remote_code: bool = False) -> PreTrainedModel:
    """A finished folder as a user gets it, with the adapter beside it, if there is one.

    Raises:
        BrokenCheckpoint: transformers or peft does not load it.
    """
    try:
        with quiet():
            model = AutoModelForCausalLM.from_pretrained(
                folder, dtype=dtype, local_files_only=True, trust_remote_code=trust_remote_code, use_safetensors=True
            )
            if (folder / ADAPTER).is_dir():
                model = PeftModel.from_pretrained(model, folder / ADAPTER)
    # Whatever is wrong with a stranger's files comes up here, in as many kinds of errors as there are readers.
    except Exception as e:
        raise unreadable(folder, e) from e
    return model.eval()


def unreadable(folder: Path, error: Exception) -> BrokenCheckpoint:
    """Why a finished folder cannot be loaded, in a sentence."""
    said = " ".join(str(error).split())[:300]
    return BrokenCheckpoint(f"The model in {shown(folder.name)} cannot be loaded ({said}); fetch or make it again.")


def _loaded(session: Session, folder: Path) -> PreTrainedModel:
    """In the precision of the search, so that all columns are alike."""
    code = session.recipe.trust.remote_code
    return load_result(folder, session.dtype, trust_remote_code=code).to(session.device)


def measure_folder(
    session: Session, winner: Winner, folder: Path, healing: Healing | None
) -> Generator[Event, None, dict[str, Any]]:
    """Every section of the report that needs the finished folder, by its name, on the report split.

    Args:
        session: the run.
        found: the winner and what it is compared with.
        folder: holds the weights.
        healing: figures of the training that followed, if one did.
    """
    windows, rng = session.evidence.windows["report"], np.random.default_rng(session.recipe.seed)
    said = bytes_said(windows.tokens, session.inputs.tokenizer)
    known = yield from stream_work(
        lambda tell: standings(session, winner, lambda done, total: tell(Advanced("report", done, total)))
    )
    seen, final = _observed(session, winner, folder, healing, known)
    dense, ours = seen["dense"], list(seen.values())[-1]
    write_benchmarks(folder, ours.harness)
    entries = [("hf_prune", "hf_prune", winner.cut), *((r.name, r.label, r.blueprint) for r in winner.baselines)]
    scores = [known.text(blueprint) for _, _, blueprint in entries]
    bare = seen["cut"].text
    return {
        "text": statistics.text(dense.text, ours.text, windows, said),
        "baselines": statistics.baselines(entries, scores, known.evaluator, bare, said) if winner.baselines else [],
        "tasks": statistics.task_scores(dense.tasks, ours.tasks, rng),
        "left_out": session.evidence.left_out,
        "stages": stages.stages(seen, windows, said, rng),
        "generation": stages.spoken(seen, session.inputs.tokenizer, windows) if final else None,
        "speed": _speed(session, final, rng) if final else None,
        "retention": retention(session, winner, known),
        **_beside_parents(session, ours, known, said),
        **_token_cost(session, known, said),
    }


def _token_cost(session: Session, known: Standings, said: np.ndarray) -> dict[str, TokenCost]:
    """A section of the report where the base has lost tokens."""
    base, windows = session.inputs.base, session.evidence.windows["report"]
    if base.kept is None:
        return {}
    whole = bits_with_all_tokens(base, windows, said, session.dtype, session.device)
    kept = statistics.by_corpus(known.text(session.inputs.identity(0))[1].double().sum(1).numpy(), said, windows)
    return {"token_cost": TokenCost(all_tokens=whole, kept_tokens=kept)}


def _beside_parents(
    session: Session, ours: Observed, known: Standings, said: np.ndarray
) -> dict[str, dict[str, BesideParents]]:
    """A section of the report where there are several parents."""
    windows, names = session.evidence.windows["report"], session.inputs.names
    if len(names) == 1:
        return {}
    parents = {name: known.text(session.inputs.identity(k)) for k, name in enumerate(names)}
    best = {c: names[session.teacher(c)] for c in windows.corpora}
    return {"beside_parents": statistics.beside_parents(ours.text, parents, best, windows, said)}


def _observed(
    session: Session, winner: Winner, folder: Path, healing: Healing | None, known: Standings
) -> tuple[dict[str, Observed], PreTrainedModel | None]:
    """Every stage that this run has, dense first, and the finished model; one at a time beside the dense one.

    Of models that do not fit into memory there is what the sweep has asked, and no finished model.

    What a sweep has asked already is not asked again: weights are those of the blueprint, but for those that were
    trained.

    Raises:
        ReloadMismatch: they are others.
    """
    recipe, windows = session.recipe, session.evidence.windows["report"]
    blueprints = {"dense": session.inputs.identity(session.dense), "cut": winner.cut}
    if winner.blueprint != winner.cut:
        blueprints["repaired"] = winner.blueprint
    trained = ["healed"] if healing is not None and healing.kept else []
    seen, model = {}, None
    if session.streams:
        return {n: Observed(known.text(b), known.answers(b)) for n, b in blueprints.items()}, None
    last = [*blueprints, *trained][-1]
    for stage in [*blueprints, *trained]:
        if stage == "dense":
            model = _dense(session)
        else:
            model = _loaded(session, folder) if stage == last else session.assembled(blueprints[stage])
        blueprint = blueprints.get(stage)
        if stage == last and blueprint:
            _check_made_by(session, blueprint, model, folder)
        digest = blueprint.digest if blueprint else f"{winner.blueprint.digest}-{recipe.digest}"
        text = known.text(blueprint) if blueprint else known.evaluator.live_scores(model)
        answers = known.answers(blueprint) if blueprint else {}
        answers = answers or {t.name: score(model, session.inputs.tokenizer, t) for t in known.tasks}
        harness = scores_of(model, session, digest) if recipe.report.lm_eval else {}
        seen[stage] = observe(model, text, session.inputs.tokenizer, windows, answers, harness)
    return seen, model


@torch.inference_mode()
def _check_made_by(session: Session, blueprint: Blueprint, model: PreTrainedModel, folder: Path) -> None:
    """Whether the weights of a folder say what its blueprint does: whoever sent it may have changed one of them."""
    rows, length = CERTIFIED
    tokens = session.evidence.windows["report"].tokens[:rows, :length]
    expected = Evaluator(session.bank, tokens, with_updates=False).logits(blueprint, len(tokens)).float()
    said = model(input_ids=tokens.to(model.device), use_cache=False).logits.float()
    apart = float((said - expected.to(said.device)).abs().max() / expected.abs().max())
    # A logit that is no number is not near, either.
    if not apart <= TOLERANCE[str(session.dtype).removeprefix("torch.")]:
        raise ReloadMismatch(
            f"The weights in {shown(folder.name)} are not those of its blueprint.json (logits differ by {apart:.2g} of "
            "the largest one), so what is measured would be another model; make it again with hf-prune assemble."
        )


def _speed(session: Session, final: PreTrainedModel, rng: np.random.Generator) -> Speed:
    """Of the request that a search for time was for, else of a shorter one."""
    request = (speed.PREFILL_TOKENS, speed.DECODE_TOKENS) if session.recipe.size.latency is not None else ()
    return Speed(**speed.compare(_dense(session), final, rng, *request))


def _dense(session: Session) -> PreTrainedModel:
    """The best dense parent as stock transformers loads it; one whose vocabulary differs, in that of the base."""
    parent = session.inputs.parents[session.dense]
    if parent.rows is not None:
        return session.assembled(session.inputs.identity(session.dense))
    return stock_model(parent, session.dtype, session.device) if session.dense else session.bank.model


def scores_of(model: PreTrainedModel, session: Session, digest: str) -> dict[str, HarnessScores]:
    """lm_eval's tasks of the recipe on a live model, each run once per model."""
    recipe, cache = session.recipe, Path("~/.cache/hf_prune/lm_eval").expanduser()
    key = f"{digest}-{str(session.dtype).removeprefix('torch.')}"
    return lm_eval.scores(
        model,
        session.inputs.tokenizer,
        recipe.report.lm_eval,
        digest=key,
        limit=recipe.report.lm_eval_limit,
        cache=cache,
    )
