"""A small mixture of experts to try --method experts on: every MLP of the demo's model becomes eight, two for a token.

All experts begin as the MLP (sparse upcycling, arXiv 2212.05055), so that the mixture is the dense model at first. The
rows of a layer's router are the centres of a spherical k-means of what enters its MLP on six corpora, and stay; experts
and the rest of the layers are trained on all of the text. Printed are perplexities before and after, and how each
corpus spreads over the experts: the entropy of their use, in bits, 3 where all eight are used alike.

    python examples/upcycle.py mixture
    hf-prune compress mixture --method experts --ratio 0.4 --repair --data examples/demo/text
"""

import argparse
import copy
import tempfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, MixtralConfig, MixtralForCausalLM

from hf_prune.data.bundled import demo_folder
from hf_prune.models.families import FAMILIES
from hf_prune.recipe import Recipe
from hf_prune.recovery.heal import Course, heal
from hf_prune.session.session import open_session

EXPERTS, CHOSEN, LENGTH = 8, 2, 128
SHARPNESS = 6.0
"""Largest logit of a router for a state of mean length."""
SAMPLES = 20_000
"""Tokens that centres are found on."""


def main() -> None:
    """Make it, train it, and save it."""
    a = arguments()
    base, texts = demo_folder() / "storymath-16l", (demo_folder() / "text", demo_folder() / "specialists" / "text")
    recipe = Recipe.of(base=str(base), data=tuple(map(str, texts)), length=LENGTH, sequences=48,
                       selection_sequences=48, ratio=0.25, heal=a.tokens)  # fmt: skip
    evidence = open_session(recipe).evidence
    train, held = evidence.training(-(-a.tokens // LENGTH)), evidence.windows["selection"]
    dense = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = upcycled(dense, train.tokens[torch.randperm(len(train.tokens))[: SAMPLES // LENGTH]])
    show("dense", dense, held)
    with tempfile.TemporaryDirectory() as home:
        course = Course(a.tokens, method="full", kl=0.0, ce=1.0, rate=1e-3, batch=8, checks=4, seed=a.seed)
        done = heal(model, dense, FAMILIES["mixtral"], train.tokens, held.tokens, course, Path(home),
                    lambda step, steps, loss: loss and print(f"step {step} of {steps}: {loss:.3f}"))  # fmt: skip
    show("mixture", done.model, held)
    spread(done.model, held)
    done.model.save_pretrained(a.output)
    AutoTokenizer.from_pretrained(base).save_pretrained(a.output)


def arguments() -> argparse.Namespace:
    """From the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--tokens", type=int, default=400_000)
    parser.add_argument("--seed", type=int, default=0)
    found = parser.parse_args()
    torch.manual_seed(found.seed)
    return found


@torch.no_grad()
def upcycled(dense: torch.nn.Module, tokens: torch.Tensor) -> MixtralForCausalLM:
    """The mixture that computes what the dense model does."""
    settings = {k: v for k, v in dense.config.to_dict().items() if k not in ("model_type", "architectures")}
    config = MixtralConfig(**settings, num_local_experts=EXPERTS, num_experts_per_tok=CHOSEN, sliding_window=None)
    config.dtype = torch.float32
    entering = inputs(dense, tokens)
    model = MixtralForCausalLM(config)
    missing, _ = model.load_state_dict(dense.state_dict(), strict=False)
    assert all(".mlp." in name for name in missing), missing
    for new, old, states in zip(model.model.layers, dense.model.layers, entering, strict=True):
        both = torch.cat([old.mlp.gate_proj.weight, old.mlp.up_proj.weight])
        new.mlp.experts.gate_up_proj.copy_(both.expand(EXPERTS, -1, -1))
        new.mlp.experts.down_proj.copy_(old.mlp.down_proj.weight.expand(EXPERTS, -1, -1))
        new.mlp.gate.weight.copy_(centres(states) * SHARPNESS / states.norm(dim=1).mean())
    return model


def inputs(dense: torch.nn.Module, tokens: torch.Tensor) -> list[torch.Tensor]:
    """What enters each MLP, [tokens, d]."""
    seen: list[torch.Tensor] = []
    hooks = [
        layer.mlp.register_forward_pre_hook(lambda _, args: seen.append(args[0].flatten(0, 1)))
        for layer in dense.model.layers
    ]
    dense(input_ids=tokens, use_cache=False)
    for hook in hooks:
        hook.remove()
    return copy.copy(seen)


def centres(states: torch.Tensor, rounds: int = 20) -> torch.Tensor:
    """Spherical k-means: unit vectors [EXPERTS, d]."""
    unit = torch.nn.functional.normalize(states, dim=1)
    found = unit[torch.randperm(len(unit))[:EXPERTS]]
    for _ in range(rounds):
        nearest = (unit @ found.T).argmax(1)
        sums = torch.zeros_like(found).index_add_(0, nearest, unit)
        found = torch.nn.functional.normalize(sums, dim=1)
    return found


@torch.no_grad()
def show(name: str, model: torch.nn.Module, held) -> None:
    """Perplexity of each corpus of the selection split."""
    logits = model.eval()(input_ids=held.tokens, use_cache=False).logits[:, :-1].log_softmax(-1)
    nll = -logits.gather(-1, held.tokens[:, 1:, None]).squeeze(-1).mean(1)
    for corpus in sorted(set(held.corpora)):
        rows = torch.tensor([c == corpus for c in held.corpora])
        print(f"{name} on {corpus}: perplexity {float(nll[rows].mean().exp()):.1f}")


@torch.no_grad()
def spread(model: torch.nn.Module, held) -> None:
    """Entropy of the use of experts, mean of the layers: of each corpus, and of all of them together."""
    uses: list[torch.Tensor] = []
    hooks = [
        layer.mlp.gate.register_forward_hook(lambda _, __, out: uses.append(out[2].view(*held.tokens.shape, -1)))
        for layer in model.model.layers
    ]
    model(input_ids=held.tokens, use_cache=False)
    for hook in hooks:
        hook.remove()
    for corpus in [*sorted(set(held.corpora)), None]:
        rows = torch.tensor([corpus in (c, None) for c in held.corpora])
        shares = [torch.bincount(use[rows].flatten(), minlength=EXPERTS).double() / use[rows].numel() for use in uses]
        bits = [float(-(p * p.clamp_min(1e-12).log2()).sum()) for p in shares]
        print(f"experts used on {corpus or 'all of it'}: {sum(bits) / len(bits):.2f} bits")


if __name__ == "__main__":
    main()
