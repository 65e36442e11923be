"""Training-aware selection: candidates are judged after a short training (DarwinLM, arXiv 2502.07780, sec. 3.3).

A small LoRA is trained on each candidate, over frozen weights that all candidates share, towards the dense model's
distributions, which are computed once. What was trained is kept between stages, so a candidate that goes on is not
trained again. Layers before the first cut are those of the dense model and are run without gradients.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from hf_prune.assembly.layer_bank import LayerBank, sharing
from hf_prune.atomic_files import written
from hf_prune.blueprint import Blueprint, LayerSpec, Part
from hf_prune.data.task_scores import TaskScores
from hf_prune.evaluation.comparison import Targets, compare
from hf_prune.evaluation.dense import Call, Dense, after
from hf_prune.evaluation.evaluator import Evaluator
from hf_prune.evaluation.packed_tasks import Exam
from hf_prune.limits import TOP_K
from hf_prune.recovery.heal import Course, distillation

BATCH, RANK, SCALE, RATE, WARMUP = 4, 8, 2.0, 2e-3, 4
"""Windows per step; rank and scale of the LoRA; learning rate, constant behind some steps of warm-up, so that a stage
can go on where the one before ended."""
OBJECTIVE = Course(0, kl=1.0, ce=0.0)


@dataclass(eq=False)
class Lesson:
    """Windows to train on and what the dense model says to them, computed once.

    tokens: int64 [N, T]. entered: [N, T, d] states that enter the first layer. targets: [N, T-1, k].
    """

    tokens: Tensor
    entered: Tensor
    targets: Targets
    calls: tuple[Call, ...]

    @classmethod
    @torch.no_grad()
    def of(cls, dense: Dense, tokens: Tensor, top_k: int = TOP_K) -> "Lesson":
        """One pass of the dense model."""
        tokens = tokens.to(dense.device)
        _, calls = dense.record(tokens[:1])
        entered, targets = [], []
        for rows in dense.tiles(tokens, dense.tile_tokens):
            state = dense.embed(tokens[rows])
            entered.append(state)
            for layer, call in zip(dense.layers, calls, strict=True):
                state = after(layer, state, call)
            targets.append(Targets.of(dense.logits(state[:, :-1]), top_k))
        tails = [t.log_tail for t in targets]
        joined = Targets(
            torch.cat([t.top for t in targets]),
            torch.cat([t.log_p for t in targets]),
            None if tails[0] is None else torch.cat(tails),
        )
        return cls(tokens, torch.cat(entered), joined, tuple(calls))


@dataclass(eq=False)
class TrainingAware:
    """Scores candidates after a training.

    Args:
        evaluator: holds the evidence they are scored on, and the dense model.
        lesson: what they are trained on.
        home: folder where trained increments are kept.
        seed: decides the first values of every LoRA.
    """

    evaluator: Evaluator
    lesson: Lesson
    home: Path
    seed: int = 0
    trained_tokens: int = field(default=0, init=False)

    def scores(
        self, blueprint: Blueprint, heal_tokens: int, rows: slice, items: tuple[int, int] = (0, 0)
    ) -> tuple[float, float, tuple[TaskScores, ...]]:
        """Mean KL and NLL per token on evidence windows `rows` after training on `heal_tokens`, +inf if it breaks; and
        the answers to `items` (first, count) of every task, none then."""
        candidate = Candidate(self.evaluator.dense, self.evaluator.bank, blueprint.canonical(), self.seed)
        length = self.lesson.tokens.shape[1]
        steps = max(1, heal_tokens // (BATCH * length))
        start = self._restore(candidate, blueprint, steps)
        with candidate:
            for step in range(start, steps):
                candidate.learn(self.lesson, step)
            self.trained_tokens += (steps - start) * BATCH * length
            if steps > start:
                self._keep(candidate, blueprint, steps)
            kl, nll = candidate.measured(self.evaluator, rows)
            asked = self.evaluator.exam and items[1] and math.isfinite(kl)
            return kl, nll, candidate.answers(self.evaluator.exam, *items) if asked else ()

    @cached_property
    def _conditions(self) -> str:
        """64 bits over what decides a training, besides the candidate and the teacher, whom its digest names."""
        lesson, dtype = self.lesson, str(self.evaluator.dense.model.dtype)
        how = [self.seed, dtype, lesson.targets.top.shape, BATCH, RANK, SCALE, RATE, WARMUP, asdict(OBJECTIVE)]
        text = lesson.tokens.cpu().contiguous().numpy().tobytes()
        return hashlib.sha256(json.dumps(how).encode() + text).hexdigest()[:16]

    def _path(self, blueprint: Blueprint, steps: int | str) -> Path:
        return self.home / f"{blueprint.digest}-{self._conditions}-{steps}.safetensors"

    def _restore(self, candidate: "Candidate", blueprint: Blueprint, steps: int) -> int:
        """Take up the latest increment that is not beyond `steps`; its number of steps."""
        found = [int(p.stem.rpartition("-")[2]) for p in self.home.glob(self._path(blueprint, "*").name)]
        last = max((n for n in found if n <= steps), default=0)
        if last:
            candidate.load(load_file(self._path(blueprint, last)), last)
        return last

    def _keep(self, candidate: "Candidate", blueprint: Blueprint, steps: int) -> None:
        self.home.mkdir(parents=True, exist_ok=True)
        path = self._path(blueprint, steps)
        with written(path) as partial:
            save_file(candidate.state(), partial)


class Candidate:
    """A blueprint over the bank's frozen layers with a LoRA of its own; as a context manager its hooks are in place.

    Args:
        dense: the dense model.
        bank: makes the layers.
        blueprint: canonical.
        seed: decides the LoRA's first values.
        everywhere: train all layers, not only those from the one before the first cut on.
    """

    def __init__(
        self, dense: Dense, bank: LayerBank, blueprint: Blueprint, seed: int, everywhere: bool = False
    ) -> None:
        self.dense, self.specs = dense, blueprint.layers
        same = [spec == LayerSpec((Part(0, i),)) for i, spec in enumerate(self.specs)]
        first = same.index(False) if False in same else len(same)
        # The layer before the first cut learns too: it is the first that can make up for it.
        self.learns = 0 if everywhere else max(0, first - 1)
        self.layers = [bank.module(s) if i < self.learns else sharing(bank.module(s)) for i, s in enumerate(self.specs)]
        draw = torch.Generator().manual_seed(seed)
        self.pairs = [self._pair(m, draw) for m in self._matrices()]
        self.parameters = [p for pair in self.pairs for p in pair]
        self.optimizer = torch.optim.AdamW(self.parameters, RATE, weight_decay=0.0)

    def __enter__(self) -> "Candidate":
        self.hooks = [
            m.register_forward_hook(lambda _, x, y, a=a, b=b: y + (SCALE * ((x[0].float() @ a) @ b)).to(y.dtype))
            for m, (a, b) in zip(self._matrices(), self.pairs, strict=True)
        ]
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self.hooks:
            hook.remove()

    def learn(self, lesson: Lesson, step: int) -> None:
        """One step on the windows that are next in order."""
        count = len(lesson.tokens)
        rows = torch.arange(step * BATCH, (step + 1) * BATCH, device=lesson.tokens.device) % count
        targets = Targets(*(None if t is None else t[rows] for t in lesson.targets))
        said = self.dense.logits(self._states(lesson.entered[rows], lesson.calls)[:, :-1])
        loss = distillation(said, targets, lesson.tokens[rows, 1:], OBJECTIVE).mean()
        for group in self.optimizer.param_groups:
            group["lr"] = RATE * min(1.0, (step + 1) / WARMUP)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()

    @torch.no_grad()
    def measured(self, evaluator: Evaluator, rows: slice) -> tuple[float, float]:
        """Mean KL to the dense model and mean NLL per token."""
        reference = evaluator.reference
        kl = nll = count = 0.0
        for tile in self.dense.tiles(reference.hidden[0][rows], self.dense.tile_tokens):
            part = slice(rows.start + tile.start, rows.start + tile.stop)
            states = self._states(reference.hidden[self.learns][part], reference.calls, self.learns)
            found = compare(reference, part, self.dense.logits(states[:, :-1]).float())
            kl, nll, count = kl + float(found[0].sum()), nll + float(found[1].sum()), count + found[0].numel()
        return (kl / count, nll / count) if math.isfinite(kl + nll) else (math.inf, math.inf)

    @torch.inference_mode()
    def answers(self, exam: Exam, first: int, count: int) -> tuple[TaskScores, ...]:
        """To items first .. first + count of every task."""
        sheets = exam.sheets(first, count)
        states = [(sheet, self._states(sheet.hidden[0], sheet.calls)) for sheet in sheets]
        return exam.judged(first, count, [sheet.scores(self.dense, state) for sheet, state in states])

    def state(self) -> dict[str, Tensor]:
        """LoRA and optimiser, float32."""
        found = {f"{i}": p.detach() for i, p in enumerate(self.parameters)}
        for i, p in enumerate(self.parameters):
            kept = self.optimizer.state[p]
            found |= {f"{i}.m": kept["exp_avg"], f"{i}.v": kept["exp_avg_sq"]}
        return {k: v.cpu().contiguous() for k, v in found.items()}

    def load(self, state: dict[str, Tensor], steps: int) -> None:
        """Go on from what `state` gave after so many steps."""
        for i, p in enumerate(self.parameters):
            p.data.copy_(state[f"{i}"])
            moments = {"exp_avg": state[f"{i}.m"].to(p.device), "exp_avg_sq": state[f"{i}.v"].to(p.device)}
            self.optimizer.state[p] = {"step": torch.tensor(float(steps)), **moments}

    def _states(self, states: Tensor, calls: Sequence[Call], first: int = 0) -> Tensor:
        with torch.no_grad():
            for spec, layer in zip(self.specs[first : self.learns], self.layers[first : self.learns], strict=True):
                states = after(layer, states, calls[spec.anchor.layer])
        for spec, layer in zip(self.specs[self.learns :], self.layers[self.learns :], strict=True):
            states = after(layer, states, calls[spec.anchor.layer])
        return states

    def _matrices(self) -> Iterator[torch.nn.Module]:
        for layer in self.layers[self.learns :]:
            yield from (m for m in layer.modules() if type(m).__name__ in ("Linear", "Conv1D"))

    def _pair(self, module: torch.nn.Module, draw: torch.Generator) -> tuple[Tensor, Tensor]:
        """A [inputs, rank] random, B [rank, outputs] zero, float32: nothing changes before the first step."""
        shape = module.weight.shape if type(module).__name__ == "Conv1D" else module.weight.shape[::-1]
        a = torch.randn(shape[0], RANK, generator=draw) / math.sqrt(shape[0])
        device = module.weight.device
        return a.to(device).requires_grad_(), torch.zeros(RANK, shape[1], device=device).requires_grad_()
