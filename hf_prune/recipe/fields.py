"""The fields of a recipe, in groups: what each is called, what it means and what it may be."""

import re
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from hf_prune.methods import METHODS
from hf_prune.recipe.values import MERGE, RULE, count, devices, gguf_types, hands, one_or_many, seconds, tokens_kept
from hf_prune.search import SEARCHERS

Method = Literal[*METHODS]
Searcher = Literal[*SEARCHERS]
Objective = Literal[
    "kl", "perplexity", "similarity", "kl_similarity", "gelaco_v1", "text", "tasks", "tasks_norm", "doubt", "abilities"
]
TASK_OBJECTIVES = ("tasks", "tasks_norm", "doubt", "abilities")
Baseline = Literal[*dict.fromkeys(name for method in METHODS.values() for name in method.baselines)]

RULES = ("keep", "mean", "difference:0.5", "difference:1.0", "laco-released")
DEFAULT_DATA = (
    "self",
    "Salesforce/wikitext:wikitext-2-raw-v1",
    "openai/gsm8k:main:question+answer",
    "bigcode/self-oss-instruct-sc2-exec-filter-50k:default:response",
)
"""Text where none is named: what the base says itself, an encyclopedia, mathematics and Python."""
DEFAULT_TASKS = ("allenai/ai2_arc:ARC-Easy", "allenai/openbookqa:main", "baber/piqa")


Tokens = Annotated[int, BeforeValidator(count)]
MOST_LAYERS = 4096
"""No model has more."""
MOST_NAMES = 1000
"""Entries of a list that somebody wrote."""
Names = Annotated[tuple[str, ...], BeforeValidator(one_or_many), Field(max_length=MOST_NAMES)]


def option(default: Any, text: str, flat: str = "", *, flag: str = "", first: bool = False, **bounds: Any) -> Any:
    """A field of a group.

    Args:
        default: its value where nothing is said.
        text: what it means, for `--help` and for readers.
        flat: its name outside its group, in flags, flat YAML and reports; default: the same as inside.
        flag: its flag without dashes; default: follows from the flat name.
        first: whether `--help` shows it among the options that most people need.
        bounds: of pydantic, such as `ge=1`.
    """
    return Field(default, description=text, json_schema_extra={"flat": flat, "flag": flag, "first": first}, **bounds)


CONFIG = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Group(BaseModel):
    """Fields that belong together."""

    model_config = CONFIG
    main: ClassVar[str] = ""
    """The field that is meant where a plain value stands for the group, as in `heal: 1M`."""

    def __bool__(self) -> bool:
        """Refuse: `if recipe.repair` was once right, and would now always be true."""
        fields = ", ".join(type(self).model_fields)
        raise TypeError(f"{type(self).__name__} is a group of fields and no yes or no; ask one of them: {fields}")


class Size(Group):
    """How much of the model goes, by one of these."""

    main = "ratio"
    ratio: float | None = option(None, "Share of the whole model's parameters to remove, e.g. 0.25.", first=True)
    keep_layers: int | None = option(None, "Number of layers to keep, instead of --ratio.")
    drop_layers: int | None = option(None, "Number of layers to remove, instead of --ratio.")
    drop: Names = option((), "Layers to drop by hand, e.g. 21-28 or 3,6,7; no search.")
    latency: float | None = option(
        None, "Share of the dense model's time to keep, instead of --ratio; width only, measured here."
    )

    @property
    def given(self) -> list[str]:
        """The fields that say how small; one at most."""
        return [name for name in type(self).model_fields if getattr(self, name) not in (None, ())]

    def dropped(self) -> tuple[int, ...]:
        """`drop` as sorted layer numbers; ranges include both ends."""
        if len(self.drop) > MOST_NAMES:
            raise ValueError(f"drop takes at most {MOST_NAMES} layers and ranges, not {len(self.drop)}")
        layers: set[int] = set()
        for item in (piece for entry in self.drop for piece in entry.replace(" ", "").split(",") if piece):
            match = re.fullmatch(r"\[?([0-9]{1,5})(?:-([0-9]{1,5}))?\]?", item)
            if not match or int(match[2] or match[1]) >= MOST_LAYERS:
                said = f"drop takes layer numbers below {MOST_LAYERS} and ranges such as 3,6,21-28"
                raise ValueError(f"{said}, not {item[:60]!r}")
            first, last = int(match[1]), int(match[2] or match[1])
            if last < first:
                raise ValueError(f"drop range {item!r} ends before it begins; write {last}-{first}")
            layers.update(range(first, last + 1))
        return tuple(sorted(layers))

    @model_validator(mode="after")
    def _one(self) -> "Size":
        if len(self.given) > 1:
            raise ValueError(
                "give only one of ratio, keep_layers, drop_layers, drop and latency, not " + " and ".join(self.given)
            )
        if self.ratio is not None and not 0 < self.ratio < 1:
            raise ValueError(f"ratio is the share of parameters to remove, between 0 and 1, not {self.ratio}")
        if self.latency is not None and not 0 < self.latency < 1:
            raise ValueError(f"latency is the share of the dense time to keep, between 0 and 1, not {self.latency}")
        self.dropped()
        return self


class Collapse(Group):
    """How method collapse makes layers one."""

    rules: Names = option(RULES, "Rules a group of layers may collapse by.")
    norms: Literal["follow", "kept"] = option("kept", "Merged norms: follow the rule, or stay with the kept layer.")

    @model_validator(mode="after")
    def _known_rules(self) -> "Collapse":
        for rule in self.rules:
            if not re.fullmatch(RULE, rule):
                raise ValueError(
                    f"unknown rule {rule!r}; rules are keep, keep-first, keep-last, mean, difference:LAMBDA, "
                    "laco-released"
                )
        return self


class Stitch(Group):
    """How method stitch mixes several models."""

    merges: Names = option(
        ("linear", "task-arithmetic:2"),
        "What stitch may merge layers by: linear, task-arithmetic:SCALE, slerp, ties:DENSITY, "
        "dare:DENSITY[:SEED], dare-ties:DENSITY[:SEED], passthrough:SCALE.",
    )
    mix_halves: bool = option(False, "Stitch mixes attention and MLP of a layer apart.")

    @model_validator(mode="after")
    def _known_merges(self) -> "Stitch":
        for merge in self.merges:
            if not re.fullmatch(MERGE, merge):
                raise ValueError(
                    f"unknown merge {merge!r}; merges are linear, task-arithmetic:SCALE, slerp, ties:DENSITY, "
                    "dare:DENSITY[:SEED], dare-ties:DENSITY[:SEED] and passthrough:SCALE"
                )
        return self


class Width(Group):
    """The narrower layers of method width."""

    levels: int = option(10, "Widths per layer in the level library, from dense to nothing.", ge=1)
    multiple_of: int | None = option(None, "Neurons kept are a multiple of this; default 8, on a GPU 64.")
    damping: float = option(0.01, "Added to the Hessians of the library, as a share of their mean diagonal.")
    sequences: int = option(192, "Windows that the level library is made from.", "library_sequences", ge=1)
    library: str | None = option(
        None, "Folder of the level library; default: by its digest in ~/.cache/hf_prune/levels."
    )


class Experts(Group):
    """What method experts takes out of a mixture."""

    per_layer: bool = option(
        False, "Layers may lose different numbers of experts; a class of hf_prune's loads that, and no other program."
    )
    merge: bool = option(
        False, "Experts that go may be merged into the nearest that stays, where that is better.", "merge_experts"
    )


class Search(Group):
    """Who searches, for what, compared with what."""

    main = "searcher"
    searcher: Searcher = option("staged", "Who proposes candidates.", "search")
    objective: Objective = option("kl", "What the search minimises.")
    evaluations: int | None = option(None, "Most trials the search may ask for; default follows from the depth.", ge=1)
    population: int = option(16, "Candidates kept per generation.", ge=1)
    offspring: int = option(32, "Candidates proposed per generation.", ge=1)
    baselines: Annotated[tuple[Baseline, ...], BeforeValidator(one_or_many)] = option(
        get_args(Baseline),
        "Baselines measured at the same size; removal and selection belong to stitch, the last four to width.",
    )


class Data(Group):
    """Text to judge, choose and measure on."""

    main = "text"
    text: Names = option(
        (), "Text: folder of NAME.{search,selection,report}.jsonl, a file, repo[:config[:column]], or self: the "
        "base's own samples, self:prompts.jsonl its answers. Default: self, wikitext, gsm8k and Python.", "data",
        first=True,
    )  # fmt: skip
    length: int = option(256, "Tokens per window.", ge=8)
    sequences: int = option(16, "Windows of full search evidence; split evenly over the corpora.", ge=1)
    selection_sequences: int = option(16, "Windows that choose among finalists.", ge=1)
    own_tokens: Tokens = option(100_000, "Most tokens of the base's own samples to fit and train on.", ge=1)


class Tasks(Group):
    """Tasks of the report and of the search."""

    main = "names"
    names: Names = option(
        (),
        "Tasks of the report: JSONL file, repo[:config[:split]] of a dataset, or a task of lm_eval (name "
        "or .yaml file). Default: ARC-Easy, OpenBookQA and PIQA of the Hub, where it can be reached.",
        "tasks",
    )
    items: int = option(150, "Most items per task in the report.", "task_items", ge=1)
    search: Names = option(
        (),
        "Tasks the search may learn from, disjoint from those of the report; spelled like those.",
        "search_tasks",
    )
    search_items: int = option(64, "Items of every task in full search evidence.", ge=1)
    selection_items: int = option(64, "Items of every task that choose among finalists.", ge=1)
    force_test_split: bool = option(False, "Search on a public test split although that spoils its figures.")


class Tune(Group):
    """Gradient descent on a stitched winner."""

    main = "steps"
    steps: int = option(
        0,
        "Steps of gradient descent on the weights of the winner's mixes, on the search text; on the search "
        "tasks, too, where the objective looks at them, and on how far each half of a layer's repair goes.",
        "tune",
        ge=0,
    )
    items: int | None = option(
        None, "Items of every search task that tuning learns from; default as many as the search has.", "tune_items",
        ge=1,
    )  # fmt: skip


class Repair(Group):
    """Weights that stay, refitted in closed form."""

    main = "enabled"
    enabled: bool = option(
        False, "Refit the weights that stay, in closed form and without training.", "repair", first=True
    )
    reach: Literal["map", "gap", "all"] = option(
        "all", "What a repair refits: a map behind each gap, the layers before gaps, or all layers."
    )
    sequences: int = option(192, "Windows a repair is fitted on.", "repair_sequences", ge=1)
    finalists: int = option(4, "Finalists that are repaired before the best is chosen.", "repair_finalists", ge=1)


class Heal(Group):
    """Training, with the dense model as teacher."""

    main = "tokens"
    tokens: Tokens = option(0, "Tokens to train the result on, e.g. 1M; 0 does not train.", "heal", first=True)
    finalist_tokens: Tokens = option(
        0, "Tokens that each of 8 finalists is trained on before the choice.", "search_heal"
    )
    method: Literal["lora", "dora", "full"] = option("lora", "What is trained.", "heal_method")
    rank: int = option(32, "Rank of the LoRA.", "heal_rank", ge=1)
    alpha: float = option(64.0, "Scale of the LoRA, divided by its rank.", "heal_alpha", gt=0)
    kl: float = option(1.0, "Weight of the KL to the dense parent; 0 is no distillation.", "heal_kl", ge=0)
    ce: float = option(0.5, "Weight of the cross-entropy of the text.", "heal_ce", ge=0)
    top_k: int = option(512, "Likeliest tokens of the dense parent that distillation compares.", "heal_top_k", ge=1)
    lr: float | None = option(None, "Peak learning rate; default follows from the method.", "heal_lr", gt=0)
    batch: int = option(16, "Windows per training step.", "heal_batch", ge=1)
    checks: int = option(10, "Times the selection split is looked at; the best state is kept.", "heal_checks", ge=1)
    patience: int = option(5, "Looks without a better state until training stops.", "heal_patience", ge=1)
    gradient_checkpointing: bool = option(False, "Trade time for memory in training.")
    keep_adapter: bool = option(False, "Leave the weights as they are; put the LoRA into adapter/.")

    @model_validator(mode="after")
    def _learns(self) -> "Heal":
        if self.tokens and not self.kl and not self.ce:
            raise ValueError("healing needs something to learn: heal_kl or heal_ce must be above 0")
        if self.keep_adapter and self.method == "full":
            raise ValueError("heal_method full trains the weights themselves, so there is no adapter to keep")
        return self


class Report(Group):
    """What else is measured in the end."""

    sequences: int = option(48, "Windows behind the published figures.", "report_sequences", ge=1)
    lm_eval: Names = option((), "Tasks of lm_eval, by name or as a local YAML file.")
    lm_eval_limit: int | None = option(None, "Most documents per task of lm_eval.", ge=1)


class Machine(Group):
    """Where to compute, in how much memory and time."""

    time: Annotated[float | None, BeforeValidator(seconds)] = option(
        None, "How long the run may take, e.g. 30m or 2h: what it does is fitted into that. Default: about ten minutes "
        "for what is not asked for by itself; none: no limit.", first=True, ge=0,
    )  # fmt: skip
    device: Annotated[str, AfterValidator(devices)] = option(
        "auto", "auto, cpu, cuda, cuda:1, mps; several, as cuda:0,cuda:1, share the search."
    )  # fmt: skip
    workers: Annotated[str, BeforeValidator(hands)] = option(
        "1", "Processes that score candidates side by side, with the same results; each opens the model.",
    )  # fmt: skip

    @property
    def kind(self) -> str:
        """Kind of the device, or auto."""
        return re.split("[:,]", self.device)[0]

    @property
    def places(self) -> int:
        """Processes that score side by side."""
        return max(int(self.workers), len(self.device.split(",")))

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = option(
        "auto", "Precision of the search; auto is the checkpoint's own where the device computes in it."
    )
    memory: float | None = option(
        None, "Most GiB for weights and states on the device; of a larger base layers are read when reached.", gt=0
    )


class Trust(Group):
    """What a model's files may do here."""

    pickle: bool = option(False, "Accept .bin weights (they can run code when read).", "allow_pickle")
    remote_code: bool = option(False, "Accept models that ship their own code.", "trust_remote_code")
    dequantize: bool = option(
        False, "Accept a quantised base (FP8, MXFP4, GGUF ...), which transformers turns into a plain one."
    )

    @property
    def arguments(self) -> dict[str, bool]:
        """The same as functions that read models take it."""
        return {
            "allow_pickle": self.pickle,
            "trust_remote_code": self.remote_code,
            "dequantize": self.dequantize,
        }


class Publish(Group):
    """Where the result goes."""

    main = "repo"
    repo: str | None = option(None, "Repo to publish to, ns/name.", "push_to", first=True)
    public: bool = option(False, "Make a newly created repo public; private otherwise.")
    create_pr: bool = option(False, "Publish as a pull request.")
    commit_message: str | None = option(None, "Commit message of the upload.")
    gguf: Annotated[Names, AfterValidator(gguf_types)] = option(
        (), "Type of a GGUF file that is written into the result and published with it: f32, f16, bf16, q8_0; where a "
        "llama.cpp is at hand, which certifies it, also q4_k_m and its like.",
    )  # fmt: skip
    gguf_apart: bool = option(False, "GGUF files go into REPO-GGUF, not beside the weights.")


class Fields(BaseModel):
    """All of them: those of the run itself, and the groups."""

    model_config = CONFIG
    base: str = option(
        ..., "Local folder, repo, repo@revision, or repo+adapter_repo (a PEFT LoRA, merged on load).", first=True
    )
    variants: Names = option(
        (), "Fine-tuned variant of the base, spelled like one: a model of equal shape, or a PEFT LoRA.",
        flag="variant", first=True,
    )  # fmt: skip
    output: str = option("pruned", "Folder for the result; must not exist unless --overwrite.", first=True)
    overwrite: bool = option(False, "Replace a finished result of another recipe in --output.")
    method: Method = option("collapse", f"What an integer means: {', '.join(METHODS)}.", first=True)
    vocabulary: Annotated[str, BeforeValidator(tokens_kept)] = option(
        "none", "Tokens to keep, e.g. 50k, by how often the search text has them; every text can still be written. "
        "auto: the fewest that make other text a hundredth longer; counts toward --ratio. languages:en,de: so, but by "
        "the data whose name says one of these.",
    )  # fmt: skip
    track: Literal["none", "tensorboard", "trackio", "wandb"] = option(
        "none", "Log search and healing there too; the package of that name must be installed."
    )
    seed: int = option(0, "Seed of everything random.", ge=0, lt=2**32)
    size: Size = Size()
    collapse: Collapse = Collapse()
    stitch: Stitch = Stitch()
    width: Width = Width()
    experts: Experts = Experts()
    search: Search = Search()
    data: Data = Data()
    tasks: Tasks = Tasks()
    tune: Tune = Tune()
    repair: Repair = Repair()
    heal: Heal = Heal()
    report: Report = Report()
    machine: Machine = Machine()
    trust: Trust = Trust()
    publish: Publish = Publish()
