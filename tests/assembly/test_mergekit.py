"""Our merges beside mergekit's own, tensor by tensor; mergekit is installed for this test alone, on its own."""

import functools
import json
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from hf_prune.assembly.assemble import write
from hf_prune.assembly.merge import _mask, merged
from hf_prune.assembly.mergekit import export_mergekit
from hf_prune.blueprint import Blueprint, LayerSpec, Mix, Part
from tests.families import DEPTH
from tests.oracle import variants

PACKAGES = ["mergekit==0.1.4", "pydantic==2.10.6", "pydantic-core==2.27.2", "immutables==0.21", "click==8.2.1",
            "transformers==4.57.1", "tokenizers==0.22.1", "huggingface_hub==0.36.0", "accelerate==1.6.0",
            "peft==0.17.1"]  # fmt: skip
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def mergekit(tmp_path_factory):
    """A Python that has mergekit and what it pins, and everything else (torch) from here."""
    home = tmp_path_factory.mktemp("mergekit") / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(home)], check=True)
    python = home / "bin/python"
    pip = [str(python), "-m", "pip", "install", "--quiet", "--no-deps", *PACKAGES]
    done = subprocess.run(pip, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"mergekit cannot be installed: {done.stderr.strip().splitlines()[-1]}")
    purelib = subprocess.check_output([python, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])"])
    (Path(purelib.decode().strip()) / "ours.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return python


SERVE = """
import json, sys, traceback
from mergekit.scripts.run_yaml import main
for line in sys.stdin:
    try:
        main(json.loads(line), standalone_mode=False)
        said = "done"
    except BaseException:
        said = traceback.format_exc()
    print("::" + json.dumps(said), flush=True)
"""


@pytest.fixture(scope="module")
def merge(mergekit):
    """mergekit's own command, imported once."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen([mergekit, "-c", SERVE], text=True, **pipes) as server:
        yield functools.partial(run, server)
        server.stdin.close()


def run(server, config, folder):
    """The tensors that mergekit makes of a configuration."""
    path = folder / "config.yaml"
    path.write_text(config if isinstance(config, str) else yaml.safe_dump(config))
    server.stdin.write(json.dumps([str(path), str(folder / "out"), "--no-copy-tokenizer"]) + "\n")
    server.stdin.flush()
    said = next((line[2:] for line in server.stdout if line.startswith("::")), "it has died")
    assert json.loads(said) == "done", said
    return {n: t for file in (folder / "out").glob("*.safetensors") for n, t in load_file(file).items()}


def folders():
    return [str(p.checkpoint.folder) for p in variants("mistral")]


@pytest.mark.parametrize(
    ("name", "weights", "config"),
    [
        ("linear", [0.5, 0.8, -0.3], {"merge_method": "linear", "parameters": {"normalize": False}}),
        ("slerp", [0.3, 0.7], {"merge_method": "slerp", "parameters": {"t": 0.7}}),
        ("ties:0.4", [1.0, 0.3, 0.9], {"merge_method": "ties"}),
        ("dare:1", [1.0, 0.3, 0.9], {"merge_method": "dare_linear"}),
        ("dare-ties:1", [1.0, 0.3, 0.9], {"merge_method": "dare_ties"}),
    ],
)
def test_every_tensor_is_what_mergekit_makes_of_it(merge, tmp_path, name, weights, config):
    used = folders()[: len(weights)]
    first = 0 if name in ("linear", "slerp") else 1
    density = {"density": float(name.partition(":")[2])} if first else {}
    models = [{"model": f, **({} if name == "slerp" else {"parameters": {"weight": w, **density}})}
              for f, w in list(zip(used, weights, strict=True))[first:]]  # fmt: skip
    base = {} if name == "linear" else {"base_model": used[0]}
    theirs = merge({**config, **base, "models": models, "dtype": "float32"}, tmp_path)
    parents = variants("mistral")[: len(weights)]
    for tensor in parents[0].shapes:
        ours = merged(name, [p.checkpoint.tensor(tensor) for p in parents], weights, tensor)
        torch.testing.assert_close(ours, theirs[tensor], rtol=1e-4, atol=1e-5, msg=lambda m, t=tensor: f"{t}: {m}")


def test_a_mask_is_drawn_as_mergekit_draws_it(mergekit, tmp_path):
    delta = torch.randn(40, 30, generator=torch.Generator().manual_seed(0))
    save_file({"delta": delta}, tmp_path / "delta.safetensors")
    code = (
        "import sys, torch; from safetensors.torch import load_file, save_file\n"
        "from mergekit.sparsify import bernoulli\n"
        "t = load_file(sys.argv[1])['delta']; torch.manual_seed(5)\n"
        "save_file({'kept': bernoulli(t, 0.3, rescale_norm=None)}, sys.argv[2])"
    )
    arguments = [mergekit, "-c", code, tmp_path / "delta.safetensors", tmp_path / "kept.safetensors"]
    subprocess.run([*map(str, arguments)], check=True)
    ours = delta * _mask(delta, 0.3, torch.Generator().manual_seed(5))
    torch.testing.assert_close(ours, load_file(tmp_path / "kept.safetensors")["kept"])


BLUEPRINTS = {
    "blend": [LayerSpec((Part(0, i, 0.5), Part(1, i, 0.25), Part(2, i, 0.25))) for i in (0, 2, 3, 5)],
    "selection": [LayerSpec((Part(k, i),)) for k, i in ((1, 0), (2, 1), (0, 3), (1, 4))],
    "arithmetic": [LayerSpec((Part(0, i, -0.5), Part(1, i, 0.5), Part(2, i, 1.0))) for i in range(DEPTH)],
    "halves": [LayerSpec((Part(1, 0),), mlp=Mix((Part(0, 0, 0.5), Part(2, 0, 0.5)))), LayerSpec((Part(2, 4),))],
    "cut first": [LayerSpec((Part(0, 0, 0.5), Part(1, 1, 0.5))), LayerSpec((Part(0, 2, 0.5), Part(1, 5, 0.5)))],
}


@pytest.mark.parametrize(("name", "embed", "head"), [("blend", 0, 0), *((name, 2, 1) for name in BLUEPRINTS)])
def test_what_is_exported_is_built_by_mergekit_to_the_same_weights(merge, tmp_path, name, embed, head):
    parents = variants("mistral")
    blueprint = Blueprint(tuple(p.source for p in parents), tuple(BLUEPRINTS[name]), embed, head)
    (tmp_path / "ours").mkdir()
    write(blueprint, parents, tmp_path / "ours")
    theirs = merge(export_mergekit(tmp_path / "ours", folders()), tmp_path)
    ours = load_file(tmp_path / "ours/model.safetensors")
    assert ours.keys() == theirs.keys()
    for tensor, mine in ours.items():
        torch.testing.assert_close(mine, theirs[tensor], rtol=1e-5, atol=1e-6, msg=lambda m, t=tensor: f"{t}: {m}")
