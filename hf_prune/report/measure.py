"""A finished folder measured beside its dense parent, its bare cut and the baselines."""

from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np
from peft import PeftModel
from transformers import AutoModelForCausalLM, PreTrainedModel

from hf_prune.assembly.assemble import quiet
from hf_prune.blueprint import Fidelity
from hf_prune.data import tasks
from hf_prune.evaluation import speed
from hf_prune.evaluation.evaluator import Evaluator
from hf_prune.events import Advanced, Event, watched
from hf_prune.report import lm_eval, stages, statistics
from hf_prune.report.lm_eval import HarnessScores
from hf_prune.report.retention import Standings, retention, standings
from hf_prune.report.schema.course import Healing
from hf_prune.report.schema.scores import Speed
from hf_prune.report.stages import Observed, observe
from hf_prune.session.found import Found
from hf_prune.session.job import Job
from hf_prune.session.restore import ADAPTER


def _loaded(job: Job, folder: Path) -> PreTrainedModel:
    """The finished folder as a user gets it, in the precision of the search so that all columns are alike."""
    code = job.recipe.trust_remote_code
    with quiet():
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=job.dtype, local_files_only=True, trust_remote_code=code
        )
        if (folder / ADAPTER).is_dir():
            model = PeftModel.from_pretrained(model, folder / ADAPTER)
    return model.to(job.device).eval()


def measured(job: Job, found: Found, folder: Path, healing: Healing | None) -> Generator[Event, None, dict[str, Any]]:
    """Every section of the report that needs the finished folder, by its name, on the report split.

    Args:
        job: the run.
        found: the winner and what it is compared with.
        folder: holds the weights.
        healing: figures of the training that followed, if one did.
    """
    recipe, windows = job.recipe, job.evidence["report"]
    rng = np.random.default_rng(recipe.seed)
    evaluator = Evaluator(job.bank, windows.tokens)
    if job.dense:
        evaluator.teach([job.dense] * len(windows.tokens))
    known = yield from watched(
        lambda tell: standings(job, found, lambda done, total: tell(Advanced("report", done, total)))
    )
    seen = _observed(job, evaluator, found, folder, healing, known)
    dense, ours = seen["dense"], list(seen.values())[-1]
    entries = [("hf_prune", "hf_prune", found.cut), *((r.name, r.label, r.blueprint) for r in found.rivals)]
    models = {"dense": _dense(job), "pruned": _loaded(job, folder)}
    return {
        "text": statistics.text(dense.text, ours.text, windows),
        "baselines": statistics.baselines(entries, evaluator, windows, seen["cut"].text) if found.rivals else [],
        "tasks": statistics.task_scores(dense.tasks, ours.tasks, rng),
        "stages": stages.stages(seen, windows, rng),
        "generation": stages.spoken(seen, job.tokenizer, windows),
        "speed": Speed(**speed.measure(models, rng)),
        "retention": known and retention(job, found, known),
    }


def _observed(
    job: Job,
    evaluator: Evaluator,
    found: Found,
    folder: Path,
    healing: Healing | None,
    known: Standings | None,
) -> dict[str, Observed]:
    """Every stage that this run has, dense first; one model at a time beside the dense one.

    The finished folder is asked as a user gets it; what a sweep has asked already is not asked again.
    """
    recipe, windows = job.recipe, job.evidence["report"]
    questions = known.tasks if known else job.reported
    blueprints = {"dense": job.identity(job.dense), "cut": found.cut}
    if found.winner != found.cut:
        blueprints["repaired"] = found.winner
    scores = evaluator.token_scores(list(blueprints.values()), Fidelity(len(windows.tokens)))
    texts = dict(zip(blueprints, scores, strict=True))
    trained = healing is not None and healing.kept
    last = "healed" if trained else list(blueprints)[-1]
    seen = {}
    for stage in [*blueprints, *(["healed"] if trained else [])]:
        if stage == "dense":
            model = _dense(job)
        elif stage == last:
            model = _loaded(job, folder)
        else:
            model = job.assembled(blueprints[stage])
        text = texts[stage] if stage in texts else evaluator.live_scores(model)
        digest = blueprints[stage].digest if stage in blueprints else f"{found.winner.digest}-{recipe.digest}"
        harness = scores_of(model, job, digest) if recipe.lm_eval else {}
        if known and stage != last:
            answers = known.answers(blueprints[stage])
        else:
            answers = {t.name: tasks.score(model, job.tokenizer, t) for t in questions}
        seen[stage] = observe(model, text, job.tokenizer, windows, answers, harness)
    return seen


def _dense(job: Job) -> PreTrainedModel:
    """The best dense parent."""
    return job.assembled(job.identity(job.dense)) if job.dense else job.bank.model


def scores_of(model: PreTrainedModel, job: Job, digest: str) -> dict[str, HarnessScores]:
    """lm_eval's tasks of the recipe on a live model, each run once per model."""
    recipe, cache = job.recipe, Path("~/.cache/hf_prune/lm_eval").expanduser()
    key = f"{digest}-{str(job.dtype).removeprefix('torch.')}"
    return lm_eval.scores(model, job.tokenizer, recipe.lm_eval, digest=key, limit=recipe.lm_eval_limit, cache=cache)
