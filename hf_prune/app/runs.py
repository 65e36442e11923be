"""Runs that outlive the page that began them: a folder each, a queue, one at work at a time.

    HOME/ID/owner        who may see it
    HOME/ID/recipe.yaml  what was asked
    HOME/ID/events.jsonl what `compress` told, line by line, then Failed or Stopped
    HOME/ID/result/      the finished folder
    HOME/ID/published    the address on the Hub, once there is one

The id follows from owner and recipe, so the same request meets the same run. An interrupted one is resumed from its
journal; after a restart of the machine nothing is queued, and every run is where it was.
"""

import contextlib
import errno
import hashlib
import json
import logging
import os
import re
import shutil
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing import Process
from pathlib import Path
from typing import Any, Literal

from hf_prune.app.workers import start, stop
from hf_prune.atomic_files import disk_told
from hf_prune.errors import HfPruneError, InvalidRecipe, scrub
from hf_prune.recipe import Recipe
from hf_prune.report.redaction import without_paths
from hf_prune.report.schema.report import Report

State = Literal["queued", "running", "stopped", "failed", "done"]
LOCAL = "local"
"""The owner of all runs where the app serves one person."""
TICK = 0.25
ENDS = {"Finished": "done", "Failed": "failed", "Stopped": "stopped"}
NICENESS = 10
"""Whoever looks at a page is answered before the run goes on."""
SWEEP = 600.0
"""Seconds between two looks for expired runs."""
ROOM = 1 << 20
"""Fewer bytes than these are a full disk."""
FULL = "The disk of this machine is full; what the run had is kept, and it goes on from there once there is room."
LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds and bytes a run may take, runs that may wait (of one visitor, and in all), and days a run is kept."""

    seconds: float = 3600.0
    bytes: int = 20 << 30
    waiting: int = 8
    waiting_each: int = 2
    days: float = 7.0


@dataclass(frozen=True, slots=True)
class Run:
    """One run's folder, seen by its owner."""

    folder: Path

    @property
    def id(self) -> str:
        """Name of the folder, and of the run in an address."""
        return self.folder.name

    @property
    def recipe(self) -> Recipe:
        """What was asked."""
        return Recipe.load(self.folder / "recipe.yaml")

    @property
    def result(self) -> Path:
        """The finished folder, once it is there."""
        return self.folder / "result"

    @property
    def url(self) -> str | None:
        """Where it was published."""
        path = self.folder / "published"
        return path.read_text(encoding="utf-8") if path.is_file() else None

    def events(self) -> Iterator[dict[str, Any]]:
        """What it has told so far; a line that is being written is left for the next time, and a torn one out."""
        try:
            with (self.folder / "events.jsonl").open(encoding="utf-8", errors="replace") as lines:
                for line in lines:
                    with contextlib.suppress(ValueError):
                        yield json.loads(line if line.endswith("\n") else "")
        except FileNotFoundError:
            return

    @property
    def last(self) -> str:
        """Name of the latest event; empty where there is none."""
        found = deque(self.events(), maxlen=1)
        return found[0]["event"] if found else ""

    def report(self) -> Report:
        """Of the finished folder."""
        return Report.load(self.result / "report.json")


class Runs:
    """All runs under `home`, and the thread that works on them.

    Args:
        home: folder, made when missing.
        limits: what visitors may take.
    """

    def __init__(self, home: Path, limits: Limits | None = None) -> None:
        self.home, self.limits = home, limits or Limits()
        home.mkdir(parents=True, exist_ok=True)
        self._queue: deque[tuple[Run, str | None]] = deque()
        self._work: _Work | None = None
        self._untold: dict[Run, dict[str, Any]] = {}
        self._swept = -SWEEP
        self._lock = threading.RLock()
        threading.Thread(target=self._serve, daemon=True).start()

    def begin(self, recipe: Recipe, owner: str, login: str | None = None) -> Run:
        """Queue a run; one that is queued, at work or done already is only returned.

        Raises:
            InvalidRecipe: too many wait.
            CannotWrite: the disk takes nothing.
        """
        run = Run(self.home / _id(owner, recipe))
        with self._lock:
            if self.state(run) in ("queued", "running", "done"):
                return run
            theirs = [r for r, _ in self._queue if _owner(r) == owner]
            if len(self._queue) >= self.limits.waiting or len(theirs) >= self.limits.waiting_each:
                raise InvalidRecipe("Enough runs are waiting already; cancel one of yours, or come back in a while.")
            with disk_told("nothing was started; cancel or wait for other runs, then start it again"):
                self._prepare(run, recipe, owner)
            self._untold.pop(run, None)
            self._queue.append((run, login))
        return run

    def find(self, id: str, owner: str) -> Run:
        """A run by its id.

        Raises:
            InvalidRecipe: there is none, or it is somebody else's: the two look alike.
        """
        run = Run(self.home / id)
        if not re.fullmatch("[0-9a-f]{16}", id) or not run.folder.is_dir() or _owner(run) != owner:
            raise InvalidRecipe("There is no such run of yours here; it may have expired. Start it again.")
        return run

    def of(self, owner: str) -> list[Run]:
        """Everything of one visitor, the latest first."""
        mine = [Run(p) for p in self.home.iterdir() if p.is_dir() and _owner(Run(p)) == owner]
        return sorted(mine, key=lambda r: -_touched(r))

    def state(self, run: Run) -> State | None:
        """Where a run is; None for one that was never begun."""
        with self._lock:
            if any(r == run for r, _ in self._queue):
                return "queued"
            if self._work and self._work.run == run:
                return "running"
            if run in self._untold:
                return ENDS[self._untold[run]["event"]]
        if not run.folder.is_dir():
            return None
        return ENDS.get(run.last, "stopped")

    def ahead(self, run: Run) -> int:
        """Runs that come first, the one at work included."""
        with self._lock:
            place = next((i for i, (r, _) in enumerate(self._queue) if r == run), 0)
            return place + (self._work is not None and self._work.run != run)

    def cancel(self, run: Run) -> None:
        """Take it out of the queue, or stop it; what it has is kept, and `begin` goes on from there."""
        with self._lock:
            kept = [(r, login) for r, login in self._queue if r != run]
            if len(kept) != len(self._queue):
                self._queue = deque(kept)
                self._end(run, {"event": "Stopped", "message": "Taken out of the queue."})
            elif self._work and self._work.run == run:
                self._work.asked_to_stop = True

    def expire(self) -> None:
        """Remove runs nobody has touched for some days; published ones stay, and so does work in hand."""
        oldest = time.time() - self.limits.days * 86400
        for run in [Run(p) for p in self.home.iterdir() if p.is_dir()]:
            if _touched(run) < oldest and not run.url and self.state(run) not in ("queued", "running"):
                shutil.rmtree(run.folder, ignore_errors=True)

    def _prepare(self, run: Run, recipe: Recipe, owner: str) -> None:
        run.folder.mkdir(exist_ok=True)
        (run.folder / "owner").write_text(owner, encoding="utf-8")
        asked = recipe.replace(output=str(run.result))
        (run.folder / "recipe.yaml").write_text(asked.to_yaml(), encoding="utf-8")
        (run.folder / "events.jsonl").unlink(missing_ok=True)

    def _serve(self) -> None:
        """Work for good: whatever goes wrong is said, and the next run has its turn."""
        while True:
            time.sleep(TICK)
            for step in (self._sweep, self._tell_again, self._begin_next, self._look):
                try:
                    step()
                except Exception as e:
                    LOG.error("%s of the queue: %s", step.__name__, public(f"{type(e).__name__}: {e}"))

    def _sweep(self) -> None:
        if time.monotonic() - self._swept > SWEEP:
            self._swept = time.monotonic()
            self.expire()

    def _begin_next(self) -> None:
        with self._lock:
            if self._work is not None or not self._queue:
                return
            run, login = self._queue.popleft()
            try:
                self._work = _Work(run, start(work, run.folder, login=login, niceness=NICENESS))
            except Exception as e:
                self._end(run, {"event": "Failed", "message": public(f"It could not be started: {e}; try again.")})
                raise

    def _look(self) -> None:
        """Whether the run at work has ended, or must; nothing keeps the slot but a process that is alive."""
        at_work = self._work
        if at_work is None:
            return
        try:
            ended = at_work.over(self.limits)
        except Exception as e:
            stop(at_work.process, patience=0)
            ended = {"event": "Failed", "message": public(f"It was stopped, since this machine failed: {e}.")}
            LOG.error("%s", ended["message"])
        if ended is None:
            return
        with self._lock:
            self._work = None
            if at_work.run.last not in ENDS:
                self._end(at_work.run, ended)

    def _end(self, run: Run, event: dict[str, Any]) -> None:
        """The last word of a run; on a full disk it is kept, and written when there is room."""
        try:
            _tell(run, event)
        except OSError as e:
            self._untold[run] = event
            LOG.error("%s is kept in memory: %s", event["event"], e.strerror)

    def _tell_again(self) -> None:
        with self._lock:
            for run, event in list(self._untold.items()):
                if run.folder.is_dir():
                    with contextlib.suppress(OSError):
                        _tell(run, event)
                        del self._untold[run]
                else:
                    del self._untold[run]


@dataclass(eq=False)
class _Work:
    """The run at work."""

    run: Run
    process: Process
    asked_to_stop: bool = False
    began: float = field(default_factory=time.monotonic)

    def over(self, limits: Limits) -> dict[str, Any] | None:
        """Its last word where it has ended, unless it said one itself; ends it where it was asked to, or takes more
        than it may."""
        why = self._why(limits) if self.process.is_alive() else None
        if self.process.is_alive() and not why:
            return None
        stop(self.process)
        if why:
            return {"event": "Stopped", "message": why}
        full = shutil.disk_usage(self.run.folder).free < ROOM
        died = FULL if full else "It ended without a word, perhaps for want of memory; a smaller model may fit."
        return {"event": "Failed", "message": died}

    def _why(self, limits: Limits) -> str | None:
        if self.asked_to_stop:
            return "Stopped as you asked; it goes on from here when you start it again."
        if time.monotonic() - self.began > limits.seconds:
            return f"Stopped after {limits.seconds / 60:.0f} minutes, the most a run may take here; it can go on."
        if _size(self.run.folder) > limits.bytes:
            return f"Stopped at {limits.bytes / 1e9:.0f} GB, the most disk a run may take here."
        return None


def work(folder: Path) -> None:
    """`compress` in a process of its own: every event a line, trouble a sentence without paths and tokens."""
    from hf_prune.pipeline import compress
    from hf_prune.report.text import event_dict

    run = Run(folder)
    try:
        for event in compress(run.recipe):
            _tell(run, _public(event_dict(event)))
    except HfPruneError as e:
        _tell(run, {"event": "Failed", "message": public(str(e))})
    except Exception as e:
        _tell(run, {"event": "Failed", "message": public(f"{type(e).__name__}: {e}")})


def public(text: str) -> str:
    """A message that may be shown to strangers: no paths of this machine, no tokens."""
    return scrub(without_paths(text))


def _public(value: Any) -> Any:
    """The same with every text inside made public."""
    if isinstance(value, dict):
        return {k: _public(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_public(v) for v in value]
    return public(value) if isinstance(value, str) else value


def owner_of(who: str) -> str:
    """What stands in the folder of a run for its owner: neither a name nor a secret can be read from it."""
    return hashlib.sha256(who.encode()).hexdigest()[:32]


def _tell(run: Run, event: dict[str, Any]) -> None:
    """Append a line, whole or not at all."""
    line = json.dumps({"at": round(time.time(), 2), **event}, allow_nan=False).encode() + b"\n"
    with (run.folder / "events.jsonl").open("ab", buffering=0) as file:
        before = file.tell()
        if file.write(line) < len(line):
            file.truncate(before)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _id(owner: str, recipe: Recipe) -> str:
    return hashlib.sha256(f"{owner} {recipe.digest}".encode()).hexdigest()[:16]


def _owner(run: Run) -> str | None:
    path = run.folder / "owner"
    return path.read_text(encoding="utf-8") if path.is_file() else None


def _touched(run: Run) -> float:
    path = run.folder / "events.jsonl"
    return (path if path.exists() else run.folder).stat().st_mtime


def _size(folder: Path) -> int:
    """Bytes below a folder that changes meanwhile."""
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            total += path.lstat().st_size
    return total
