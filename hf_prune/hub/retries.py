"""Calls to the Hub: tried again when that can help, and explained in one sentence when it cannot."""

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import (
    DisabledRepoError,
    GatedRepoError,
    HfHubHTTPError,
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from hf_prune.errors import SourceError, SourceForbidden, SourceNotFound, SourceOffline
from hf_prune.hub.answers import LONGEST_PAUSE, asking_once, may_pass, pause_of

TRIES = 5
FIRST_DELAY = 0.5
LONG = 2.0
"""Seconds of waiting from which on it is said."""
PATIENCE = 10.0
"""Seconds to wait for an answer that a run can do without."""
LOG = logging.getLogger(__name__)
LOGIN = "log in with `hf auth login` or set HF_TOKEN"


@dataclass(frozen=True)
class Retry:
    """Call a function up to `TRIES` times, doubling the pause; `sleep` takes seconds."""

    sleep: Callable[[float], None] = time.sleep

    def __call__(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The function's result; its last error when the trouble stays, is not passing, or lasts for too long."""
        return self.unless_done(lambda error: None, function, *args, **kwargs)

    def unless_done(
        self, done: Callable[[Exception], Any], function: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Any:
        """The same, or what `done` makes of an error after all."""
        waited = 0.0
        for attempt in range(TRIES):
            try:
                with asking_once():
                    return function(*args, **kwargs)
            except Exception as e:
                if (found := done(e)) is not None:
                    return found
                waited += (pause := delay(attempt, e))
                if attempt == TRIES - 1 or not passing(e) or waited > LONGEST_PAUSE:
                    raise
                if pause >= LONG:
                    LOG.warning("The Hub answered %s; asking again in %.0f s.", status(e) or "nothing", pause)
                self.sleep(pause)
        raise AssertionError("unreachable")


def delay(attempt: int, error: BaseException) -> float:
    """Seconds before the next try: what the Hub asks for, else 0.5, 1, 2, 4."""
    return asked_pause(error) or FIRST_DELAY * 2**attempt


def asked_pause(error: BaseException) -> float:
    """Seconds that the Hub asks to wait; 0 where it does not say."""
    return next((pause_of(e.response) or 0.0 for e in chain(error) if isinstance(e, HfHubHTTPError)), 0.0)


def too_long(error: BaseException, what: str) -> str | None:
    """The sentence where the Hub asks for more patience than anybody has here."""
    asked = asked_pause(error)
    if not passing(error) or asked * (TRIES - 1) <= LONGEST_PAUSE:
        return None
    span = f"for {asked:.0f} seconds" if asked < 1e6 else "for more than ten days"
    return f"The Hub asks to wait {span} before it says more of {what}; try again then."


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what caused it; the client wraps errors of uploads and downloads."""
    while error is not None:
        yield error
        error = error.__cause__


def status(error: BaseException) -> int | None:
    """The HTTP status behind an error, None when there was no answer."""
    return next((e.response.status_code for e in chain(error) if isinstance(e, HfHubHTTPError)), None)


def unreachable(error: BaseException) -> bool:
    """Whether no answer came: no network, time-out, broken connection, offline mode."""
    if status(error) is not None:
        return False
    return any(isinstance(e, HTTPError | OfflineModeIsEnabled | LocalEntryNotFoundError) for e in chain(error))


def passing(error: BaseException) -> bool:
    """Whether trying again can help: 408, 429, 5xx, or no answer although we are not told to stay offline."""
    if any(isinstance(e, OfflineModeIsEnabled) for e in chain(error)):
        return False
    code = status(error)
    # The client parses some answers before it looks at their status, so an error page shows up as broken JSON.
    garbled = any(type(e).__name__ == "JSONDecodeError" for e in chain(error))
    return (may_pass(code) if code is not None else unreachable(error)) or garbled


def explain(error: BaseException, what: str, revision: str | None = None, *, typed: bool = False) -> SourceError:
    """The sentence for a source `what` that could not be read.

    Args:
        error: what the client raised.
        what: the repo.
        revision: of the repo.
        typed: the name may as well have been meant as that of a folder, which is not there.
    """
    kinds = list(chain(error))

    def is_a(kind: type[BaseException]) -> bool:
        return any(isinstance(e, kind) for e in kinds)

    where = f"{constants.ENDPOINT}/{what}"
    if is_a(GatedRepoError):
        return SourceForbidden(f"{what} is gated: accept its conditions at {where}, then {LOGIN}.")
    if is_a(RevisionNotFoundError):
        return SourceNotFound(f"{what} has no branch, tag or commit {revision!r}; {where}/tree/main lists them.")
    if is_a(RemoteEntryNotFoundError):
        return SourceNotFound(f"A file of {what} vanished from the Hub while it was read; try again.")
    if is_a(DisabledRepoError):
        return SourceForbidden(f"The Hub has disabled {what}, so nobody can read it; choose another source.")
    if is_a(RepositoryNotFoundError):
        who = "your login may not read it: check the name and the login" if get_token() else f"is private: {LOGIN}"
        found: SourceError = SourceNotFound(f"The repo {what} does not exist or {who}.")
    else:
        found = _explain_status(error, what)
    if not typed:
        return found
    said = str(found)
    said = f"the{said[3:]}" if said.startswith("The ") else said
    return type(found)(f"There is no folder {what} here, and {said}")


def _explain_status(error: BaseException, what: str) -> SourceError:
    code = status(error)
    if code == 401:
        return SourceForbidden(f"The Hub does not accept the login for {what}: {LOGIN} with a valid token.")
    if code == 403:
        return SourceForbidden(f"The login may not read {what}: use a token with read access to it.")
    if any(isinstance(e, OfflineModeIsEnabled) for e in chain(error)):
        return SourceOffline(f"{what} is not in the cache and HF_HUB_OFFLINE is set; unset it once to download.")
    if said := too_long(error, what):
        return SourceOffline(said)
    if code is not None:
        return SourceOffline(f"The Hub answered {code} for {what}, {TRIES} times if it looked passing; try later.")
    if unreachable(error):
        return SourceOffline(
            f"{what} is not in the cache and the Hub at {constants.ENDPOINT} cannot be reached; check the connection."
        )
    return SourceOffline(odd_answer(what, error))


def odd_answer(what: str, error: BaseException) -> str:
    """The sentence for an answer in which something is missing, or not what it should be."""
    detail = " ".join(f"{type(error).__name__}: {error}".split())[:100].rstrip(".")
    return (
        f"What {constants.ENDPOINT} answers about {what} cannot be understood ({detail}); try later, and look at "
        "HF_ENDPOINT if it is set."
    )


def has_answer(repo: str) -> bool:
    """Whether the Hub answers when it is asked for a dataset, whatever it says, asked once; True where nobody may ask
    it, since the cache will know."""
    if constants.HF_HUB_OFFLINE:
        return True
    try:
        HfApi().dataset_info(repo, timeout=PATIENCE)
    except Exception as e:
        return not unreachable(e)
    return True
