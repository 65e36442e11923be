"""A run that keeps some tokens of its base: chosen by its text, certified, counted, rebuilt."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_prune.errors import InvalidBlueprint, InvalidData, InvalidRecipe
from hf_prune.pipeline import compress
from hf_prune.results import assemble_blueprint
from hf_prune.session.inputs import open_inputs
from tests import runs
from tests.families import save_tiny
from tests.models.test_variants import permuted
from tests.models.vocabulary.tokenizers_of import byte_level

ROWS = 640
"""Of the test's base: those behind its tokens are padding."""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a base whose tokenizer is made of merges."""
    home = tmp_path_factory.mktemp("vocabulary")
    with_tokenizer(home / "base")
    return home


def with_tokenizer(folder, tied=True):
    if tied:
        runs.base(folder, vocab_size=ROWS)
    else:
        save_tiny("llama", folder, vocab_size=ROWS)
    byte_level().save(str(folder / "tokenizer.json"))
    names = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(names))
    settings = {"bos_token_id": 0, "eos_token_id": [1, tokens(folder)["<tool>"]]}
    for name in ("config.json", "generation_config.json"):
        raw = json.loads((folder / name).read_text()) if (folder / name).is_file() else {}
        (folder / name).write_text(json.dumps({**raw, **settings}))
    return folder


def tokens(folder):
    raw = json.loads((folder / "tokenizer.json").read_text())
    return {**raw["model"]["vocab"], **{t["content"]: t["id"] for t in raw["added_tokens"]}}


def asked(home, **changes):
    fields = {"base": str(home / "base"), "drop": ("2",), "baselines": (), **changes}
    return runs.recipe(home, **fields)


def data(home):
    return (str(runs.text(home / "text.txt")),)


@pytest.mark.parametrize("tied", [False, True])
def test_logits_of_kept_tokens_are_the_dense_models(tmp_path, tied):
    base = with_tokenizer(tmp_path / "base", tied)
    inputs = open_inputs(asked(tmp_path, base=str(base), vocabulary=400), (), lambda: data(tmp_path))
    small, kept = inputs.base, torch.tensor(inputs.base.kept)
    assert len(kept) == 400 == small.skeleton.config.vocab_size
    rows = 1 if tied else 2
    assert small.original.parameters - small.parameters == rows * (ROWS - 400) * small.config.hidden_size
    whole = AutoModelForCausalLM.from_pretrained(base)
    cut = AutoModelForCausalLM.from_pretrained(small.checkpoint.folder)
    ids = torch.randint(0, 400, (2, 24), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, found = whole(kept[ids]).logits[..., kept], cut(ids).logits
    assert torch.allclose(found, expected, atol=1e-5)
    assert torch.allclose(found.softmax(-1), expected.softmax(-1), atol=1e-6)
    assert inputs.vocabulary["hard_texts"] >= 1000 and inputs.vocabulary["max_logit_difference"] < 1e-5


@pytest.fixture(scope="module")
def done(home):
    """A run that keeps 400 tokens."""
    return runs.finished(compress(asked(home, vocabulary="0.4k")))


def test_settings_follow_and_a_run_speaks_in_stock_transformers(home, done):
    folder, report = home / "small", done.report
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert len(tokenizer) == model.config.vocab_size == report["vocabulary"]["kept"] == 400
    assert report["vocabulary"]["dense"] == len(tokens(home / "base"))
    for settings in (model.config, model.generation_config):
        assert settings.bos_token_id == tokenizer.bos_token_id == tokenizer.convert_tokens_to_ids("<s>")
        assert settings.eos_token_id == [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<tool>")]
    said = model.generate(**tokenizer("the cat sat", return_tensors="pt"), max_new_tokens=8, do_sample=False)
    assert "the cat sat" in tokenizer.decode(said[0])
    assert report["token_cost"]["all_tokens"].keys() == report["token_cost"]["kept_tokens"].keys() == {"all", "text"}
    bits = report["text"]["all"]["dense"]["bits_per_byte"]
    assert report["token_cost"]["kept_tokens"]["all"] == pytest.approx(bits)
    size = report["size"]
    whole = sum(p.numel() for p in AutoModelForCausalLM.from_pretrained(home / "base").parameters())
    assert size["dense"]["parameters"] == whole
    assert size["removed_ratio"] == pytest.approx(1 - sum(p.numel() for p in model.parameters()) / whole)
    blueprint = json.loads((folder / "blueprint.json").read_text())
    assert blueprint["sources"][0]["vocabulary"] == report["vocabulary"]["digest"]
    rebuilt = assemble_blueprint(folder / "blueprint.json", home / "again", source=str(home / "base"))
    for name in ("model.safetensors", "tokenizer.json", "config.json", "vocabulary.json"):
        assert (rebuilt / name).read_bytes() == (folder / name).read_bytes()


def test_a_blueprint_without_its_ids_is_told(home, done, tmp_path):
    made = Path(done.folder) / "blueprint.json"
    (tmp_path / "blueprint.json").write_text(made.read_text())
    with pytest.raises(InvalidBlueprint, match=r"vocabulary\.json"):
        assemble_blueprint(tmp_path / "blueprint.json", tmp_path / "out", source=str(home / "base"))
    (tmp_path / "vocabulary.json").write_text(json.dumps({"kept": [1, 2]}))
    with pytest.raises(InvalidBlueprint, match=r"vocabulary\.json"):
        assemble_blueprint(tmp_path / "blueprint.json", tmp_path / "out", source=str(home / "base"))


def test_a_ratio_counts_the_vocabulary(home):
    text = data(home)
    alone = open_inputs(asked(home, drop=(), ratio=0.5), (), lambda: text)
    both = open_inputs(asked(home, drop=(), ratio=0.5, vocabulary=400), (), lambda: text)
    assert 0 < both.target.remove < alone.target.remove
    left = both.base.parameters - both.target.remove * both.base.layer_parameters
    assert left / both.base.original.parameters == pytest.approx(0.5, abs=0.6 * both.base.layer_parameters / left)


def test_auto_keeps_as_many_as_the_ratio_allows_and_all_layers(tmp_path):
    """Its text is of few words, so that without the ratio fewer tokens would stay."""
    with_tokenizer(tmp_path / "base")
    free = open_inputs(asked(tmp_path, vocabulary="auto"), (), lambda: data(tmp_path))
    row = free.base.config.hidden_size
    ratio = (ROWS - 512) * row / free.base.original.parameters
    recipe = asked(tmp_path, drop=(), ratio=ratio, vocabulary="auto", repair=True, repair_sequences=8)
    report = runs.finished(compress(recipe)).report
    assert len(free.base.kept) < report["vocabulary"]["kept"] == 512
    assert report["size"]["pruned"]["layers"] == runs.DEPTH
    assert report["size"]["miss"] == pytest.approx(0, abs=1e-9)


def test_what_cannot_be_is_told(home):
    with pytest.raises(InvalidRecipe, match="keeps all of them"):
        open_inputs(asked(home, vocabulary="5k"), (), lambda: data(home))
    with pytest.raises(InvalidRecipe, match="too small"):
        open_inputs(asked(home, vocabulary=10), (), lambda: data(home))
    with pytest.raises(InvalidData, match="did not say itself"):
        open_inputs(asked(home, vocabulary="auto"), (), lambda: ("self",))
    with pytest.raises(InvalidRecipe, match=r"whole base, .* raise --memory"):
        open_inputs(asked(home, vocabulary=400, memory=1e-4), (), lambda: data(home))
    with pytest.raises(InvalidRecipe, match="number of tokens"):
        asked(home, vocabulary="many")


def test_a_variant_with_other_ids_and_added_tokens_of_its_own_is_stitched_in_the_kept_ones(tmp_path):
    """What it has added stands in no row of the base, whose tokens are those of the result."""
    with_tokenizer(tmp_path / "base")
    variant = permuted(tmp_path, tmp_path / "moved")
    raw = json.loads((variant / "tokenizer.json").read_text())
    raw["added_tokens"].append({**raw["added_tokens"][-1], "id": ROWS, "content": "<call>"})
    (variant / "tokenizer.json").write_text(json.dumps(raw))
    names = {"method": "stitch", "variants": (str(variant),), "drop": (), "drop_layers": 2, "vocabulary": 400}
    result = runs.finished(compress(asked(tmp_path, **names)))
    inputs = open_inputs(asked(tmp_path, **names), (), lambda: data(tmp_path))
    ours, theirs = inputs.parents
    outside = [n for n in ours.shapes if not n.startswith(ours.family.prefix)]
    assert outside and all(torch.equal(theirs.outside_tensor(n), ours.outside_tensor(n)) for n in outside)
    assert all(ours.shapes[n][0] in (400, ours.config.hidden_size) for n in outside)
    tokenizer = AutoTokenizer.from_pretrained(result.folder)
    model = AutoModelForCausalLM.from_pretrained(result.folder)
    assert len(tokenizer) == model.config.vocab_size == 400 and "<call>" not in tokenizer.get_vocab()
    assert "<tool>" in tokenizer.get_vocab()
    said = model.generate(**tokenizer("the cat sat", return_tensors="pt"), max_new_tokens=8, do_sample=False)
    assert "the cat sat" in tokenizer.decode(said[0])
