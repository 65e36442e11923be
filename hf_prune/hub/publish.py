"""Publish a finished folder in one commit; a repeat changes nothing, and a lost answer is looked up, not repeated."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants
from huggingface_hub.errors import LocalTokenNotFoundError, RepositoryNotFoundError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import HFValidationError, validate_repo_id

from hf_prune.errors import PublishError, scrub
from hf_prune.hub.listing import changed, listing, stale
from hf_prune.hub.names import COMMIT
from hf_prune.hub.retries import LOGIN, TRIES, Retry, chain, odd_answer, passing, status, too_long, unreachable

Kind = Literal["model", "space"]
MESSAGE = "Upload pruned model with hf_prune"


@dataclass(frozen=True)
class PushResult:
    """Where it is; `changed` is False when the Hub already had exactly these files."""

    url: str
    commit: str
    changed: bool


def push(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool = True,
    create_pr: bool = False,
    revision: str | None = None,
    commit_message: str | None = None,
    files: Mapping[str, Path] | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> PushResult:
    """Upload one folder in one commit on top of what the branch held when we looked.

    Args:
        folder: everything in it is published, .git and caches excepted.
        repo_id: NAMESPACE/NAME, or NAME for the namespace of the login; created when missing.
        private: visibility of a repo that is created; an existing one keeps its own.
        create_pr: open a pull request against the default branch (or complete an open one of ours) instead.
        revision: branch, created from the default branch when missing.
        commit_message: first line of the commit and title of the pull request.
        files: by their paths in the repo; default: all of the folder.
        sleep: pause between tries, in seconds.

    Raises:
        PublishError: what the Hub refused and what to do; nothing is half published.
    """
    if create_pr and revision not in (None, constants.DEFAULT_REVISION):
        raise PublishError("A pull request goes to the default branch; give either a revision or --create-pr.")
    return upload(folder, repo_id, private=private, create_pr=create_pr, revision=revision,
                  message=commit_message or MESSAGE, files=files, sleep=sleep)  # fmt: skip


def check_login(repo_id: str, *, create_pr: bool = False, sleep: Callable[[float], None] = time.sleep) -> None:
    """Whether the login may publish there, as far as the Hub says before anything is sent.

    Raises:
        PublishError: it may not, or there is none; the message says what to do.
    """
    work = _Upload(HfApi(), Retry(sleep), {}, MESSAGE, repo_id)
    try:
        name, who = work._present_name(), work.call(work.api.whoami)
        if ((who.get("auth") or {}).get("accessToken") or {}).get("role") == "read":
            raise PublishError(f"The login may only read: use a token that may write to {name}.")
        namespace = name.partition("/")[0]
        own = namespace in (who["name"], *(o.get("name") for o in who.get("orgs") or ()))
        if not own and not create_pr:
            raise PublishError(
                f"The login {who['name']} may not write to {namespace}: name a repo of its own, or pass --create-pr."
            )
        if not own:
            work.call(work.api.repo_info, name)
    except PublishError:
        raise
    except Exception as e:
        raise explained(e, repo_id) from e


def upload(
    folder: str | Path,
    repo_id: str,
    *,
    message: str,
    kind: Kind = "model",
    private: bool = True,
    create_pr: bool = False,
    revision: str | None = None,
    files: Mapping[str, Path] | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> PushResult:
    """As `push`, for a repo of any kind.

    Raises:
        PublishError: what the Hub refused and what to do; nothing is half published.
    """
    work = _Upload(HfApi(), Retry(sleep), listing(Path(folder)) if files is None else files, message, repo_id, kind)
    name = repo_id
    try:
        name = work._present_name()
        return work.run(name, private, create_pr, revision)
    except PublishError:
        raise
    except Exception as e:
        raise explained(e, name) from e


@dataclass(frozen=True)
class _Target:
    """The ref that gets the commit, its head, what it holds, and the address for people."""

    ref: str
    head: str
    tree: Mapping[str, RepoFile]
    url: str


@dataclass(frozen=True)
class _Upload:
    api: HfApi
    call: Retry
    files: Mapping[str, Path]
    message: str
    repo_id: str
    kind: Kind = "model"

    def run(self, repo_id: str, private: bool, create_pr: bool, revision: str | None) -> PushResult:
        sdk = {"space_sdk": "gradio"} if self.kind == "space" else {}
        url = str(self.call(self.api.create_repo, repo_id, repo_type=self.kind, private=private, exist_ok=True, **sdk))
        branch = revision or constants.DEFAULT_REVISION
        if branch != constants.DEFAULT_REVISION:
            self._ensure_branch(repo_id, branch)
            url = f"{url}/tree/{branch}"
        target = self._look(repo_id, branch, url)
        if self._holds(target):
            return PushResult(target.url, target.head, False)
        if create_pr:
            target = self.call(self._pull_request, repo_id, target)
            if self._holds(target):
                return PushResult(target.url, target.head, False)
        return PushResult(target.url, self._commit(repo_id, target), True)

    def _full_name(self) -> str:
        name = self.repo_id if "/" in self.repo_id else f"{self.call(self.api.whoami)['name']}/{self.repo_id}"
        try:
            validate_repo_id(name)
        except HFValidationError:
            raise PublishError(f"{scrub(self.repo_id)!r} is no name for a repo; write NAMESPACE/NAME.") from None
        return name

    def _present_name(self) -> str:
        """The name a repo has now; one that is not there gets the name that was asked for."""
        name = self._full_name()
        try:
            return self.call(self.api.repo_info, name, repo_type=self.kind).id
        except RepositoryNotFoundError:
            return name

    def _ensure_branch(self, repo_id: str, branch: str) -> None:
        refs = self.call(self.api.list_repo_refs, repo_id, repo_type=self.kind, include_pull_requests=True)
        if branch in {r.name for r in refs.branches} | {r.ref for r in refs.pull_requests or ()}:
            return
        commit = COMMIT.fullmatch(branch) is not None
        if commit or branch in {r.name for r in refs.tags}:
            kind = "commit" if commit else "tag"
            raise PublishError(f"{branch} is a {kind} of {repo_id} and cannot take new files; name a branch.")
        self.call(self.api.create_branch, repo_id, repo_type=self.kind, branch=branch, exist_ok=True)

    def _look(self, repo_id: str, ref: str, url: str) -> _Target:
        head = self.call(self.api.repo_info, repo_id, repo_type=self.kind, revision=ref).sha
        rows = self.call(
            lambda: list(self.api.list_repo_tree(repo_id, repo_type=self.kind, revision=head, recursive=True))
        )
        return _Target(ref, head, {row.path: row for row in rows if isinstance(row, RepoFile)}, url)

    def _holds(self, target: _Target) -> bool:
        return not changed(self.files, target.tree) and not stale(self.files, target.tree)

    def _pull_request(self, repo_id: str, main: _Target) -> _Target:
        """An open pull request of ours that has the files, else one still without changes, else a new one."""
        mine = self.api.get_repo_discussions(
            repo_id, repo_type=self.kind, author=self.api.whoami()["name"], discussion_type="pull_request"
        )
        live = [d for d in mine if d.status in ("open", "draft")]
        targets = {d.num: self._look(repo_id, f"refs/pr/{d.num}", d.url) for d in live}
        ready = [t for t in targets.values() if self._holds(t)]
        ready += [targets[d.num] for d in live if d.title == self.message.strip() and targets[d.num].head == main.head]
        if ready:
            return ready[0]
        made = self.api.create_pull_request(repo_id, repo_type=self.kind, title=self.message)
        return self._look(repo_id, f"refs/pr/{made.num}", made.url)

    def _commit(self, repo_id: str, target: _Target) -> str:
        """The commit that holds our files; each try starts from the same parent, so none is applied twice."""
        operations = self._operations(target)

        def commit() -> str:
            return self.api.create_commit(
                repo_id,
                operations,
                repo_type=self.kind,
                commit_message=self.message,
                revision=target.ref,
                parent_commit=target.head,
            ).oid

        return self.call.unless_done(lambda e: self._after(repo_id, target, e), commit)

    def _operations(self, target: _Target) -> list[CommitOperationAdd | CommitOperationDelete]:
        add = [CommitOperationAdd(name, str(self.files[name])) for name in changed(self.files, target.tree)]
        return add + [CommitOperationDelete(name) for name in stale(self.files, target.tree)]

    def _after(self, repo_id: str, target: _Target, error: Exception) -> str | None:
        """The new head, when a failed commit was applied after all and only its answer got lost."""
        if not (passing(error) or status(error) in (409, 412)):
            return None
        now = self._look(repo_id, target.ref, target.url)
        if now.head == target.head:
            return None
        if self._holds(now):
            return now.head
        raise PublishError(f"Somebody changed {repo_id} during the upload; look at it, then push again.") from error


def explained(error: BaseException, repo_id: str) -> PublishError:
    """The sentence for a repo that could not be written."""
    code, said = status(error), next((getattr(e, "server_message", None) for e in chain(error)), None)
    name = scrub(repo_id)
    broken = next((e for e in chain(error) if isinstance(e, OSError) and e.filename), None)
    if broken is not None:
        return PublishError(f"{broken.filename} cannot be read ({broken.strerror}); correct that and push again.")
    if code == 401 or any(isinstance(e, LocalTokenNotFoundError) for e in chain(error)):
        return PublishError(f"The Hub does not accept the login for {name}: {LOGIN} with a token that may write.")
    if code == 403:
        return PublishError(f"The login may not write to {name}: use a token with write access to it, or --create-pr.")
    if code == 402:
        return PublishError(f"The account has no room for {name}: make the repo public or free some private storage.")
    if code in (409, 412):
        return PublishError(f"Somebody changed {name} during the upload; look at it, then push again.")
    if unreachable(error):
        return PublishError(f"The Hub at {constants.ENDPOINT} could not be reached for {name}; check the connection.")
    if asked := too_long(error, name):
        return PublishError(asked)
    if passing(error):
        return PublishError(f"The Hub failed {TRIES} times on {name} (status {code}); the result is kept, push again.")
    if code is None and isinstance(error, KeyError | TypeError | AttributeError):
        return PublishError(odd_answer(name, error))
    detail = " ".join(scrub(said or str(error)).split())[:300]
    return PublishError(f"The Hub refused the upload to {name}: {detail.rstrip('.')}; correct that and push again.")
