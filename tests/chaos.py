"""Kills at random moments, from the search to the upload: the next attempt ends in the same bytes.

python -m tests.chaos --kills 200 --seed 0     (make chaos)

Every command is killed with -9 up to `MOST` times before it may end. After each kill nothing of it may run on; after
each end the folder holds what the undisturbed commands left, byte for byte but for clocks, and nothing besides; no
candidate was scored twice, and the stand-in Hub has one commit of the result.
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from hf_prune.data.bundled import demo_folder
from tests.conftest import HUB
from tests.hub import Hub
from tests.runs import Command, text

MOST = 3
"""Kills of one command before it may end."""
GRACE = 2.0
"""Seconds until everything that a killed process had started must be gone."""
REPO = "ns/small"
SIZES = ("--length", 32, "--sequences", 6, "--selection-sequences", 4, "--report-sequences", 4, "--task-items", 4)
SEARCH = (*SIZES, "--keep-layers", 3, "--evaluations", 40, "--population", 4, "--offspring", 6, "--repair",
          "--repair-sequences", 8, "--repair-finalists", 2)  # fmt: skip
HEAL = (*SIZES[:2], *SIZES[4:], "--heal", "3k", "--heal-batch", 4, "--heal-rank", 2, "--selection-sequences", 4)
REFUSES = ("report", "assemble")
"""Commands that leave a folder alone which is there, whole or not at all."""
CLOCKS = {"seconds", "speed", "latency", "hardware", "tokens_per_s", "layer_tokens", "forecast"}
"""Keys of a report that no two runs have alike: times, and what an attempt had to compute again."""
BY_CLOCK = ("README.md", "figures/capabilities.png", "trainer_state.json")
"""Files with such values in them."""


@dataclass
class Story:
    """A folder with a base and a text, and the commands that make everything else in it."""

    home: Path
    hub: Hub
    kills: int = 0
    stages: Counter[str] = field(default_factory=Counter)

    def commands(self) -> dict[str, tuple[Sequence[object], str | None]]:
        """By name: arguments, and the folder that they make."""
        base, data = self.home / "base", ("--data", self.home / "text.txt")
        small = self.home / "small"
        return {
            "compress": (("compress", base, *data, *SEARCH, "--output", small), "small"),
            "heal": (("heal", small, "--base", base, *data, *HEAL, "--output", self.home / "healed"), "healed"),
            "report": (("report", small, "--base", base, *data, "--report-sequences", 6, "--length", 32,
                        "--task-items", 4, "--output", self.home / "reported"), "reported"),
            "report in place": (("report", self.home / "healed", "--base", base, *data, "--report-sequences", 6,
                                 "--length", 32, "--task-items", 4), "healed"),
            "assemble": (("assemble", small / "blueprint.json", "--source", base, "--output", self.home / "again"),
                         "again"),
            "push": (("push", self.home / "healed", REPO), None),
        }  # fmt: skip

    def start(self, arguments: Sequence[object]) -> Command:
        return Command(*arguments)

    def finish(self, arguments: Sequence[object]) -> float:
        """Let a command come to its end; its seconds."""
        began, process = time.monotonic(), self.start(arguments)
        out, err = process.communicate(timeout=600)
        assert process.returncode == 0, f"{arguments[0]} ended with {process.returncode}: {err or out}"
        return time.monotonic() - began

    def kill(self, name: str, arguments: Sequence[object], after: float) -> bool:
        """Start a command and kill it after so many seconds, unless it has ended."""
        process = self.start(arguments)
        time.sleep(after)
        family = [process.pid, *descendants(process.pid)]
        hit = process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)
        until = time.monotonic() + GRACE
        while (left := [pid for pid in family if alive(pid)]) and time.monotonic() < until:
            time.sleep(0.02)
        assert not left, f"{name} was killed, and {[Path(f'/proc/{p}/cmdline').read_bytes() for p in left]} run on"
        self.kills += hit
        self.stages[name] += hit
        return hit


def told(home: Path, hub: Hub, name: str | None) -> dict[str, str]:
    """What a folder holds: digests by file, clocks left out; of the Hub its files and how many commits they took."""
    if name is None:
        repo = hub.repo(REPO)
        files = {path: entry.key for path, entry in repo.at("main").tree.items()}
        clocked = {path: "there" for path in files if path in BY_CLOCK or path.endswith("report.json")}
        return files | clocked | {"commits": str(len(repo.commits))}
    folder = home / name
    files = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}
    return {n: "there" if n in BY_CLOCK else _digest(p) for n, p in sorted(files.items())}


def _digest(path: Path) -> str:
    content = path.read_bytes()
    if path.name == "report.json":
        content = json.dumps(_without_clocks(json.loads(content))).encode()
    if path.name == "journal.jsonl":
        keys = Counter(
            json.dumps([t["digest"], t["fidelity"]])
            for line in content.splitlines()[1:]
            for t in json.loads(line)["trials"]
        )
        assert set(keys.values()) == {1}, f"scored twice: {keys.most_common(1)}"
    return hashlib.sha256(content).hexdigest()


def _without_clocks(value: object) -> object:
    if isinstance(value, Mapping):
        return {k: _without_clocks(v) for k, v in value.items() if k not in CLOCKS}
    return [_without_clocks(v) for v in value] if isinstance(value, list) else value


def descendants(pid: int) -> list[int]:
    """Everything that it has started, and that these have."""
    below: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(FileNotFoundError, ProcessLookupError):
            below.setdefault(int(stat.read_text().rpartition(")")[2].split()[1]), []).append(int(stat.parent.name))

    def walk(one: int) -> Iterator[int]:
        for child in below.get(one, ()):
            yield child
            yield from walk(child)

    return list(walk(pid))


def alive(pid: int) -> bool:
    """Whether it runs; one that nobody has waited for does not."""
    with suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    return False


def begin(home: Path, hub: Hub) -> Story:
    """The folder of a story; the Hub is empty."""
    home.mkdir()
    shutil.copytree(demo_folder() / "stories260K", home / "base")
    text(home / "text.txt")
    hub.reset()
    return Story(home, hub)


def undisturbed(home: Path, hub: Hub) -> tuple[dict[str, float], dict[str, dict[str, str]]]:
    """Seconds of every command, and what each leaves, where nobody disturbs them."""
    story, seconds, left = begin(home, hub), {}, {}
    # The first process of all waits for imports.
    story.finish(["--version"])
    for name, (arguments, folder) in story.commands().items():
        seconds[name] = story.finish(arguments)
        left[name] = told(home, hub, folder)
    return seconds, left


def disturbed(
    home: Path, hub: Hub, seconds: Mapping[str, float], left: Mapping, kills: int, rng: random.Random
) -> Story:
    """All commands once, killed at random moments up to so many times; raises AssertionError for what differs."""
    story = begin(home, hub)
    for name, (arguments, folder) in story.commands().items():
        for _ in range(rng.randint(1, MOST)):
            # Some moments lie behind the end: then there was nothing to kill.
            if story.kills < kills and not story.kill(name, arguments, rng.uniform(0.0, 1.1 * seconds[name])):
                break
        if name not in REFUSES or not (home / folder).exists():
            story.finish(arguments)
        found = told(home, hub, folder)
        odd = {n for n in {*found, *left[name]} if found.get(n) != left[name].get(n)}
        assert not odd, f"{name} left {sorted(odd)} otherwise than undisturbed"
    expected = {"base", "text.txt", *(folder for _, folder in story.commands().values() if folder)}
    stray = {p.name for p in home.iterdir()} - expected
    assert not stray, f"nobody put away {sorted(stray)}"
    return story


def run(home: Path, hub: Hub, kills: int, seed: int) -> Counter[str]:
    """Stories one after another until so many kills have hit; how many hit which command."""
    rng, hits = random.Random(seed), Counter()
    # Digests of recipes tell one path from another.
    seconds, left = undisturbed(home / "story", hub)
    while (missing := kills - hits.total()) > 0:
        shutil.rmtree(home / "story")
        hits += disturbed(home / "story", hub, seconds, left, missing, rng).stages
        print(f"{hits.total()} of {kills} kills: {dict(hits)}", flush=True)
    return hits


def main() -> None:
    """Count and tell."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="hf_prune_chaos_") as home:
        # What a killed process has in its temporary folder stays there.
        os.environ["TMPDIR"] = home
        run(Path(home), HUB, asked.kills, asked.seed)


if __name__ == "__main__":
    main()
