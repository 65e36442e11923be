"""The command line: flags, formats, exit codes; the pipeline behind it is replaced by a recorded stream of events."""

import functools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from transformers import AutoModelForCausalLM
from typer.main import get_command
from typer.testing import CliRunner

from hf_prune import __version__, errors
from hf_prune.blueprint import Blueprint, Fidelity, Outcome, Source, Trial
from hf_prune.cli.main import app
from hf_prune.events import Advanced, Assembled, Finished, Healed, Pushed, Reported, Scored, Stage, Started
from hf_prune.recipe import OPTIONS, Recipe, spelled

ROOT = Path(__file__).parents[2]
REPORT = {
    "size": {
        "dense": {"parameters": 3412096, "bytes": 6824192, "layers": 16, "kv_bytes_per_token": 4096},
        "pruned": {"parameters": 2624640, "bytes": 5249280, "layers": 12, "kv_bytes_per_token": 3072},
    },
    "text": {
        "stories": {
            "dense": {"perplexity": 5.27, "ci": [5.0, 5.5]},
            "pruned": {"perplexity": 9.13, "ci": [8.5, 9.75]},
            "kl": 0.5,
        }
    },
    "layers": [{"source": i, "fate": "removed" if i in (3, 6, 7, 11) else "kept"} for i in range(16)],
}
VALUES = {
    "vocabulary": "50000",
    "per_layer": True,
    "merge_experts": True,
    "levels": 8,
    "multiple_of": 16,
    "damping": 0.02,
    "library_sequences": 64,
    "library": "levels",
    "output": "elsewhere",
    "method": "stitch",
    "variants": ("v", "w+a"),
    "merges": ("linear", "ties:0.5"),
    "mix_halves": True,
    "tune": 20,
    "tune_items": 9,
    "search_tasks": ("s.jsonl",),
    "search_items": 6,
    "selection_items": 7,
    "memory": 2.5,
    "time": 1800.0,
    "keep_layers": 12,
    "rules": ("mean", "difference:0.5"),
    "norms": "follow",
    "objective": "perplexity",
    "search": "greedy",
    "evaluations": 7,
    "population": 3,
    "offspring": 5,
    "seed": 11,
    "data": ("a.jsonl", "b.txt"),
    "sequences": 2,
    "selection_sequences": 3,
    "report_sequences": 4,
    "length": 32,
    "tasks": ("t.jsonl",),
    "lm_eval": ("arc_easy", "t.yaml"),
    "lm_eval_limit": 5,
    "repair": True,
    "reach": "gap",
    "repair_sequences": 6,
    "repair_finalists": 3,
    "heal": "1M",
    "own_tokens": "50k",
    "heal_method": "dora",
    "heal_rank": 4,
    "heal_alpha": 8.0,
    "heal_kl": 0.5,
    "heal_ce": 0.25,
    "heal_top_k": 64,
    "heal_lr": 0.001,
    "heal_batch": 2,
    "heal_checks": 5,
    "heal_patience": 2,
    "gradient_checkpointing": True,
    "keep_adapter": True,
    "task_items": 9,
    "baselines": ("last", "greedy"),
    "device": "cpu",
    "workers": "4",
    "dtype": "float32",
    "allow_pickle": True,
    "dequantize": True,
    "trust_remote_code": True,
    "force_test_split": True,
    "push_to": "me/small",
    "public": True,
    "create_pr": True,
    "commit_message": "smaller",
    "overwrite": True,
    "track": "tensorboard",
}


def hf_prune(*args):
    return CliRunner().invoke(app, [str(a) for a in args])


def flags(values):
    for name, value in values.items():
        for one in value if isinstance(value, tuple) else (value,):
            yield f"--{'variant' if name == 'variants' else name.replace('_', '-')}"
            if one is not True:
                yield str(one)


@pytest.fixture
def pipeline(monkeypatch):
    """Stands in for hf_prune.pipeline and hf_prune.results, and keeps the recipes it was given."""
    trial = Trial((0, 1), Fidelity(4))
    blueprint = Blueprint.identity(Source("m", "f"), 2)

    def compress(recipe):
        fake.recipes.append(recipe)
        yield Started(recipe, recipe.base, 16, "remove 4", 9)
        yield Stage("search", "16 windows")
        yield Scored((Outcome(trial, (float("inf"),)),), 1, 9, float("inf"))
        yield Scored((Outcome(trial, (0.5,)),), 9, 9, 0.5)
        yield Assembled(blueprint, recipe.output, 2624640)
        yield Reported(REPORT)
        yield Pushed("https://hub/me/small", "abc", True)
        yield Finished(recipe.output, REPORT, "https://hub/me/small")

    fake = SimpleNamespace(recipes=[], compress=compress)
    monkeypatch.setitem(sys.modules, "hf_prune.pipeline", fake)
    monkeypatch.setitem(sys.modules, "hf_prune.results", fake)
    return fake


@pytest.fixture
def model():
    return ROOT / "examples" / "demo" / "storymath-16l"


@pytest.mark.parametrize("command", ["compress", "plan"])
def test_every_recipe_field_has_a_flag_with_its_description_and_default(command):
    shown = {p.name: p for p in get_command(app).commands[command].params}
    for name, field in ((name, option.field) for name, option in OPTIONS.items()):
        assert shown[name].help.startswith(field.description)
        if name != "base":
            assert spelled(name) in shown[name].opts
        if isinstance(field.default, int | float | str) and not isinstance(field.default, bool):
            assert f"[default: {field.default}]" in shown[name].help


def test_flags_make_the_same_recipe_as_python(pipeline):
    apart = {"base", "ratio", "drop", "drop_layers", "search_heal", "latency", "gguf", "gguf_apart"}
    assert set(VALUES) | apart == set(OPTIONS), "give a new field a value here"
    result = hf_prune("compress", "ns/m", *flags(VALUES))
    assert result.exit_code == 0, result.output
    assert pipeline.recipes == [Recipe.of(base="ns/m", **VALUES)]


def test_flags_override_the_recipe_file(pipeline, tmp_path):
    (tmp_path / "r.yaml").write_text("base: ns/m\nkeep_layers: 12\nseed: 1\nallow_pickle: true\nrules: [mean]\n")
    hf_prune("compress", "--recipe", tmp_path / "r.yaml")
    hf_prune("compress", "ns/n", "--recipe", tmp_path / "r.yaml", "--drop", "3,6", "--no-allow-pickle", "--seed", 0)
    assert pipeline.recipes == [
        Recipe.of(base="ns/m", keep_layers=12, seed=1, allow_pickle=True, rules=("mean",)),
        Recipe.of(base="ns/n", drop=("3,6",), rules=("mean",)),
    ]


def test_two_sizes_on_the_command_line_still_contradict(pipeline):
    result = hf_prune("compress", "ns/m", "--ratio", 0.5, "--keep-layers", 3)
    assert result.exit_code == 2 and "ratio and keep_layers" in result.stderr and not pipeline.recipes


@pytest.mark.parametrize("content", ["base: [", b"\xff\xfeb\x00", b"\x80"])
def test_a_recipe_that_is_no_yaml_is_refused_in_a_line(pipeline, tmp_path, content):
    (tmp_path / "r.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
    result = hf_prune("compress", "--recipe", tmp_path / "r.yaml")
    assert result.exit_code == 2 and result.stderr.startswith("Error: Cannot read the recipe ")
    assert result.stderr.count("\n") == 1 and not pipeline.recipes


def test_an_unknown_key_gets_the_nearest_name(pipeline, tmp_path):
    (tmp_path / "r.yaml").write_text("base: ns/m\nobjectiv: kl\n")
    result = hf_prune("compress", "--recipe", tmp_path / "r.yaml")
    assert result.exit_code == 2 and "did you mean 'objective'?" in result.stderr
    assert result.stderr.count("\n") == 1 and result.stdout == ""


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["compress"], "which model"),
        (["compress", "ns/m", "--search", "annealing"], "staged"),
        (["compress", "ns/m", "--baselines", "first"], "shortgpt"),
        (["compress", "ns/m", "--ratio", "much"], "--ratio"),
        (["compress", "ns/m", "--recipe", "missing.yaml"], "missing.yaml"),
        (["compress", "--recipe", "typo.yaml"], "There is no recipe file typo.yaml here"),
        (["push", "nowhere", "me/small"], "There is no folder nowhere here"),
        (["export", "folder/typo"], "There is no folder folder/typo here"),
        (["export", "typo", "--format", "nemotron-nas"], "There is no folder typo here"),
    ],
)
def test_bad_usage_exits_with_2(pipeline, args, words):
    result = hf_prune(*args)
    assert result.exit_code == 2 and words in result.stderr and not pipeline.recipes


ERRORS = [e for e in vars(errors).values() if isinstance(e, type) and issubclass(e, errors.HfPruneError)]


@pytest.mark.parametrize("error", ERRORS, ids=lambda e: e.__name__)
def test_a_known_error_is_one_line_and_its_exit_code(pipeline, error):
    def fail(recipe):
        raise error("Something is wrong here;\n do this.")
        yield

    pipeline.compress = fail
    result = hf_prune("compress", "ns/m")
    assert result.exit_code == error.exit_code != 0
    assert result.stderr == "Error: Something is wrong here; do this.\n" and result.stdout == ""


def test_an_unexpected_error_is_one_line_too_unless_debugging(pipeline, monkeypatch):
    pipeline.compress = lambda recipe: 1 / 0
    result = hf_prune("compress", "ns/m")
    assert result.exit_code == 1 and "ZeroDivisionError" in result.stderr and "HF_PRUNE_DEBUG=1" in result.stderr
    monkeypatch.setenv("HF_PRUNE_DEBUG", "1")
    result = hf_prune("compress", "ns/m")
    assert result.exit_code == 1 and "Traceback" in result.stderr and "ZeroDivisionError" in result.stderr


def test_ctrl_c_exits_with_130_and_says_how_to_go_on(pipeline):
    def interrupted(recipe):
        yield Stage("search")
        raise KeyboardInterrupt

    pipeline.compress = interrupted
    result = hf_prune("compress", "ns/m")
    assert result.exit_code == 130 and "same command" in result.stderr


def test_json_is_one_line_per_event_and_nothing_else(pipeline):
    result = hf_prune("compress", "ns/m", "--format", "json")
    lines = [json.loads(line, parse_constant=pytest.fail) for line in result.stdout.splitlines()]
    names = ["Started", "Stage", "Scored", "Scored", "Assembled", "Reported", "Pushed", "Finished"]
    assert [line["event"] for line in lines] == names
    assert lines[0]["recipe"]["base"] == "ns/m"
    assert lines[2]["best"] == "inf" and lines[3]["outcomes"][0]["values"] == [0.5]
    assert lines[3]["outcomes"][0]["trial"] == {
        "genome": [0, 1],
        "fidelity": {
            "sequences": 4,
            "start": 0,
            "heal_tokens": 0,
            "repair": 0,
            "items": 0,
            "first_item": 0,
            "bridged": False,
        },
    }
    assert Blueprint.from_json(json.dumps(lines[4]["blueprint"])).layers[1].parts[0].layer == 1
    assert lines[7]["report"] == REPORT
    assert result.stderr == ""


@pytest.mark.parametrize("flag", [["-q"], ["--quiet"], ["--format", "quiet"]])
def test_quiet_prints_the_folder_alone(pipeline, flag):
    result = hf_prune("compress", "ns/m", "--output", "there", *flag)
    assert (result.stdout, result.stderr) == ("there\n", "")


def test_for_people_stages_go_to_stderr_and_figures_to_stdout_without_colour(pipeline):
    result = hf_prune("compress", "ns/m", "--output", "there")
    assert "ns/m: remove 4, at most" in result.stderr and "search: 16 windows" in result.stderr
    for text in ("3.41M", "2.62M", "9.13 (8.50 to 9.75)", "there/README.md", "https://hub/me"):
        assert text in result.stdout
    assert "\x1b" not in result.output and "search:" not in result.stdout


def test_plan_of_a_local_model(model):
    result = hf_prune("plan", model, "--ratio", 0.25, "--format", "json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert (found["depth"], found["result_layers"], found["target"]["remove"]) == (16, 12, 4)
    assert found["parameters"] == AutoModelForCausalLM.from_pretrained(model).num_parameters()
    assert found["bytes"] == 2 * found["parameters"] < (model / "model.safetensors").stat().st_size
    assert found["download_bytes"] == 0
    assert "layer-tokens" not in hf_prune("plan", model, "--ratio", 0.25).stdout
    text = hf_prune("plan", model, "--ratio", 0.25, "--rules", "keep", "--verbose").stdout
    for words in (
        "remove 4 layers, 23.1 %",
        "1.9 percentage points less than asked",
        "12 layers, 2.62M",
        "1,820 candidates",
    ):
        assert words in text
    assert hf_prune("plan", model, "-q").stdout == ""


def test_an_impossible_plan_exits_with_2(model):
    result = hf_prune("plan", model, "--keep-layers", 16)
    assert result.exit_code == 2 and "between 1 and 15" in result.stderr


def test_dry_run_shows_the_plan_and_touches_nothing(model, pipeline, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = {p: p.stat().st_mtime_ns for p in [model, *model.iterdir()]}
    dry = hf_prune("compress", model, "--dry-run", "--push-to", "me/small", "--format", "json")
    assert dry.exit_code == 0 and dry.stdout == hf_prune("plan", model, "--format", "json").stdout
    assert not pipeline.recipes and not list(tmp_path.iterdir())
    assert {p: p.stat().st_mtime_ns for p in [model, *model.iterdir()]} == before


def test_demo_compresses_the_bundled_model_by_a_quarter(pipeline):
    result = hf_prune("demo", "--output", "there", "-q")
    assert result.exit_code == 0, result.output
    (recipe,) = pipeline.recipes
    assert (recipe.size.ratio, recipe.output) == (0.25, "there")
    assert (Path(recipe.base) / "model.safetensors").is_file() and list(
        Path(recipe.data.text[0]).glob("*.search.jsonl")
    )


def test_assemble_passes_its_arguments_on(pipeline, tmp_path):
    calls = []
    pipeline.assemble_blueprint = lambda *args, **kwargs: calls.append((args, kwargs)) or args[1]
    done = hf_prune("assemble", "front.json", "--pick", "#3", "--output", tmp_path / "m", "--library", "l", "-q")
    assert done.stdout == f"{tmp_path / 'm'}\n"
    assert calls == [((Path("front.json"), tmp_path / "m"), {"source": None, "pick": "#3", "library": Path("l")})]


def test_report_passes_its_arguments_on_and_shows_how_far_it_is(pipeline):
    calls = []

    def report_folder(*args, **kwargs):
        calls.append((args, kwargs))
        yield Stage("report", "96 windows")
        yield Advanced("report", 1, 9)
        yield Finished("m", REPORT, None)

    pipeline.report_folder = report_folder
    done = hf_prune("report", "m", "--base", "ns/m", "--data", "a", "--data", "b", "--length", 64, "--format", "json")
    assert calls == [(("m",), {"base": "ns/m", "output": None, "data": ("a", "b"), "length": 64})]
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["event"] for line in lines] == ["Stage", "Advanced", "Finished"] and lines[2]["report"] == REPORT
    done = hf_prune("report", "m")
    assert "9.13" in done.stdout and "m/README.md" in done.stdout and done.stderr == "report: 96 windows\n"
    assert hf_prune("report", "m", "--quiet").stdout == "m\n"


def test_heal_passes_its_arguments_on_and_shows_the_run(pipeline):
    calls = []

    def heal_folder(*args, **kwargs):
        calls.append((args, kwargs))
        yield Stage("heal", "1,000,000 tokens, lora")
        yield Advanced("heal", 1, 244)
        yield Healed(1.9, 1.7, 1_000_000, True)
        yield Finished("there", REPORT, None)

    pipeline.heal_folder = heal_folder
    done = hf_prune("heal", "ns/small", "--repair", "--heal-rank", 4, "--data", "a", "--output", "there")
    assert calls == [
        (("ns/small",), {"base": None, "output": "there", "heal": "1M", "data": ("a",), "repair": True, "heal_rank": 4})
    ]
    assert "healed on 1,000,000 tokens: loss on the selection split 1.9 -> 1.7" in done.stderr
    assert "there/README.md" in done.stdout


def test_push_is_private_unless_told_and_says_when_nothing_changed(model, monkeypatch):
    calls = []

    def push(folder, repo_id, **options):
        calls.append((folder, repo_id, options))
        return SimpleNamespace(url="https://hub/me/small", commit="abc", changed=len(calls) == 1)

    monkeypatch.setattr("hf_prune.hub.push", push)
    first = hf_prune("push", model, "me/small", "--revision", "dev", "--format", "json")
    again = hf_prune("push", model, "me/small", "--public", "--create-pr", "--commit-message", "m")
    options = {"private": True, "create_pr": False, "revision": "dev", "commit_message": None}
    assert calls[0] == (model, "me/small", options)
    assert calls[1][2] == {"private": False, "create_pr": True, "revision": None, "commit_message": "m"}
    assert json.loads(first.stdout)["changed"] is True
    assert again.stdout.startswith("Unchanged")
    dry = hf_prune("push", model, "me/small", "--dry-run", "--format", "json")
    assert len(calls) == 2 and "model.safetensors" in json.loads(dry.stdout)["files"]


def test_version_and_bare_command():
    assert hf_prune("--version").stdout == f"{__version__}\n"
    assert "compress" in hf_prune().output


def shown(command, flag, monkeypatch, columns=80):
    """Sections of the help: heading to lines."""
    monkeypatch.setenv("COLUMNS", str(columns))
    result = hf_prune(command, flag)
    assert result.exit_code == 0, result.output
    assert max(map(len, result.output.splitlines())) <= columns
    sections = {}
    for line in result.output.splitlines():
        if line and not line.startswith(" "):
            heading = line
        sections.setdefault(heading.rstrip(":"), []).append(line)
    return sections


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize("command", ["compress", "plan", "heal", "report"])
def test_help_shows_what_most_people_need_and_all_of_it_by_group(command, columns, monkeypatch):
    few, all_ = (shown(command, flag, monkeypatch, columns) for flag in ("--help", "--help-all"))
    names = {p.name for p in get_command(app).commands[command].params}
    asked = [
        o for o in OPTIONS.values() if o.name in names and o.name not in ("base", "heal" if command == "heal" else "")
    ]
    offered = "\n".join(few["Options"])
    for option in asked:
        assert (f"  {option.flag} " in offered) is option.first
        heading = f"{option.path[0]} ({option.about})" if option.about else "Options"
        assert any(line.startswith(f"  {option.flag} ") for line in all_[heading])
        if not option.first and option.about:
            assert any(line.startswith(f"  {option.path[0]} ") for line in few["More, by group; --help-all shows them"])
    assert "--help-all" in offered and "More" not in str(list(all_))


def test_help_shows_eleven_options_first(monkeypatch):
    lines = shown("compress", "--help", monkeypatch)["Options"]
    flags = [line.split()[0] for line in lines if line.startswith("  -")]
    first = "--variant --output --method --ratio --data --repair --heal --time --push-to --recipe --dry-run"
    assert flags[:11] == first.split()


def test_help_loads_no_model_library():
    code = (
        "import sys; sys.argv = ['hf-prune', 'compress', '--help']\n"
        "from hf_prune.cli.main import main\n"
        "try: main()\n"
        "except SystemExit as e: assert not e.code\n"
        "assert not {'torch', 'transformers', 'huggingface_hub', 'matplotlib', 'datasets'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)


def test_registered_as_hf_prune(tmp_path):
    """`hf prune` runs the very command that registered itself."""
    script = tmp_path / "bin" / "hf-prune"
    script.parent.mkdir()
    script.write_text(f"#!{sys.executable}\nfrom hf_prune.cli.main import main\nmain()\n")
    script.chmod(0o755)
    env = os.environ | {
        "HOME": str(tmp_path),
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_UPDATE_CHECK": "1",
        "PYTHONPATH": str(ROOT),
    }

    def run(*command):
        return subprocess.run(command, env=env, check=True, capture_output=True, text=True).stdout

    manifest = Path(run(script, "register", "-q").strip())
    assert manifest == tmp_path / ".local/share/hf/extensions/hf-prune/manifest.json"
    assert json.loads(manifest.read_text())["executable_path"] == str(script)
    assert [p.name for p in manifest.parent.iterdir()] == ["manifest.json"]
    hf = Path(sys.executable).parent / "hf"
    assert "hf prune" in run(hf, "ext", "ls")
    assert run(hf, "prune", "--version") == f"{__version__}\n"
    assert "compress" in run(hf, "prune", "--help")
    run(script, "register")


@pytest.mark.slow
def test_the_demo_searches_at_once_and_can_be_left(tmp_path):
    """tests/test_browser.py has a whole run of the demo family."""
    run = [sys.executable, "-m", "hf_prune.cli", "demo", "--output", str(tmp_path / "small"), "--format", "json"]
    # A test run started in the background ignores SIGINT, and its children would inherit that.
    listen = functools.partial(signal.signal, signal.SIGINT, signal.default_int_handler)
    with subprocess.Popen(run, cwd=ROOT, stdout=subprocess.PIPE, text=True, preexec_fn=listen) as demo:
        events = (json.loads(line) for line in demo.stdout)
        assert any(e["event"] == "Stage" and e["name"] == "search" for e in events)
        assert any(e["event"] == "Scored" and e["outcomes"] for e in events)
        demo.send_signal(signal.SIGINT)
        assert demo.wait(60) == 130
    assert (tmp_path / "small.run/journal.jsonl").is_file() and not (tmp_path / "small").exists()
