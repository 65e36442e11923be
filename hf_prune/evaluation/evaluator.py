"""Scores of candidates: against the dense model on fixed windows of text, and on tasks."""

import math
from collections.abc import Callable, Sequence
from functools import cached_property

import torch
from torch import Tensor
from transformers import PreTrainedModel

from hf_prune.assembly.layer_bank import LayerBank
from hf_prune.blueprint import GONE, Blueprint, Fidelity
from hf_prune.data.task_scores import TaskScores
from hf_prune.errors import InvalidBlueprint
from hf_prune.evaluation.batches import Chunk, batches, chunks
from hf_prune.evaluation.bridges import Bridges
from hf_prune.evaluation.comparison import Reference, compare
from hf_prune.evaluation.dense import Dense
from hf_prune.evaluation.objectives import Measures
from hf_prune.evaluation.packed_tasks import Exam, Sheet
from hf_prune.evaluation.prefix_trie import most_alive
from hf_prune.evaluation.sums import Sums
from hf_prune.evaluation.sweep import Cost, Reached, Sweep
from hf_prune.evaluation.teachers import Teachers
from hf_prune.limits import TOP_K

TokenScores = tuple[Tensor, Tensor]
"""KL to the reference and negative log-likelihood of every token, nats."""


Divided = Callable[[Sequence[Blueprint], Fidelity, Reached], list[Sums]]
"""What several workers find of blueprints on the evidence of a fidelity."""


def untold(done: int, total: int) -> None:
    """Tell nobody."""


class Evaluator:
    """Scores blueprints against the dense model on fixed windows, and on tasks.

    Args:
        bank: layers of the dense model, resident on its device.
        tokens: [N, T] int64 windows of one length.
        with_modules: measure what `gelaco_v1` needs.
        with_updates: measure what `similarity` needs.
        top_k: tokens kept of each dense distribution (at least 512, or the vocabulary, for figures that are published).
        tile_tokens: tokens per layer call; None chooses for the device.
        share_prefixes: compute a prefix that candidates share once.
        reuse_reference: take prefixes of the dense model from the reference run.
        corpora: number of the corpus of each window, [N]; measures tell the text of each apart.
        exam: makes the tasks ready, once the dense model stands.
        bridges: windows to fit maps over gaps on, int64 [M, T]; asked for where a fidelity is bridged.

    Raises:
        UnsupportedArchitecture: see `Dense.run`.
    """

    def __init__(
        self,
        bank: LayerBank,
        tokens: Tensor,
        *,
        with_modules: bool = False,
        with_updates: bool = True,
        top_k: int = TOP_K,
        tile_tokens: int | None = None,
        share_prefixes: bool = True,
        reuse_reference: bool = True,
        corpora: Sequence[int] | None = None,
        exam: Callable[[Dense], Exam] | None = None,
        bridges: Callable[[], Tensor] | None = None,
    ) -> None:
        self.bank = bank
        aside = {"aside": bank.stream.aside} if bank.stream else {}
        self.dense = Dense(bank.model, bank.parents[0].family, tile_tokens, with_modules, **aside)
        self.own = self.dense.run(tokens, top_k)
        self.top_k = top_k
        self._sweep = Sweep(
            bank,
            self.dense,
            self.own,
            lambda: self.bridges,
            with_updates=with_updates,
            share_prefixes=share_prefixes,
            reuse_reference=reuse_reference,
        )
        self.corpora = tuple(corpora) if corpora is not None else (0,) * len(tokens)
        self.exam = exam(self.dense) if exam else None
        self._to_bridge = bridges
        self.divided: Divided | None = None

    @property
    def reference(self) -> Reference:
        """What candidates are compared with: the dense model's run, or the teachers'."""
        return self._sweep.reference

    @property
    def cost(self) -> Cost:
        """Work done so far."""
        return self._sweep.cost

    def teach(self, whose: Sequence[int]) -> None:
        """From now on compare each window with another parent than the first: its number, [N]."""
        teachers = Teachers.of(self.bank, self.dense, len(whose), whose)
        self._sweep.reference = teachers.reference(self.own, self.top_k)

    def evaluate(
        self, blueprints: Sequence[Blueprint], fidelity: Fidelity, progress: Reached = untold
    ) -> tuple[Measures, ...]:
        """Measures of every blueprint on windows `start .. start + sequences` and on its items of the tasks; found by
        the workers, where there are some.

        progress: told layers that all evidence has passed, part by part, and layers in all parts.
        """
        sums = (self.divided or self.sums)(blueprints, fidelity, progress)
        return tuple(self._measures(s, b, fidelity) for s, b in zip(sums, blueprints, strict=True))

    def examine(
        self, blueprints: Sequence[Blueprint], fidelity: Fidelity, progress: Reached = untold
    ) -> tuple[tuple[Measures, TokenScores], ...]:
        """What `evaluate` and `token_scores` say, by one sweep."""
        sums = self.sums(blueprints, fidelity, progress, keep_tokens=True)
        return tuple(
            (self._measures(s, b, fidelity), self._by_token(s, fidelity)) for s, b in zip(sums, blueprints, strict=True)
        )

    def chunks(self, blueprints: Sequence[Blueprint], fidelity: Fidelity) -> tuple[Chunk, ...]:
        """The evidence of a fidelity as these blueprints see it, cut by content.

        Raises:
            ValueError: there are not so many windows.
            InvalidBlueprint: one has no layers.
        """
        available, stop = len(self.own.tokens), fidelity.start + fidelity.sequences
        if not 0 <= fidelity.start < stop <= available:
            raise ValueError(f"fidelity asks for windows {fidelity.start} to {stop}, there are {available}")
        alive = most_alive(self._paths(blueprints))
        return chunks(self.own, len(self._sheets(fidelity)), fidelity, alive, self.dense.chunk_tokens)

    def sums(
        self,
        blueprints: Sequence[Blueprint],
        fidelity: Fidelity,
        progress: Reached = untold,
        only: Sequence[Chunk] | None = None,
        alive: int | None = None,
        keep_tokens: bool = False,
    ) -> list[Sums]:
        """What every blueprint does on the chunks of a fidelity, found by this process.

        Args:
            blueprints: to be taken through the layers together.
            fidelity: says which evidence, and whether gaps are bridged.
            progress: as `evaluate`.
            only: some of its `chunks`; None is all of them.
            alive: most states at a time of the sweep that these blueprints are some of; None where they are all.
            keep_tokens: keep the figures of every token.
        """
        chosen = self.chunks(blueprints, fidelity) if only is None else only
        numbered = [b.over(self.bank.sources) for b in blueprints]
        alive = alive or most_alive(self._paths(blueprints))
        parts = list(batches(self.own, self._sheets(fidelity), chosen, fidelity.bridged, alive))
        return self._sweep.sums(numbered, parts, keep_tokens, progress)

    def _paths(self, blueprints: Sequence[Blueprint]) -> list[tuple]:
        paths = [b.over(self.bank.sources).layers for b in blueprints]
        if not all(paths):
            raise InvalidBlueprint("A blueprint without layers cannot be scored.")
        return paths

    def _sheets(self, fidelity: Fidelity) -> tuple[Sheet, ...]:
        return self.exam.sheets(fidelity.first_item, fidelity.items) if self.exam and fidelity.items else ()

    def token_scores(self, blueprints: Sequence[Blueprint], fidelity: Fidelity) -> list[TokenScores]:
        """Per-token (KL, NLL) of every blueprint, each [sequences, T-1] float32 on CPU; +inf for a broken one."""
        return [scores for _, scores in self.examine(blueprints, fidelity)]

    def _by_token(self, sums: Sums, fidelity: Fidelity) -> TokenScores:
        broken = torch.full((fidelity.sequences, self.reference.tokens.shape[1] - 1), math.inf)
        return (broken, broken) if sums.broken else tuple(map(torch.cat, zip(*sums.tokens, strict=True)))

    def _measures(self, sums: Sums, blueprint: Blueprint, fidelity: Fidelity) -> Measures:
        def judged(answers: Sequence[tuple[Tensor, Tensor]]) -> tuple[TaskScores, ...]:
            return self.exam.judged(fidelity.first_item, fidelity.items, answers)

        return sums.measures(self.parameters(blueprint), self.corpora, self.own.tokens.shape[1] - 1, judged)

    @torch.inference_mode()
    def live_scores(self, model: PreTrainedModel) -> TokenScores:
        """Per-token (KL, NLL) of any model with this vocabulary on all windows, each [N, T-1] float32 on CPU."""
        found = []
        for rows in self.dense.tiles(self.reference.tokens, self.dense.head_tokens):
            logits = model(input_ids=self.reference.tokens[rows], use_cache=False).logits[:, :-1]
            found.append([x.cpu() for x in compare(self.reference, rows, logits.float())])
        return tuple(torch.cat(parts) for parts in zip(*found, strict=True))

    @torch.inference_mode()
    def states(self, blueprint: Blueprint, rows: int) -> list[Tensor]:
        """Hidden states [rows, T, d] of a candidate at every layer boundary, on the first windows."""
        blueprint = blueprint.over(self.bank.sources)
        states = [self._sweep.entered(blueprint.embed, self.own.tokens[:rows])]
        for spec in blueprint.layers:
            call = self.own.calls[spec.anchor.layer]
            states.append(self.dense.apply(self.bank.module(spec), states[-1:], call)[0][0])
        return states

    @torch.inference_mode()
    def logits(self, blueprint: Blueprint, rows: int) -> Tensor:
        """Logits [rows, T, V] of a candidate on the first windows, computed the way candidates are."""
        numbered = blueprint.over(self.bank.sources)
        return self._sweep.ending(numbered.embed, numbered.head).logits(self.states(blueprint, rows)[-1])

    def parameters(self, blueprint: Blueprint) -> int:
        """Live parameters: what contributes to the output, removed halves not counted."""
        parent = self.bank.parents[0]
        sizes = parent.half_parameters
        outside = parent.parameters - sum(sum(s.values()) for s in sizes)
        live = outside
        for spec in blueprint.canonical_layers():
            if spec.library:
                live += parent.levels[spec.library].parameters(parent, spec)
                continue
            size = sizes[spec.anchor.layer]
            gone = size["attention"] * (spec.attn_level == GONE) + size["mlp"] * (spec.mlp_level == GONE)
            live += sum(size.values()) - gone
            if spec.blends and spec.mlp_level != GONE:
                live -= (parent.mixture.experts - len(spec.blends)) * parent.mixture.parameters
        return live

    @cached_property
    def bridges(self) -> Bridges:
        """Maps over gaps."""
        if self._to_bridge is None:
            raise ValueError("a bridged fidelity needs windows to fit bridges on")
        return Bridges(self.dense, self._to_bridge())
