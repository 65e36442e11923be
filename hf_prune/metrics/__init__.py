"""How close a text is to the one that was wanted: exact match and ROUGE, per item.

The two metrics are modules of Hugging Face `evaluate` and can be loaded without hf_prune and without the Hub:
`evaluate.load("hf_prune/metrics/rouge.py")`.
"""

import tempfile
from collections.abc import Sequence

import numpy as np

from hf_prune.errors import InvalidData

NAMES = ("exact_match", "rouge1", "rouge2", "rougeL")


def text_scores(predictions: Sequence[str], references: Sequence[str]) -> dict[str, np.ndarray]:
    """Compare every prediction with the reference at its place; nothing is fetched or kept on disk.

    Returns:
        float64 [items] under each of `NAMES`, all from 0 to 1: `exact_match` 1 where the texts are equal up to case and
        white space, and the F-measures of ROUGE-1, ROUGE-2 and ROUGE-L (Lin 2004), 0 where a text is too short to have
        an n-gram.

    Raises:
        InvalidData: the two differ in length, or hold something else than texts.
    """
    if len(predictions) != len(references):
        raise InvalidData(f"There are {len(predictions)} predictions for {len(references)} references; pair them up.")
    texts = all(isinstance(t, str) for t in (*predictions, *references))
    if not texts or isinstance(predictions, str) or isinstance(references, str):
        raise InvalidData("Predictions and references must be lists of texts; put every text in quotes, in a list.")
    if not predictions:
        return {name: np.zeros(0) for name in NAMES}
    # Loading `evaluate` takes seconds.
    from hf_prune.metrics.exact_match import ExactMatch
    from hf_prune.metrics.rouge import Rouge

    values: dict[str, list[float]] = {}
    # Made from their classes: evaluate.load would write a copy of each module into the user's cache.
    with tempfile.TemporaryDirectory(prefix="hf_prune_metrics_") as scratch:
        for metric in (ExactMatch, Rouge):
            made = metric(keep_in_memory=True, cache_dir=scratch)
            values |= made.compute(predictions=list(predictions), references=list(references), per_item=True)
    return {name: np.array(values[name], dtype=np.float64) for name in NAMES}
