"""Training after a cut: a LoRA, a DoRA or the layers' own weights, taught by the dense parent on the healing text.

The loss is heal_kl * KL(dense || student) + heal_ce * cross-entropy, nats per token. KL runs over the dense top k and
one bucket for the rest (a lower bound, exact when k is the vocabulary). Embeddings and head stay as they are. The
selection windows are looked at on the way, and the best state wins; if that is the one before training, healing has not
helped.
"""

import math
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from torch.utils.data import Dataset
from transformers import (
    PreTrainedModel,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerState,
    TrainingArguments,
)

from hf_prune.errors import ReloadMismatch
from hf_prune.evaluation.comparison import Targets, log_rest
from hf_prune.models.experts import stacked
from hf_prune.models.families import Family
from hf_prune.models.mixtures import ROUTINGS
from hf_prune.search.drive import Limit

Method = Literal["lora", "dora", "full"]
Faculty = Callable[[Tensor, Sequence[int]], Tensor]
"""Logits [N, T, V] for tokens [N, T], each row by the parent of that number."""
RATES = {"lora": 1e-3, "dora": 1e-3, "full": 2e-4}
"""Peak learning rates that suit each method."""
WARMUP, CLIP = 0.05, 1.0
"""Share of the steps that warm up; largest norm of a gradient."""
COMPLETE = "complete"
"""Marks a checkpoint that was written to its end."""


@dataclass(frozen=True, slots=True)
class Course:
    """How to train; `tokens` is the budget, `batch` counts windows per step, `checks` looks at the selection split."""

    tokens: int
    method: Method = "lora"
    rank: int = 32
    alpha: float = 64.0
    kl: float = 1.0
    ce: float = 0.5
    top_k: int = 512
    rate: float | None = None
    batch: int = 16
    checks: int = 10
    patience: int = 5
    seed: int = 0
    checkpointing: bool = False

    def steps(self, length: int) -> int:
        """Training steps that the budget allows with windows of `length` tokens, one at least."""
        return max(1, self.tokens // (self.batch * length))


@dataclass(frozen=True, eq=False)
class Healing:
    """What training brought.

    model: with the best state's weights (a PEFT model unless all weights were trained). before, after: loss on the
    selection windows, nats per token. curve: (tokens, loss) of every look. tokens: trained on, repeats counted.
    """

    model: Any
    before: float
    after: float
    curve: tuple[tuple[int, float], ...]
    tokens: int
    seconds: float

    @property
    def kept(self) -> bool:
        """Whether some state was better than the one before training."""
        return self.after < self.before


def heal(
    student: PreTrainedModel,
    teacher: PreTrainedModel | Faculty,
    family: Family,
    train: Tensor,
    held: Tensor,
    course: Course,
    home: Path,
    progress: Callable[[int, int, float | None], None] = lambda done, total, loss: None,
    whose: tuple[Sequence[int], Sequence[int]] | None = None,
    limit: Limit | None = None,
) -> Healing:
    """Train `student`, and give it the weights of its best state.

    Interrupted, the same call goes on from the last complete checkpoint in `home`, and ends the same.

    Args:
        student: the cut model, on its device; changed in place.
        teacher: the dense parent, on the same device; or what several of them say to tokens of given parents.
        family: names the layers that are trained.
        train: int64 [N, T] windows, read again when the budget is larger.
        held: int64 [M, T] windows that choose the best state; disjoint from `train`.
        course: how to train.
        home: folder of the checkpoints.
        progress: told steps done, steps in all, and the selection loss where it was looked at.
        whose: with several, the number of the parent that teaches each window of `train` and of `held`.
        limit: when to end before the last step; its trials are steps.
    """
    # PEFT asks the Hub about the model of that name, and writes it down.
    student.name_or_path = student.config.name_or_path = ""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(course.seed)
        model = _trainable(student, family, course)
    steps = course.steps(train.shape[1])
    trainer = _Distillation(
        teacher,
        course,
        model=model,
        args=_arguments(course, steps, home, student),
        # Whole batches, so that every step is of one size; the Trainer's own way would cut the evaluation too.
        train_dataset=_Windows(train[: len(train) // course.batch * course.batch or None], whose and whose[0]),
        eval_dataset=_Windows(held, whose and whose[1]),
        callbacks=[
            _Patience(course.patience),
            _Marker(),
            _Teller(progress),
            *([_TimeUp(limit)] if limit else []),
        ],
    )
    trainer.remove_callback(PrinterCallback)
    before = float(trainer.evaluate()["eval_loss"])
    started = time.monotonic()
    trainer.resume(_last_complete(home), limit and limit.trials)
    seconds = time.monotonic() - started
    per_step = course.batch * train.shape[1]
    curve = tuple((step * per_step, loss) for step, loss in _looks(trainer.state))
    after = min((loss for _, loss in curve if math.isfinite(loss)), default=math.inf)
    return Healing(model.eval(), before, after, ((0, before), *curve), trainer.state.global_step * per_step, seconds)


def lora_targets(model: PreTrainedModel, family: Family) -> list[str]:
    """Leaf names of every matrix inside the layers; whole paths where a name occurs outside of them as well.

    The kernels of a Mamba layer use the weights of its last map without calling it, so what is added there is not seen.
    """
    modules = dict(model.named_modules())
    matrices = [n for n, m in modules.items() if type(m).__name__ in ("Linear", "Conv1D")]
    unseen = {f"{n}.out_proj" for n, m in modules.items() if hasattr(m, "A_log") and hasattr(m, "D")}
    inside = [n for n in matrices if n.startswith(family.prefix) and n not in unseen]
    leaves = {n.rpartition(".")[2] for n in inside}
    outside = {n.rpartition(".")[2] for n in matrices if n not in inside}
    return sorted(inside if leaves & outside else leaves)


def distillation(student: Tensor, targets: Targets | None, labels: Tensor, course: Course) -> Tensor:
    """The loss per token [B, T-1].

    Args:
        student: logits [B, T-1, V].
        targets: of the dense parent, [B, T-1, k]; None where the course asks for no KL.
        labels: int64 [B, T-1] next tokens.
        course: gives the weights.
    """
    log_q = student.float().log_softmax(-1)
    loss = torch.zeros_like(log_q[..., 0])
    if targets is not None:
        found = log_q.gather(-1, targets.top)
        kl = (targets.log_p.exp() * (targets.log_p - found)).sum(-1)
        if targets.log_tail is not None:
            kl = kl + targets.log_tail.exp() * (targets.log_tail - log_rest(found))
        loss = loss + course.kl * kl
    if course.ce:
        loss = loss - course.ce * log_q.gather(-1, labels[..., None]).squeeze(-1)
    return loss


def _trainable(student: PreTrainedModel, family: Family, course: Course) -> Any:
    student.requires_grad_(False)
    if course.method == "full":
        # A router that learns may leave experts without tokens.
        routing = ROUTINGS.get(family.model_type)
        router = f".{routing.router}." if routing else None
        for name, parameter in student.named_parameters():
            frozen = router is not None and router in name
            parameter.requires_grad_(name.startswith(family.prefix) and not frozen)
        return student
    transposed = any(type(m).__name__ == "Conv1D" for m in student.modules())
    config = LoraConfig(
        r=course.rank,
        lora_alpha=course.alpha,
        use_dora=course.method == "dora",
        target_modules=lora_targets(student, family),
        # PEFT has no DoRA on stacks of experts, which stay as they are then.
        target_parameters=[] if course.method == "dora" else stacked(student),
        fan_in_fan_out=transposed,
        task_type="CAUSAL_LM",
    )
    return get_peft_model(student, config)


def _arguments(course: Course, steps: int, home: Path, student: PreTrainedModel) -> TrainingArguments:
    every = max(1, steps // course.checks)
    arguments = TrainingArguments(
        output_dir=str(home),
        per_device_train_batch_size=course.batch,
        per_device_eval_batch_size=course.batch,
        max_steps=steps,
        learning_rate=course.rate or RATES[course.method],
        lr_scheduler_type="cosine",
        # The first step of a warm-up learns nothing, so a single step has none.
        warmup_steps=min(steps - 1, max(1, round(WARMUP * steps))),
        weight_decay=0.0,
        max_grad_norm=CLIP,
        eval_strategy="steps",
        eval_steps=every,
        save_strategy="steps",
        save_steps=every,
        save_total_limit=2,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        greater_is_better=False,
        logging_strategy="no",
        prediction_loss_only=True,
        remove_unused_columns=False,
        activation_checkpointing=course.checkpointing,
        disable_tqdm=True,
        report_to="none",
        seed=course.seed,
        use_cpu=student.device.type == "cpu",
        dataloader_pin_memory=student.device.type != "cpu",
    )
    # One device: the teacher lives there too.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


class _Windows(Dataset):
    """Rows of int64 [N, T], with the number of the teacher where there are several."""

    def __init__(self, tokens: Tensor, whose: Sequence[int] | None = None) -> None:
        self.tokens, self.whose = tokens, whose

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, row: int) -> dict[str, Tensor]:
        taught = {} if self.whose is None else {"whose": torch.tensor(self.whose[row])}
        return {"input_ids": self.tokens[row], **taught}


class _Distillation(Trainer):
    """transformers' Trainer with our loss."""

    def __init__(self, teacher: PreTrainedModel, course: Course, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.teacher, self.course = teacher, course
        # Our loss is a mean, so accumulated steps must be averaged.
        self.model_accepts_loss_kwargs = False

    def resume(self, checkpoint: Path | None, ended: int | None = None) -> None:
        """Train, from a checkpoint on where there is one; the best state is in the model then.

        Args:
            checkpoint: folder of an earlier attempt.
            ended: the step at which that was ended for want of time.
        """
        if checkpoint:
            state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
            if state.global_step >= (ended or self.args.max_steps) or _impatient(state, self.course.patience):
                # Resumed at its end, the Trainer's loop would take one step more.
                self.state = state
                return self._load_best_model()
        self.train(resume_from_checkpoint=checkpoint and str(checkpoint))

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        """A checkpoint whose tensors have the names of modules.

        Files of a mixture hold a matrix for every expert, and the Trainer hands what it reads to modules as it is.
        """
        if not isinstance(self.model, PreTrainedModel):
            return super()._save(output_dir, state_dict)
        folder = output_dir or self.args.output_dir
        return self.model.save_pretrained(folder, state_dict=state_dict, save_original_format=False)

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """A state that is not taken whole is none.

        Raises:
            ReloadMismatch: names a tensor.
        """
        state, lacking = self.model.state_dict(), set(load_result.missing_keys)
        # Of tensors that are one, files have one name.
        read = {tensor.data_ptr() for name, tensor in state.items() if name not in lacking}
        if wrong := [*load_result.unexpected_keys, *(n for n in lacking if state[n].data_ptr() not in read)]:
            raise ReloadMismatch(
                f"A checkpoint of the training does not fit the model that is trained ({wrong[0]}); delete the folder "
                "of the run, and train again."
            )

    def compute_loss(self, model: Any, inputs: dict[str, Tensor], return_outputs: bool = False, **_: Any) -> Any:
        """Mean loss over all tokens of the batch."""
        tokens = inputs["input_ids"]
        given = None
        if self.course.kl:
            with torch.no_grad():
                given = Targets.of(self._taught(tokens, inputs.get("whose"))[:, :-1], self.course.top_k)
        said = model(input_ids=tokens, use_cache=False)
        loss = distillation(said.logits[:, :-1], given, tokens[:, 1:], self.course).mean()
        return (loss, said) if return_outputs else loss

    def _taught(self, tokens: Tensor, whose: Tensor | None) -> Tensor:
        if whose is None:
            return self.teacher(input_ids=tokens, use_cache=False).logits
        return self.teacher(tokens, whose.tolist())

    @torch.no_grad()
    def prediction_step(self, model: Any, inputs: dict[str, Tensor], *_: Any, **__: Any) -> tuple[Tensor, None, None]:
        """The loss alone."""
        return self.compute_loss(model, self._prepare_inputs(inputs)).detach(), None, None


class _Marker(TrainerCallback):
    """Says which checkpoints are whole."""

    def on_save(self, args: TrainingArguments, state: Any, control: Any, **_: Any) -> None:
        """The Trainer calls this behind the last file."""
        (Path(args.output_dir) / f"checkpoint-{state.global_step}" / COMPLETE).touch()


class _Patience(TrainerCallback):
    """Early stopping by the looks that a checkpoint remembers; transformers' own counter begins anew on resuming."""

    def __init__(self, patience: int) -> None:
        self.patience = patience

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: Any, **_: Any) -> None:
        """The Trainer calls this behind every look."""
        if _impatient(state, self.patience):
            control.should_training_stop = True


class _TimeUp(TrainerCallback):
    """Ends a training in time, with a last look and a checkpoint."""

    def __init__(self, limit: Limit) -> None:
        self.limit = limit

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: Any, **_: Any) -> None:
        """The Trainer calls this behind every step, before it looks and saves."""
        at = self.limit.trials
        if state.global_step < state.max_steps and (self.limit.over() if at is None else state.global_step >= at):
            self.limit.end(state.global_step)
            control.should_evaluate = control.should_save = control.should_training_stop = True


def _looks(state: TrainerState) -> list[tuple[int, float]]:
    """(step, selection loss) of every look so far."""
    return [(e["step"], e["eval_loss"]) for e in state.log_history if "eval_loss" in e]


def _impatient(state: TrainerState, patience: int) -> bool:
    """Whether that many looks in a row have brought nothing better."""
    losses = [loss if math.isfinite(loss) else math.inf for _, loss in _looks(state)]
    best = losses.index(min(losses)) if any(map(math.isfinite, losses)) else -1
    return len(losses) - 1 - best >= patience


class _Teller(TrainerCallback):
    def __init__(self, progress: Callable[[int, int, float | None], None]) -> None:
        self.progress = progress

    def on_step_end(self, args: TrainingArguments, state: Any, control: Any, **_: Any) -> None:
        self.progress(state.global_step, state.max_steps, None)

    def on_evaluate(self, args: TrainingArguments, state: Any, control: Any, metrics: Any = None, **_: Any) -> None:
        self.progress(state.global_step, state.max_steps, (metrics or {}).get("eval_loss"))


def _last_complete(home: Path) -> Path | None:
    """The newest whole checkpoint; torn ones are cleared away."""
    found = []
    for folder in home.glob("checkpoint-*"):
        if (folder / COMPLETE).is_file():
            found.append(folder)
        else:
            shutil.rmtree(folder, ignore_errors=True)
    return max(found, key=lambda f: int(f.name.rpartition("-")[2]), default=None)
