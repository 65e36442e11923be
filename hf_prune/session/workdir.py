"""OUTPUT.run: where long stages keep what they have until the result is complete."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Workdir:
    """The run's folder; its files are named by everything that decides their content."""

    folder: Path

    @classmethod
    def beside(cls, output: str | Path) -> "Workdir":
        """Of a result that will lie there."""
        output = Path(output)
        return cls(output.with_name(output.name + ".run"))

    @property
    def journal(self) -> Path:
        """Every trial of the run."""
        return self.folder / "journal.jsonl"

    @property
    def sweep(self) -> Path:
        """Finished chunks of the sweep that is under way."""
        return self.folder / "sweep.jsonl"

    @property
    def text(self) -> Path:
        """The entries of data, where the recipe names none."""
        return self.folder / "text.json"

    def samples(self, key: str) -> Path:
        """What the base said itself, by what decides that."""
        return self.folder / f"samples-{key}.jsonl"

    @property
    def batch(self) -> Path:
        """Most candidates of one step of the journal, measured once."""
        return self.folder / "batch.json"

    @property
    def time(self) -> Path:
        """The budgets decided, and how the time was spent."""
        return self.folder / "time.json"

    @property
    def parents(self) -> Path:
        """What was found of the parents before the search."""
        return self.folder / "parents.json"

    @property
    def items(self) -> Path:
        """Which items every candidate answered rightly."""
        return self.folder / "items.jsonl"

    @property
    def latencies(self) -> Path:
        """What every level costs in time, measured once."""
        return self.folder / "latencies.json"

    @property
    def trials(self) -> Path:
        """What was trained of finalists."""
        return self.folder / "trials"

    def repair(self, search: str, cut: str, fit: str) -> Path:
        """A repaired cut, by the digests of the search, the cut and the text; its tensors lie beside it."""
        return self.folder / "repairs" / f"{search}-{cut}-{fit}.json"

    def shares(self, search: str, whole: str, how: str) -> Path:
        """How far each half of a repair goes, as far as it is learned."""
        return self.folder / "repairs" / f"{search}-{whole}-{how}.safetensors"

    def tuned(self, search: str, cut: str, how: str) -> Path:
        """A cut whose mixes were learned; the state of the descent lies beside it."""
        return self.folder / "tuned" / f"{search}-{cut}-{how}.json"

    def healing(self, recipe: str, whole: str) -> Path:
        """Folder of a training, by the digests of its recipe and of what is trained."""
        return self.folder / f"heal-{recipe}-{whole}"
