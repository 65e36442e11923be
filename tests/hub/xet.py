"""Contents that a client put into a local Xet store (`local:///dir`), found by the SHA-256 that the commit names.

Shards (`*.mdb`) are a 48-byte header and 48-byte records: per file a head (hash, flags, number of segments), its
segments, as many verification records (flag bit 31), and one record with the SHA-256 (flag bit 30).
"""

import shutil
import struct
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

RECORD = 48
VERIFIED, DESCRIBED = 1 << 31, 1 << 30
END = b"\xff" * 32


def _hex(raw: bytes) -> str:
    """Hashes are four little-endian 64-bit words; their text is the words in order, most significant digit first."""
    return "".join(f"{word:016x}" for word in struct.unpack("<4Q", raw))


def _files(shard: bytes) -> Iterator[tuple[str, str, int]]:
    """Yield (SHA-256, Xet hash, size) of each file a shard describes."""
    at = RECORD
    while at + RECORD <= len(shard) and shard[at : at + 32] != END:
        flags, count = struct.unpack_from("<II", shard, at + 32)
        sizes = [struct.unpack_from("<I", shard, at + RECORD * (1 + i) + 36)[0] for i in range(count)]
        name, at = shard[at : at + 32], at + RECORD * (1 + count * (2 if flags & VERIFIED else 1))
        if flags & DESCRIBED:
            yield _hex(shard[at : at + 32]), _hex(name), sum(sizes)
            at += RECORD


def find(store: Path, sha256: str) -> tuple[str, int] | None:
    """The Xet hash and size of a content, None when no shard names it."""
    for shard in sorted(store.glob("xet/xorbs/shards/*.mdb")):
        for digest, name, size in _files(shard.read_bytes()):
            if digest == sha256:
                return name, size
    return None


def read(store: Path, sha256: str) -> bytes | None:
    """The content itself; read from a copy of the store, because the uploading process may still hold its lock."""
    found = find(store, sha256)
    if found is None:
        return None
    import hf_xet

    with tempfile.TemporaryDirectory() as folder:
        copy, out = Path(folder, "store"), Path(folder, "out")
        shutil.copytree(store, copy, ignore=shutil.ignore_patterns("shard-session", "shard-cache"))
        group = hf_xet.XetSession().new_file_download_group(
            endpoint=f"local://{copy}", token="t", token_expiry_unix_secs=int(time.time()) + 3600
        )
        with group:
            group.start_download_file(hf_xet.XetFileInfo(*found), str(out))
        return out.read_bytes()
