import pytest
from transformers import AutoTokenizer

from hf_prune.data.bundled import demo_folder


@pytest.fixture(scope="session")
def tokenizer():
    return AutoTokenizer.from_pretrained(demo_folder() / "storymath-16l")
