"""What the stand-in Hub keeps: contents on disk, repos, commits and refs in memory."""

import hashlib
import itertools
import json
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from tests.hub import xet

LFS_SUFFIXES = {".safetensors", ".bin", ".pt", ".png", ".parquet", ".gguf", ".onnx"}
LFS_SIZE = 10 * 2**20
DATE = "2026-01-01T00:00:00.000Z"
GITATTRIBUTES = b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"


class Refused(Exception):
    """A request the Hub answers with an error."""

    def __init__(self, status: int, message: str, code: str | None = None) -> None:
        """`code` becomes the X-Error-Code header."""
        super().__init__(message)
        self.status, self.message, self.code = status, message, code


@dataclass(frozen=True)
class Answer:
    """What a call returns: bytes, or a value that becomes JSON."""

    body: object = None
    status: int = 200
    headers: tuple[tuple[str, str], ...] = ()


def answer(body: object, status: int = 200, **headers: str) -> Answer:
    """An answer with headers; X_Repo_Commit becomes X-Repo-Commit."""
    return Answer(body, status, tuple((name.replace("_", "-"), value) for name, value in headers.items()))


@dataclass(frozen=True)
class Entry:
    """A file in a tree: `oid` is its git blob id (of the pointer for LFS files), `key` names its content."""

    oid: str
    size: int
    key: str
    lfs: bool = False

    def json(self, path: str) -> dict:
        """The form of /tree and /paths-info."""
        lfs = {"lfs": {"oid": self.key, "size": self.size, "pointerSize": len(pointer(self.key, self.size))}}
        return {"type": "file", "path": path, "oid": self.oid, "size": self.size, **(lfs if self.lfs else {})}


@dataclass(frozen=True)
class Commit:
    """A snapshot of all files."""

    sha: str
    parent: str | None
    title: str
    tree: Mapping[str, Entry]


@dataclass
class Pull:
    """A pull request; its commits live under refs/pr/NUM."""

    num: int
    title: str
    author: str
    status: str = "draft"


@dataclass
class Repo:
    """A model, dataset or Space."""

    kind: str
    id: str
    private: bool = False
    gated: bool = False
    downloads: int = 0
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    pulls: list[Pull] = field(default_factory=list)

    @property
    def head(self) -> str:
        """The commit `main` points to."""
        return self.branches["main"]

    def sha(self, revision: str) -> str:
        """The commit a branch, tag, pull request or (abbreviated) commit id names."""
        name = revision.removeprefix("refs/heads/").removeprefix("refs/tags/")
        if found := self.branches.get(name) or self.tags.get(name):
            return found
        matches = [sha for sha in self.commits if len(name) >= 7 and sha.startswith(name)]
        if len(matches) != 1:
            raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return matches[0]

    def at(self, revision: str) -> Commit:
        """The commit itself."""
        return self.commits[self.sha(revision)]


def pointer(sha256: str, size: int) -> bytes:
    """The text git keeps in place of an LFS file."""
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()


def git_oid(content: bytes) -> str:
    """The id git gives a blob."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def is_lfs(path: str, size: int) -> bool:
    """Whether the Hub would store this file outside git."""
    return size > 0 and (Path(path).suffix in LFS_SUFFIXES or size > LFS_SIZE)


class Storage:
    """All repos, and their contents under `root`."""

    def __init__(self, root: Path) -> None:
        """Contents go to `root`/objects, the Xet store is `root`/xet."""
        self.root, self.lock = root, threading.RLock()
        self.repos: dict[tuple[str, str], Repo] = {}
        self.count = itertools.count()
        (root / "objects").mkdir(parents=True, exist_ok=True)
        (root / "xet").mkdir(exist_ok=True)

    def put(self, content: bytes, key: str) -> None:
        """Keep a content under its SHA-256 or git id."""
        (self.root / "objects" / key).write_bytes(content)

    def has(self, sha256: str) -> bool:
        """Whether an LFS content is here, uploaded plainly or through Xet."""
        if not (self.root / "objects" / sha256).exists():
            content = xet.read(self.root / "xet", sha256)
            if content is None:
                return False
            self.put(content, sha256)
        return True

    def path(self, key: str) -> Path:
        """Where a content lies."""
        return self.root / "objects" / key

    def create(self, id: str, kind: str = "model", private: bool = False, gated: bool = False) -> Repo:
        """A new repo with the first commit every repo on the Hub has."""
        with self.lock:
            if (kind, id) in self.repos:
                raise Refused(409, "You already created this repo")
            repo = self.repos[kind, id] = Repo(kind, id, private, gated)
            first = {".gitattributes": self.entry(".gitattributes", GITATTRIBUTES)}
            self._commit(repo, "main", "initial commit", first)
            return repo

    def seed(self, id: str, files: Mapping[str, bytes] | Path, kind: str = "model", **flags: bool) -> Repo:
        """A repo holding a folder or the given contents; an existing one gets a further commit."""
        if isinstance(files, Path):
            files = {p.relative_to(files).as_posix(): p.read_bytes() for p in files.rglob("*") if p.is_file()}
        repo = self.repos.get((kind, id)) or self.create(id, kind, **flags)
        changes = {path: self.entry(path, content) for path, content in files.items()}
        self._commit(repo, "main", "seed", {**repo.at("main").tree, **changes})
        return repo

    def find(self, kind: str, id: str) -> Repo:
        """The repo of that name."""
        if (kind, id) not in self.repos:
            raise Refused(404, "Repository not found", "RepoNotFound")
        return self.repos[kind, id]

    def entry(self, path: str, content: bytes) -> Entry:
        """Keep a file's content and describe it."""
        if is_lfs(path, len(content)):
            key = hashlib.sha256(content).hexdigest()
            self.put(content, key)
            return self.lfs_entry(key, len(content))
        oid = git_oid(content)
        self.put(content, oid)
        return Entry(oid, len(content), oid)

    def lfs_entry(self, sha256: str, size: int) -> Entry:
        """Describe an LFS file whose content is here already."""
        return Entry(git_oid(pointer(sha256, size)), size, sha256, lfs=True)

    def read(self, repo: Repo, path: str, revision: str = "main") -> bytes:
        """The bytes of one file."""
        return self.path(repo.at(revision).tree[path].key).read_bytes()

    def apply(self, repo: Repo, branch: str, title: str, parent: str | None, tree: Mapping[str, Entry]) -> Commit:
        """Add a commit, refused when `parent` is given and the branch has moved on."""
        with self.lock:
            if branch not in repo.branches:
                raise Refused(404, f"Invalid rev id: {branch}", "RevisionNotFound")
            if parent and not repo.branches[branch].startswith(parent):
                raise Refused(412, "A commit has happened since. Please refresh and try again.")
            return self._commit(repo, branch, title, tree)

    def pull(self, repo: Repo, title: str, author: str, base: str | None = None) -> Pull:
        """Open a pull request that starts at `base`."""
        with self.lock:
            pull = Pull(len(repo.pulls) + 1, title, author)
            repo.pulls.append(pull)
            repo.branches[f"refs/pr/{pull.num}"] = base or repo.head
            return pull

    def _commit(self, repo: Repo, branch: str, title: str, tree: Mapping[str, Entry]) -> Commit:
        parent = repo.branches.get(branch)
        names = json.dumps([next(self.count), parent, title, sorted((p, e.oid) for p, e in tree.items())])
        commit = Commit(hashlib.sha1(names.encode()).hexdigest(), parent, title, dict(tree))
        repo.commits[commit.sha] = commit
        repo.branches[branch] = commit.sha
        return commit

    def card(self, repo: Repo, revision: str) -> dict:
        """The YAML at the head of README.md, {} without one."""
        if "README.md" not in repo.at(revision).tree:
            return {}
        text = self.read(repo, "README.md", revision).decode(errors="replace")
        match = re.match(r"---\s*\n(.*?)\n---", text, re.DOTALL)
        return (yaml.safe_load(match[1]) or {}) if match else {}
