"""Foreign checkpoints: plan and compress read what stock transformers reads, tensor by tensor, or refuse it alike."""

import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_prune.assembly.assemble import assemble, write
from hf_prune.assembly.mergekit import export_mergekit
from hf_prune.assembly.nemotron_nas import export_nemotron_nas
from hf_prune.blueprint import Blueprint, LayerSpec, Part, Source
from hf_prune.errors import HfPruneError
from hf_prune.hub import peek
from hf_prune.models.parent import Parent
from hf_prune.models.variants import peeks, verdicts
from hf_prune.planning import plan
from hf_prune.recipe import Recipe
from tests.families import DEPTH
from tests.foreign.builders import (
    build,
    bytes_of,
    cut,
    logits,
    opened,
    reconfigure,
    restate,
    settings,
    state,
    stock,
    stored,
    without,
)
from tests.foreign.layouts import (
    EMBED,
    FULL,
    HALF,
    HEAD,
    REFUSED,
    SHORT,
    WORKS,
    extra,
    pickled,
    spoiled_copy,
    with_code,
)

DROPPED = (1, 4)


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("foreign")


@pytest.fixture
def folder(request, home) -> Path:
    """Of a row of the tables; made once, and nobody may write to it."""
    how, edit, *_ = (WORKS | REFUSED)[request.param]
    path = home / f"{list(WORKS | REFUSED).index(request.param)}"
    if not path.exists():
        edit(build(path, **how))
    return path


@pytest.mark.parametrize("folder", WORKS, indirect=True)
@pytest.mark.parametrize("dtype", ["auto", FULL, pytest.param(SHORT, marks=pytest.mark.slow)], ids=str)
def test_a_whole_model_is_what_stock_transformers_loads(folder, dtype):
    theirs, parent = stock(folder, dtype=dtype), opened(folder)
    whole = Blueprint.identity(parent.source, parent.depth)
    ours = assemble(whole, [parent], dtype=None if dtype == "auto" else dtype)
    assert ours.dtype == theirs.dtype
    wanted = theirs.state_dict()
    assert ours.state_dict().keys() == wanted.keys()
    assert [n for n, t in ours.state_dict().items() if not torch.equal(t, wanted[n])] == []
    assert torch.equal(logits(ours), logits(theirs))


@pytest.mark.parametrize("folder", WORKS, indirect=True)
def test_a_cut_model_is_stock_transformers_less_those_layers(folder, tmp_path):
    parent = opened(folder)
    removed = tuple(i for i in DROPPED if i < parent.depth)
    parameters, size = write(cut(parent, removed), [parent], tmp_path)
    theirs = without(stock(folder, dtype=FULL), parent.family.layers, removed)
    model, said = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=FULL, output_loading_info=True)
    assert not any(said.values()) and torch.equal(logits(model.eval()), logits(theirs))
    assert stock(tmp_path, dtype="auto").dtype == stock(folder, dtype="auto").dtype
    assert size == bytes_of(tmp_path) and parameters == model.num_parameters()
    before, after = state(folder), state(tmp_path)
    if before.keys() >= {n for n in after if ".layers." not in n}:
        assert all(after[n].dtype == before[n].dtype for n in after if ".layers." not in n)
    out = model.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=3, do_sample=False, pad_token_id=0)
    assert len(out[0]) == 6


@pytest.mark.parametrize("folder", [*WORKS, *REFUSED], indirect=True)
def test_plan_and_compress_agree(folder, tmp_path, request):
    recipe = Recipe.of(base=str(folder), drop=tuple(map(str, DROPPED[:1])), output=str(tmp_path / "out"))
    answers = []
    for way in (lambda: plan(recipe, peek(str(folder))), lambda: opened(folder)):
        try:
            answers.append(way())
        except HfPruneError as error:
            answers.append(str(error))
    planned, parent = answers
    case = REFUSED.get(request.node.callspec.params["folder"])
    if case:
        assert planned == parent and isinstance(planned, str)
        assert len(planned.splitlines()) == 1 and "trust" not in planned and str(folder.parent) not in planned
        with pytest.raises(HfPruneError, match=case[2]):
            opened(folder)
        return
    tmp_path = tmp_path / "out"
    tmp_path.mkdir()
    parameters, size = write(cut(parent, DROPPED[:1]), [parent], tmp_path)
    assert (planned.depth, planned.parameters, planned.bytes) == (parent.depth, parent.parameters, parent.bytes)
    assert planned.result_parameters == parameters
    # A layer of another dtype than the others is more or less than its share.
    uneven = "in turn" in request.node.callspec.params["folder"]
    assert planned.result_bytes == size or uneven


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("tied, with a head of its own", "hold a lm_head.weight of their own, which the config calls tied"),
        ("fewer layers than stored", "left out, as transformers does: model.layers.4, model.layers.5."),
        ("a layer for several tokens, by name", "left out, as transformers does: mtp.layers.0, mtp.norm.weight."),
        (
            "a layer for several tokens, by number",
            f"1 tensors are left out, as transformers does: model.layers.{DEPTH}",
        ),
        ("biases that the config denies", "model.layers.N.mlp.down_proj.bias"),
    ],
)
def test_a_plan_says_what_is_not_as_the_config_has_it(home, case, words):
    found = _planned(home, case)
    assert any(re.search(words, note) for note in found.notes), found.notes


@pytest.mark.parametrize(
    ("case", "read", "not_read"),
    [
        (
            "one file, an index and pickles",
            "model.safetensors",
            ["model-00001-of-00001.safetensors", "pytorch_model.bin"],
        ),
        ("shards and one that no index names", " shards of model.safetensors.index.json", ["model-00009-of-00009"]),
        ("a file that the config names", "weights.safetensors", ["model.safetensors"]),
        ("one file and a variant", "model.safetensors", ["model.fp16.safetensors"]),
    ],
)
def test_a_plan_says_which_file_is_the_model(home, case, read, not_read):
    said, _, others = _planned(home, case).weight_files.partition("; not read, as by transformers: ")
    assert said.endswith(read) and all(name in others for name in not_read)
    assert not _planned(home, "as transformers writes it").notes


def _planned(home: Path, case: str):
    path = home / f"plan-{list(WORKS).index(case)}"
    if not path.exists():
        WORKS[case][1](build(path, **WORKS[case][0]))
    return plan(Recipe.of(base=str(path), drop=("1",)), peek(str(path)))


def test_the_pin_of_a_folder_is_over_the_files_that_are_read(tmp_path):
    folder = build(tmp_path / "one")
    before = peek(str(folder)).source
    pickled(folder)
    spoiled_copy(folder, "consolidated.safetensors")
    assert peek(str(folder)).source == before
    reconfigure(folder, transformers_weights="consolidated.safetensors")
    named = peek(str(folder)).source
    spoiled_copy(folder, "model.safetensors")
    assert named != before and peek(str(folder)).source == named


@pytest.mark.parametrize("trust", [True, False])
def test_a_result_of_a_known_family_needs_no_code(tmp_path, trust):
    folder = build(tmp_path / "base")
    with_code(folder)
    parent = opened(folder, trust_remote_code=trust)
    out = tmp_path / "out"
    out.mkdir()
    write(cut(parent, DROPPED), [parent], out)
    assert not list(out.glob("*.py")) and "auto_map" not in (out / "config.json").read_text()
    for leave in (True, False):
        loaded = AutoModelForCausalLM.from_pretrained(out, trust_remote_code=leave)
        words = AutoTokenizer.from_pretrained(out, trust_remote_code=leave)
        assert loaded.config.num_hidden_layers == DEPTH - len(DROPPED) and words("a cat").input_ids
    assert parent.tokenizer("a cat").input_ids == words("a cat").input_ids


def test_a_tokenizer_that_is_known_to_its_code_alone_asks_for_leave(tmp_path):
    folder = build(tmp_path / "base")
    (folder / "tokenizer.json").rename(folder / "words.tiktoken")
    auto = {"AutoTokenizer": ["tokenization_x.XTokenizer", None]}
    reconfigure(folder, "tokenizer_config.json", auto_map=auto, tokenizer_class="XTokenizer")
    (folder / "tokenization_x.py").write_text(
        "from pathlib import Path\nfrom transformers import PreTrainedTokenizerFast\n\n\n"
        "class XTokenizer(PreTrainedTokenizerFast):\n"
        "    @classmethod\n    def from_pretrained(cls, folder, *args, **kwargs):\n"
        "        return cls(tokenizer_file=str(Path(folder, 'words.tiktoken')))\n"
    )
    with pytest.raises(HfPruneError, match="tokenizer of base .*--trust-remote-code"):
        opened(folder).tokenizer  # noqa: B018
    parent = opened(folder, trust_remote_code=True)
    assert parent.tokenizer("a cat").input_ids and not parent.trust_remote_code
    out = tmp_path / "out"
    out.mkdir()
    write(cut(parent, DROPPED), [parent], out)
    shutil.copy(folder / "words.tiktoken", out)
    assert AutoTokenizer.from_pretrained(out, trust_remote_code=True)("a cat").input_ids


def test_a_parent_of_another_dtype_keeps_its_own_and_blends_take_the_wider(tmp_path):
    folders = [build(tmp_path / d, dtype=t) for d, t in (("a", SHORT), ("b", FULL), ("c", HALF))]
    parents = [Parent.open(Source(f.name, "tiny"), f) for f in folders]
    blends = (
        LayerSpec((Part(0, 0),)),
        LayerSpec((Part(1, 1),)),
        LayerSpec((Part(0, 2, 0.5), Part(2, 2, 0.5))),
        LayerSpec((Part(0, 3, 0.5), Part(0, 4, 0.5))),
    )
    out = tmp_path / "out"
    out.mkdir()
    _, size = write(Blueprint(tuple(p.source for p in parents), blends, 0, 1), parents, out)
    found = state(out)
    assert [found[f"model.layers.{i}.mlp.up_proj.weight"].dtype for i in range(4)] == [SHORT, FULL, FULL, SHORT]
    assert (found[EMBED].dtype, found[HEAD].dtype, settings(out)["dtype"]) == (SHORT, FULL, "bfloat16")
    assert size == bytes_of(out)


def test_exports_of_a_model_of_several_dtypes(tmp_path):
    plain = {"attention_bias": False, "mlp_bias": False, "intermediate_size": 256}
    folder = restate(build(tmp_path / "base", dtype=SHORT, **plain), stored(("norm", FULL), ("embed", FULL)))
    parent, out = opened(folder), tmp_path / "out"
    out.mkdir()
    write(cut(parent, DROPPED), [parent], out)
    assert yaml.safe_load(export_mergekit(out, ["base"]))["dtype"] == "float32"
    export_nemotron_nas(out, tmp_path / "nas")
    before, after = state(out), state(tmp_path / "nas")
    assert {n: t.dtype for n, t in after.items()} == {n: t.dtype for n, t in before.items()}
    assert (
        all(torch.equal(after[n], before[n]) for n in after) and settings(tmp_path / "nas")["torch_dtype"] == "bfloat16"
    )


def test_a_variant_without_the_layers_that_nobody_loads_fits(tmp_path):
    base, tuned = build(tmp_path / "base"), build(tmp_path / "tuned", seed=1)
    extra(f"model.layers.{DEPTH}.eh_proj.weight")(base)
    (found,) = verdicts(*peeks(str(base), [str(tuned)]))
    assert found.fits, found.sentence
