"""Layers that are read when they are called: the same bits as resident ones, in as much memory as there is."""

import pytest
import torch

from hf_prune.assembly.assemble import assemble
from hf_prune.assembly.layer_bank import LayerBank
from hf_prune.assembly.layer_stream import streamed
from hf_prune.blueprint import Blueprint, Fidelity, LayerSpec, Part, Source
from hf_prune.evaluation.evaluator import Evaluator
from hf_prune.models.parent import Parent
from hf_prune.recovery.repair import repair
from tests.families import DEPTH, EVERY, mean, save_tiny, tiny
from tests.oracle import EDITS, opened, tokens

WINDOWS = tokens(5)
CPU = torch.device("cpu")


def resident(parent):
    return LayerBank(assemble(Blueprint.identity(parent.source, DEPTH), [parent], dtype=torch.float32), [parent])


def reading(parent, layers=2.0, dtype=torch.float32):
    """With room for so many layers."""
    whole = Blueprint.identity(parent.source, DEPTH)
    model, stream = streamed(whole, [parent], dtype=dtype, device=CPU, room=0)
    stream.room = int(layers * max(stream.sizes))
    return LayerBank(model, [parent], stream=stream, capacity=4)


def there(bank):
    return [i for i, layer in enumerate(bank.stream.layers) if not any(p.is_meta for p in layer.parameters())]


def cuts(parent):
    return [Blueprint((parent.source,), tuple(layers)) for layers in EDITS.values()]


def scores(bank, blueprints):
    evaluator = Evaluator(bank, WINDOWS)
    measured = evaluator.evaluate(blueprints, Fidelity(4))
    return measured, evaluator.token_scores(blueprints, Fidelity(2, start=3)), evaluator.reference


def same(one, other):
    # Not a number is not itself.
    assert [repr(m) for m in one[0]] == [repr(m) for m in other[0]]
    assert all(torch.equal(a, b) for x, y in zip(one[1], other[1], strict=True) for a, b in zip(x, y, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(one[2].hidden, other[2].hidden, strict=True))
    assert torch.equal(one[2].log_p, other[2].log_p)


@pytest.mark.parametrize("family", EVERY)
def test_every_family_has_the_same_bits_as_resident(family):
    parent = opened(family)
    bank = reading(parent)
    blueprints = [b for name, b in zip(EDITS, cuts(parent), strict=True) if name != "halved" or parent.family.halved]
    same(scores(resident(parent), blueprints), scores(bank, blueprints))
    assert len(there(bank)) <= 2


@pytest.mark.parametrize("layers", [1.0, 1.5, 3.0, 4.2, DEPTH + 1.0])
def test_the_same_bits_whatever_the_room(layers):
    parent = opened("llama")
    bank = reading(parent, layers)
    same(scores(resident(parent), cuts(parent)[:2]), scores(bank, cuts(parent)[:2]))
    assert len(there(bank)) <= layers


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_shards_and_tied_heads_are_read_like_one_file(tmp_path, tied, dtype):
    model = tiny("llama", dtype=dtype, tie_word_embeddings=tied)
    model.save_pretrained(tmp_path, max_shard_size="40KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    parent = Parent.open(Source("shards", "tiny"), tmp_path)
    same(scores(resident(parent), cuts(parent)), scores(reading(parent), cuts(parent)))


def test_what_is_called_last_goes_first_so_most_of_what_fits_stays():
    bank = reading(opened("llama"), 4.0)
    read = bank.stream.reading
    for _ in range(10):
        for layer in range(DEPTH):
            bank.stream.reach(layer)
    # Four of six fit, one of them is being read: at least two of six are never read again.
    assert len(there(bank)) <= 4 and read.layers <= DEPTH + 9 * (DEPTH - 2)
    assert read.seconds > 0 and read.waited >= 0


def test_no_layer_is_read_for_what_layers_are_given():
    bank = reading(opened("llama"))
    evaluator = Evaluator(bank, WINDOWS)
    before = bank.stream.reading.layers
    entered, calls = evaluator.dense.record(WINDOWS[:1])
    assert bank.stream.reading.layers == before and len(calls) == DEPTH
    assert torch.equal(entered, evaluator.reference.hidden[0][:1])


def test_a_whole_forward_reads_every_layer_once():
    parent = opened("llama")
    bank = reading(parent)
    with torch.inference_mode():
        found = bank.model(input_ids=WINDOWS).logits
        assert torch.equal(found, resident(parent).model(input_ids=WINDOWS).logits)
    assert DEPTH <= bank.stream.reading.layers <= DEPTH + 1


def test_a_repair_of_read_layers_has_the_same_bits_and_keeps_what_it_shares():
    parent = opened("llama")
    cut = Blueprint((parent.source,), tuple(LayerSpec((Part(0, i),)) for i in (0, 1, 4, 5)))
    banks = [resident(parent), reading(parent)]
    done = [repair(bank, cut, tokens(6), tokens(3, seed=1)) for bank in banks]
    assert done[0].blueprint.digest == done[1].blueprint.digest and done[0].fits == done[1].fits
    assert any(spec.repair for spec in done[0].blueprint.layers)
    found = [Evaluator(bank, WINDOWS).logits(done[0].blueprint, 2) for bank in banks]
    assert torch.equal(*found)


def test_states_and_repairs_that_are_kept_lie_in_files_without_a_name(tmp_path):
    parent = opened("llama")
    bank, whole = reading(parent), resident(parent)
    bank.stream.home = tmp_path
    held, plain = (Evaluator(b, WINDOWS).reference.hidden for b in (bank, whole))
    assert all(torch.equal(*pair) for pair in zip(held, plain, strict=True))
    spec = bank.repaired(LayerSpec((Part(0, 1),)), {"mlp.down_proj.weight": torch.ones(32, 48)})
    kept = [*held, *bank.patches[spec.repair].values()]
    assert all(t.untyped_storage().filename for t in kept) and not any(t.untyped_storage().filename for t in plain)
    assert not list(tmp_path.iterdir())


def test_merged_layers_are_part_of_the_room():
    bank = reading(opened("llama"), 4.0)
    for number in range(3):
        bank.module(mean(number, number + 1))
    for number in range(DEPTH):
        bank.module(LayerSpec((Part(0, number),)))
    assert len(there(bank)) == 1 and bank.stream.taken == 3 * max(bank.stream.sizes)


@pytest.mark.parametrize("edit", EDITS)
def test_a_cut_is_read_like_a_whole_model(edit):
    parent = opened("gemma2")
    blueprint = Blueprint((parent.source,), tuple(EDITS[edit]))
    model, stream = streamed(blueprint, [parent], dtype=torch.float32, device=CPU, room=0)
    with torch.inference_mode():
        expected = assemble(blueprint, [parent], dtype=torch.float32)(input_ids=WINDOWS).logits
        assert torch.equal(model(input_ids=WINDOWS).logits, expected)
    assert stream.reading.layers >= len(blueprint.layers)


def test_experts_are_read_like_other_layers(tmp_path):
    save_tiny("qwen3_moe", tmp_path)
    parent = Parent.open(Source("experts", "tiny"), tmp_path)
    fewer = [LayerSpec((Part(0, i),), blends=(((1, 1.0),), ((3, 1.0),))) for i in range(DEPTH)]
    blueprints = [Blueprint((parent.source,), tuple(fewer))]
    same(scores(resident(parent), blueprints), scores(reading(parent), blueprints))
