"""Small bodies of text."""

import json
import random

from hf_prune.data.corpora import SPLITS


def words(seed: int, n: int = 40) -> str:
    rng = random.Random(seed)
    return " ".join(rng.choice("the a cat dog ran sat on under big red house tree".split()) for _ in range(n))


def jsonl(path, texts):
    path.write_text("".join(json.dumps({"text": t}) + "\n" for t in texts), encoding="utf-8")
    return path


def folder(path, **changes):
    """A folder of one corpus; `changes` replaces the documents of a split."""
    for i, split in enumerate(SPLITS):
        jsonl(path / f"tale.{split}.jsonl", changes.get(split, [words(100 * i + k) for k in range(9)]))
    return str(path)
