"""Create or update a Space in one commit."""

import time
from collections.abc import Callable
from pathlib import Path

from huggingface_hub import HfApi

from hf_prune.hub.publish import PushResult, explained, upload
from hf_prune.hub.retries import Retry


def push_space(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool = True,
    hardware: str | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> PushResult:
    """Upload the folder of a Space; a repeat changes nothing.

    Args:
        folder: everything in it is published.
        repo_id: NAMESPACE/NAME, or NAME for the namespace of the login; created when missing.
        private: visibility of a Space that is created.
        hardware: a flavor of Spaces to ask for, such as cpu-upgrade; it may cost money.
        sleep: pause between tries, in seconds.

    Raises:
        PublishError: what the Hub refused and what to do.
    """
    done = upload(folder, repo_id, kind="space", private=private, message="Update the app", sleep=sleep)
    if hardware:
        name = "/".join(done.url.rstrip("/").split("/")[-2:])
        try:
            Retry(sleep)(HfApi().request_space_hardware, name, hardware)
        except Exception as e:
            raise explained(e, name) from e
    return done
