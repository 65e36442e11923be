"""Repair gives back what is linear, changes nothing that is whole, and never leaves a layer further off."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from hf_prune.assembly.assemble import assemble, write
from hf_prune.assembly.layer_bank import LayerBank
from hf_prune.assembly.patches import PATCH_FILE, load_patches
from hf_prune.blueprint import GONE, Blueprint, Fidelity, LayerSpec, Part
from hf_prune.data.bundled import demo_folder
from hf_prune.errors import InvalidBlueprint
from hf_prune.evaluation.evaluator import Evaluator
from hf_prune.recipe import Recipe
from hf_prune.recovery.repair import REACHES, RepairedCut, _ends, evenly, repair, weaken
from hf_prune.session.session import open_session
from tests.families import DEPTH, EVERY, blueprint, mean
from tests.oracle import logits, opened, stock, tokens

FIT, HELD = tokens(24, seed=1), tokens(8, seed=2)
DROPPED = blueprint(0, 2, 4, 5)


def bank_of(family):
    parent = opened(family)
    return LayerBank(assemble(Blueprint.identity(parent.source, DEPTH), [parent]), [parent])


def of(parent, layers):
    return Blueprint((parent.source,), layers.layers if isinstance(layers, Blueprint) else tuple(layers))


@pytest.mark.parametrize("family", EVERY)
def test_where_nothing_is_removed_nothing_changes(family):
    bank = bank_of(family)
    whole = Blueprint.identity(bank.parents[0].source, DEPTH)
    done = repair(bank, whole, FIT, HELD)
    assert done.blueprint == whole and done.fits == () and bank.patches == {}


@pytest.mark.parametrize("family", EVERY)
def test_no_layer_ends_further_from_the_dense_model_and_some_end_nearer(family):
    bank = bank_of(family)
    # Random models share nothing between windows, so the same ones are fitted and held out.
    done = repair(bank, of(bank.parents[0], DROPPED), FIT, FIT)
    assert [f.layer for f in done.fits] == [0, 1, 2, 3] and all(f.after <= f.before for f in done.fits)
    assert any(f.after < 0.95 * f.before for f in done.fits)
    kept = {s.repair for s in done.blueprint.layers if s.repair}
    assert (
        kept
        == set(bank.patches)
        == {s.repair for s, f in zip(done.blueprint.layers, done.fits, strict=True) if f.ridges}
    )


@pytest.mark.parametrize("family", ["llama", "gpt2", "phi3", "gemma2", "opt"])
def test_the_repaired_model_is_the_one_that_was_measured_and_is_rebuilt_from_its_files(family, tmp_path):
    bank = bank_of(family)
    parent = bank.parents[0]
    done = repair(bank, of(parent, DROPPED), FIT, FIT).blueprint
    evaluator = Evaluator(bank, HELD)
    live = assemble(done, [parent], bank.named(done))
    torch.testing.assert_close(logits(live, HELD), evaluator.logits(done, len(HELD)), rtol=1e-4, atol=1e-4)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    write(done, [parent], tmp_path / "one", bank.named(done))
    again = Blueprint.from_json((tmp_path / "one/blueprint.json").read_text())
    write(again, [parent], tmp_path / "two", load_patches(tmp_path / "one" / PATCH_FILE))
    for file in ("model.safetensors", "blueprint.json", PATCH_FILE):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes(), file
    torch.testing.assert_close(logits(stock(tmp_path / "one"), HELD), logits(live, HELD))
    with pytest.raises(InvalidBlueprint, match="keep repairs/patches.safetensors beside it"):
        write(again, [parent], tmp_path / "two")


@pytest.mark.parametrize("family", EVERY)
def test_a_repair_may_be_taken_part_of_the_way_each_half_its_own(family):
    bank = bank_of(family)
    half = bank.parents[0].family.half
    done = repair(bank, of(bank.parents[0], DROPPED), FIT, FIT).blueprint
    refitted = [spec for spec in done.layers if spec.repair]
    shares = [(0.5, 0.25 * n) for n in range(len(done.layers))]
    less = weaken(bank, done, shares)
    assert refitted and [replace(s, repair=None) for s in less.layers] == [replace(s, repair=None) for s in done.layers]
    for spec, part, share in zip(done.layers, less.layers, shares, strict=True):
        if not spec.repair:
            assert part == spec
            continue
        before, middle, after = (bank.module(s).state_dict() for s in (replace(spec, repair=None), part, spec))
        for name, tensor in middle.items():
            torch.testing.assert_close(tensor, torch.lerp(before[name], after[name], share[half(name) == "mlp"]))
    assert weaken(bank, done, evenly(done, 1.0)) == done


def test_a_repair_of_another_shape_is_refused(tmp_path):
    parent = opened("llama")
    wrong = replace(blueprint(0, 2), layers=(LayerSpec((Part(0, 0),), repair="abc"), LayerSpec((Part(0, 2),))))
    with pytest.raises(InvalidBlueprint, match="the shape"):
        assemble(of(parent, wrong), [parent], {"abc": {"mlp.down_proj.weight": torch.zeros(2, 2)}})
    with pytest.raises(InvalidBlueprint, match="no such tensor"):
        assemble(of(parent, wrong), [parent], {"abc": {"mlp.up.weight": torch.zeros(2, 2)}})


def test_a_removed_layer_that_adds_something_linear_is_given_back_in_full():
    bank = bank_of("llama")
    layers = bank.model.model.layers
    matrix = 0.5 * torch.randn(48, 32, generator=torch.Generator().manual_seed(3))
    seen = {}

    def note(module, inputs, output):
        seen[module] = inputs[0]

    class Linear(torch.nn.Module):
        """Adds a linear function of what entered the last map of the layer before."""

        def forward(self, hidden_states, *args, **kwargs):
            return hidden_states + seen[layers[2].mlp.down_proj] @ matrix

    layers[2].mlp.down_proj.register_forward_hook(note)
    layers[3] = Linear()
    cut = of(bank.parents[0], blueprint(0, 1, 2, 4, 5))
    # A layer of its own class is called once before all others.
    seen[layers[2].mlp.down_proj] = torch.zeros(1, 1, 48)
    torch.set_num_threads(1)  # the hook above knows one tile at a time
    try:
        done = repair(bank, cut, FIT, HELD, ridges=(1e-9,), reach="gap")
    finally:
        torch.set_num_threads(2)
    (fit,) = done.fits
    assert fit.layer == 2 and fit.before > 0.01 and fit.after < 1e-8


@pytest.mark.parametrize("reach", REACHES)
def test_each_reach_touches_what_it_says(reach):
    bank = bank_of("llama")
    done = repair(bank, of(bank.parents[0], DROPPED), FIT, FIT, reach=reach)
    touched = [i for i, s in enumerate(done.blueprint.layers) if s.repair]
    # Layers 1 and 3 of the source are gone: outputs 0 and 1 stand before the gaps.
    assert set(touched) <= ({0, 1} if reach != "all" else {0, 1, 2, 3}) and touched
    names = {n for s in done.blueprint.layers if s.repair for n in bank.patches[s.repair]}
    assert reach == "all" or names == {"mlp.down_proj.weight", "mlp.down_proj.bias"}
    if reach == "map":
        spec = done.blueprint.layers[touched[0]]
        old = bank.module(replace(spec, repair=None)).mlp.down_proj
        new = bank.module(spec).mlp.down_proj
        rows = [torch.cat([m.weight.T, m.bias[None]]).double() for m in (old, new)]
        # W T, with a square T: the new rows lie in the space of the old ones.
        solution = torch.linalg.lstsq(rows[0], rows[1]).solution
        torch.testing.assert_close(rows[0] @ solution, rows[1], rtol=1e-4, atol=1e-5)


def test_merged_and_half_removed_layers_are_repaired_too():
    bank = bank_of("llama")
    layers = [LayerSpec((Part(0, 0),)), mean(1, 2), LayerSpec((Part(0, 3),), mlp_level=GONE),
              LayerSpec((Part(0, 4),), attn_level=GONE), LayerSpec((Part(0, 5),))]  # fmt: skip
    done = repair(bank, of(bank.parents[0], layers), FIT, FIT)
    patched = {i: set(bank.patches[s.repair]) for i, s in enumerate(done.blueprint.layers) if s.repair}
    assert patched[1] and all(n.startswith("self_attn.o_proj.") for n in patched[2])
    assert all(n.startswith("mlp.down_proj.") for n in patched[3])
    live = assemble(done.blueprint, bank.parents, bank.named(done.blueprint))
    expected = Evaluator(bank, HELD).logits(done.blueprint, len(HELD))
    torch.testing.assert_close(logits(live, HELD), expected, rtol=1e-4, atol=1e-4)


def test_the_result_depends_neither_on_the_run_nor_on_the_cores():
    digests = set()
    threads = torch.get_num_threads()
    for number in (1, 2, 2):
        torch.set_num_threads(number)
        bank = bank_of("llama")
        digests.add(repair(bank, of(bank.parents[0], DROPPED), tokens(40), HELD).blueprint.digest)
    torch.set_num_threads(threads)
    assert len(digests) == 1


def test_targets_are_where_the_next_layer_begins():
    specs = [LayerSpec((Part(0, 0),)), mean(2, 3), LayerSpec((Part(0, 3),)), LayerSpec((Part(0, 5),))]
    assert _ends(blueprint(*specs), 8) == [2, 4, 5, 8]
    assert _ends(blueprint(*range(6)), 6) == [1, 2, 3, 4, 5, 6]


def test_progress_is_told_and_the_record_is_read_back():
    bank, told = bank_of("llama"), []
    done = repair(bank, of(bank.parents[0], DROPPED), FIT, HELD, progress=lambda *x: told.append(x))
    assert told == [(i, 4) for i in range(1, 5)]
    back = RepairedCut.from_json(done.to_json())
    assert (back.blueprint, back.fits) == (done.blueprint, done.fits)


@pytest.mark.slow
def test_on_the_bundled_model_most_of_the_loss_comes_back():
    demo = demo_folder()
    recipe = Recipe.of(base=str(demo / "storymath-16l"), data=(str(demo / "text"),), drop=("3,6,7,11",),
                       report_sequences=24, reach="all")  # fmt: skip
    made = open_session(recipe)
    cut = made.deletions(4).blueprint(made.deletions(4).space.from_removed((3, 6, 7, 11)))
    report = made.evidence.windows["report"]
    done = repair(made.bank, cut, made.evidence.training(96).tokens, made.evidence.windows["selection"].tokens)
    identity = Blueprint.identity(made.inputs.base.source, made.inputs.base.depth)
    scores = Evaluator(made.bank, report.tokens).token_scores([identity, cut, done.blueprint], Fidelity(24))
    rows = [np.array([c == n for c in report.corpora]) for n in sorted(set(report.corpora))]
    dense, bare, now = (np.array([s[1].mean(1).numpy()[r].mean() for r in rows]) for s in scores)
    assert ((bare - now) / (bare - dense)).mean() > 0.65
