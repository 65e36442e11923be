import math
import os
import struct
import subprocess
import sys

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from hf_prune.report import figures
from hf_prune.report.figures import FrontPoint
from hf_prune.report.schema.course import Healing
from hf_prune.report.schema.report import Report
from hf_prune.report.schema.scores import Stages
from tests.report.test_card import make_report


def layers(fates):
    """One entry per source layer; `m` joins the output of an `m` before it, the layer after `n` the output of `n`."""
    names = {"k": "kept", "-": "removed", "m": "merged", "a": "attn_removed", "p": "mlp_removed", "n": "norms_only"}
    entries, j = [], -1
    for i, f in enumerate(fates):
        j += f != "-" and not (i and fates[i - 1] in "mn" and (f == "m" or fates[i - 1] == "n"))
        weight = {"m": 0.5, "n": 0.0}.get(f, 1.0)
        entries.append({"source": i, "fate": names[f], "output": None if f == "-" else j, "weight": weight})
    return entries


def strip_report(fates, repo="ns/model"):
    return Report.from_dict({**make_report(), "layers": layers(fates), "sources": [{"repo": repo}]})


POINTS = [(i + 1, 2.0 / (i + 1) + 0.1, (4, 8, 16)[i // 10]) for i in range(30)]
FRONT = [FrontPoint(r, 0.05 * 2**n, 16 - n, n == 2) for n, r in enumerate((0.1, 0.2, 0.3, 0.4))]
OTHERS = [FrontPoint(0.2, 1.0)]
CURVE = [[0, 2.0], [1000, 1.9], [2000, 1.7], [3000, 1.8]]


def staged(count, tasks=True, broken=False):
    """So many stages."""
    names = ["dense", "cut", "repaired", "healed"][:count]
    worth = dict(zip(names, (10.0, 14.0, 12.0, 11.0), strict=False))
    text = {
        corpus: {
            n: {
                "perplexity": "inf" if broken and n == "cut" else p,
                "log_ratio_ci": [math.log(p / 10.5), math.log(p / 9.5)],
            }
            for n, p in worth.items()
        }
        for corpus in ("math", "wiki")
    }
    answers = {"accuracy": 0.5, "ci": [0.4, 0.6], "accuracy_norm": 0.5}
    each = {n: {"items": 4, "chance": 0.25, "dense": answers, "pruned": answers} for n in names}
    return Stages(names=names, text=text, tasks={"math_cloze": each} if tasks else {})


def course(curve):
    return Healing(method="lora", before=2.0, after=1.7, kept=True, tokens=3000, curve=curve)


DRAW = {
    "strip": lambda path: figures.layer_strip(strip_report("kk-mmknka-pk"), path),
    "history": lambda path: figures.search_history(POINTS, path, objective="kl", baselines={"SLEB": 0.3, "last": 0.31}),
    "pareto": lambda path: figures.pareto(FRONT, OTHERS, [[1, 0.1], [9, 0.4]], path, objective="kl"),
    "comparison": lambda path: figures.comparison(Report.from_dict(make_report()), path),
    "capabilities": lambda path: figures.capabilities(staged(4), path),
    "healing": lambda path: figures.healing(course(CURVE), path),
}


@pytest.fixture
def drawn(monkeypatch):
    """Every figure that was saved, so that a test can read what is on it."""
    kept, save = [], Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: (kept.append(self), save(self, *a, **k))[1])
    return kept


def words(figure):
    axes = figure.axes
    texts = [t.get_text() for t in figure.findobj(lambda artist: hasattr(artist, "get_text"))]
    return " ".join(texts + [a.get_xlabel() + a.get_ylabel() for a in axes])


@pytest.mark.parametrize("name", DRAW)
def test_a_picture_is_a_wide_png_and_always_the_same(tmp_path, name):
    path = DRAW[name](tmp_path / "a.png")
    assert path == tmp_path / "a.png"
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" and struct.unpack(">I", path.read_bytes()[16:20]) == (1800,)
    pixels = np.asarray(Image.open(path).convert("RGB"))
    assert (
        200 < pixels.shape[0] < 1800
        and (pixels[:, [0, -1]] == 255).all()
        and len(np.unique(pixels.reshape(-1, 3), axis=0)) > 9
    )
    assert DRAW[name](tmp_path / "b.png").read_bytes() == path.read_bytes()


@pytest.mark.parametrize("name", DRAW)
def test_a_failure_keeps_the_old_picture_and_leaves_nothing(tmp_path, monkeypatch, name):
    (tmp_path / "a.png").write_bytes(b"old")

    def torn(self, target, **_):
        target.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Figure, "savefig", torn)
    with pytest.raises(OSError, match="disk full"):
        DRAW[name](tmp_path / "a.png")
    assert os.listdir(tmp_path) == ["a.png"] and (tmp_path / "a.png").read_bytes() == b"old"


def test_no_window_system_is_loaded(tmp_path):
    code = "import sys; from hf_prune.report import figures; from hf_prune.report.schema.report import Report\n"
    made = f"Report.from_json({strip_report('k-').to_json()!r})"
    code += f"figures.layer_strip({made}, {str(tmp_path / 'a.png')!r})\n"
    code += "assert 'matplotlib.pyplot' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert (tmp_path / "a.png").exists()


@pytest.mark.parametrize("depth", [1, 5, 16, 40, 41, 80, 126])
def test_the_strip_numbers_every_layer_and_keeps_its_text_inside(tmp_path, drawn, depth):
    figures.layer_strip(strip_report("k" * (depth - 1) + "k"), tmp_path / "a.png")
    numbers = [t.get_text() for a in drawn[0].axes for t in a.texts if t.get_text().isdigit()]
    assert sorted(map(int, numbers)) == sorted([*range(depth), *range(depth)])
    assert len(drawn[0].axes) == math.ceil(depth / figures.STRIP_COLUMNS)
    frame, renderer = drawn[0].bbox, drawn[0].canvas.get_renderer()
    for text in (t for a in drawn[0].axes for t in a.texts):
        box = text.get_window_extent(renderer)
        assert frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1


def test_the_strip_says_what_became_of_each_layer(tmp_path, drawn):
    figures.layer_strip(strip_report("k-mmk"), tmp_path / "a.png")
    figures.layer_strip(strip_report("kap"), tmp_path / "a.png")
    assert "5 layers become 3" in words(drawn[0]) and words(drawn[0]).split().count(".5") == 2
    assert "merged" in words(drawn[0]) and "attention" not in words(drawn[0])
    assert "attention gone" in words(drawn[1]) and "MLP gone" in words(drawn[1]) and "merged" not in words(drawn[1])
    # One line per contribution: three boxes of the result, four layers that reach them.
    assert len(drawn[0].axes[0].lines) == 4


def test_a_merge_across_two_rows_is_pointed_at(tmp_path, drawn):
    figures.layer_strip(strip_report("k" * 39 + "mm" + "k" * 39), tmp_path / "a.png")
    assert "↳39" in words(drawn[0])


def test_dollar_signs_are_no_mathematics(tmp_path, drawn):
    figures.layer_strip(strip_report("kk", repo=r"ns/$\frac{$"), tmp_path / "a.png")
    assert (tmp_path / "a.png").exists()


def history(tmp_path, drawn, points, **options):
    figures.search_history(points, tmp_path / "a.png", objective="kl", **options)
    return drawn[-1].axes[0]


def best_lines(axes: Axes):
    return [line for line in axes.lines if line.get_drawstyle() == "steps-post"]


def test_best_so_far_restarts_when_the_evidence_grows(tmp_path, drawn):
    axes = history(tmp_path, drawn, [(1, 3.0, 4), (2, 2.0, 4), (3, 2.5, 4), (4, 5.0, 8), (5, 4.0, 8)])
    assert [list(line.get_ydata()) for line in best_lines(axes)] == [[3.0, 2.0, 2.0], [5.0, 4.0]]


def test_alternating_evidence_draws_the_best_on_full_evidence_only(tmp_path, drawn):
    axes = history(tmp_path, drawn, [(i, 9.0 - 0.1 * i, 16 if i % 2 else 4) for i in range(60)])
    (line,) = best_lines(axes)
    assert list(line.get_xdata()) == list(range(1, 60, 2))


def test_infinite_candidates_are_marked_inside_the_frame(tmp_path, drawn):
    axes = history(tmp_path, drawn, [(1, math.inf, None), (2, 1.0, None), (3, math.inf, None)])
    (marks,) = [c for c in axes.collections if c.get_label() == "not finite"]
    assert [x for x, _ in marks.get_offsets()] == [1, 3]
    assert all(1.0 < y < axes.get_ylim()[1] for _, y in marks.get_offsets()) and "2 not finite" in axes.get_title(
        "left"
    )


@pytest.mark.parametrize(
    ("values", "scale"),
    [((1.0, 2.0), "linear"), ((0.1, 50.0), "log"), ((-1.0, 50.0), "linear"), ((math.inf,), "linear")],
)
def test_the_axis_is_logarithmic_when_it_helps(tmp_path, drawn, values, scale):
    assert history(tmp_path, drawn, [(i, v, None) for i, v in enumerate(values)]).get_yscale() == scale


def test_baselines_are_named_with_their_value_and_do_not_overlap(tmp_path, drawn):
    axes = history(tmp_path, drawn, POINTS, baselines={"SLEB": 0.52, "window": 0.53, "broken": math.inf})
    heights = sorted(t.xyann[1] for t in axes.texts)
    assert {t.get_text() for t in axes.texts} == {"SLEB 0.520", "window 0.530"} and heights[1] - heights[0] >= 0.05


def test_the_front_shows_its_knee_and_the_dominated(tmp_path, drawn):
    DRAW["pareto"](tmp_path / "a.png")
    figures.pareto(FRONT, [], None, tmp_path / "b.png", objective="kl")
    assert "knee: 30 % removed, 14 layers" in words(drawn[0]) and "dominated (1)" in words(drawn[0])
    assert len(drawn[0].axes) == 2 and len(drawn[1].axes) == 1 and "dominated" not in words(drawn[1])


def test_comparison_orders_by_perplexity_with_ours_first(tmp_path, drawn):
    report = make_report()
    report["baselines"] += [{"name": "random", "label": "random", "perplexity": "inf", "ci": None}]
    report["baselines"] += [{"name": "hf_prune", "label": "hf_prune", "perplexity": 27.08, "ci": None}]
    figures.comparison(Report.from_dict(report), tmp_path / "a.png")
    axes = drawn[0].axes[0]
    assert [t.get_text() for t in axes.get_yticklabels()] == ["this model", "SLEB (greedy)", "last layers", "random"]
    assert "27.1" in words(drawn[0]) and "not finite" in words(drawn[0]) and "dense model 18.9" in words(drawn[0])
    assert axes.get_xscale() == "linear" and axes.get_xlim()[0] == 0


def test_far_apart_perplexities_get_a_logarithmic_axis_from_the_dense_model(tmp_path, drawn):
    report = make_report()
    report["baselines"][1]["perplexity"] = 5528.0
    figures.comparison(Report.from_dict(report), tmp_path / "a.png")
    axes = drawn[0].axes[0]
    assert axes.get_xscale() == "log" and all(p.get_x() == 18.93 for p in axes.patches)


@pytest.mark.parametrize("draw", [lambda p: figures.layer_strip(strip_report(""), p),
                                  lambda p: figures.healing(course([]), p),
                                  lambda p: figures.search_history([], p, objective="kl"),
                                  lambda p: figures.pareto([], [], None, p, objective="kl")])  # fmt: skip
def test_nothing_to_draw_is_an_error(tmp_path, draw):
    with pytest.raises(ValueError, match="at least one"):
        draw(tmp_path / "a.png")
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("count", [2, 3, 4])
@pytest.mark.parametrize("tasks", [True, False])
def test_capabilities_show_every_stage_and_name_it(tmp_path, drawn, count, tasks):
    figures.capabilities(staged(count, tasks), tmp_path / "c.png")
    said = words(drawn[0])
    assert all(n in said for n in ["dense", "cut", "repaired", "healed"][:count])
    assert ("Accuracy" in said) is tasks and "math" in said and "times the dense model" in said


def test_capabilities_of_a_broken_cut_are_drawn(tmp_path, drawn):
    figures.capabilities(staged(3, broken=True), tmp_path / "c.png")
    assert len(drawn) == 1


@pytest.mark.parametrize(("curve", "said"), [(CURVE, "kept: 1.70"), ([[0, 1.0], [10, 2.0]], "before training")])
def test_the_course_of_a_training_marks_what_was_kept(tmp_path, drawn, curve, said):
    figures.healing(course(curve), tmp_path / "h.png")
    assert said in words(drawn[0]) and "thousand tokens" in words(drawn[0])
