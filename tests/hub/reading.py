"""Calls that read: who am I, repos, trees, refs, files."""

from typing import TYPE_CHECKING
from urllib.parse import parse_qs, urlsplit

from tests.hub.storage import DATE, Answer, Commit, Entry, Refused, Repo, answer, git_oid, pointer

if TYPE_CHECKING:
    from tests.hub.server import Handler


def whoami(req: "Handler") -> dict:
    """The account behind the token."""
    if not (user := req.user()):
        raise Refused(401, "Invalid username or password.")
    token = {"displayName": "test", "role": "write"}
    return {"type": "user", "id": user, "name": user, "fullname": user, "orgs": [], "auth": {"accessToken": token}}


def info(req: "Handler", kind: str, id: str, rev: str = "main") -> dict:
    """What model_info shows; sizes with ?blobs=true."""
    repo = req.readable(kind[:-1], id)
    commit, card = repo.at(rev), req.hub.storage.card(repo, rev)
    names = {"id": id, "_id": id, "modelId": id, "author": id.split("/")[0], "sha": commit.sha}
    state = {"private": repo.private, "gated": "manual" if repo.gated else False, "disabled": False}
    counts = {"downloads": 0, "likes": 0, "lastModified": DATE, "createdAt": DATE}
    tags = [*card.get("tags", []), *([f"license:{card['license']}"] if "license" in card else [])]
    about = {"tags": tags, "cardData": card, "pipeline_tag": card.get("pipeline_tag")}
    siblings = [_sibling(path, entry, "blobs" in req.query) for path, entry in commit.tree.items()]
    return {**names, **state, **counts, **about, "siblings": siblings}


def models(req: "Handler") -> list[dict]:
    """What list_models shows: repos with all the tags and words asked for, the most downloaded first."""
    wanted = set(parse_qs(urlsplit(req.path).query).get("filter", []))
    repos = [
        r for (kind, id), r in req.hub.storage.repos.items() if kind == "model" and (not r.private or req.owns(id))
    ]
    rows = [_listed(req, repo) for repo in repos if req.query.get("search", "").lower() in repo.id.lower()]
    rows = sorted((r for r in rows if wanted <= set(r["tags"])), key=lambda r: -r["downloads"])
    return rows[: int(req.query.get("limit", len(rows)))]


def _listed(req: "Handler", repo: Repo) -> dict:
    card = req.hub.storage.card(repo, "main")
    parents = card.get("base_model") or []
    parents = [parents] if isinstance(parents, str) else parents
    relation = card.get("base_model_relation", "finetune")
    tree = [tag for p in parents for tag in (f"base_model:{p}", f"base_model:{relation}:{p}")]
    licence = [f"license:{card['license']}"] if "license" in card else []
    task = [card["pipeline_tag"]] if "pipeline_tag" in card else []
    format = ["safetensors"] * any(path.endswith(".safetensors") for path in repo.at("main").tree)
    tags = [*card.get("tags", []), *task, *format, *licence, *tree]
    return {"id": repo.id, "_id": repo.id, "downloads": repo.downloads, "tags": tags}


def _sibling(path: str, entry: Entry, sizes: bool) -> dict:
    if not sizes:
        return {"rfilename": path}
    row = {"rfilename": path, "size": entry.size, "blobId": entry.oid}
    if entry.lfs:
        row["lfs"] = {"sha256": entry.key, "size": entry.size, "pointerSize": len(pointer(entry.key, entry.size))}
    return row


def tree(req: "Handler", kind: str, id: str, rev: str, path: str = "") -> list[dict]:
    """Files and folders below `path`."""
    commit = req.readable(kind[:-1], id).at(rev)
    prefix = path.strip("/") + "/" if path.strip("/") else ""
    inside = {p: e for p, e in commit.tree.items() if p.startswith(prefix)}
    if prefix and not inside:
        raise Refused(404, f"{path} does not exist on {rev}", "EntryNotFound")
    deep = req.query.get("recursive", "").lower() in ("1", "true")
    folders = {prefix + "/".join(p[len(prefix) :].split("/")[:n]) for p in inside for n in range(1, p.count("/") + 1)}
    folders = {f for f in folders if f not in inside and any(p.startswith(f + "/") for p in inside)}
    rows = [_folder(f) for f in sorted(folders)] + [e.json(p) for p, e in sorted(inside.items())]
    return [row for row in rows if deep or "/" not in row["path"][len(prefix) :]]


def _folder(path: str) -> dict:
    return {"type": "directory", "path": path, "oid": git_oid(path.encode()), "size": 0}


def paths_info(req: "Handler", kind: str, id: str, rev: str) -> list[dict]:
    """The named files and folders that exist."""
    commit = req.readable(kind[:-1], id).at(rev)
    form = "json" in req.headers.get("Content-Type", "")
    asked = req.json()["paths"] if form else parse_qs(req.body.decode()).get("paths", [])
    files = [commit.tree[p].json(p) for p in asked if p in commit.tree]
    folders = [p for p in asked if any(q.startswith(p + "/") for q in commit.tree)]
    return files + [_folder(p) for p in folders]


def refs(req: "Handler", kind: str, id: str) -> dict:
    """Branches, tags and pull requests."""
    repo = req.readable(kind[:-1], id)
    plain = {n: s for n, s in repo.branches.items() if not n.startswith("refs/")}
    return {
        "branches": [{"name": n, "ref": f"refs/heads/{n}", "targetCommit": s} for n, s in plain.items()],
        "tags": [{"name": n, "ref": f"refs/tags/{n}", "targetCommit": s} for n, s in repo.tags.items()],
        "pullRequests": [{"name": n, "ref": n, "targetCommit": s} for n, s in repo.branches.items() if n not in plain],
        "converts": [],
    }


def commits(req: "Handler", kind: str, id: str, rev: str) -> list[dict]:
    """History, newest first."""
    repo, found = req.readable(kind[:-1], id), []
    commit: Commit | None = repo.at(rev)
    while commit:
        found.append({"id": commit.sha, "title": commit.title, "message": "", "authors": [], "date": DATE})
        commit = repo.commits[commit.parent] if commit.parent else None
    return found


def resolve(req: "Handler", id: str, rev: str, path: str, kind: str = "models/") -> Answer:
    """A file: its bytes, or for LFS the way to another origin."""
    repo = req.contents(kind[:-2], id)
    commit = repo.at(rev)
    if path not in commit.tree:
        refusal = Refused(404, "Entry not found", "EntryNotFound")
        headers = {"X_Error_Code": "EntryNotFound", "X_Error_Message": refusal.message, "X_Repo_Commit": commit.sha}
        return answer({"error": refusal.message}, 404, **headers)
    entry, content = commit.tree[path], req.hub.storage.path
    headers = {"X_Repo_Commit": commit.sha, "ETag": f'"{entry.key}"', "Accept_Ranges": "bytes"}
    if not entry.lfs:
        return answer(content(entry.key).read_bytes(), **headers)
    linked = {"X_Linked_Etag": f'"{entry.key}"', "X_Linked_Size": str(entry.size)}
    return answer(b"", 302, Location=f"{req.hub.cdn}/{entry.key}", **linked, **headers)


def cdn(req: "Handler", key: str) -> Answer:
    """An LFS content."""
    return answer(req.hub.storage.path(key).read_bytes(), ETag=f'"{key}"', Accept_Ranges="bytes")
