"""Results as one file: what is packed, and who gets it."""

from io import BytesIO
from zipfile import ZipFile

import pytest
from starlette.responses import Response
from starlette.testclient import TestClient

from hf_prune.app.downloads import PIECE, WithDownloads, link, zipped
from hf_prune.app.runs import Run

ID = "0123456789abcdef"


@pytest.fixture
def run(tmp_path):
    made = Run(tmp_path / ID)
    (made.result / "figures").mkdir(parents=True)
    (made.result / "model.safetensors").write_bytes(bytes(range(256)) * (PIECE // 100))
    (made.result / "figures" / "layers.png").write_bytes(b"png")
    (made.folder / "owner").write_text("somebody")
    return made


@pytest.fixture
def client(tmp_path):
    return TestClient(WithDownloads(Response("the app"), tmp_path))


def test_a_result_comes_whole_and_nothing_else_of_its_run_does(run, client):
    answer = client.get(link(run).removeprefix("."))
    assert answer.headers["content-disposition"] == f'attachment; filename="hf_prune-{ID}.zip"'
    with ZipFile(BytesIO(answer.content)) as packed:
        assert packed.testzip() is None
        names = {f"hf_prune-{ID}/{n}" for n in ("model.safetensors", "figures/layers.png")}
        assert set(packed.namelist()) == names
        weights = packed.read(f"hf_prune-{ID}/model.safetensors")
    assert weights == (run.result / "model.safetensors").read_bytes()


def test_it_is_sent_in_pieces(run):
    assert max(map(len, zipped(run.result, "x"))) < 2 * PIECE


def test_nobody_guesses_a_link(run, client):
    key = link(run).partition("?key=")[2]
    wrong = (f"{ID}.zip", f"{ID}.zip?key=", f"{ID}.zip?key={key[:-1]}", f"{ID}.tar?key={key}", f"../{ID}.zip?key={key}",
             f"{'0' * 16}.zip?key={key}", f"{ID}.zip?key=%ff")  # fmt: skip
    assert [client.get(f"/hf_prune/{name}").text for name in wrong if "../" not in name] == ["Not Found"] * (
        len(wrong) - 1
    )
    assert client.get("/anything").text == "the app"


def test_a_run_without_a_result_sends_nothing(tmp_path, client):
    assert client.get(link(Run(tmp_path / ID)).removeprefix(".")).status_code == 404
