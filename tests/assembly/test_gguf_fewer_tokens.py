"""After tokens have gone, llama.cpp splits text as before and reads the ids of the tokens that stay."""

import json

import pytest
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from hf_prune import hub
from hf_prune.assembly.gguf.export import export_gguf
from hf_prune.models.fewer_tokens import vocabulary_of, without_tokens
from hf_prune.models.parent import Parent
from tests.assembly.test_gguf import TOKENIZERS, _alone, read, result  # noqa: F401 - without the user's llama.cpp
from tests.llama_cpp import llama_cpp
from tests.models.vocabulary.tokenizers_of import byte_fallback


def halved(folder):
    """The model of a folder with half of the tokens that may go."""
    pulled = hub.pull(str(folder))
    base = Parent.open(pulled.source, pulled.folder)
    vocabulary = vocabulary_of(base)
    kept = vocabulary.kept((len(vocabulary.floor) + len(vocabulary.ids)) // 2, {})
    return without_tokens(base, vocabulary, kept)


def pieces(folder):
    """A tokenizer of pieces and bytes in the place of another."""
    raw = json.loads(byte_fallback().to_str())
    made = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(raw)), bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    made.save_pretrained(folder)


@pytest.mark.parametrize("pre", TOKENIZERS)
def test_the_way_to_split_keeps_its_name(tmp_path, pre):
    result(tmp_path / "base", "llama", tokenizer=pre)
    small = halved(tmp_path / "base")
    fields, tensors = read(export_gguf(small.checkpoint.folder, kind="f32", output=tmp_path / "small.gguf").path)
    assert fields["tokenizer.ggml.pre"] == pre
    assert len(fields["tokenizer.ggml.tokens"]) == len(small.kept) == tensors["token_embd.weight"].shape[0]


@pytest.mark.slow
@pytest.mark.parametrize("pre", [*TOKENIZERS, "pieces"])
def test_llama_cpp_reads_the_ids_of_what_stays(tmp_path, pre):
    library = llama_cpp()
    result(tmp_path / "base", "llama", tokenizer="gpt-2" if pre == "pieces" else pre)
    if pre == "pieces":
        pieces(tmp_path / "base")
    small = halved(tmp_path / "base")
    done = export_gguf(small.checkpoint.folder, kind="f32", output=tmp_path / "small.gguf", llama_cpp=library)
    assert done.certificate["tokens"]["texts"] > 100
    logits = done.certificate["logits"]
    assert logits["difference"] < 1e-4 and logits["same_spoken"] == logits["spoken"]
