"""The Python API: watch a run, then use its result."""

from pathlib import Path

from hf_prune import Recipe, run

demo = Path(__file__).parent / "demo"
recipe = Recipe(
    base=str(demo / "storymath-16l"),
    data=(str(demo / "text"),),
    ratio=0.25,
    output="pruned-example",
)

result = run(recipe)  # or: for event in compress(recipe): ...
text = result.report["text"]["all"]
print(f"perplexity {text['dense']['perplexity']:.2f} -> {text['pruned']['perplexity']:.2f}")
print(f"files in {result.folder}")
print(f"{result.model.num_parameters():,} parameters")
# result.push_to_hub("ns/small", private=True)
