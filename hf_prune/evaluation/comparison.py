"""States and logits against the dense model: per-token figures, their sums, and one-shot scores of layers."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hf_prune.evaluation.prefix_trie import Node

COSINE_FLOATS = 1 << 17


class Targets(NamedTuple):
    """What a dense model expects next: token ids and log-probabilities of the k likeliest, [..., k], and the log of the
    mass outside of them, [...], None when k is the vocabulary."""

    top: Tensor
    log_p: Tensor
    log_tail: Tensor | None

    @classmethod
    def of(cls, logits: Tensor, k: int) -> "Targets":
        """From logits [..., V]."""
        log_p, top = logits.float().log_softmax(-1).topk(min(k, logits.shape[-1]), sorted=False)
        return cls(top, log_p, None if log_p.shape[-1] == logits.shape[-1] else log_rest(log_p))


@dataclass(frozen=True, eq=False)
class Reference:
    """What the dense model does on the windows, run once.

    tokens: [N, T] int64. hidden: per layer boundary [N, T, d], there or set aside; hidden[i] enters layer i, hidden[-1]
    the final norm.
    top, log_p: [N, T-1, k] token ids and dense log-probabilities of the k likeliest next tokens.
    p: exp(log_p). log_tail: [N, T-1] log of the dense mass outside the top k, None when k is the vocabulary.
    nll: [N, T-1] dense negative log-likelihood of the text. calls: keyword arguments of each layer, batch size 1.
    """

    tokens: Tensor
    hidden: tuple[Tensor, ...]
    top: Tensor
    log_p: Tensor
    p: Tensor
    log_tail: Tensor | None
    nll: Tensor
    calls: tuple[tuple[tuple[Any, ...], dict[str, Any]], ...]
    modules: tuple[tuple[Tensor, Tensor], ...] | None = None

    def state(self, boundary: int, window: slice) -> Tensor:
        """Of some windows, on the device."""
        return self.hidden[boundary][window].to(self.tokens.device)


def compare(reference: Reference, rows: slice, logits: Tensor) -> tuple[Tensor, Tensor]:
    """KL(dense || candidate) and NLL per token, float32 [n, T-1] each; overwrites the float32 logits [n, T-1, V].

    KL runs over the dense top k and one bucket for the rest: a lower bound of the full KL (log-sum inequality), exact
    when k is the vocabulary.
    """
    log_q = logits.gather(-1, reference.top[rows])
    wanted = logits.gather(-1, reference.tokens[rows, 1:, None])
    largest = logits.amax(-1, keepdim=True)
    log_z = logits.sub_(largest).exp_().sum(-1, keepdim=True).log_().add_(largest)
    torch.sub(log_z, wanted, out=wanted)
    log_p = reference.log_p[rows]
    kl = torch.sub(log_p, log_q.sub_(log_z)).mul_(reference.p[rows]).sum(-1)
    if reference.log_tail is not None:
        kl += reference.log_tail[rows].exp() * (reference.log_tail[rows] - log_rest(log_q))
    return kl.clamp_(min=0.0), wanted.squeeze(-1)


def log_rest(log_p: Tensor) -> Tensor:
    """log(1 - sum exp log_p) over the last axis: the mass outside the listed tokens."""
    return torch.log1p(-log_p.exp().sum(-1).clamp(max=1 - 1e-7))


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Cosine over the last axis, in float32; on CPU in pieces that stay in cache, since fresh memory costs more."""
    rows = max(1, COSINE_FLOATS // a[0].numel()) if a.device.type == "cpu" else len(a)
    pieces = zip(a.split(rows), b.split(rows), strict=True)
    return torch.cat([torch.nn.functional.cosine_similarity(x.float(), y.float(), dim=-1) for x, y in pieces])


def block_influence(reference: Reference) -> tuple[float, ...]:
    """BI_i = 1 - E cos(h_i, h_{i+1}) per layer (ShortGPT, arXiv 2403.03853, eq. 1)."""
    return influence(reference.hidden)


def influence(hidden: Sequence[Tensor]) -> tuple[float, ...]:
    """The same from states [N, T, d] at every layer boundary."""
    return tuple(1.0 - float(cosine(a, b).mean()) for a, b in zip(hidden, hidden[1:], strict=False))


def block_distance(reference: Reference) -> tuple[tuple[float, ...], ...]:
    """d[l][n-1] = arccos(cos(h_l, h_{l+n})) / pi on last tokens (Gromov et al., arXiv 2403.17887, eq. 7)."""
    last = [h[:, -1] for h in reference.hidden]
    depth = len(last) - 1

    def distance(a: Tensor, b: Tensor) -> float:
        return float((torch.arccos(cosine(a, b).double().clamp(-1, 1)) / math.pi).mean())

    return tuple(tuple(distance(last[i], last[i + n]) for n in range(1, depth - i + 1)) for i in range(depth))


def add_update(node: Node, reference: Reference, window: slice) -> None:
    """Add this edge's update cosine, [windows]: original update of the source layers it stands for against its own."""
    if node.dense:
        node.cosine = node.parent.cosine + 1.0
        return
    # The first position is left out: attention sinks there dwarf every other update.
    begin = min(node.begin, node.end - 1)
    update = (node.states[0] - node.parent.states[0])[:, 1:]
    target = (reference.state(node.end, window) - reference.state(begin, window))[:, 1:]
    node.cosine = node.parent.cosine + cosine(update, target).mean(1)


def halves_cosine(node: Node, reference: Reference, layers: range, window: slice) -> Tensor | float:
    """Sum over source layers of the cosines of attention and MLP outputs with those of this node, [windows]."""
    return sum(
        cosine(ours, theirs[window]).mean(1)
        for i in layers
        for ours, theirs in zip(node.inner, reference.modules[i], strict=True)
    )


def gelaco(node: Node, reference: Reference, window: slice) -> Tensor:
    """GeLaCo v1 (arXiv 2507.10059), [windows]: thirds of attention, feed-forward and final-hidden cosine, l against
    psi(l).

    Source layers behind the last output layer belong to it.
    """
    depth = len(reference.hidden) - 1
    halves = node.halves + halves_cosine(node, reference, range(node.end, depth), window)
    final = cosine(node.states[0], reference.state(depth, window)).mean(1)
    return (halves / depth + final) / 3
