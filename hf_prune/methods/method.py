"""What a method declares, all in one place: nobody else asks for its name.

A method says what an integer of a genome means. Everything is values, so that what a plan counts and what a session
plays is one list. `recipe` is a `Recipe`, which stands above and is not imported here.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from hf_prune.blueprint import Genome, LayerSpec
from hf_prune.models.families import Family
from hf_prune.models.mixtures import Mixture
from hf_prune.search import Space

Cuts = Mapping[str, tuple[int, ...]]
"""Source layers that go in each comparison played so far, by its name, in order."""
Table = tuple[tuple[float, ...], ...]
"""A number for every level of every half: attentions, then MLPs."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """Parameters of a dense model: of each layer, and of the whole with tied ones counted once; and its experts."""

    layers: tuple[int, ...]
    total: int
    mixture: Mixture | None = None

    @property
    def depth(self) -> int:
        """Number of layers."""
        return len(self.layers)

    @property
    def share(self) -> float:
        """What a mean layer is of all parameters."""
        return sum(self.layers) / self.depth / self.total


@dataclass(frozen=True, slots=True)
class Target:
    """What the one dial comes to.

    remove: whole layers, or as many as the share is worth where parts of layers go, or experts of every layer; 0 = the
    search looks at every size.
    removed_ratio: share of all parameters. miss: by how much that misses the share asked for, None when none was asked.
    goal: the same in words. whole: whether whole layers go. exact: the goal says what goes, better than a number of
    layers.
    """

    remove: int
    removed_ratio: float
    miss: float | None
    goal: str = "every size"
    whole: bool = True
    exact: bool = False


EVERY_SIZE = Target(0, 0.0, None)


@dataclass(frozen=True, slots=True)
class Facts:
    """Plain numbers a method builds its space from; a plan knows some, a session all.

    depth: source layers. remove: of the target. front: the search looks at every size. parents, names: base and
    variants. best: the parent that is best on the search evidence. embed_of, head_of: for every parent the first that
    has its embedding, or its final norm and head. influence: ShortGPT's, per layer. kinds: per layer the number of its
    kind; only layers of one kind can be merged. libraries: digest of each kind.
    costs, limit: what every level costs, and the most of their sum. losses: what every level loses by second order.
    mixture: the base's experts. scores: by name, what each of them is worth, a row per layer that has some.
    """

    depth: int
    remove: int = 0
    front: bool = False
    parents: int = 1
    names: tuple[str, ...] = ()
    best: int = 0
    embed_of: tuple[int, ...] = ()
    head_of: tuple[int, ...] = ()
    influence: tuple[float, ...] = ()
    kinds: tuple[int, ...] = ()
    libraries: Mapping[str, str] = field(default_factory=dict)
    costs: Table = ()
    limit: float | None = None
    losses: Table = ()
    mixture: Mixture | None = None
    scores: Mapping[str, Table] = field(default_factory=dict)


def nothing(cuts: Cuts) -> tuple[Genome, ...]:
    """No start."""
    return ()


@dataclass(frozen=True, slots=True)
class Comparison:
    """A model of the same size that the result is compared with: searched for, or fixed.

    name, label: in reports. told: what the stage says; consecutive ones that say the same are one stage, named `lap`
    where times are told.

    Searched: by `searcher` in `space` (None: plain deletions of whole layers), every layer mixed of the parents by
    `mix`; `trials` at most (None: as many as it takes, or as the result's search may ask), by the value `column`, on
    text alone, and of its finalists the best or the `median`. `as_result`: chosen as the result is, instead: by its
    objective on all evidence, from `starts`, and of the finalists the best on the selection windows.

    Fixed: `layers` makes them of the cuts that were found before, of which it `needs` those of these names.
    """

    name: str
    label: str
    told: str
    lap: str = "baselines"
    space: Space | None = None
    mix: tuple[float, ...] = (1.0,)
    searcher: str = ""
    trials: int | None = None
    column: str = "kl"
    median: bool = False
    as_result: bool = False
    starts: Callable[[Cuts], tuple[Genome, ...]] = nothing
    layers: Callable[[Cuts], tuple[LayerSpec, ...]] | None = None
    needs: tuple[str, ...] = ()


class Method(Protocol):
    """The contract; `deletions.WholeLayers` fulfils it for methods that take out whole layers."""

    title: str
    """For --help and the form."""
    genes: frozenset[str]
    """What searchers may count on: `layers` (whole layers go), `listed` (all models can be listed), `coded` (genes are
    numbers below `space.cardinalities`)."""
    several: bool
    """Takes variants."""
    units: int
    """Parts of a layer that go by themselves."""
    trials: int
    """Of the default search, for every single move that a candidate has."""
    shrinks: bool
    """What goes leaves the file."""
    refits: bool
    """Its models come with refitted weights, so there is nothing to repair."""
    baselines: tuple[str, ...]
    """Names a recipe may ask for."""

    def check(self, recipe: Any) -> None:
        """Raise ValueError where fields contradict each other."""

    def target(self, recipe: Any, sizes: Sizes) -> Target:
        """What the one dial comes to; not asked where the search looks at every size.

        Raises:
            InvalidRecipe: no layer would go, or all, or one that does not exist.
        """

    def libraries(self, recipe: Any) -> tuple[str, ...]:
        """Kinds of level libraries made before the search, that of its own space first."""

    def require(self, family: Family) -> None:
        """Refuse a family whose layers it does not know how to cut.

        Raises:
            UnsupportedArchitecture: which it knows.
        """

    def takes_apart(self, recipe: Any) -> str | None:
        """The flag by which it takes attention and MLP of a layer by themselves, which not all families allow; None
        where layers are one piece."""

    def uneven(self, recipe: Any) -> bool:
        """Whether layers of a result may have widths of their own."""

    def merges(self, recipe: Any) -> bool:
        """Whether every candidate merges layers of one model with each other, which must be of one kind then."""

    def moves(self, recipe: Any, facts: Facts) -> int:
        """Single moves that a candidate has: default evaluations follow."""

    def pieces(self, facts: Facts) -> tuple[int, int]:
        """Parts that a search takes out one after another: how many there are, and how many are to go."""

    def space(self, recipe: Any, facts: Facts) -> Space:
        """The space of one budget."""

    def comparisons(self, recipe: Any, facts: Facts) -> tuple[Comparison, ...]:
        """What the result is compared with; beside a front, at the size of the member that is chosen."""

    def starts(self, space: Space, facts: Facts, cuts: Sequence[tuple[int, ...]]) -> tuple[Genome, ...]:
        """Where the search begins, the likelier first; `cuts` are the comparisons'."""

    def guess(self, space: Space, facts: Facts) -> Callable[[Genome], float] | None:
        """What a genome may cost, above 0, by what is known of the dense model alone; None where nothing is."""
