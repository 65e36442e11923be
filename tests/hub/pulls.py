"""Calls about pull requests."""

from typing import TYPE_CHECKING

from tests.hub.storage import DATE, Pull, Refused, Repo

if TYPE_CHECKING:
    from tests.hub.server import Handler


def _discussion(repo: Repo, pull: Pull) -> dict:
    names = {"num": pull.num, "title": pull.title, "author": {"name": pull.author}, "status": pull.status}
    where = {"repo": {"name": repo.id, "type": repo.kind}, "isPullRequest": True, "createdAt": DATE}
    rest = {"events": [], "filesWithConflicts": [], "changes": {"base": "refs/heads/main"}, "diff": ""}
    return {**names, **where, **rest}


def discussions(req: "Handler", kind: str, id: str) -> dict:
    """All pull requests, or those of one state (open includes drafts) and author."""
    repo, wanted = req.readable(kind[:-1], id), req.query.get("status", "all")
    live, done = ("open", "draft"), ("closed", "merged")
    states = {"open": live, "closed": done}.get(wanted, live + done)
    rows = [p for p in repo.pulls if p.status in states and req.query.get("author", p.author) == p.author]
    return {"count": len(rows), "start": 0, "discussions": [_discussion(repo, p) for p in rows]}


def open_discussion(req: "Handler", kind: str, id: str) -> dict:
    """A pull request with no changes yet."""
    repo, ask = req.writable(kind[:-1], id, pull=True), req.json()
    if not ask.get("pullRequest"):
        raise Refused(400, "only pull requests here")
    return {"num": req.hub.storage.pull(repo, ask["title"], req.user() or "").num}


def discussion(req: "Handler", kind: str, id: str, num: str) -> dict:
    """One pull request."""
    repo = req.readable(kind[:-1], id)
    if not 1 <= int(num) <= len(repo.pulls):
        raise Refused(404, "No such discussion")
    return _discussion(repo, repo.pulls[int(num) - 1])


def merge(req: "Handler", kind: str, id: str, num: str) -> dict:
    """Bring a pull request to main."""
    repo, storage = req.writable(kind[:-1], id), req.hub.storage
    pull = repo.pulls[int(num) - 1]
    storage.apply(repo, "main", f"Merge {pull.title}", None, {**repo.at("main").tree, **repo.at(f"refs/pr/{num}").tree})
    pull.status = "merged"
    return {}
