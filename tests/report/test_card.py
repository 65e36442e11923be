import copy
import re
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from hf_prune.report import card
from hf_prune.report.card_data import hub_parents
from hf_prune.report.markdown import code, fence, md
from hf_prune.report.schema.model import SourceCard
from hf_prune.report.schema.report import Report


def text_entry(dense, pruned, kl):
    return {
        "tokens": 12288,
        "dense": {"perplexity": dense, "ci": [dense * 0.96, dense * 1.04]},
        "pruned": {"perplexity": pruned, "ci": [pruned * 0.95, pruned * 1.05]},
        "kl": kl, "kl_ci": [kl * 0.9, kl * 1.1], "log_ratio": 0.358, "log_ratio_ci": [0.331, 0.385],
    }  # fmt: skip


def make_report():
    """A report as the pipeline writes it, every section present."""
    gone = {3, 6, 7, 11}
    layers, j = [], 0
    for i in range(16):
        layers.append({"source": i, "fate": "removed", "output": None, "weight": 0.0} if i in gone else
                      {"source": i, "fate": "kept", "output": j, "weight": 1.0})  # fmt: skip
        j += i not in gone
    split = {"windows": 48, "tokens": 12288, "length": 256,
             "corpora": {"stories": {"windows": 24, "origin": "TinyStories, CDLA-Sharing-1.0"},
                         "wiki": {"windows": 24, "origin": "/home/jane/data/wiki.report.jsonl"}}}  # fmt: skip
    return {
        "version": 1, "hf_prune": "0.1.0", "digest": "0123456789abcdef", "method": "collapse", "search": "staged",
        "command": "hf-prune compress /home/jane/models/storymath-16l --ratio 0.25 --output /home/jane/out/small",
        "recipe": {"base": "/home/jane/models/storymath-16l", "output": "/home/jane/out/small", "ratio": 0.25,
                   "data": ["/home/jane/data"]},
        "objective": "kl", "seed": 7,
        "sources": [{"repo": "ns/storymath-16l", "revision": "a" * 40, "adapter": None, "license": "mit",
                     "language": "en"}],
        "size": {
            "dense": {"parameters": 3413120, "bytes": 6826240, "layers": 16, "kv_bytes_per_token": 4096},
            "pruned": {"parameters": 2625664, "bytes": 5251328, "layers": 12, "kv_bytes_per_token": 3072,
                       "active_parameters": 2625664},
            "asked": "ratio 0.25", "asked_ratio": 0.25, "removed_ratio": 0.2307, "miss": -0.0193,
        },
        "layers": layers,
        "splits": {"search": split, "selection": split, "report": split},
        "text": {"all": text_entry(18.93, 27.08, 0.312), "stories": text_entry(11.88, 15.21, 0.241),
                 "wiki": text_entry(36.68, 58.13, 0.417)},
        "tasks": {"stories_cloze": {"items": 150, "chance": 0.25, "dense": {"accuracy": 0.613, "ci": [0.53, 0.69]},
                                    "pruned": {"accuracy": 0.547, "ci": [0.464, 0.627]}, "difference": -0.066,
                                    "difference_ci": [-0.118, -0.014]}},
        "generation": {"samples": [{"prompt": "once upon a time", "dense": "there was a little girl named lily.",
                                    "pruned": "there was a little boy. he liked to play with the ball."}],
                       "dense": {"repetition": 0.08, "distinct_2": 0.81, "mean_length": 60.0},
                       "pruned": {"repetition": 0.11, "distinct_2": 0.77, "mean_length": 58.5}},
        "speed": {"dense": {"prefill_tokens_per_s": 9120.4, "decode_tokens_per_s": 143.2},
                  "pruned": {"prefill_tokens_per_s": 11870.9, "decode_tokens_per_s": 187.6},
                  "prefill": {"value": 1.31, "ci": [1.24, 1.37]}, "decode": {"value": 1.29, "ci": [1.22, 1.36]},
                  "prefill_tokens": 256, "decode_tokens": 64, "repeats": 9, "disturbed": 2,
                  "device": "cpu", "threads": 2, "dtype": "float32"},
        "baselines": [
            {"name": "greedy", "label": "SLEB (greedy)", "removed": [3, 6, 7, 12], "layers": 12, "parameters": 2625664,
             "perplexity": 27.61, "ci": [26.2, 29.1], "kl": 0.331, "log_ratio_ci_vs_ours": [0.004, 0.035]},
            {"name": "last", "label": "last layers", "removed": [12, 13, 14, 15], "layers": 12, "parameters": 2625664,
             "perplexity": 113.2, "ci": [99.1, 130.4], "kl": 1.92, "log_ratio_ci_vs_ours": [1.3, 1.6]},
        ],
        "merging": {"ours": 0.298, "deletion": 0.298, "helps": False},
        "search_summary": {"evaluations": 412, "distinct": 377, "layer_tokens": 8_123_000,
                           "best": 0.2871, "history": [[32, 0.5], [412, 0.2871]], "finalists": 4,
                           "rank_correlation": {"kl": {"spearman": 0.971, "n": 64},
                                                "similarity": {"spearman": 0.73, "n": 64}}},
        "base_check": {"parents": [{"ok": True, "source": "ns/base@abc", "tensors": 74, "read": "whole",
                                    "max_logit_difference": 2.3e-06, "dtype": "float32", "notes": []}],
                       "overflow": None},
        "certificate": {"ok": True, "max_logit_difference": 0.0, "cached_difference": 3.1e-06,
                        "tolerance": 1.4e-3, "dtype": "float32", "missing": [],
                        "unexpected": [], "mismatched": [], "transformers": "5.23.0"},
        "front": [{"removed_ratio": 0.1154, "layers": 14, "parameters": 3019392, "kl": 0.0821, "knee": False},
                  {"removed_ratio": 0.2307, "layers": 12, "parameters": 2625664, "kl": 0.3121, "knee": True}],
        "hypervolume": [[32, 0.4], [64, 0.6]],
        "hardware": {"processor": "some CPU", "cores": 2, "threads": 2, "memory_gib": 15.6, "accelerator": None},
        "versions": {"torch": "2.13.0", "transformers": "5.23.0"},
        "seconds": {"search": 43.2, "report": 21.0, "total": 81.4},
    }  # fmt: skip


FIGURES = {name: f"figures/{name}.png" for name in ("layer_strip", "comparison", "search_history", "pareto")}


@pytest.fixture
def report():
    return make_report()


def write_card(report, folder, figures=FIGURES, parents=()):
    return card.write_card(Report.from_dict(report), folder, figures, [SourceCard(**p) for p in parents])


def render(report, folder, figures=FIGURES, parents=()):
    return write_card(report, folder, figures, parents).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def unchanged_card(tmp_path_factory):
    return render(make_report(), tmp_path_factory.mktemp("card"))


def headings(card):
    """Headings and titles of what is folded as a markdown parser sees them: fenced or escaped ones do not count."""
    tokens = MarkdownIt("commonmark").enable("table").parse(card.split("\n---\n", 1)[1])
    found = []
    for i, token in enumerate(tokens):
        found += [tokens[i + 1].content] if token.type == "heading_open" else []
        found += re.findall("<summary>(.*?)</summary>", token.content) if token.type == "html_block" else []
    return found


def test_metadata_survives_the_hub_parser(report, tmp_path):
    data = ModelCard.load(write_card(report, tmp_path, FIGURES)).data
    assert data.base_model == "ns/storymath-16l" and data.base_model_relation == "finetune"
    assert (data.license, data.language, data.library_name, data.pipeline_tag) == (
        "mit",
        ["en"],
        "transformers",
        "text-generation",
    )
    assert data.tags == ["hf-prune", "pruned", "collapse"]
    results = {(r.dataset_config, r.metric_type): r for r in data.eval_results}
    assert results["all", "perplexity"].metric_value == 27.08
    assert results["stories_cloze", "accuracy"].metric_value == 0.547
    assert all(r.dataset_split == "report" and "this run" in r.dataset_name for r in data.eval_results)


@pytest.mark.parametrize(("chance", "metrics", "kind"), [
    (0.25, {"accuracy", "acc_norm"}, "(multiple choice, chance 25 %)"), (0.0, {"accuracy"}, "(text to be generated)")
])  # fmt: skip
def test_the_index_has_acc_norm_where_there_are_options(report, tmp_path, chance, metrics, kind):
    task = report["tasks"]["stories_cloze"]
    task |= {"chance": chance, "difference_norm": 0.0, "difference_ci_norm": [0.0, 0.0]}
    for side in ("dense", "pruned"):
        task[side] |= {"accuracy_norm": 0.5, "ci_norm": [0.4, 0.6]}
    results = ModelCard.load(write_card(report, tmp_path, FIGURES)).data.eval_results
    mine = [r for r in results if r.dataset_config == "stories_cloze"]
    assert {r.metric_type for r in mine} == metrics and all(r.dataset_name.endswith(kind) for r in mine)


def test_a_stitched_card_names_its_dense_parent_and_stands_beside_the_best_and_the_base(report, tmp_path):
    side = {"perplexity": 37.4, "ci": [35.0, 40.0]}
    row = {"best": "coder", "pruned": side, "best_parent": {"perplexity": 30.1, "ci": [29.0, 31.0]},
           "base": {"perplexity": 51.2, "ci": [50.0, 53.0]}, "log_ratio": 0.217, "log_ratio_ci": [0.2, 0.24],
           "log_ratio_to_base": -0.314, "log_ratio_to_base_ci": [-0.4, -0.2]}  # fmt: skip
    every = {"stories": row, "wiki": row, "all": row | {"best": "the best of each corpus"}}
    report |= {"parents": ["base", "coder"], "dense_parent": "coder", "beside_parents": every}
    card = render(report, tmp_path)
    lead = card.split("Perplexity on held-out text ")[1].split("\n")[0]
    assert lead.startswith(
        "is 37.4; taking for each corpus the parent that knows it best, it was 30.1, and of the base"
    )
    assert "alone 51.2; the figures of coder" in lead and "went from" not in card
    assert "| dense (coder) | pruned | change |" in card
    line = "| stories | coder | 30.1 (29.0 to 31.0) | 51.2 (50.0 to 53.0) | 37.4 (35.0 to 40.0) | × 1.24 (1.22 to 1.27)"
    assert f"{line} | × 0.731 (0.670 to 0.819) |" in card


def test_several_parents_are_a_merge_with_the_strictest_licence(report, tmp_path):
    parents = [
        {"repo": "a/base", "revision": "1" * 40, "license": "mit", "language": ["en", "de"]},
        {"repo": "b/tune", "revision": "2" * 40, "license": "cc-by-nc-4.0", "language": "en"},
    ]
    data = ModelCard.load(write_card(report, tmp_path, {}, parents)).data
    assert data.base_model == ["a/base", "b/tune"] and data.base_model_relation == "merge"
    assert data.license == "cc-by-nc-4.0" and data.language == ["en", "de"]


def test_an_adapter_is_named_beside_its_base():
    parents = [SourceCard(repo="a/base", revision="1" * 40, adapter="b/lora@" + "2" * 40)]
    assert hub_parents(parents) == ["a/base", "b/lora"]
    assert hub_parents([SourceCard(repo="folder", revision="sha256-0123", adapter="lora-folder@sha256-4567")]) == []


def test_a_local_base_is_no_base_model(report, tmp_path):
    parents = [{"repo": "storymath-16l", "revision": "sha256-0123456789ab", "license": None}]
    path = write_card(report, tmp_path, FIGURES, parents)
    data = ModelCard.load(path).data
    assert data.base_model is None and "base_model_relation" not in data.to_dict()
    assert data.license == "unknown" and "states none" in path.read_text(encoding="utf-8")
    assert "huggingface.co/storymath" not in path.read_text(encoding="utf-8")


def leaves(node, path=()):
    if isinstance(node, dict):
        for k, v in node.items():
            yield from leaves(v, (*path, k))
    elif isinstance(node, list):
        for i, v in enumerate(node):
            yield from leaves(v, (*path, i))
    elif isinstance(node, int | float) and not isinstance(node, bool):
        yield path


SHOWN = ("size", "text", "tasks", "generation", "speed", "baselines", "front", "seconds", "base_check", "certificate",
         "hardware")  # fmt: skip
NOT_SHOWN = {"miss", "asked_ratio", "n", "weight", "source", "output"}


@pytest.mark.parametrize(
    "where", [p for s in SHOWN for p in leaves(make_report()[s], (s,)) if p[-1] not in NOT_SHOWN], ids=str
)
def test_every_number_comes_from_the_report(where, unchanged_card, tmp_path):
    if where[0] == "text" and where[1] != "all" and "kl" in str(where[-1:] + where[-2:-1]):
        pytest.skip("KL is shown for all text only")
    if where == ("size", "pruned", "active_parameters"):
        pytest.skip("shown when it is smaller than parameters: see the halves")
    node = changed = make_report()
    for key in where[:-1]:
        node = node[key]
    node[where[-1]] = node[where[-1]] * 3 + 1
    assert render(changed, tmp_path) != unchanged_card


def test_no_paths_no_tokens(report, tmp_path):
    report["generation"]["samples"][0]["prompt"] = "my token is hf_" + "a" * 34
    report["command"] += " --push-to ns/small"
    report["hardware"]["processor"] = "CPU listed in /home/jane/lscpu.txt"
    card = render(report, tmp_path)
    assert "jane" not in card and "/home" not in card and str(tmp_path) not in card
    assert not re.search(r"hf\\?_a", card) and r"my token is \*\*\*" in card
    assert "--push-to ns/small" in card and "compress storymath-16l" in card


HOSTILE = (
    "```\n---\ntags: [evil]\n---\n# Owned\n</td></table><script>x</script> | x | `code` [a](b) {{ 1234*5678 }} <!--"
)


def test_hostile_text_stays_text(report, tmp_path):
    clean = headings(render(report, tmp_path))
    sample = report["generation"]["samples"][0]
    sample["prompt"] = sample["dense"] = sample["pruned"] = HOSTILE + "\r\n~~~~\r# Again\x1b[31m"
    report["baselines"][0]["label"] = report["hardware"]["processor"] = HOSTILE
    report["text"][HOSTILE] = report["text"].pop("wiki")
    report["tasks"][HOSTILE] = report["tasks"].pop("stories_cloze")
    report["sources"][0] |= {"repo": HOSTILE, "license": HOSTILE}
    report["recipe"]["base"] = report["command"] = HOSTILE
    path = write_card(report, tmp_path, FIGURES)
    card = path.read_text(encoding="utf-8")
    assert headings(card)[1:] == clean[1:]
    assert ModelCard.load(path).data.tags == ["hf-prune", "pruned", "collapse"]
    assert "7006652" not in card and ModelCard.load(path).data.base_model is None
    html = MarkdownIt("commonmark").enable("table").render(card.split("\n---\n", 1)[1])
    assert "<script" not in html and html.count("<table>") == html.count("</table>")


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=80))
def test_inline_text_means_only_itself(text):
    tokens = MarkdownIt("commonmark").enable("table").parseInline("x " + md(text) + " x")[0].children
    assert {t.type for t in tokens} <= {"text", "text_special"}
    assert "|" not in code(text) and "\n" not in code(text) and code(text).count("`") == 2


@settings(max_examples=60, deadline=None)
@given(st.text(alphabet=st.sampled_from("`~\n\r ab#<|-"), max_size=60), st.sampled_from([0, 12]))
def test_a_fence_holds_whatever_is_in_it(text, width):
    tokens = MarkdownIt().parse(fence(text, width) + "\n\nafter\n")
    assert [t.type for t in tokens] == ["fence", "paragraph_open", "inline", "paragraph_close"]


OPTIONAL = {
    "front": (None, "Other sizes from the same run"),
    "baselines": ([], "Other ways to cut to this size"),
    "certificate": (None, "Reload check"),
    "base_check": (None, "Base check"),
    "generation": ({}, "What it writes"),
}


@pytest.mark.parametrize("section", OPTIONAL)
def test_a_missing_section_leaves_no_heading(report, tmp_path, section):
    value, heading = OPTIONAL[section]
    assert heading in headings(render(report, tmp_path))
    report[section] = value
    assert heading not in headings(render(report, tmp_path))


def test_the_barest_report_still_makes_a_card(report, tmp_path):
    for key in ("front", "hypervolume", "merging", "search_summary", "base_check", "certificate", "speed",
                "generation", "command"):  # fmt: skip
        report[key] = None
    report |= {"baselines": [], "tasks": {}, "text": {}, "splits": {}, "versions": {}, "seconds": {}, "hardware": {}}
    card = render(report, tmp_path, figures={})
    assert headings(card)[1:] == ["Use it", "Dense and pruned", "Limits", "How it was made", "Methods"]
    assert "model-index" not in card and "![" not in card and "None" not in card and "nan" not in card


def test_pictures_are_relative_and_only_those_given(report, tmp_path):
    card = render(report, tmp_path, {"layer_strip": "/home/jane/out/layers.png", "pareto": "figures/my front.png"})
    assert re.findall(r"!\[[^\]]*\]\(([^)]*)\)", card) == ["layers.png", "figures/my%20front.png"]


def test_zeroed_halves_are_said(report, tmp_path):
    assert "Zeroed" not in render(report, tmp_path)
    report["layers"][4]["fate"], report["layers"][8]["fate"] = "attn_removed", "mlp_removed"
    report["size"]["pruned"]["active_parameters"] = 2_100_000
    card = render(report, tmp_path)
    assert "the attention of source layers 4 and the MLP of source layers 8" in card and "2.10M are in use" in card


def test_loading_needs_no_extra_package_and_names_the_repo(report, tmp_path):
    assert 'from_pretrained("path/to/this/folder")' in render(report, tmp_path)
    report["recipe"] |= {"push_to": "ns/small", "trust_remote_code": True}
    assert 'AutoModelForCausalLM.from_pretrained("ns/small", trust_remote_code=True)' in render(report, tmp_path)


def test_the_recipe_on_the_card_is_yaml(report, tmp_path):
    recipe = re.search(r"```yaml\n(.*?)```", render(report, tmp_path), re.S)[1]
    assert yaml.safe_load(recipe) == {"base": "storymath-16l", "size": {"ratio": 0.25}, "data": {"text": ["data"]}}


def test_infinite_perplexity_is_said_and_kept_out_of_the_metadata(report, tmp_path):
    report["text"]["all"]["pruned"] = {"perplexity": "inf", "ci": None}
    path = write_card(report, tmp_path, FIGURES)
    assert "perplexity is not finite" in path.read_text(encoding="utf-8")
    assert all(r.dataset_config != "all" for r in ModelCard.load(path).data.eval_results)


def test_a_failure_keeps_the_old_card_and_leaves_nothing(report, tmp_path, monkeypatch):
    old = render(report, tmp_path)
    changed = copy.deepcopy(report) | {"seed": 99}
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_card(changed, tmp_path, FIGURES)
    assert [p.name for p in Path(tmp_path).iterdir()] == ["README.md"]
    assert (tmp_path / "README.md").read_text(encoding="utf-8") == old


def test_what_is_in_sight_fits_a_screen_or_two_and_the_rest_is_folded(report, tmp_path):
    sample = report["generation"]["samples"][0]
    report["generation"] |= {"samples": [sample] * 6, "worst": [sample] * 3}
    card = render(report, tmp_path)
    assert card.count("<details>") == card.count("</details>") == card.count("<summary>") > 5
    seen = re.sub(r"<details>.*?</details>", "", card, flags=re.S)
    assert len(seen.splitlines()) <= 200 > seen.count("\n") and len(card.splitlines()) <= 320
    assert headings(seen)[1:] == ["Use it", "Dense and pruned", "What it writes", "Limits"]
    assert seen.count("a little boy. he liked") == 3


def test_writing_twice_changes_nothing(report, tmp_path):
    assert render(report, tmp_path) == render(report, tmp_path)
