"""A model that answers, turn after turn, and is heard while it speaks."""

import json
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers.generation.streamers import BaseStreamer

from hf_prune.data.chat_templates import rendered
from hf_prune.data.documents import Chat
from hf_prune.errors import InvalidRecipe
from hf_prune.evaluation.sampling import drawn_from, ends_of, speaking
from hf_prune.events import stream_work


@dataclass(eq=False)
class Speaker:
    """A model and its own tokenizer; `turns` is what was said to it and by it, where it was taught to chat.

    One without a chat template goes on from every prompt by itself.
    """

    model: Any
    tokenizer: Any
    turns: list[dict[str, str]] = field(default_factory=list)

    @property
    def chats(self) -> bool:
        """Whether it was taught to."""
        return bool(getattr(self.tokenizer, "chat_template", None))

    def read(self, text: str, new_tokens: int) -> torch.Tensor:
        """Tokens of everything up to what it is to say next, int64 [1, tokens].

        Raises:
            InvalidRecipe: there is nothing to go on from, or no room for `new_tokens` behind it.
            InvalidData: its chat template does not take the conversation.
        """
        if self.chats:
            asked = Chat(json.dumps([*self.turns, {"role": "user", "content": text}]), "what you wrote")
            ids = self.tokenizer(rendered(asked, self.tokenizer, ask=True), add_special_tokens=False)["input_ids"]
        else:
            ids = self.tokenizer(text)["input_ids"]
        room = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        if not ids:
            raise InvalidRecipe("There is nothing to go on from; write a prompt.")
        if room and len(ids) + new_tokens > room:
            raise InvalidRecipe(
                f"{len(ids)} tokens and {new_tokens} new ones are more than the {room} that the model can read; begin "
                "anew, or ask for fewer --tokens."
            )
        return torch.tensor([ids], device=self.model.device)

    def answer(self, text: str, new_tokens: int, temperature: float, seed: int) -> Iterator[str]:
        """What it says, all of it so far, again and again while it speaks; the answer is kept among the turns.

        Args:
            text: what is said to it.
            new_tokens: most tokens of the answer.
            temperature: of the draws; 0 takes the likeliest token.
            seed: of the draws; the generator of the process is left as it was.
        """
        said = ""
        for said in self._speak(self.read(text, new_tokens), new_tokens, temperature, seed):
            yield said
        if self.chats:
            self.turns += [{"role": "user", "content": text}, {"role": "assistant", "content": said}]

    def _speak(self, ids: torch.Tensor, new_tokens: int, temperature: float, seed: int) -> Generator[str, None, None]:
        drawn = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
        settings = drawn if temperature else {"do_sample": False}
        devices = [self.model.device] if self.model.device.type == "cuda" else []

        def work(tell: Callable[[int], None]) -> None:
            explained = drawn_from(self.model, "this model computes", "fetch or make it again")
            with speaking(self.model, new_tokens, **settings), torch.random.fork_rng(devices), explained:
                torch.manual_seed(seed)
                self.model.generate(ids, attention_mask=torch.ones_like(ids), streamer=_Heard(tell))

        ends, tokens = ends_of(self.model), []
        for token in stream_work(work):
            if token not in ends:
                tokens.append(token)
                # A character may be several tokens.
                if not (said := self.tokenizer.decode(tokens, skip_special_tokens=True)).endswith("\ufffd"):
                    yield said
        if tokens:
            yield self.tokenizer.decode(tokens, skip_special_tokens=True)


class _Heard(BaseStreamer):
    """Tells every token that `generate` draws; what it is given first is the prompt."""

    def __init__(self, tell: Callable[[int], None]) -> None:
        self.tell, self.asked = tell, False

    def put(self, value: torch.Tensor) -> None:
        """Take what comes, int64 of any shape."""
        if self.asked:
            for token in value.flatten().tolist():
                self.tell(token)
        self.asked = True

    def end(self) -> None:
        """Nothing is kept back."""
