"""What loading a result takes besides transformers, and which programs cannot."""

from hf_prune.report.schema.report import Report


def load_note(report: Report) -> str:
    """A sentence or two."""
    if report.own_code:
        what = (
            "their number of experts, which no other program can say (vLLM, SGLang and llama.cpp know one for all)"
            if report.recipe.get("per_layer")
            else "width, which the classes of transformers cannot say"
        )
        return (
            f"The layers differ in {what}; `modeling_pruned.py` beside the weights builds them. After "
            "`import hf_prune` the model loads without `trust_remote_code` too."
        )
    if report.trusts_code:
        return "The base model brings its own code, which this runs."
    return "No package besides transformers is needed."
