"""What the user asks for: one definition behind the YAML file, the CLI flags and Python."""

import difflib
import hashlib
import re
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from hf_prune.errors import InvalidRecipe
from hf_prune.methods import METHODS
from hf_prune.search import SEARCHERS

Method = Literal[*METHODS]
Search = Literal[*SEARCHERS]
Objective = Literal[
    "kl", "perplexity", "similarity", "kl_similarity", "gelaco_v1", "text", "tasks", "tasks_norm", "doubt", "abilities"
]
TASK_OBJECTIVES = ("tasks", "tasks_norm", "doubt", "abilities")
Baseline = Literal[*dict.fromkeys(name for method in METHODS.values() for name in method.baselines)]

RULES = ("keep", "mean", "difference:0.5", "difference:1.0", "laco-released")
DEFAULT_DATA = "Salesforce/wikitext:wikitext-2-raw-v1"
NOT_IDENTITY = {
    "output",
    "library",
    "memory",
    "push_to",
    "create_pr",
    "public",
    "commit_message",
    "overwrite",
    "device",
}
"""Fields that do not change which model comes out, so a changed value does not make a journal stale."""

AFTER_SEARCH = {
    "tune", "tune_items", "repair", "heal", "heal_method", "heal_rank", "heal_alpha", "heal_kl", "heal_ce",
    "heal_top_k", "heal_lr", "heal_batch", "heal_checks", "heal_patience", "gradient_checkpointing", "keep_adapter",
    "report_sequences", "tasks", "task_items", "lm_eval", "lm_eval_limit",
}  # fmt: skip
"""Fields that no candidate's score depends on, so a journal is good for any of their values."""

NUMBER = r"\d+(\.\d+)?"
MERGE = rf"linear|slerp|(task-arithmetic|passthrough):{NUMBER}|ties:{NUMBER}|dare(-ties)?:{NUMBER}(:\d+)?"

AT_LEAST_ONE = (
    "sequences", "selection_sequences", "report_sequences", "population", "offspring", "evaluations", "task_items",
    "lm_eval_limit", "repair_sequences", "repair_finalists", "search_items", "selection_items", "tune_items",
    "heal_rank", "heal_top_k", "levels", "library_sequences", "heal_batch", "heal_checks", "heal_patience",
)  # fmt: skip


def _count(raw: Any) -> Any:
    """Tokens as people write them: 1M, 500k, 2_000_000."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kMG]?)", str(raw).replace("_", "").strip())
    if not match or isinstance(raw, bool):
        raise ValueError(f"a number of tokens is written 1M, 500k or 250000, not {raw!r}")
    return round(float(match[1]) * {"": 1, "k": 10**3, "M": 10**6, "G": 10**9}[match[2]])


Tokens = Annotated[int, BeforeValidator(_count)]


class Recipe(BaseModel):
    """Everything a run depends on. Unknown keys are refused with the nearest right name."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    base: str = Field(
        description="Local folder, repo, repo@revision, or repo+adapter_repo (a PEFT LoRA, merged on load)."
    )
    variants: tuple[str, ...] = Field(
        (),
        description="Fine-tuned variant of the base, spelled like one: a model of equal shape, or a PEFT LoRA.",
        json_schema_extra={"flag": "variant"},
    )
    output: str = Field("pruned", description="Folder for the result; must not exist unless --overwrite.")
    method: Method = Field("collapse", description=f"What an integer means: {', '.join(METHODS)}.")
    ratio: float | None = Field(None, description="Share of the whole model's parameters to remove, e.g. 0.25.")
    keep_layers: int | None = Field(None, description="Number of layers to keep, instead of --ratio.")
    drop_layers: int | None = Field(None, description="Number of layers to remove, instead of --ratio.")
    drop: tuple[str, ...] = Field((), description="Layers to drop by hand, e.g. 21-28 or 3,6,7; no search.")
    rules: tuple[str, ...] = Field(RULES, description="Rules a group of layers may collapse by.")
    norms: Literal["follow", "kept"] = Field(
        "kept", description="Merged norms: follow the rule, or stay with the kept layer."
    )
    merges: tuple[str, ...] = Field(
        ("linear", "task-arithmetic:2"),
        description="What stitch may merge layers by: linear, task-arithmetic:SCALE, slerp, ties:DENSITY, "
        "dare:DENSITY[:SEED], dare-ties:DENSITY[:SEED], passthrough:SCALE.",
    )
    mix_halves: bool = Field(False, description="Stitch mixes attention and MLP of a layer apart.")
    tune: int = Field(
        0,
        ge=0,
        description="Steps of gradient descent on the weights of the winner's mixes, on the search text; on the search "
        "tasks, too, where the objective looks at them, and on how far each half of a layer's repair goes.",
    )
    tune_items: int | None = Field(
        None, description="Items of every search task that tuning learns from; default as many as the search has."
    )
    latency: float | None = Field(
        None, description="Share of the dense model's time to keep, instead of --ratio; width only, measured here."
    )
    levels: int = Field(10, description="Widths per layer in the level library, from dense to nothing.")
    multiple_of: int | None = Field(None, description="Neurons kept are a multiple of this; default 8, on a GPU 64.")
    damping: float = Field(0.01, description="Added to the Hessians of the library, as a share of their mean diagonal.")
    library_sequences: int = Field(192, description="Windows that the level library is made from.")
    library: str | None = Field(
        None, description="Folder of the level library; default: by its digest in ~/.cache/hf_prune/levels."
    )
    objective: Objective = Field("kl", description="What the search minimises.")
    search: Search = Field("staged", description="Who proposes candidates.")
    evaluations: int | None = Field(
        None, description="Most trials the search may ask for; default follows from the depth."
    )
    population: int = Field(16, description="Candidates kept per generation.")
    offspring: int = Field(32, description="Candidates proposed per generation.")
    seed: int = Field(0, description="Seed of everything random.")
    data: tuple[str, ...] = Field(
        (),
        description="Text: folder of NAME.{search,selection,report}.jsonl, a file, or repo[:config[:column]].",
    )
    sequences: int = Field(16, description="Windows of full search evidence; split evenly over the corpora.")
    selection_sequences: int = Field(16, description="Windows that choose among finalists.")
    report_sequences: int = Field(48, description="Windows behind the published figures.")
    length: int = Field(256, description="Tokens per window.")
    search_tasks: tuple[str, ...] = Field(
        (), description="Tasks the search may learn from, disjoint from those of the report; spelled like those."
    )
    search_items: int = Field(64, description="Items of every task in full search evidence.")
    selection_items: int = Field(64, description="Items of every task that choose among finalists.")
    tasks: tuple[str, ...] = Field(
        (),
        description="Tasks of the report: JSONL file, repo[:config[:split]] of a dataset, or a task of lm_eval (name "
        "or .yaml file). Default: the bundled cloze tasks.",
    )
    task_items: int = Field(150, description="Most items per task in the report.")
    lm_eval: tuple[str, ...] = Field((), description="Tasks of lm_eval, by name or as a local YAML file.")
    lm_eval_limit: int | None = Field(None, description="Most documents per task of lm_eval.")
    baselines: tuple[Baseline, ...] = Field(
        get_args(Baseline),
        description="Baselines measured at the same size; removal and selection belong to stitch, the last "
        "four to width.",
    )
    repair: bool = Field(False, description="Refit the weights that stay, in closed form and without training.")
    reach: Literal["map", "gap", "all"] = Field(
        "all", description="What a repair refits: a map behind each gap, the layers before gaps, or all layers."
    )
    repair_sequences: int = Field(192, description="Windows a repair is fitted on.")
    repair_finalists: int = Field(4, description="Finalists that are repaired before the best is chosen.")
    search_heal: Tokens = Field(0, description="Tokens that each of 8 finalists is trained on before the choice.")
    heal: Tokens = Field(0, description="Tokens to train the result on, e.g. 1M; 0 does not train.")
    heal_method: Literal["lora", "dora", "full"] = Field("lora", description="What is trained.")
    heal_rank: int = Field(32, description="Rank of the LoRA.")
    heal_alpha: float = Field(64.0, description="Scale of the LoRA, divided by its rank.")
    heal_kl: float = Field(1.0, description="Weight of the KL to the dense parent; 0 is no distillation.")
    heal_ce: float = Field(0.5, description="Weight of the cross-entropy of the text.")
    heal_top_k: int = Field(512, description="Likeliest tokens of the dense parent that distillation compares.")
    heal_lr: float | None = Field(None, description="Peak learning rate; default follows from the method.")
    heal_batch: int = Field(16, description="Windows per training step.")
    heal_checks: int = Field(10, description="Times the selection split is looked at; the best state is kept.")
    heal_patience: int = Field(5, description="Looks without a better state until training stops.")
    gradient_checkpointing: bool = Field(False, description="Trade time for memory in training.")
    keep_adapter: bool = Field(False, description="Leave the weights as they are; put the LoRA into adapter/.")
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1, mps.")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="Precision of the search; auto is the checkpoint's own where the device computes in it."
    )
    memory: float | None = Field(
        None, description="Most GiB for weights: the base, and as many merged layers as fit. Default: 64 layers."
    )
    allow_pickle: bool = Field(False, description="Accept .bin weights (they can run code when read).")
    trust_remote_code: bool = Field(False, description="Accept models that ship their own code.")
    force_test_split: bool = Field(False, description="Search on a public test split although that spoils its figures.")
    push_to: str | None = Field(None, description="Repo to publish to, ns/name.")
    public: bool = Field(False, description="Make a newly created repo public; private otherwise.")
    create_pr: bool = Field(False, description="Publish as a pull request.")
    commit_message: str | None = Field(None, description="Commit message of the upload.")
    overwrite: bool = Field(False, description="Replace a finished result of another recipe in --output.")

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, raw: Any) -> Any:
        for key in raw if isinstance(raw, dict) else ():
            if key not in cls.model_fields:
                near = difflib.get_close_matches(key, cls.model_fields, 1, 0.4)
                hint = f"; did you mean {near[0]!r}?" if near else f"; known keys: {', '.join(cls.model_fields)}"
                raise ValueError(f"unknown key {key!r}{hint}")
        return raw

    @field_validator(
        "drop", "rules", "data", "tasks", "lm_eval", "baselines", "variants", "merges", "search_tasks", mode="before"
    )
    @classmethod
    def _one_or_many(cls, raw: Any) -> Any:
        # YAML: `data: folder` and `drop: [3, 6]` are what people write.
        entries = [raw] if isinstance(raw, str | int) else raw
        return [str(e) if type(e) is int else e for e in entries] if isinstance(entries, list | tuple) else raw

    @model_validator(mode="after")
    def _consistent(self) -> "Recipe":
        asked = [
            n for n in ("ratio", "keep_layers", "drop_layers", "drop", "latency") if getattr(self, n) not in (None, ())
        ]
        if len(asked) > 1:
            raise ValueError(
                f"give only one of ratio, keep_layers, drop_layers, drop and latency, not {' and '.join(asked)}"
            )
        if self.ratio is not None and not 0 < self.ratio < 1:
            raise ValueError(f"ratio is the share of parameters to remove, between 0 and 1, not {self.ratio}")
        if self.every_size and asked:
            raise ValueError(
                f"search {self.search} looks at every size, so {asked[0]} has no meaning; drop one of the two"
            )
        for name in AT_LEAST_ONE:
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")
        if self.heal and self.heal_kl <= 0 and self.heal_ce <= 0:
            raise ValueError("healing needs something to learn: heal_kl or heal_ce must be above 0")
        if min(self.heal_kl, self.heal_ce) < 0 or self.heal_alpha <= 0 or (self.heal_lr or 1.0) <= 0:
            raise ValueError("heal_kl, heal_ce, heal_alpha and heal_lr must not be negative")
        if self.keep_adapter and self.heal_method == "full":
            raise ValueError("heal_method full trains the weights themselves, so there is no adapter to keep")
        self._consistent_method()
        if self.length < 8:
            raise ValueError(f"length must be at least 8 tokens, not {self.length}")
        self.dropped()
        for rule in self.rules:
            if not re.fullmatch(r"keep|keep-first|keep-last|mean|laco-released|difference:-?\d+(\.\d+)?", rule):
                raise ValueError(
                    f"unknown rule {rule!r}; rules are keep, keep-first, keep-last, mean, difference:LAMBDA, "
                    "laco-released"
                )
        return self

    def _consistent_method(self) -> None:
        method = METHODS[self.method]
        if method.several != bool(self.variants):
            several = " or ".join(name for name, m in METHODS.items() if m.several)
            raise ValueError(
                f"method {self.method} takes layers from a base and its variants; name at least one with --variant"
                if method.several
                else f"method {self.method} knows one model; with variants choose --method {several}"
            )
        if self.tune and (not method.several or self.every_size):
            raise ValueError(
                f"tune learns the mixes of one model; leave it out without variants or with search {self.search}"
            )
        if self.objective in TASK_OBJECTIVES and not self.search_tasks:
            raise ValueError(f"objective {self.objective} needs tasks to search on; name files with --search-tasks")
        if not SEARCHERS[self.search].needs <= method.genes:
            fit = ", ".join(name for name, s in SEARCHERS.items() if s.needs <= method.genes)
            raise ValueError(
                f"search {self.search} does not know the genes of method {self.method}; choose one of {fit}"
            )
        if self.repair and method.refits:
            raise ValueError(f"the levels of method {self.method} are repaired already; leave out --repair")
        method.check(self)
        for merge in self.merges:
            if not re.fullmatch(MERGE, merge):
                raise ValueError(
                    f"unknown merge {merge!r}; merges are linear, task-arithmetic:SCALE, slerp, ties:DENSITY, "
                    "dare:DENSITY[:SEED], dare-ties:DENSITY[:SEED] and passthrough:SCALE"
                )

    @property
    def every_size(self) -> bool:
        """Whether the search looks for a front of sizes, and no size is asked for."""
        return SEARCHERS[self.search].every_size

    def dropped(self) -> tuple[int, ...]:
        """`drop` as sorted layer numbers; ranges include both ends."""
        layers: set[int] = set()
        for item in (piece for entry in self.drop for piece in entry.replace(" ", "").split(",") if piece):
            match = re.fullmatch(r"\[?(\d+)(?:-(\d+))?\]?", item)
            if not match:
                raise ValueError(f"drop takes layer numbers and ranges such as 3,6,21-28, not {item!r}")
            first, last = int(match[1]), int(match[2] or match[1])
            if last < first:
                raise ValueError(f"drop range {item!r} ends before it begins; write {last}-{first}")
            layers.update(range(first, last + 1))
        return tuple(sorted(layers))

    @property
    def trust(self) -> dict[str, bool]:
        """What this run lets a model's files do."""
        return {"allow_pickle": self.allow_pickle, "trust_remote_code": self.trust_remote_code}

    @property
    def learned_items(self) -> int:
        """Items of every search task that search or tuning learn from; those behind them choose among finalists."""
        return max(self.search_items, self.tune_items or 0) if self.tune else self.search_items

    @property
    def digest(self) -> str:
        """64 bits over every field that decides the result."""
        return hashlib.sha256(self.model_dump_json(exclude=NOT_IDENTITY).encode()).hexdigest()[:16]

    @property
    def search_digest(self) -> str:
        """64 bits over every field that decides the scores of candidates."""
        left_out = NOT_IDENTITY | AFTER_SEARCH
        return hashlib.sha256(self.model_dump_json(exclude=left_out).encode()).hexdigest()[:16]

    @classmethod
    def of(cls, **fields: Any) -> "Recipe":
        """Build from keyword arguments.

        Raises:
            InvalidRecipe: unknown key, wrong type, or contradicting values; the message names the field.
        """
        try:
            return cls(**fields)
        except ValidationError as e:
            first = e.errors()[0]
            where = ".".join(map(str, first["loc"]))
            text = first["msg"].removeprefix("Value error, ")
            raise InvalidRecipe(f"Recipe{' field ' + where if where else ''}: {text}.") from None

    @classmethod
    def load(cls, path: str | Path, **overrides: Any) -> "Recipe":
        """Read YAML; `overrides` (CLI flags) win."""
        try:
            raw = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
        except (OSError, yaml.YAMLError) as e:
            raise InvalidRecipe(f"Cannot read the recipe {path}: {e}.") from None
        if not isinstance(raw, dict):
            raise InvalidRecipe(f"The recipe {path} must be a mapping of keys to values.")
        return cls.of(**{**raw, **overrides})

    def to_yaml(self) -> str:
        """Every field that differs from its default, in the order of the definition."""
        return yaml.safe_dump(self.model_dump(mode="json", exclude_defaults=True), sort_keys=False)


def spelled(name: str, model: type[BaseModel] = Recipe) -> str:
    """How the command line spells a field: `--heal-lr`, `--variant`."""
    return "--" + (model.model_fields[name].json_schema_extra or {}).get("flag", name.replace("_", "-"))


def flagged(name: str, value: Any) -> list[str]:
    """A field and its value on the command line: `["--variant", "a", "--variant", "b"]`, `["--repair"]`."""
    if value is True:
        return [spelled(name)]
    return [word for one in (value if isinstance(value, list) else [value]) for word in (spelled(name), str(one))]
