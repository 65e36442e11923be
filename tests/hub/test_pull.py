"""Reading sources: names, pins, what is downloaded, and the sentence for everything that can be wrong."""

import shutil
import string
from collections import namedtuple
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_prune import errors
from hf_prune.blueprint import Source
from hf_prune.hub import Peek, peek, pull
from hf_prune.hub.contents import INDEX
from hf_prune.hub.names import parse
from tests.hub.samples import adapter, model

word = st.text(string.ascii_letters + string.digits, min_size=1, max_size=8)
repo = st.builds("{}/{}".format, word, word)


class Naps(list):
    """A sleep that does not wait but remembers."""

    def __call__(self, seconds: float) -> None:
        self.append(seconds)


def folder(path: Path, files: dict[str, bytes]) -> Path:
    path.mkdir(parents=True)
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return path


def without(files: dict[str, bytes], *names: str) -> dict[str, bytes]:
    return {n: c for n, c in files.items() if n not in names}


def names_in(path: Path) -> set[str]:
    return {p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file()}


def sentence(caught: pytest.ExceptionInfo) -> str:
    """The message, after checks that hold for every one of them."""
    text = str(caught.value)
    assert text.endswith(".") and "\n" not in text and "hf_ns_secret" not in text and len(text) < 300
    return text


# names


@given(repo, st.none() | word, st.none() | repo, st.none() | word)
def test_every_reference_is_read_back(base, revision, extra, extra_revision):
    text = base + (f"@{revision}" if revision else "")
    text += f"+{extra}" + (f"@{extra_revision}" if extra_revision else "") if extra else ""
    found, more = parse(text)
    assert (found.repo, found.revision, found.folder) == (base, revision, None)
    assert (more.repo, more.revision) == (extra, extra_revision) if extra else more is None


def test_an_existing_folder_wins_over_every_other_reading(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("ns/name@v1", "ns/a+ns", "plain"):
        Path(name).mkdir(parents=True)
    assert parse("ns/name@v1")[0].folder == Path("ns/name@v1")
    assert parse("ns/a+ns") == (parse("./ns/a+ns")[0], None) and parse("ns/a+ns")[0].repo == "a+ns"
    assert [n.folder for n in parse("plain+ns/a+ns")] == [Path("plain"), Path("ns/a+ns")]
    assert parse("ns/other@v1+plain")[1].folder == Path("plain")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("./missing/folder/x", "neither a folder here nor a repo name"),
        ("", "neither a folder"),
        ("a b/c", "neither a folder"),
        ("ns/a@", "neither a folder"),
        ("https://hf_abcdefghij@huggingface.co/ns/a", "is an address"),
        ("../x@main", "neither a folder"),
        ("~/typo", "'~/typo' is neither a folder here"),
        ("~nobody-at-all/x", "neither a folder"),
        ("models/typo/", "neither a folder"),
        ("x" * 5000, "neither a folder"),
        ("ns/base+./typo", "'./typo' (of 'ns/base+./typo') is neither a folder here"),
        ("./typo+ns/lora", "'./typo' (of './typo+ns/lora') is neither a folder here"),
        ("./a+./b", "'./a+./b' is neither a folder here"),
        (__file__, "is a file, not a model's folder"),
    ],
)
def test_names_that_mean_nothing(text, says):
    with pytest.raises(errors.SourceNotFound) as caught:
        parse(text)
    assert says in sentence(caught) and "hf_abcdefghij" not in str(caught.value)


def test_a_folder_has_no_revisions(tmp_path):
    with pytest.raises(errors.SourceNotFound) as caught:
        parse(f"{folder(tmp_path / 'm', model())}@main")
    assert "a local folder has none" in sentence(caught)


# pins


def test_a_branch_a_tag_and_a_commit_pin_to_a_commit(hub_server):
    first = hub_server.seed("ns/base", model()).head
    seeded = hub_server.seed("ns/base", model(seed=1))
    seeded.tags["v1"] = first
    assert pull("ns/base").source == Source("ns/base", seeded.head)
    assert pull("ns/base@v1").source == pull(f"ns/base@{first}").source == Source("ns/base", first)
    weights = {r: (pull(f"ns/base@{r}").folder / "model.safetensors").read_bytes() for r in ("v1", "main")}
    assert weights["v1"] == model()["model.safetensors"] and weights["main"] == model(seed=1)["model.safetensors"]


def test_every_file_is_asked_for_by_commit(hub_server):
    head = hub_server.seed("ns/base", model(shards=2)).head
    pull("ns/base")
    asked = hub_server.seen("/resolve/|/tree/")
    assert asked and all(f"/{head}" in s.path for s in asked)


def test_pull_takes_only_what_is_needed(hub_server):
    extra = ["original/x.pth", "consolidated.safetensors", "pytorch_model.bin", "onnx/model.onnx", "m.gguf", "code.py"]
    wanted = model(shards=2) | {"chat_template.jinja": b"x", "LICENSE": b"y"}
    hub_server.seed("ns/base", wanted | dict.fromkeys(extra, b"\0" * 99) | {"original/tokenizer.model": b"z"})
    assert names_in(pull("ns/base").folder) == set(wanted)


def test_code_comes_only_with_leave(hub_server):
    config = {"auto_map": {"AutoModel": "modeling_odd.Odd"}, "model_type": "odd"}
    hub_server.seed("ns/odd", model(**config) | {"modeling_odd.py": b"pass"})
    with pytest.raises(errors.UnsafeSource) as caught:
        pull("ns/odd")
    assert "--trust-remote-code" in sentence(caught)
    assert "modeling_odd.py" in names_in(pull("ns/odd", trust_remote_code=True).folder)


def test_a_known_family_needs_no_code_of_its_own(hub_server):
    hub_server.seed("ns/base", model(auto_map={"AutoModel": "modeling_x.X"}) | {"modeling_x.py": b"pass"})
    assert "modeling_x.py" not in names_in(pull("ns/base", trust_remote_code=True).folder)


def test_pickles_only_with_leave_and_never_beside_safetensors(hub_server):
    files = without(model(), "model.safetensors") | {"pytorch_model.bin": b"\0" * 50}
    hub_server.seed("ns/pickle", files)
    with pytest.raises(errors.UnsafeSource) as caught:
        pull("ns/pickle")
    assert "--allow-pickle" in sentence(caught)
    assert "pytorch_model.bin" in names_in(pull("ns/pickle", allow_pickle=True).folder)
    assert peek("ns/pickle", allow_pickle=True).tensors == {}
    hub_server.seed("ns/both", model() | {"pytorch_model.bin": b"\0" * 50})
    assert "pytorch_model.bin" not in names_in(pull("ns/both", allow_pickle=True).folder)


def test_an_adapter_is_pinned_and_pulled(hub_server):
    base = hub_server.seed("ns/base", model()).head
    lora = hub_server.seed("ns/lora", adapter() | {"optimizer.pt": b"\0" * 50}).head
    found = pull("ns/base+ns/lora")
    assert found.source == Source("ns/base", base, f"ns/lora@{lora}")
    assert names_in(found.adapter) == set(adapter())
    assert peek(f"ns/base@{base}+ns/lora@main").source == found.source


def test_a_full_disk_is_seen_before_the_download(hub_server, monkeypatch):
    hub_server.seed("ns/base", model(seed=5))
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**6, 10**6 - 1000, 1000))
    with pytest.raises(errors.NotEnoughDisk) as caught:
        pull("ns/base")
    more = sum(map(len, model().values())) - len(model()["config.json"])  # which had to be read already
    assert f"needs {more / 1e6:.2f} MB more" in sentence(caught) and "0.00 MB are free" in str(caught.value)
    assert not hub_server.seen("/cdn/")
    monkeypatch.undo()
    first = pull("ns/base")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**6, 10**6, 0))
    assert pull("ns/base") == first, "what is cached needs no room"
    seeded = hub_server.seed("ns/base", {"config.json": model(tag="new")["config.json"]})
    assert pull("ns/base").source.revision == seeded.head, "nor does what another commit has cached"


# peek


def test_peek_reads_headers_only(hub_server):
    files = model(shards=2, vocab_size=4096)
    head = hub_server.seed("ns/big", files).head
    seen = peek("ns/big")
    assert isinstance(seen, Peek) and seen.source == Source("ns/big", head)
    assert seen.config["num_hidden_layers"] == 2
    assert seen.tensors["model.embed_tokens.weight"].shape == (4096, 64)
    assert {t.dtype for t in seen.tensors.values()} == {"F32"} and len(seen.tensors) == 20
    assert {t.file for t in seen.tensors.values()} == {n for n in files if n.endswith("safetensors")}
    assert seen.files["config.json"] == len(files["config.json"])
    assert seen.card == {"license": "apache-2.0", "language": "en", "pipeline_tag": "text-generation", "tags": ["tiny"]}
    weights = sum(len(c) for n, c in files.items() if n.endswith(".safetensors"))
    assert hub_server.sent("/cdn/") <= 2 * 100_001 < weights / 5, "weights were downloaded"
    assert {s.status for s in hub_server.seen("GET /cdn/")} == {206}


def test_peek_of_a_folder_agrees_with_the_hub(hub_server, tmp_path):
    hub_server.seed("ns/base", model(shards=2))
    here, there = peek(str(folder(tmp_path / "base", model(shards=2)))), peek("ns/base")
    assert (here.tensors, here.config, here.card) == (there.tensors, there.config, there.card)
    assert here.source.repo == "base" and not here.private


def test_peek_says_private_and_gated(hub_server):
    hub_server.seed("ns/base", model(), private=True, gated=True)
    seen = peek("ns/base")
    assert seen.private and seen.gated


# local folders


def test_a_folder_is_named_by_its_content_not_its_path(tmp_path):
    first = pull(str(folder(tmp_path / "a" / "base", model())))
    again = pull(str(folder(tmp_path / "b" / "base", model() | {"README.md": b"other"})))
    other = pull(str(folder(tmp_path / "c" / "base", model(seed=1))))
    assert first.source == again.source != other.source
    assert first.source.repo == "base" and len(first.source.revision) == len("sha256-") + 12
    assert first.folder == tmp_path / "a" / "base"


def test_large_files_are_sampled(tmp_path, monkeypatch):
    monkeypatch.setattr("hf_prune.hub.folders.HASH_ALL", 0)
    monkeypatch.setattr("hf_prune.hub.folders.SAMPLE", 1000)
    path = folder(tmp_path / "m", model())
    before, content = pull(str(path)).source, bytearray(model()["model.safetensors"])
    for position, noticed in ((-1, True), (len(content) // 2, True), (len(content) // 4, False)):
        altered = bytearray(content)
        altered[position] ^= 1
        (path / "model.safetensors").write_bytes(altered)
        assert (pull(str(path)).source != before) == noticed


def test_a_local_adapter(tmp_path):
    base, lora = folder(tmp_path / "m", model()), folder(tmp_path / "lora", adapter())
    found = pull(f"{base}+{lora}")
    assert found.adapter == lora and found.source.adapter.startswith("lora@sha256-")
    assert str(tmp_path) not in str(found.source)


# what can be wrong, the same for repos and folders

BROKEN = {
    "no config": (without(model(), "config.json"), errors.SourceError, "no config.json"),
    "config of an adapter": (adapter(), errors.SourceError, "write its base in front"),
    "config no JSON": (model() | {"config.json": b"{"}, errors.BrokenCheckpoint, "config.json"),
    "no weights": (without(model(), "model.safetensors"), errors.SourceError, "holds no weights"),
    "no tokenizer": (without(model(), "tokenizer.json"), errors.SourceError, "no tokenizer"),
    "shard missing": (
        without(model(shards=2), "model-00002-of-00002.safetensors"),
        errors.BrokenCheckpoint,
        "lacks model-00002-of-00002.safetensors",
    ),
    "index no JSON": (model(shards=2) | {INDEX: b"[]"}, errors.BrokenCheckpoint, "not a readable index"),
    "header malformed": (model() | {"model.safetensors": b"\xff" * 64}, errors.BrokenCheckpoint, "safetensors"),
}


@pytest.mark.parametrize("case", BROKEN)
@pytest.mark.parametrize("local", [True, False], ids=["folder", "repo"])
def test_an_unfit_source_is_refused_with_the_reason(hub_server, tmp_path, case, local):
    files, kind, says = BROKEN[case]
    base = str(folder(tmp_path / "base", files)) if local else hub_server.seed("ns/base", files).id
    with pytest.raises(kind) as caught:
        peek(base)
    assert says in sentence(caught)


def test_a_shard_cut_short_in_a_folder(tmp_path):
    path = folder(tmp_path / "base", model())
    (path / "model.safetensors").write_bytes(model()["model.safetensors"][:-1])
    with pytest.raises(errors.BrokenCheckpoint) as caught:
        peek(str(path))
    assert "cut short" in sentence(caught)


def test_a_folder_that_cannot_be_read(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    path = folder(tmp_path / "base", model())
    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(errors.SourceError) as caught:
        pull(str(path))
    assert "cannot be read (Permission denied)" in sentence(caught)


ADAPTERS = {
    "none": (model(), errors.IncompatibleSources, "no adapter_config.json"),
    "in no weights": (adapter("PREFIX_TUNING"), errors.IncompatibleSources, "type PREFIX_TUNING"),
    "pickle": (
        without(adapter(), "adapter_model.safetensors") | {"adapter_model.bin": b"x"},
        errors.UnsafeSource,
        "only a pickle",
    ),
    "empty": (without(adapter(), "adapter_model.safetensors"), errors.BrokenCheckpoint, "no weights"),
}


@pytest.mark.parametrize("case", ADAPTERS)
def test_an_unfit_adapter_is_refused_with_the_reason(hub_server, case):
    files, kind, says = ADAPTERS[case]
    hub_server.seed("ns/base", model())
    hub_server.seed("ns/lora", files)
    with pytest.raises(kind) as caught:
        peek("ns/base+ns/lora")
    assert says in sentence(caught)
