"""What the Hub answers, before huggingface_hub makes anything of it: no answer lets it wait for very long.

The client asks again by itself in some calls and not in others. Inside `asking_once` it does so nowhere, so that tries
do not multiply.
"""

import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from email.utils import parsedate_to_datetime
from typing import Any

from huggingface_hub.errors import HfHubHTTPError, HTTPError
from huggingface_hub.utils import get_session, hf_raise_for_status, parse_ratelimit_headers

LONGEST_PAUSE = 300.0
"""Seconds: the Hub counts requests in windows of five minutes."""
_LOCK = threading.Lock()
_once = 0


class Unanswered(HTTPError):
    """No answer came. The client does not know this kind and so does not ask again."""


@contextmanager
def asking_once() -> Iterator[None]:
    """In this block, in whatever thread, the client raises what may pass at once."""
    global _once
    watch_session()
    with _LOCK:
        _once += 1
    try:
        yield
    finally:
        with _LOCK:
            _once -= 1


def watch_session() -> None:
    """Let the client's session judge every answer from now on."""
    session = get_session()
    with _LOCK:
        # The client has no other place for it that keeps the factory of sessions that a user may have set.
        if "send" not in vars(session):
            session.send = _judging(session.send)


def _judging(send: Callable[..., Any]) -> Callable[..., Any]:
    def judged(request: Any, **how: Any) -> Any:
        try:
            answer = send(request, **how)
        except HfHubHTTPError:
            raise
        except HTTPError as e:
            if not _once:
                raise
            raise Unanswered(f"{type(e).__name__}: {e}") from e
        if may_pass(answer.status_code):
            _judge(answer)
        return answer

    return judged


def _judge(answer: Any) -> None:
    """Raise for an answer that nobody here waits for; else it asks in words that the client understands."""
    pause = pause_of(answer)
    if _once or (pause or 0) > LONGEST_PAUSE:
        try:
            hf_raise_for_status(answer)
        except HfHubHTTPError:
            raise
        except Exception as e:
            # The client trips over error pages in shapes of their own.
            raise HfHubHTTPError(f"The Hub answered {answer.status_code}", response=answer) from e
        finally:
            answer.close()
    for name in ("retry-after", "ratelimit"):
        answer.headers.pop(name, None)
    if pause is not None:
        answer.headers["retry-after"] = str(int(pause))


def may_pass(status: int) -> bool:
    """Whether asking again can help."""
    return status in (408, 429) or status >= 500


def pause_of(answer: Any) -> float | None:
    """Seconds that an answer asks to wait, by RateLimit or Retry-After; None where what it says has no meaning."""
    # Both are a stranger's: other digits, dates, numbers of any length.
    with suppress(ValueError):
        limit = parse_ratelimit_headers(answer.headers) if answer.status_code == 429 else None
        if limit is not None and limit.remaining == 0:
            return float(limit.reset_in_seconds)
    text = str(answer.headers.get("retry-after") or "").strip()
    if re.fullmatch("[0-9]+", text):
        return float(text)
    with suppress(ValueError, TypeError, OverflowError):
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    return None
