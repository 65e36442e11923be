"""Runs on the Hub's own machines: one call, paid by the account of the login."""

import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from huggingface_hub import HfApi, get_token
from huggingface_hub.utils import HFValidationError, validate_repo_id

from hf_prune.errors import PublishError, scrub
from hf_prune.hub.retries import LOGIN, Retry, status

IMAGE, TIMEOUT = "python:3.11", "8h"
FLAVORS = (("cpu-upgrade", 25e9), ("a10g-small", 21e9), ("a10g-large", 42e9), ("a100-large", 135e9))
"""Hardware of jobs, and bytes a run may plan with there: of its memory, or of that of its GPU."""


@dataclass(frozen=True, slots=True)
class Job:
    """A job that was started: where to watch it."""

    id: str
    url: str


def flavor(memory: float, gpu: bool = True) -> str | None:
    """The smallest hardware with room for so many bytes; None when there is none."""
    return next((name for name, room in FLAVORS if memory <= room and gpu == name.startswith("a1")), None)


def script(space: str, words: Sequence[str]) -> str:
    """What the job's shell runs: the hf_prune of a Space, with these words of a command line."""
    return " && ".join(
        (
            "pip install -q huggingface_hub",
            f"hf download {shlex.quote(space)} --repo-type space --local-dir app -q",
            "pip install -q -r app/requirements.txt",
            f"cd app && python -m hf_prune.cli {shlex.join(words)}",
        )
    )


def job_command(space: str, words: Sequence[str], hardware: str) -> str:
    """The same as one line for a terminal; the token stays where hf keeps it."""
    inside = script(space, words)
    return (
        f"hf jobs run --flavor {hardware} --timeout {TIMEOUT} --secrets HF_TOKEN {IMAGE} bash -c {shlex.quote(inside)}"
    )


def run_job(
    space: str,
    words: Sequence[str],
    repo_id: str,
    hardware: str,
    *,
    sleep: Callable[[float], None] = time.sleep,
) -> Job:
    """Start a run on the account of the login; its result goes to `repo_id`.

    Args:
        space: the Space whose hf_prune runs.
        words: of `hf-prune compress`, without --push-to.
        repo_id: NAMESPACE/NAME for the result.
        hardware: a flavor of jobs.
        sleep: pause between tries, in seconds.

    Raises:
        PublishError: no login, no right to start jobs, or the Hub said no.
    """
    try:
        validate_repo_id(repo_id)
    except HFValidationError:
        raise PublishError(f"{scrub(repo_id)!r} is no name for the result; write NAMESPACE/NAME.") from None
    token = get_token()
    if not token:
        raise PublishError(f"A job runs on your account: {LOGIN}.")
    inside = script(space, [*words, "--push-to", repo_id])
    try:
        # Not tried again: a job whose answer got lost would run and cost twice.
        whose = Retry(sleep)(HfApi().whoami)["name"]
        made = HfApi().run_job(image=IMAGE, command=["bash", "-c", inside], secrets={"HF_TOKEN": token},
                               flavor=hardware, timeout=TIMEOUT, namespace=whose)  # fmt: skip
    except Exception as e:
        raise _refused(e) from e
    return Job(made.id, made.url)


def _refused(error: BaseException) -> PublishError:
    code = status(error)
    if code == 401:
        return PublishError(f"The Hub does not accept the login: {LOGIN} with a token that may start jobs.")
    if code == 402:
        return PublishError("The account has no credit for jobs; add some, or run the command on a machine of yours.")
    if code == 403:
        return PublishError("The login may not start jobs: sign in again and allow it, or use a token with that right.")
    return PublishError(f"The Hub did not start the job (status {code}); look at your jobs there before trying again.")
