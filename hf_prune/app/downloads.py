"""A finished folder as one file, packed while it is sent: nothing is copied, however large a model is."""

import hashlib
import hmac
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import RawIOBase
from pathlib import Path
from urllib.parse import parse_qs
from zipfile import ZIP_STORED, ZipFile, ZipInfo

from starlette.responses import Response, StreamingResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from hf_prune.app.runs import Run

PLACE = "/hf_prune/"
"""Where the app sends files from; no place of gradio's."""
PIECE = 1 << 20
"""Bytes that are read at once."""
_SECRET = secrets.token_bytes(32)


def link(run: Run) -> str:
    """The address of a run's result; only who was shown it can have it, since it cannot be guessed."""
    return f".{PLACE}{run.id}.zip?key={_key(run.id)}"


def _key(id: str) -> str:
    return hmac.new(_SECRET, id.encode(), hashlib.sha256).hexdigest()


@dataclass(frozen=True)
class WithDownloads:
    """A server that sends the results under `home` as well."""

    app: ASGIApp
    home: Path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send a result to whoever has its link."""
        path = str(scope.get("path", ""))
        mine = scope["type"] == "http" and path.startswith(PLACE)
        await (self._answer(path.removeprefix(PLACE), scope) if mine else self.app)(scope, receive, send)

    def _answer(self, name: str, scope: Scope) -> Response:
        id, _, kind = name.partition(".")
        given = parse_qs(scope.get("query_string", b"").decode("latin-1")).get("key", [""])[0]
        folder = Run(self.home / id).result
        if kind != "zip" or not hmac.compare_digest(given.encode(), _key(id).encode()) or not folder.is_dir():
            return Response("Not Found", 404)
        headers = {"Content-Disposition": f'attachment; filename="hf_prune-{id}.zip"'}
        return StreamingResponse(zipped(folder, f"hf_prune-{id}"), media_type="application/zip", headers=headers)


def zipped(folder: Path, name: str) -> Iterator[bytes]:
    """A folder as a ZIP file, piece by piece.

    Args:
        folder: what is packed; weights do not get smaller, so nothing is compressed.
        name: of the folder inside.
    """
    sink = _Sink()
    with ZipFile(sink, "w", ZIP_STORED) as archive:
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            entry = ZipInfo.from_file(path, f"{name}/{path.relative_to(folder)}", strict_timestamps=False)
            with archive.open(entry, "w", force_zip64=True) as packed, path.open("rb") as file:
                while piece := file.read(PIECE):
                    packed.write(piece)
                    yield sink.taken()
    yield sink.taken()


@dataclass
class _Sink(RawIOBase):
    """Where a ZIP file is written to and taken from; it cannot be gone back in."""

    pieces: list[bytes] = field(default_factory=list)

    def writable(self) -> bool:
        """It can."""
        return True

    def write(self, piece: bytes) -> int:
        """Keep it until it is taken."""
        self.pieces.append(bytes(piece))
        return len(piece)

    def taken(self) -> bytes:
        """What was written since the last time."""
        whole = b"".join(self.pieces)
        self.pieces.clear()
        return whole
