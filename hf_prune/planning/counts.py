"""How much a run does: candidates, evaluations, passes through layers, repairs and trainings."""

from collections.abc import Iterator

from hf_prune.data.own_samples import is_own
from hf_prune.limits import DEFAULT_RATIO, FINAL_STAGES
from hf_prune.methods import METHODS
from hf_prune.methods.method import EVERY_SIZE, Facts, Sizes, Target
from hf_prune.models.mixtures import Mixture
from hf_prune.recipe import DEFAULT_DATA, TASK_OBJECTIVES, Recipe
from hf_prune.search import SEARCHERS


def facts_of(
    recipe: Recipe, depth: int, remove: int, kinds: tuple[int, ...] = (), mixture: Mixture | None = None
) -> Facts:
    """What a plan knows."""
    names = tuple(map(str, range(1 + len(recipe.variants))))
    return Facts(depth, remove, recipe.every_size, len(names), names, kinds=kinds, mixture=mixture)


def tunings(recipe: Recipe) -> int:
    """What gradient descent learns: the mixes and, where it learns from tasks, how far a repair goes."""
    return 1 + (recipe.repair.enabled and recipe.search.objective in TASK_OBJECTIVES)


def repairs(recipe: Recipe) -> int:
    """Candidates that are repaired; the winner is one of them."""
    if not recipe.repair.enabled:
        return 0
    if recipe.size.drop or recipe.every_size:
        return 1
    return 8 if recipe.heal.finalist_tokens else recipe.repair.finalists


def describe_target(recipe: Recipe) -> str:
    """The target in the user's words: "ratio 0.25", "keep 12", "drop 3,6,7" or "every size"."""
    if recipe.size.drop:
        return "drop " + ",".join(recipe.size.drop)
    if recipe.size.keep_layers is not None:
        return f"keep {recipe.size.keep_layers}"
    if recipe.size.drop_layers is not None:
        return f"drop {recipe.size.drop_layers} layers"
    if recipe.size.latency is not None:
        return f"latency {recipe.size.latency:g}"
    return "every size" if recipe.every_size else f"ratio {recipe.size.ratio or DEFAULT_RATIO:g}"


def target_of(recipe: Recipe, sizes: Sizes) -> Target:
    """Turn the one dial into what is to go.

    Args:
        recipe: at most one way to say a size is set; none means `DEFAULT_RATIO`, or every size for a front.
        sizes: of the source.

    Raises:
        InvalidRecipe: the target would remove nothing, or everything, or a layer that does not exist.
    """
    return EVERY_SIZE if recipe.every_size else METHODS[recipe.method].target(recipe, sizes)


def target_beside(recipe: Recipe, sizes: Sizes, dense: int) -> Target:
    """The same for a model that has lost tokens, which count toward a ratio: what is left to go, perhaps nothing.

    Args:
        recipe: at most one way to say a size is set.
        sizes: of the model without these tokens.
        dense: parameters of the source with all of them.

    Raises:
        InvalidRecipe: as `target_of`.
    """
    if recipe.every_size or sizes.total == dense or recipe.size.given not in ([], ["ratio"]):
        return target_of(recipe, sizes)
    ratio = recipe.size.ratio or DEFAULT_RATIO
    left = 1 - (1 - ratio) * dense / sizes.total
    if left < sizes.share / 2:
        return Target(0, 0.0, -left, "keep all layers: the vocabulary alone is the share asked for")
    return target_of(recipe.replace(ratio=left), sizes)


def candidates(recipe: Recipe, facts: Facts) -> int:
    """Models the search can choose among, at most (some merges are deletions in disguise); 1 with `drop`."""
    return 1 if recipe.size.drop else METHODS[recipe.method].space(recipe, facts).count()


def evaluations(recipe: Recipe, facts: Facts) -> int:
    """Trials the search will ask for, at most: 0 with `drop`, 1 for the one-shot scores.

    The default of the evolutionary and random searches is two populations, and the method's number of trials for each
    of the single moves a candidate has: the number of generations that EvoPress takes (arXiv 2410.14649) grows the same
    way. examples/benchmarks/search_quality.py shows what it buys.
    """
    if recipe.size.drop or not (facts.remove or recipe.every_size):
        return 0
    method = METHODS[recipe.method]
    rounds = _rounds(recipe, facts, recipe.search.searcher)
    if rounds is None:
        return recipe.search.evaluations or 2 * recipe.search.population + method.trials * method.moves(recipe, facts)
    needed = sum(count for count, _ in rounds)
    return min(needed, recipe.search.evaluations or needed)


def baseline_evaluations(recipe: Recipe, facts: Facts) -> int:
    """Trials of the comparisons; none beside a front."""
    return sum(count for count, _ in comparison_rounds(recipe, facts))


def layer_passes(recipe: Recipe, facts: Facts) -> int:
    """Layers that full evidence passes through without any prefix shared: dense model, comparisons and search at
    most."""
    compared = sum(count * (facts.depth - gone) for count, gone in comparison_rounds(recipe, facts))
    units = METHODS[recipe.method].units
    rounds = None if recipe.size.drop or units > 1 else _rounds(recipe, facts, recipe.search.searcher)
    if rounds is None:
        # A layer that has lost a part is still passed.
        rounds = [(evaluations(recipe, facts), 0 if units > 1 else facts.remove or 1)]
    return facts.depth + compared + sum(count * (facts.depth - gone) for count, gone in rounds)


def _rounds(recipe: Recipe, facts: Facts, searcher: str) -> list[tuple[int, int]] | None:
    """Candidates of every round and the units they are short of; None for a search that goes on as long as it may."""
    rounds = SEARCHERS[searcher].rounds
    if rounds is None:
        return None
    return list(rounds(*METHODS[recipe.method].pieces(facts), lambda: candidates(recipe, facts)))


def comparison_rounds(recipe: Recipe, facts: Facts) -> Iterator[tuple[int, int]]:
    """Candidates of every round of every comparison, and the layers they are short of."""
    if not facts.remove:
        return
    method = METHODS[recipe.method]
    for one in method.comparisons(recipe, facts):
        if one.layers:
            yield 1, facts.remove if method.units == 1 else 0
        elif one.as_result:
            yield evaluations(recipe, facts), facts.remove
        elif rounds := SEARCHERS[one.searcher].rounds:
            yield from rounds(facts.depth, facts.remove, lambda: 0)
        else:
            yield one.trials, facts.remove


def lessons(recipe: Recipe) -> int:
    """Windows that finalists may be trained on before the best is chosen."""
    return -(-recipe.heal.finalist_tokens * 2 ** (FINAL_STAGES - 1) // recipe.data.length)


def fitted_windows(recipe: Recipe) -> int:
    """Most windows of the search side that are searched, fitted or trained on."""
    libraries = METHODS[recipe.method].libraries(recipe)
    asked = (
        recipe.data.sequences,
        recipe.repair.sequences if recipe.repair.enabled else 0,
        recipe.width.sequences if libraries else 0,
        -(-recipe.heal.tokens // recipe.data.length),
        lessons(recipe),
    )
    return max(asked)


def own_need(recipe: Recipe, corpora: int, *, alone: bool) -> dict[str, int]:
    """Tokens of own samples that a corpus of them needs for every split; those it must not share come first.

    Args:
        recipe: what is asked for.
        corpora: of the run, which share the windows evenly.
        alone: there is no other text, so that the report reads own samples, too.
    """

    def share(windows: int) -> int:
        return -(-windows // corpora) * recipe.data.length

    fitted = min(share(fitted_windows(recipe)), max(recipe.data.own_tokens, share(recipe.data.sequences)))
    report = {"report": share(recipe.report.sequences)} if alone else {}
    return {**report, "selection": share(recipe.data.selection_sequences), "heal": fitted}


def own_tokens(recipe: Recipe) -> int:
    """What the base says itself, about; a folder counts as one corpus."""
    entries = recipe.data.text or DEFAULT_DATA
    own = sum(map(is_own, entries))
    return own * sum(own_need(recipe, len(entries), alone=own == len(entries)).values())


def trained_tokens(recipe: Recipe, search_tokens: int) -> int:
    """What the training of the result, of finalists and of mixes reads."""
    # Finalists that are trained: 8, then 4 and 2, each round for twice as long as all before it.
    finalists = 16 * recipe.heal.finalist_tokens
    return recipe.heal.tokens + finalists + tunings(recipe) * recipe.tune.steps * search_tokens
