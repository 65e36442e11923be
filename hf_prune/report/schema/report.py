"""What report.json holds: everything the card says, for programs."""

from typing import Annotated, Any, ClassVar

from pydantic import Field

from hf_prune.blueprint import MOST_LAYERS
from hf_prune.report.schema.course import (
    BaseCheck,
    Certificate,
    Hardware,
    Healing,
    Latency,
    Learning,
    Merging,
    Repair,
    SearchSummary,
    Selection,
    Split,
    TimeBudget,
)
from hf_prune.report.schema.document import Document
from hf_prune.report.schema.model import (
    Ends,
    LayerFate,
    LayerOrigin,
    LayerWidth,
    Member,
    Size,
    SourceCard,
    VocabularyCut,
)
from hf_prune.report.schema.scores import (
    Baseline,
    BesideParents,
    Generation,
    Retention,
    Speed,
    Stages,
    Task,
    Text,
    TokenCost,
)
from hf_prune.report.schema.section import Count, Number


class Report(Document):
    """What was asked for, how the model was made, what it is, and what was measured; corpora and tasks by name.

    The corpus `all` stands for all text, and what is absent in an old report was not measured then.
    `found_by` is the baseline whose cut was best on the selection split, None where the search's own was; `left_out`
    says which standard tasks could not be read, and why. `command` has a line for every command that took part;
    `recipe` is what was asked for, without paths. From `parents` to `ends` there is something in models made of several
    parents only: their names, the best of them, who was the teacher on which corpus, and what every output layer is
    made of. `hypervolume` is (candidates so far, hypervolume of the front). `seconds` by stage of the run.
    """

    longest: ClassVar[int] = 1 << 22
    hf_prune: str | None = None
    command: str | None = None
    recipe: dict[str, Any] = {}
    recipe_digest: str | None = None
    digest: str = ""
    sources: tuple[SourceCard, ...] = ()
    method: str = ""
    search: str = ""
    objective: str = "kl"
    found_by: str | None = None
    seed: int = 0
    size: Size
    layers: Annotated[tuple[LayerFate, ...], Field(max_length=MOST_LAYERS)]
    widths: Annotated[tuple[LayerWidth, ...], Field(max_length=MOST_LAYERS)] | None = None
    own_code: bool = False
    parents: tuple[str, ...] = ()
    dense_parent: str | None = None
    teachers: dict[str, str] = {}
    origins: tuple[LayerOrigin, ...] = ()
    ends: Ends | None = None
    splits: dict[str, Split] = {}
    text: dict[str, Text] = {}
    baselines: tuple[Baseline, ...] = ()
    tasks: dict[str, Task] = {}
    left_out: str | None = None
    stages: Stages | None = None
    generation: Generation | None = None
    speed: Speed | None = None
    retention: Retention | None = None
    beside_parents: dict[str, BesideParents] = {}
    tuning: Learning | None = None
    repair: Repair | None = None
    healing: Healing | None = None
    selection: Selection | None = None
    merging: Merging | None = None
    search_summary: SearchSummary | None = None
    base_check: BaseCheck | None = None
    certificate: Certificate | None = None
    front: tuple[Member, ...] | None = None
    hypervolume: tuple[tuple[Count, Number], ...] | None = None
    hardware: Hardware | None = None
    versions: dict[str, str] = {}
    latency: Latency | None = None
    seconds: dict[str, Number] = {}
    time: TimeBudget | None = None
    vocabulary: VocabularyCut | None = None
    token_cost: TokenCost | None = None

    @property
    def push_to(self) -> str | None:
        """The repo that the recipe asked to publish to."""
        return self.recipe.get("push_to")

    @property
    def trusts_code(self) -> bool:
        """Whether the base brings code of its own."""
        return bool(self.recipe.get("trust_remote_code"))
