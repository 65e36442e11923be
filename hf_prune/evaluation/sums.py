"""What candidates did on evidence, window by window and sheet by sheet: added up in whatever pieces it comes.

They are kept by the number of the window, and added exactly (`math.fsum`), so that no bit of a value depends on how the
evidence was divided or on who was ready first.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hf_prune.data.task_scores import TaskScores
from hf_prune.evaluation.objectives import Measures


class OnWindow(NamedTuple):
    """Sums over the tokens of a window of KL and negative log-likelihood, nats; means of the update cosine and of
    GeLaCo's cosines, NaN where they were not measured."""

    kl: float
    nll: float
    cosine: float
    gelaco: float


Answers = tuple[Tensor, Tensor]
"""Log-likelihoods of the options of a sheet, float64, and whether all their tokens are the likeliest, bool."""


@dataclass
class Sums:
    """Of one candidate, by the numbers of windows and of sheets; `broken` where a state is no finite number.

    tokens: KL and negative log-likelihood of every token of some windows, float32 [n, T-1] each, where they are kept.
    """

    windows: dict[int, OnWindow] = field(default_factory=dict)
    answers: dict[int, Answers] = field(default_factory=dict)
    broken: bool = False
    tokens: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def add(self, other: "Sums") -> None:
        """Take in what the same candidate did on other evidence."""
        self.windows |= other.windows
        self.answers |= other.answers
        self.tokens += other.tokens
        self.broken |= other.broken

    def measures(
        self,
        parameters: int,
        corpora: Sequence[int],
        length: int,
        judged: Callable[[Sequence[Answers]], tuple[TaskScores, ...]],
    ) -> Measures:
        """What they come to.

        Args:
            parameters: of the candidate.
            corpora: number of the corpus of each window.
            length: tokens of a window that are predicted.
            judged: answers, in the order of the sheets -> scores of every task.
        """
        if self.broken:
            return Measures(math.inf, math.inf, -1.0, -1.0, parameters, finite=False)
        found = [self.windows[n] for n in sorted(self.windows)]
        mean = OnWindow(*(math.fsum(column) / len(found) for column in zip(*found, strict=True)))
        of_corpus = [[w.nll for n, w in self.windows.items() if corpora[n] == c] for c in range(max(corpora) + 1)]
        texts = tuple(math.fsum(part) / (length * max(1, len(part))) for part in of_corpus)
        tasks = judged([self.answers[n] for n in sorted(self.answers)]) if self.answers else ()
        return Measures(mean.kl / length, mean.nll / length, mean.cosine, mean.gelaco, parameters, texts=texts,
                        tasks=tasks)  # fmt: skip

    def to_raw(self) -> list[Any]:
        """For JSON, a few hundred bytes; without the figures of tokens."""
        answers = {str(n): [sums.tolist(), likeliest.tolist()] for n, (sums, likeliest) in self.answers.items()}
        return [self.broken, {str(n): list(w) for n, w in self.windows.items()}, answers]

    @classmethod
    def from_raw(cls, raw: Sequence[Any]) -> "Sums":
        """What `to_raw` made."""
        broken, windows, answers = raw
        read = {int(n): (torch.tensor(s, dtype=torch.float64), torch.tensor(a, dtype=torch.bool))
                for n, (s, a) in answers.items()}  # fmt: skip
        return cls({int(n): OnWindow(*w) for n, w in windows.items()}, read, bool(broken))
