"""What disks and paths do wrong becomes one sentence: what, where, what was kept, and how to go on."""

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

from hf_prune.errors import CannotWrite, HfPruneError

REASONS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the quota of this disk is used up",
    errno.EFBIG: "the file would be larger than is allowed here",
    errno.EROFS: "the disk is read-only",
    errno.EACCES: "this user may not do that there",
    errno.EPERM: "this user may not do that there",
    errno.ENAMETOOLONG: "the name is too long for this disk",
    errno.ENOTDIR: "a file stands where a folder should be",
    errno.EISDIR: "a folder stands where a file should be",
    errno.EEXIST: "something else has that name already",
    errno.ENOTEMPTY: "something else has that name already",
    errno.ENOENT: "it is not there, or vanished meanwhile",
    errno.ELOOP: "links lead round in a circle",
    errno.EIO: "the disk failed",
    errno.EINVAL: "the name holds what no name may hold",
    errno.EMFILE: "too many files are open",
}
"""What is wrong, by its number."""
PLACES = 200
"""Characters of a path that are shown."""


@contextmanager
def disk_told(kept: str) -> Iterator[None]:
    """Turn what the disk says inside the block into one sentence.

    Args:
        kept: what is left and how to go on, the end of that sentence.

    Raises:
        CannotWrite: a file could not be written, read or renamed.
    """
    try:
        yield
    except HfPruneError:
        raise
    except Exception as e:
        found = what_failed(e)
        if found is None:
            raise
        raise CannotWrite(f"{found}; {kept}.") from e


def what_failed(error: BaseException) -> str | None:
    """What a disk or path did wrong, without a full stop; None where it was something else."""
    seen: BaseException | None = error
    while seen is not None:
        if (number := _number(seen)) is not None:
            path = getattr(seen, "filename2", None) or getattr(seen, "filename", None)
            reason = REASONS.get(number) or os.strerror(number).lower()
            return f"{shown_path(path)}: {reason}" if path else reason[0].upper() + reason[1:]
        seen = seen.__cause__
    return None


def _number(error: BaseException) -> int | None:
    if isinstance(error, OSError):
        # Those of the network have others, or none.
        return error.errno if error.errno in REASONS and error.errno != errno.EINVAL else None
    said = str(error)
    if isinstance(error, ValueError) and "null byte" in said:
        return errno.EINVAL
    if match := re.search(r"\(os error (\d+)\)", said):
        return int(match[1])
    # Its writer says no more, whatever happened to the file.
    return errno.ENOSPC if "PytorchStreamWriter" in said or "enforce fail at inline_container" in said else None


def shown_path(path: object) -> str:
    """A path, or the beginning of a long one."""
    text = os.fsdecode(path) if isinstance(path, str | bytes | os.PathLike) else str(path)
    return text if len(text) <= PLACES else f"{text[:PLACES]}..."
