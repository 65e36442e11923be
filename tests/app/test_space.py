import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import yaml
from typer.testing import CliRunner

import hf_prune
from hf_prune.app.space import space_folder, write_space
from hf_prune.cli.main import app

ROOT = Path(hf_prune.__file__).parents[1]


def test_the_space_needs_what_the_package_needs_in_tested_versions():
    needs = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    pins = dict(re.findall(r"^(\S+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.M))
    asked = dict(re.findall(r"^(\S+)==(\S+)$", (space_folder() / "requirements.txt").read_text(), re.M))
    plain = {re.split(r"[<>=\[]", n)[0].replace("_", "-").lower() for n in needs}
    assert {n.replace("_", "-").lower() for n in asked} == plain
    tested = {n.replace("_", "-").lower(): v for n, v in pins.items()}
    assert all(tested[n.replace("_", "-").lower()] == v for n, v in asked.items())


def test_the_head_of_the_card_is_what_spaces_read():
    head = yaml.safe_load((space_folder() / "README.md").read_text().split("---")[1])
    pins = dict(re.findall(r"^(\S+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.M))
    assert head["sdk"] == "gradio" and head["sdk_version"] == pins["gradio"] and head["app_file"] == "app.py"
    assert head["hf_oauth"] and set(head["hf_oauth_scopes"]) == {"contribute-repos", "gated-repos", "jobs"}


def test_a_space_runs_without_an_installed_hf_prune(tmp_path):
    write_space(tmp_path)
    assert not list(tmp_path.rglob("__pycache__"))
    code = (
        "import hf_prune, hf_prune.app.space, hf_prune.data.bundled as c; from pathlib import Path\n"
        "home = Path('.').resolve(); assert Path(hf_prune.__file__).is_relative_to(home)\n"
        "assert c.demo_folder().is_relative_to(home)\n"
        "from hf_prune.report.card import _template; assert _template()"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)


def test_the_command_creates_a_space_and_leaves_it_alone_the_second_time(hub_server):
    words = ["space", "push", "ns/pruner", "--hardware", "cpu-upgrade", "--format", "json"]
    first, second = (json.loads(CliRunner().invoke(app, words).stdout) for _ in range(2))
    assert first["changed"] and not second["changed"] and first["url"] == f"{hub_server.endpoint}/spaces/ns/pruner"
    tree = hub_server.repo("ns/pruner", "space").at("main").tree
    assert {"app.py", "README.md", "requirements.txt", "hf_prune/app/layout.py"} <= set(tree)
    assert hub_server.repo("ns/pruner", "space").private and hub_server.hardware == {"ns/pruner": "cpu-upgrade"}
