"""The dense model as a row of layers: how one is called, what the head makes of a state, and the reference run.

Nothing here knows a family's forward: what each layer is given besides its hidden state (masks, positions) is recorded
from one real forward, and what happens before the first layer is left to the model itself.
"""

import contextlib
import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from hf_prune.errors import BaseOverflow, UnsupportedArchitecture
from hf_prune.evaluation.comparison import Reference, log_rest
from hf_prune.evaluation.last_layer import answering, from_first
from hf_prune.limits import (
    CHUNK_TOKENS,
    GPU_CHUNK_TOKENS,
    GPU_HEAD_FLOATS,
    GPU_TILE_TOKENS,
    HEAD_FLOATS,
    TILE_TOKENS,
    TOP_K,
)
from hf_prune.models.families import Family

SOFTCAPS = ("final_logit_softcapping", "output_logit_soft_cap")
"""Config keys of a bound on logits."""
NOTHING: Mapping[str, Tensor] = {}
Halves = tuple[Tensor, Tensor] | None
"""Attention and MLP outputs of a layer, when they are recorded."""
Call = tuple[tuple[Any, ...], dict[str, Any]]
"""Arguments of a layer besides its hidden state, made for batch size 1, so they fit any."""


def after(layer: torch.nn.Module, state: Tensor, call: Call) -> Tensor:
    """The state [B, T, d] behind a layer, in one piece and with gradients where they are computed."""
    out = layer(state, *call[0], **call[1])
    return out[0] if isinstance(out, tuple) else out


class Batch(NamedTuple):
    """States [B, T, d] for a layer with the call they need.

    whole: they are not cut into tiles, since the call fits their rows only. asked: int64 [m], places of the
    flattened states whose outputs alone are wanted; None wants all.
    """

    states: Tensor
    call: Call
    whole: bool = False
    asked: Tensor | None = None


class Dense:
    """One resident dense model, seen as embeddings, layers and head.

    Args:
        model: in eval mode, on its device.
        family: where its parts are.
        tile_tokens: tokens per layer call.
        with_modules: also record attention and MLP outputs, which `gelaco_v1` needs.
        aside: puts states that are kept for long elsewhere, to be used on the device again.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        family: Family,
        tile_tokens: int | None = None,
        with_modules: bool = False,
        aside: Callable[[Tensor], Tensor] = lambda state: state,
    ) -> None:
        self.model, self.family, self.with_modules, self.aside = model, family, with_modules, aside
        self.layers = model.get_submodule(family.layers)
        self.norm = model.get_submodule(family.norm)
        self.head = model.get_output_embeddings()
        self.device = next(model.parameters()).device
        on_cpu, halves = self.device.type == "cpu", next(model.parameters()).element_size() // 2
        self.tile_tokens = tile_tokens or (TILE_TOKENS // halves if on_cpu else GPU_TILE_TOKENS)
        self.chunk_tokens = min(self.tile_tokens, CHUNK_TOKENS // halves if on_cpu else GPU_CHUNK_TOKENS)
        config = model.config.get_text_config()
        self.softcap = next((cap for key in SOFTCAPS if (cap := getattr(config, key, None))), None)
        # Cohere multiplies its logits, Granite divides them.
        self.scale = math.prod((getattr(config, key, None) or 1.0) ** power for key, power in family.scales)

    @cached_property
    def project(self) -> torch.nn.Module | None:
        """OPT-350m's projection between the final norm and the head."""
        return getattr(getattr(self.model.base_model, "decoder", None), "project_out", None)

    def logits(self, hidden: Tensor) -> Tensor:
        """Next-token logits [..., V] of final hidden states [..., d]."""
        hidden = self.norm(hidden)
        if self.project is not None:
            hidden = self.project(hidden)
        logits = self.head(hidden)
        logits = logits if self.scale == 1.0 else logits * self.scale
        return logits if not self.softcap else torch.tanh(logits / self.softcap) * self.softcap

    def apply(self, layer: torch.nn.Module, batches: Sequence[Tensor], call: Call) -> list[tuple[Tensor, Halves]]:
        """One layer over several [B, T, d], in tiles of whole sequences; with its halves' outputs where recorded."""
        return self.apply_each(layer, [Batch(states, call) for states in batches])

    def apply_each(
        self, layer: torch.nn.Module, batches: Sequence[Batch], steady: bool = False
    ) -> list[tuple[Tensor, Halves]]:
        """`apply` where every batch has its own call; `steady` as `each` has it."""
        outs = [torch.empty_like(batch.states) for batch in batches]
        inner: list[list[tuple[Tensor, Tensor]]] = [[] for _ in batches]

        def one(number: int, rows: slice) -> None:
            result = self._called(layer, batches[number], rows)
            outs[number][rows] = result[0] if isinstance(result, tuple) else result
            inner[number] += tap.take()

        def tiles(batch: Batch) -> list[slice]:
            return [slice(0, len(batch.states))] if batch.whole else self.tiles(batch.states, self.tile_tokens)

        with _Tap(layer, self.family, self.with_modules) as tap:
            self.each(one, [(i, rows) for i, batch in enumerate(batches) for rows in tiles(batch)], steady)
        return [(out, _joined(halves)) for out, halves in zip(outs, inner, strict=True)]

    def _called(self, layer: torch.nn.Module, batch: Batch, rows: slice) -> Any:
        args, kwargs = batch.call
        # What halves give is recorded for all tokens.
        if batch.asked is not None and not self.with_modules:
            layer = answering(layer, self.family, batch.asked)
            kwargs = from_first(kwargs, batch.asked, batch.states.shape[1])
        return layer(batch.states[rows], *args, **kwargs)

    def tiles(self, states: Tensor, tokens: int) -> list[slice]:
        """Row ranges of [B, T, ...] of at most `tokens` tokens (one sequence at least)."""
        rows = max(1, tokens // states.shape[1])
        return [slice(i, min(i + rows, len(states))) for i in range(0, len(states), rows)]

    def together(self, tokens: int) -> int:
        """How many states of so many tokens share a call: on a CPU one, so that no bit of it depends on the others."""
        return 1 if self.device.type == "cpu" else max(1, self.tile_tokens // tokens)

    def each(self, work: Callable[..., None], jobs: Sequence[tuple[Any, ...]], steady: bool = False) -> None:
        """Do independent tiles: on CPU one thread each, which beats splitting every small operation over the cores and
        makes results independent of the number of threads; where there is only one tile, if they must be `steady`."""
        if self.pool is None or len(jobs) < (1 if steady else 2) or self.with_modules:
            for job in jobs:
                work(*job)
            return

        def alone(job: tuple[Any, ...]) -> None:
            with torch.inference_mode():
                work(*job)

        list(self.pool.map(alone, jobs))

    @cached_property
    def pool(self) -> ThreadPoolExecutor | None:
        """As many single-threaded workers as torch would use threads; None off the CPU."""
        return self._pool(torch.get_num_threads())

    def _pool(self, threads: int) -> ThreadPoolExecutor | None:
        if self.device.type != "cpu" or threads < 2:
            return None
        return ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))

    @contextlib.contextmanager
    def taking(self, threads: int) -> Iterator[None]:
        """With so many threads meanwhile, where others compute beside this process."""
        before, pool = torch.get_num_threads(), self.pool
        torch.set_num_threads(threads)
        self.pool = self._pool(threads)
        try:
            yield
        finally:
            if self.pool is not None:
                self.pool.shutdown()
            torch.set_num_threads(before)
            self.pool = pool

    @property
    def head_tokens(self) -> int:
        """Tokens per head call, so that float32 logits stay in cache on CPU and below 1 GiB elsewhere."""
        vocabulary = self.head.weight.shape[0]
        return max(1, (HEAD_FLOATS if self.device.type == "cpu" else GPU_HEAD_FLOATS) // vocabulary)

    @torch.inference_mode()
    def run(self, tokens: Tensor, top_k: int = TOP_K) -> Reference:
        """The reference on `tokens` [N, T] int64.

        Raises:
            BaseOverflow: the model's own forward leaves the numbers of its precision.
            UnsupportedArchitecture: layer by layer does not give the logits of the model's own forward.
        """
        tokens = tokens.to(self.device)
        # The calls are recorded on the first row and must fit any other.
        ends = tokens[[0, -1]]
        logits = self.model(input_ids=ends, use_cache=False).logits
        check_finite(logits)
        _, calls = self.record(tokens[:1])
        if len(calls) != len(self.layers):
            raise UnsupportedArchitecture(
                f"{self.family.model_type} calls its {len(self.layers)} layers {len(calls)} times on a window of "
                f"{tokens.shape[1]} tokens, so candidates cannot be scored; shorter windows (--length) may help."
            )
        state = torch.cat([self.embed(tokens[rows]) for rows in self.tiles(tokens, self.tile_tokens)])
        hidden, modules = [self.aside(state)], []
        for layer, call in zip(self.layers, calls, strict=True):
            state, inner = self.apply(layer, [state], call)[0]
            hidden.append(self.aside(state))
            modules.append(inner)
        self._check(state[[0, -1]], logits)
        top, log_p, log_tail, nll = self._distributions(state, tokens, min(top_k, logits.shape[-1]))
        kept = tuple(modules) if self.with_modules else None
        return Reference(tokens, tuple(hidden), top, log_p, log_p.exp(), log_tail, nll, tuple(calls), kept)

    def _check(self, state: Tensor, expected: Tensor) -> None:
        """Raise unless last states [n, T, d] give the logits of the model's own forward."""
        scale = max(1.0, float(expected.abs().max())) * (1e-3 if expected.dtype == torch.float32 else 5e-2)
        found = self.logits(state)
        if found.shape != expected.shape or not float((found - expected).abs().max()) <= scale:
            raise UnsupportedArchitecture(
                f"{self.family.model_type}: layer by layer does not give the logits of the model's own forward, so "
                "candidates cannot be scored; the family needs a row in hf_prune/models/families.py."
            )

    def record(self, tokens: Tensor, **kwargs: Any) -> tuple[Tensor, list[Call]]:
        """What enters the first layer for int64 [n, T] tokens, and what each layer is given besides its state.

        That does not depend on states, so in this forward of the model's own no layer is computed but the first of its
        class, once: how it returns its state is what its forward expects. `kwargs` go to the model: masks, positions.
        """
        entered: list[Tensor] = []
        calls: list[Call] = []

        def note(layer: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            state, args, kwargs = _split(args, kwargs)
            entered.append(state)
            calls.append((args, kwargs))
            # The norm behind the last layer would do, but there are models that have it before the first, too.
            if layer is self.layers[-1]:
                _stop(layer, args, kwargs)
            return self._given_back(layer, state, calls[-1])

        with _instead([*self.layers], note):
            self._begin(tokens, NOTHING, kwargs)
        return entered[0], calls

    def embed(self, tokens: Tensor, others: Mapping[str, Tensor] = NOTHING, **kwargs: Any) -> Tensor:
        """What enters the first layer, [N, T, d], for int64 [N, T]; `others` stand in for tensors of the model."""
        entered: list[Tensor] = []

        def note(layer: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            entered.append(_split(args, kwargs)[0])
            _stop(layer, args, kwargs)

        with _instead([self.layers[0]], note):
            self._begin(tokens, others, kwargs)
        return entered[0]

    def _begin(self, tokens: Tensor, others: Mapping[str, Tensor], given: Mapping[str, Any]) -> None:
        """The model's own forward, until it is stopped."""
        with contextlib.suppress(_Reached):
            torch.func.functional_call(
                self.model, dict(others), kwargs={"input_ids": tokens, "use_cache": False, **given}
            )

    def _given_back(self, layer: torch.nn.Module, state: Tensor, call: Call) -> Any:
        """A state in the form in which the model's forward is given it by a layer."""
        if type(layer) not in self._forms:
            out = layer(state, *call[0], **call[1])
            self._forms[type(layer)] = out[1:] if isinstance(out, tuple) else None
        rest = self._forms[type(layer)]
        return state if rest is None else (state, *rest)

    @cached_property
    def _forms(self) -> dict[type, tuple[Any, ...] | None]:
        """By class of a layer what it returns behind its state; None where that comes alone."""
        return {}

    def ending(self, others: Mapping[str, Tensor]) -> "Dense":
        """This model with another final norm and head, where `others` has them."""
        if not others:
            return self
        other = copy.copy(self)
        names = {id(m): n for n, m in self.model.named_modules()}
        for part in ("norm", "head"):
            module = getattr(self, part)
            name = names[id(module)] + "."
            mine = {n.removeprefix(name): t for n, t in others.items() if n.startswith(name)}
            if part == "head" and not mine:
                # A tied head is the embedding.
                tied = self.model.get_input_embeddings()
                key = names[id(tied)] + ".weight"
                mine = {"weight": others[key]} if key in others and tied.weight is module.weight else {}
            if mine:
                copied = copy.deepcopy(module, {id(t): t for t in [*module.parameters(), *module.buffers()]})
                copied.load_state_dict(mine, strict=False, assign=True)
                setattr(other, part, copied.requires_grad_(False))
        return other

    def _distributions(self, hidden: Tensor, tokens: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
        tops, logs, tails, nlls = [], [], [], []
        for rows in self.tiles(tokens, self.head_tokens):
            log_probs = self.logits(hidden[rows, :-1]).float().log_softmax(-1)
            value, index = log_probs.topk(k, sorted=False)
            tops.append(index)
            logs.append(value)
            tails.append(log_rest(value))
            nlls.append(-log_probs.gather(-1, tokens[rows, 1:, None]).squeeze(-1))
        whole = k == log_probs.shape[-1]
        return torch.cat(tops), torch.cat(logs), None if whole else torch.cat(tails), torch.cat(nlls)


def check_finite(states: Tensor) -> None:
    """Refuse what a dense model computed, in its own precision, where that has left the numbers it holds.

    Raises:
        BaseOverflow: says which precision would do.
    """
    dtype = str(states.dtype).removeprefix("torch.")
    wider = {"float16": "pass --dtype bfloat16 or --dtype float32", "bfloat16": "pass --dtype float32"}
    if not bool(torch.isfinite(states).all()):
        raise BaseOverflow(
            f"The base itself overflows in {dtype}: its own forward gives NaN or infinite values on this text; "
            f"{wider.get(dtype, 'choose another base')}."
        )


def _joined(halves: Sequence[tuple[Tensor, Tensor]]) -> Halves:
    return (torch.cat([a for a, _ in halves]), torch.cat([m for _, m in halves])) if halves else None


class _Reached(Exception):
    """A forward has come as far as it should."""


Stand = Callable[[torch.nn.Module, tuple[Any, ...], dict[str, Any]], Any]
"""What is done in place of a module's forward, with what that was given."""


@contextlib.contextmanager
def _instead(modules: Sequence[torch.nn.Module], stand: Stand) -> Iterator[None]:
    """While open, something else is done in place of the forward of some modules; it may call them."""

    def forward(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        own = module.__dict__.pop("forward")
        try:
            return stand(module, args, kwargs)
        finally:
            module.__dict__["forward"] = own

    for module in modules:
        module.__dict__["forward"] = lambda *args, module=module, **kwargs: forward(module, args, kwargs)
    try:
        yield
    finally:
        for module in modules:
            module.__dict__.pop("forward")


def _stop(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    raise _Reached


def _split(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, tuple[Any, ...], dict[str, Any]]:
    """The state that a layer is given, and the rest."""
    if args:
        return args[0], args[1:], kwargs
    return kwargs["hidden_states"], (), {k: v for k, v in kwargs.items() if k != "hidden_states"}


class _Tap:
    """Records attention and MLP outputs of a layer while open."""

    def __init__(self, layer: torch.nn.Module, family: Any, active: bool) -> None:
        family = family.of_layer(layer.state_dict()) if active else family
        paths = (family.attention, family.mlp or family.mlp_out) if active else ()
        self.modules = [layer.get_submodule(p) for p in paths]
        self.seen: list[Tensor] = []

    def __enter__(self) -> "_Tap":
        self.hooks = [m.register_forward_hook(self._note) for m in self.modules]
        return self

    def _note(self, _: torch.nn.Module, __: Any, out: Any) -> None:
        self.seen.append(out[0] if isinstance(out, tuple) else out)

    def take(self) -> Iterable[tuple[Tensor, Tensor]]:
        seen, self.seen = self.seen, []
        return [(seen[0], seen[1].view_as(seen[0]))] if seen else []

    def __exit__(self, *_: object) -> None:
        for hook in self.hooks:
            hook.remove()
