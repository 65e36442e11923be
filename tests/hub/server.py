"""The HTTP side: starts and stops the stand-in, guards access, logs requests and injects faults."""

import json
import re
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from tests.hub.faults import Faults
from tests.hub.routes import ROUTES
from tests.hub.storage import Answer, Refused, Repo, Storage


@dataclass(frozen=True)
class Seen:
    """One request as it was answered."""

    method: str
    path: str
    status: int
    sent: int


class Hub:
    """A running stand-in Hub. Tokens in `users` may write to the namespace of their name."""

    def __init__(self, root: Path, port: int = 0) -> None:
        """Listen on 127.0.0.1; 0 picks a free port."""
        self.storage, self.faults = Storage(root), Faults()
        self.users = {"hf_ns_secret": "ns", "hf_guest_secret": "guest"}
        self.requests: list[Seen] = []
        self.jobs: list[dict] = []
        self.collections: dict[str, dict] = {}
        self.hardware: dict[str, str] = {}
        self.codes: dict[str, str] = {}
        self.renamed: dict[str, str] = {}
        self.http = ThreadingHTTPServer(("127.0.0.1", port), type("BoundHandler", (Handler,), {"hub": self}))
        self.http.daemon_threads = True
        self.port = self.http.server_port
        self.endpoint = f"http://127.0.0.1:{self.port}"
        self.cdn = f"http://localhost:{self.port}/cdn"

    def start(self) -> "Hub":
        """Answer requests in a thread of its own."""
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def stop(self) -> None:
        """Stop answering."""
        self.http.shutdown()
        self.http.server_close()

    def reset(self) -> None:
        """Forget all repos, faults and requests."""
        self.storage.repos.clear()
        self.faults.clear()
        self.requests.clear()
        self.jobs.clear()
        self.collections.clear()
        self.hardware.clear()
        self.renamed.clear()

    def rename(self, old: str, new: str) -> Repo:
        """Give a model another name; who asks for the old one is sent to it."""
        repo = self.storage.repos["model", new] = self.storage.repos.pop(("model", old))
        repo.id, self.renamed[old] = new, new
        return repo

    def seed(self, id: str, files: dict[str, bytes] | Path, kind: str = "model", **flags: bool) -> Repo:
        """See `Storage.seed`."""
        return self.storage.seed(id, files, kind, **flags)

    def repo(self, id: str, kind: str = "model") -> Repo:
        """A repo by name."""
        return self.storage.find(kind, id)

    def seen(self, pattern: str) -> list[Seen]:
        """Requests whose `METHOD path` matches."""
        return [s for s in self.requests if re.search(pattern, f"{s.method} {s.path}")]

    def sent(self, pattern: str = "") -> int:
        """Bytes of answers sent to matching requests."""
        return sum(s.sent for s in self.seen(pattern))


class Handler(BaseHTTPRequestHandler):
    """Finds the route of a request and writes its answer."""

    hub: Hub
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def handle_one_request(self) -> None:
        """A client that has gone is no news."""
        try:
            super().handle_one_request()
        except (ConnectionError, TimeoutError):
            self.close_connection = True

    def log_message(self, *_: object) -> None:
        """The log is `hub.requests`."""

    def serve(self) -> None:
        """Answer, unless a fault strikes."""
        self.body = self.receive()
        fault = self.hub.faults.take(f"{self.command} {self.path}")
        if fault and fault.kind == "drop":
            return self.vanish()
        if fault and fault.kind == "status":
            faults = self.hub.faults
            body = faults.message if isinstance(faults.message, bytes) else {"error": faults.message}
            return self.reply(Answer(body, fault.status, faults.headers))
        try:
            answer = self.dispatch()
        except Refused as refusal:
            answer = refusal
        if fault and fault.kind == "lost":
            return self.vanish()
        if fault and fault.kind == "garble" and isinstance(answer.body, bytes) and answer.body:
            answer = Answer(answer.body[:-1] + bytes([answer.body[-1] ^ 1]), answer.status, answer.headers)
        self.reply(answer)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = serve

    def receive(self) -> bytes:
        """The body, sent whole or in chunks."""
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def vanish(self) -> None:
        """Close without an answer."""
        self.hub.requests.append(Seen(self.command, self.path, 0, 0))
        self.close_connection = True

    def dispatch(self) -> Answer:
        """Call the route that matches."""
        url = urlsplit(self.path)
        if moved := self.moved(url.path):
            return Answer(b"", 301, (("Location", moved + (f"?{url.query}" if url.query else "")),))
        self.query = {k: v[-1] for k, v in parse_qs(url.query).items()}
        for method, pattern, route in ROUTES:
            match = re.fullmatch(pattern, url.path)
            if match and self.command in method.split("|"):
                result = route(self, **{k: unquote(v) for k, v in match.groupdict().items() if v is not None})
                return result if isinstance(result, Answer) else Answer(result)
        raise Refused(404, f"The stand-in Hub does not know {self.command} {url.path}")

    def moved(self, path: str) -> str | None:
        """Where a repo is that has another name now."""
        for old, new in self.hub.renamed.items():
            match = re.fullmatch(rf"(/api/(?:models|datasets|spaces)/|/(?:(?:datasets|spaces)/)?){old}([/.].*)?", path)
            if match:
                return f"{match[1]}{new}{match[2] or ''}"
        return None

    def reply(self, answer: "Answer | Refused") -> None:
        """Write status, headers and body; honours Range for bytes."""
        headers: list[tuple[str, str]] = []
        if isinstance(answer, Refused):
            headers = [("X-Error-Message", answer.message)] + ([("X-Error-Code", answer.code)] if answer.code else [])
            answer = Answer({"error": answer.message}, answer.status)
        headers += answer.headers
        content, status = answer.body, answer.status
        if not isinstance(content, bytes):
            content = json.dumps(content).encode()
            headers.append(("Content-Type", "application/json"))
        elif status == 200 and (wanted := self.range(len(content))):
            headers.append(("Content-Range", f"bytes {wanted.start}-{wanted.stop - 1}/{len(content)}"))
            content, status = content[wanted.start : wanted.stop], 206
        self.send_response(status)
        for name, value in [*headers, ("Content-Length", str(len(content)))]:
            self.send_header(name, value)
        self.hub.requests.append(Seen(self.command, self.path, status, 0 if self.command == "HEAD" else len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def range(self, size: int) -> range | None:
        """The bytes a Range header asks for."""
        match = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if not match or self.command == "HEAD":
            return None
        first, last = match.groups()
        if not first:
            return range(max(0, size - int(last)), size)
        return range(int(first), min(size, int(last) + 1 if last else size))

    def json(self) -> dict:
        """The request body."""
        return json.loads(self.body or b"{}")

    def user(self) -> str | None:
        """Who asks; None without a token."""
        token = self.headers.get("Authorization", "").removeprefix("Bearer ").strip()
        if token and token not in self.hub.users:
            raise Refused(401, "Invalid credentials in Authorization header")
        return self.hub.users.get(token)

    def owns(self, id: str) -> bool:
        """Whether the asker may write there."""
        return self.user() == id.split("/")[0]

    def readable(self, kind: str, id: str) -> Repo:
        """The repo, when the asker may know of it; a private one looks missing to strangers."""
        repo, user = self.hub.storage.repos.get((kind, id)), self.user()
        if repo is None or (repo.private and not self.owns(id)):
            raise Refused(404 if user else 401, "Repository not found", "RepoNotFound")
        return repo

    def contents(self, kind: str, id: str) -> Repo:
        """The repo, when the asker may read its files."""
        repo = self.readable(kind, id)
        if repo.gated and not self.owns(id):
            raise Refused(403 if self.user() else 401, "Access to this repo is restricted", "GatedRepo")
        return repo

    def writable(self, kind: str, id: str, pull: bool = False) -> Repo:
        """The repo, when the asker may change it; anyone who reads it may open a pull request."""
        repo = self.readable(kind, id)
        if not self.user() or not (self.owns(id) or pull):
            raise Refused(403 if self.user() else 401, f"You don't have the rights to write to {id}")
        return repo
