"""Calls that write: repos, tags, branches, uploads, commits."""

import base64
import hashlib
import json
import time
from typing import TYPE_CHECKING

from tests.hub.storage import Answer, Entry, Refused, answer, git_oid, is_lfs

if TYPE_CHECKING:
    from tests.hub.server import Handler


def create_repo(req: "Handler") -> Answer:
    """A new repo; 409 with its address when it exists."""
    ask, user = req.json(), req.user()
    if not user:
        raise Refused(401, "Invalid username or password.")
    owner, kind = ask.get("organization") or user, ask.get("type") or "model"
    if owner != user:
        raise Refused(403, f'You don\'t have the rights to create a {kind} under the namespace "{owner}"')
    id = f"{owner}/{ask['name']}"
    url = f"{req.hub.endpoint}/{'' if kind == 'model' else kind + 's/'}{id}"
    private = ask.get("visibility") == "private" or bool(ask.get("private"))
    try:
        req.hub.storage.create(id, kind, private)
    except Refused as refusal:
        return answer({"error": refusal.message, "url": url}, refusal.status)
    return {"url": url, "name": id, "id": id}


def delete_repo(req: "Handler") -> dict:
    """Remove a repo."""
    ask = req.json()
    kind, id = ask.get("type") or "model", f"{ask.get('organization') or req.user()}/{ask['name']}"
    req.writable(kind, id)
    del req.hub.storage.repos[kind, id]
    return {}


def validate_yaml(req: "Handler") -> dict:
    """Accept any card that has a head."""
    warnings = [] if req.json()["content"].startswith("---") else [{"message": "empty or missing yaml metadata"}]
    return {"errors": [], "warnings": warnings}


def create_tag(req: "Handler", kind: str, id: str, rev: str) -> dict:
    """A name for a commit."""
    repo, name = req.writable(kind[:-1], id), req.json()["tag"]
    if name in repo.tags:
        raise Refused(409, f"Tag {name} exists")
    repo.tags[name] = repo.sha(rev)
    return {}


def delete_tag(req: "Handler", kind: str, id: str, rev: str) -> dict:
    """Forget the name."""
    if req.writable(kind[:-1], id).tags.pop(rev, None) is None:
        raise Refused(404, f"No tag {rev}", "RevisionNotFound")
    return {}


def create_branch(req: "Handler", kind: str, id: str, rev: str) -> dict:
    """A branch at `startingPoint`, else at main."""
    repo = req.writable(kind[:-1], id)
    if rev in repo.branches:
        raise Refused(409, f"Reference already exists: {rev}")
    if rev.startswith("refs/"):
        raise Refused(400, f"Invalid reference for a branch: {rev}")
    repo.branches[rev] = repo.sha(req.json().get("startingPoint") or "main")
    return {}


def delete_branch(req: "Handler", kind: str, id: str, rev: str) -> dict:
    """Remove a branch."""
    if req.writable(kind[:-1], id).branches.pop(rev, None) is None:
        raise Refused(404, f"No branch {rev}", "RevisionNotFound")
    return {}


def preupload(req: "Handler", kind: str, id: str, rev: str) -> dict:
    """How each file must be sent, and the id of what is there."""
    repo = req.writable(kind[:-1], id, pull="create_pr" in req.query or rev.startswith("refs/pr/"))
    old = repo.at(rev).tree
    return {"files": [_mode(f["path"], f["size"], old.get(f["path"])) for f in req.json()["files"]]}


def _mode(path: str, size: int, old: Entry | None) -> dict:
    mode = "lfs" if is_lfs(path, size) else "regular"
    return {"path": path, "uploadMode": mode, "shouldIgnore": False, **({"oid": old.key} if old else {})}


def lfs_batch(req: "Handler", id: str) -> dict:
    """Where to send LFS contents; nothing to do for those already here."""
    url = req.hub.endpoint
    upload = {"verify": {"href": f"{url}/lfs/verify", "header": {}}}
    rows = []
    for ask in req.json()["objects"]:
        row = {"oid": ask["oid"], "size": ask["size"]}
        if not req.hub.storage.path(ask["oid"]).exists():
            row["actions"] = {"upload": {"href": f"{url}/lfs/{ask['oid']}", "header": {}}, **upload}
        rows.append(row)
    return {"transfer": "basic", "objects": rows}


def lfs_put(req: "Handler", oid: str) -> dict:
    """Take a content, refused when it is not what its name says."""
    if hashlib.sha256(req.body).hexdigest() != oid:
        raise Refused(400, "content does not match its oid")
    req.hub.storage.put(req.body, oid)
    return {}


def lfs_verify(req: "Handler") -> dict:
    """Whether a content arrived."""
    if not req.hub.storage.path(req.json()["oid"]).exists():
        raise Refused(404, "no such object")
    return {}


def xet_token(req: "Handler", kind: str, id: str, rev: str) -> Answer:
    """Leave to write to the Xet store: here a folder on this machine."""
    req.writable(kind[:-1], id, pull="create_pr" in req.query or rev.startswith("refs/pr/"))
    store, expiry = f"local://{req.hub.storage.root.absolute() / 'xet'}", int(time.time()) + 3600
    body = {"casUrl": store, "exp": expiry, "accessToken": "local"}
    return answer(body, X_Xet_Cas_Url=store, X_Xet_Access_Token="local", X_Xet_Token_Expiration=str(expiry))


def commit(req: "Handler", kind: str, id: str, rev: str) -> dict:
    """Apply a commit sent as lines of JSON."""
    storage, as_pull = req.hub.storage, "create_pr" in req.query
    repo = req.writable(kind[:-1], id, pull=as_pull or rev.startswith("refs/pr/"))
    lines = [json.loads(line) for line in req.body.splitlines() if line.strip()]
    head = lines[0]["value"]
    with storage.lock:
        files = dict(repo.at(head.get("parentCommit") or rev if as_pull else rev).tree)
        for line in lines[1:]:
            _change(req, files, line["key"], line["value"])
        pull = storage.pull(repo, head["summary"], req.user() or "", head.get("parentCommit")) if as_pull else None
        parent = None if pull else head.get("parentCommit")
        made = storage.apply(repo, f"refs/pr/{pull.num}" if pull else rev, head["summary"], parent, files)
    url = f"{req.hub.endpoint}/{id}"
    extra = {"pullRequestUrl": f"{url}/discussions/{pull.num}"} if pull else {}
    return {"success": True, "commitOid": made.sha, "commitUrl": f"{url}/commit/{made.sha}", **extra}


def _change(req: "Handler", files: dict[str, Entry], key: str, value: dict) -> None:
    path = value["path"]
    if key == "file":
        content = base64.b64decode(value["content"])
        oid = git_oid(content)
        req.hub.storage.put(content, oid)
        files[path] = Entry(oid, len(content), oid)
    elif key == "lfsFile":
        if not req.hub.storage.has(value["oid"]):
            raise Refused(400, f"LFS pointer {path} points to a file that does not exist")
        files[path] = req.hub.storage.lfs_entry(value["oid"], req.hub.storage.path(value["oid"]).stat().st_size)
    elif key == "deletedFile":
        if files.pop(path, None) is None:
            raise Refused(404, "A file with this name doesn't exist", "EntryNotFound")
    elif key == "deletedFolder":
        for name in [p for p in files if p.startswith(path.rstrip("/") + "/")]:
            del files[name]


def settings(req: "Handler", kind: str, id: str) -> dict:
    """Visibility and gating."""
    repo, ask = req.writable(kind[:-1], id), req.json()
    repo.private = ask.get("visibility") == "private" if "visibility" in ask else ask.get("private", repo.private)
    repo.gated = bool(ask.get("gated", repo.gated))
    return {"private": repo.private, "gated": repo.gated}
