"""ROUGE-1, ROUGE-2 and ROUGE-L F-measures (Lin 2004, aclanthology.org/W04-1013), as a module of `evaluate`.

It imports nothing of hf_prune, so that `evaluate.load(path of this file)` works anywhere.
"""

import math
import re

import datasets
import evaluate
from rouge_score import rouge_scorer, tokenizers

KINDS = ("rouge1", "rouge2", "rougeL")
INPUTS = """
Args:
    predictions: list of str.
    references: list of str, one for every prediction.
    per_item: give one value per pair in place of their mean.
Returns:
    rouge1, rouge2: F-measure of the words and word pairs both texts have.
    rougeL: F-measure of their longest common subsequence of words.
"""
CITATION = """
@inproceedings{lin2004rouge,
  title={ROUGE: A Package for Automatic Evaluation of Summaries},
  author={Lin, Chin-Yew},
  booktitle={Text Summarization Branches Out},
  year={2004}
}
"""


class Rouge(evaluate.Metric):
    """Mean F-measures over the pairs; 0 for a pair in which a text has no n-gram of the kind."""

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description="ROUGE-1, ROUGE-2 and ROUGE-L F-measures without stemming.",
            citation=CITATION,
            inputs_description=INPUTS,
            features=datasets.Features({"predictions": text, "references": text}),
        )

    def _compute(
        self, predictions: list[str], references: list[str], per_item: bool = False
    ) -> dict[str, float | list[float]]:
        scorer = rouge_scorer.RougeScorer(KINDS, tokenizer=Words())
        rows = [scorer.score(r, p) for p, r in zip(predictions, references, strict=True)]
        values = {kind: [float(row[kind].fmeasure) for row in rows] for kind in KINDS}
        return values if per_item else {k: sum(v) / len(v) if v else math.nan for k, v in values.items()}


class Words(tokenizers.Tokenizer):
    """Runs of letters and digits in lower case.

    The same as rouge_score's own on ASCII; that one drops every other letter, so that two equal Greek texts would
    score 0.
    """

    def tokenize(self, text: str) -> list[str]:
        """Words of `text`, in order."""
        return re.findall(r"[^\W_]+", text.lower())
