"""The layers of a model that is larger than memory: read from the mapped checkpoint when they are called.

Layers are called in rising order, again and again. So what is read stays while there is room, and the layer that is
called again last of all goes first, which is the one just left; a thread reads the one that comes next meanwhile. What
is read into are buffers of the model's dtype, used again and again.
"""

import os
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from hf_prune.assembly.assemble import alive, check, layer_tensors, loaded, plan_tensors
from hf_prune.assembly.patches import NO_PATCHES, Patches
from hf_prune.blueprint import Blueprint
from hf_prune.models.parent import Parent

Tensors = Mapping[str, Tensor]


@dataclass
class Reading:
    """What reading took: layers read, seconds that it took a thread, and of them that the others waited; `begun` says
    when it was."""

    layers: int = 0
    seconds: float = 0.0
    waited: float = 0.0
    begun: float = field(default_factory=time.perf_counter)

    @property
    def share(self) -> float:
        """Of the time since, that was spent waiting."""
        return self.waited / (time.perf_counter() - self.begun)


@dataclass(eq=False)
class LayerStream:
    """The decoder layers of one model; the tensors of those that are not there are on the meta device.

    layers: of the model. read: tensors of a layer as the checkpoint has them, by their names in it. device: where they
    are used. room: bytes that they may take, at least the largest layer's; with two of them the next is read ahead.
    taken: of these bytes, what others have of it. home: folder for states that are set aside; that of temporary files.
    """

    layers: Sequence[torch.nn.Module]
    read: Callable[[int], Tensors]
    device: torch.device
    room: int
    taken: int = 0
    home: Path | None = None
    reading: Reading = field(default_factory=Reading)
    _there: dict[int, Tensors] = field(default_factory=dict)
    _lent: set[int] = field(default_factory=set)
    _coming: dict[int, "Future[Tensors]"] = field(default_factory=dict)
    _spare: list[Tensor] = field(default_factory=list)
    _at: int = 0

    def __post_init__(self) -> None:
        self._like = [dict(layer.state_dict()) for layer in self.layers]
        self.sizes = [sum(t.nbytes for t in like.values()) for like in self._like]
        self.room = self.room or 2 * max(self.sizes)
        self._lock = threading.RLock()
        # One thread reads, and torch uses no other for it: the rest compute.
        self._pool = ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(1,))
        self._copies = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None
        for number, layer in enumerate(self.layers):
            layer.register_forward_pre_hook(self._called(number))

    def _called(self, number: int) -> Callable[..., None]:
        def reach(layer: torch.nn.Module, _: object) -> None:
            # What stands in for a layer's forward needs no weights.
            if "forward" not in layer.__dict__:
                self.reach(number)

        return reach

    @property
    def staying(self) -> int:
        """How many of the layers may stay when all are called in turn."""
        return min(len(self.layers), self.room // max(self.sizes))

    def reach(self, number: int) -> torch.nn.Module:
        """A layer with its tensors, which stay until another is reached."""
        with self._lock, torch.inference_mode(False), torch.no_grad():
            if number not in self._there:
                begin = time.perf_counter()
                self._settle(number)
                if number not in self._there:
                    self._leave(number, self.sizes[number])
                    self._enter(number, self._loaded(number))
                self.reading.waited += time.perf_counter() - begin
            if number != self._at or not self._coming:
                self._at = number
                self._ahead((number + 1) % len(self.layers))
        return self.layers[number]

    def lend(self, number: int) -> torch.nn.Module:
        """A layer whose tensors somebody keeps: nothing else is ever read into them."""
        layer = self.reach(number)
        self._lent.add(number)
        return layer

    def aside(self, state: Tensor) -> Tensor:
        """The same state where it takes no memory of the device: beside a GPU on the host, of that in a mapped file."""
        if self.device.type != "cpu":
            return state.to("cpu", copy=True)
        # Its name is gone at once; the file itself goes when nobody has the tensor any more.
        with tempfile.NamedTemporaryFile(dir=self.home) as file:
            os.truncate(file.fileno(), state.nbytes)
            found = torch.from_file(file.name, shared=True, size=state.numel(), dtype=state.dtype)
        return found.view(state.shape).copy_(state)

    def _settle(self, number: int) -> None:
        """Take in what was read ahead, wanted or not."""
        for other, coming in list(self._coming.items()):
            self._enter(other, coming.result())
            del self._coming[other]

    def _ahead(self, number: int) -> None:
        """Have the next layer read, where that costs none that is called before it."""
        if number in self._there or number in self._coming or number == self._at:
            return
        if self._leave(self._at, self.sizes[number]):
            self._coming[number] = self._pool.submit(self._loaded, number)

    def _leave(self, staying: int, size: int) -> bool:
        """Let layers go until there is room for so many bytes; whether there is, without the one that stays."""
        room = self.room - self.taken - size
        depth = len(self.layers)
        while sum(self.sizes[i] for i in (*self._there, *self._coming)) > room:
            others = [i for i in self._there if i != staying]
            if not others:
                return False
            self._go(max(others, key=lambda i: (i - staying - 1) % depth))
        return True

    def _enter(self, number: int, tensors: Tensors) -> None:
        if self._copies:
            # They are of the other stream's memory, which has to know who uses them.
            for tensor in tensors.values():
                tensor.record_stream(torch.cuda.current_stream(self.device))
        self.layers[number].load_state_dict(tensors, assign=True)
        self.layers[number].requires_grad_(False)
        self._there[number] = tensors

    def _go(self, number: int) -> None:
        tensors = self._there.pop(number)
        self.layers[number].load_state_dict(self._like[number], assign=True)
        if number in self._lent:
            self._lent.discard(number)
        else:
            if self._copies:
                # What was computed with them has to be done before something is read into them.
                self._copies.wait_stream(torch.cuda.current_stream(self.device))
            self._spare += tensors.values()

    def _loaded(self, number: int) -> Tensors:
        """A layer's tensors in buffers of the model's dtype."""
        begin = time.perf_counter()
        with torch.inference_mode(False), torch.no_grad():
            stored, like = self.read(number), self._like[number]
            found = {name: self._filled(like[name], tensor) for name, tensor in stored.items()}
        self.reading.layers += 1
        self.reading.seconds += time.perf_counter() - begin
        return found

    def _filled(self, like: Tensor, stored: Tensor) -> Tensor:
        if self._copies is None:
            return self._buffer(like).copy_(stored)
        with torch.cuda.stream(self._copies):
            buffer = self._buffer(like)
            buffer.copy_(stored.pin_memory(), non_blocking=True)
        self._copies.synchronize()
        return buffer

    def _buffer(self, like: Tensor) -> Tensor:
        """One of this shape that nobody uses any more, or a new one."""
        for place, spare in enumerate(self._spare):
            if spare.shape == like.shape and spare.dtype == like.dtype:
                return self._spare.pop(place)
        self._spare.clear()
        return torch.empty_like(like, device=self.device)


def streamed(
    blueprint: Blueprint,
    parents: Sequence[Parent],
    patches: Patches = NO_PATCHES,
    *,
    dtype: torch.dtype,
    device: torch.device,
    room: int,
) -> tuple[PreTrainedModel, LayerStream]:
    """What `assemble` makes, in eval mode, with its layers left where they are until they are called.

    Args:
        blueprint: as there, like parents and patches.
        parents: as there.
        patches: as there.
        dtype: of the result.
        device: where it computes.
        room: bytes for layers; 0: for two.

    Raises:
        HfPruneError: as `assemble`.
    """
    blueprint = alive(blueprint)
    check(blueprint, parents, patches)
    base, nothing = parents[0], torch.zeros((), dtype=dtype)
    state = {
        # Of one number, however large: nothing is allocated for layers.
        name: nothing.expand(made.shape) if name.startswith(base.family.prefix) else made()
        for name, made in plan_tensors(blueprint, parents, patches)
    }
    model = loaded(blueprint, parents, state, dtype)
    layers = model.get_submodule(base.family.layers)
    for layer in layers:
        nowhere = {name: torch.empty_like(t, device="meta") for name, t in layer.state_dict().items()}
        layer.load_state_dict(nowhere, assign=True)
    # Buffers that no file has are there, those of layers, too.
    model._apply(lambda t: t if t.is_meta else t.to(device))

    def read(number: int) -> Tensors:
        return {name: made() for name, made in layer_tensors(blueprint.layers[number], parents, patches)}

    return model.eval().requires_grad_(False), LayerStream(layers, read, device, room)
