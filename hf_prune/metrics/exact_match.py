"""Exact match up to case and white space, as a module of Hugging Face `evaluate`.

It imports nothing of hf_prune, so that `evaluate.load(path of this file)` works anywhere.
"""

import math

import datasets
import evaluate

INPUTS = """
Args:
    predictions: list of str.
    references: list of str, one for every prediction.
    per_item: give one value per pair in place of their mean.
Returns:
    exact_match: 1 for a pair that is equal up to case and white space, otherwise 0.
"""


class ExactMatch(evaluate.Metric):
    """Share of predictions equal to their reference after `normalised`."""

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description="Share of predictions that equal their reference up to case and white space.",
            citation="",
            inputs_description=INPUTS,
            features=datasets.Features({"predictions": text, "references": text}),
        )

    def _compute(
        self, predictions: list[str], references: list[str], per_item: bool = False
    ) -> dict[str, float | list[float]]:
        pairs = zip(predictions, references, strict=True)
        values = [float(normalised(p) == normalised(r)) for p, r in pairs]
        return {"exact_match": values if per_item else sum(values) / len(values) if values else math.nan}


def normalised(text: str) -> str:
    """Without white space at the ends, every run of it inside one space, case folded; punctuation counts."""
    return " ".join(text.split()).casefold()
