"""Variants are told from headers and small files: what differs, what does no harm, what is fatal."""

import json
import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM

from hf_prune.errors import IncompatibleSources
from hf_prune.hub import peek
from hf_prune.models.variants import comparison_table, verdict
from hf_prune.pipeline import run
from hf_prune.session.session import open_session
from tests.runs import adapter, base, relatives, stitching


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return relatives(tmp_path_factory.mktemp("fit"))


def compared(home, name):
    return verdict(peek(str(home / "base")), peek(name))


def rows(found):
    return {r.aspect: r for r in found.rows}


def edited(home, folder, **config):
    """A copy of the base whose config says otherwise."""
    shutil.copytree(home / "base", folder)
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**raw, **config}))
    return folder


def test_models_and_adapters_of_equal_shape_fit(home):
    for name in (home / "tuned", f"{home / 'base'}+{home / 'lora'}"):
        found = compared(home, str(name))
        assert found.fits and rows(found)["tokenizer"].severity == "same"
    header, lines = comparison_table([compared(home, str(home / "tuned"))])
    assert len(header) == 6 and [line[1] for line in lines] == ["everything compared"]


@pytest.mark.parametrize(
    ("config", "aspect", "severity"),
    [
        ({"rope_theta": 5e5, "rope_parameters": None}, "rope_parameters", "fatal"),
        ({"hidden_act": "gelu"}, "hidden_act", "fatal"),
        ({"rms_norm_eps": 0.1}, "rms_norm_eps", "harmless"),
        ({"eos_token_id": 7}, "eos_token_id", "harmless"),
    ],
)
def test_settings_that_change_a_layer_are_fatal_and_others_are_not(home, tmp_path, config, aspect, severity):
    found = compared(home, str(edited(home, tmp_path / "other", **config)))
    assert rows(found)[aspect].severity == severity and found.fits is (severity != "fatal")
    assert severity in [line[4] for line in comparison_table([found])[1]]


def test_another_shape_is_named_and_refused_before_a_weight_is_read(home, tmp_path):
    base(tmp_path / "wide", seed=1, intermediate_size=128)
    found = compared(home, str(tmp_path / "wide"))
    assert not found.fits and any("mlp" in r.aspect for r in found.fatal)
    (tmp_path / "wide/model.safetensors").chmod(0o400)
    with pytest.raises(IncompatibleSources, match="does not fit .*intermediate_size is 128") as caught:
        open_session(stitching(home, variants=(str(tmp_path / "wide"),)))
    assert "\n" not in str(caught.value)


def test_an_adapter_of_another_shape_is_refused(home, tmp_path):
    base(tmp_path / "wide", seed=1, intermediate_size=128)
    adapter(tmp_path / "lora", tmp_path / "wide")
    found = compared(home, f"{home / 'base'}+{tmp_path / 'lora'}")
    assert not found.fits and "down_proj" in found.fatal[0].aspect


def permuted(home, folder, pad=3):
    """The base with its tokens at other ids, and rows more: it is the same model."""
    model = AutoModelForCausalLM.from_pretrained(home / "base")
    raw = json.loads((home / "base/tokenizer.json").read_text())
    vocabulary = raw["model"]["vocab"]
    rows = model.config.vocab_size
    new = torch.cat([torch.arange(len(vocabulary)).roll(1), torch.arange(len(vocabulary), rows)])
    shutil.copytree(home / "base", folder)
    state = {}
    for name, tensor in model.state_dict().items():
        if name in ("model.embed_tokens.weight", "lm_head.weight"):
            extra = torch.zeros(rows + pad, tensor.shape[1])
            extra[new] = tensor
            tensor = extra
        state[name] = tensor
    model.config.vocab_size = rows + pad
    fresh = AutoModelForCausalLM.from_config(model.config)
    fresh.load_state_dict(state)
    fresh.save_pretrained(folder)
    moved = {token: int(new[i]) for token, i in vocabulary.items()}
    raw["model"]["vocab"] = moved
    for token in raw.get("added_tokens", []):
        token["id"] = int(new[token["id"]])
    (folder / "tokenizer.json").write_text(json.dumps(raw))
    return folder


def test_rows_of_a_resized_vocabulary_are_matched_by_token(home, tmp_path):
    variant = permuted(home, tmp_path / "moved")
    found = compared(home, str(variant))
    assert found.fits and rows(found)["tokenizer"].severity == rows(found)["vocab_size"].severity == "harmless"
    session = open_session(stitching(home, variants=(str(variant),)))
    ours, theirs = session.inputs.parents
    for name, shape in ours.shapes.items():
        tensor = theirs.outside_tensor(name) if not name.startswith(ours.family.prefix) else None
        assert theirs.shapes[name] == shape
        if tensor is not None:
            assert torch.equal(tensor, ours.outside_tensor(name)), name
    assert session.scorer.space.embeds == session.scorer.space.heads == (0,), (
        "they are the same, so there is nothing to choose"
    )


@pytest.mark.slow
def test_a_variant_in_another_precision_and_with_more_rows_is_stitched(home, tmp_path):
    variant = permuted(home, tmp_path / "moved")
    model = AutoModelForCausalLM.from_pretrained(home / "tuned", dtype=torch.bfloat16)
    shutil.copytree(home / "tuned", tmp_path / "half")
    model.save_pretrained(tmp_path / "half")
    both = (str(variant), str(tmp_path / "half"))
    result = run(stitching(home, variants=both, baselines=(), output=str(tmp_path / "out")))
    assert result.report["certificate"]["ok"]
    assert next(AutoModelForCausalLM.from_pretrained(result.folder).parameters()).dtype == torch.float32


def test_the_plan_shows_the_verdict(home):
    from typer.testing import CliRunner

    from hf_prune.cli.main import app

    flags = [
        "--method",
        "stitch",
        "--drop-layers",
        "2",
        "--variant",
        str(home / "tuned"),
        "--variant",
        str(home / "lora"),
    ]
    shown = CliRunner().invoke(app, ["plan", str(home / "base"), *flags])
    assert shown.exit_code == 0 and "Do the variants fit?" in shown.stdout
    raw = json.loads(CliRunner().invoke(app, ["plan", str(home / "base"), *flags, "--format", "json"]).stdout)
    assert [v["fits"] for v in raw["variants"]] == [True, True]
