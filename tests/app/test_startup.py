"""gradio's start without what it does for editors."""

import gc
import subprocess
import sys

import pytest
from pydantic import BaseModel

from hf_prune.app import startup
from hf_prune.app.startup import quick, unserved


def test_the_app_starts_without_stubs_and_docs_of_gradio_and_collects_garbage_afterwards() -> None:
    code = """
import gc, sys
import hf_prune.app
import gradio
skipped = gradio.component_meta.create_or_modify_pyi, gradio.events.EventListener.set_doc
assert all(f.__module__ == "hf_prune.app.startup" for f in skipped), skipped
assert gc.isenabled() and gc.get_freeze_count()
assert not any(type(f).__name__ == "WithoutDocs" for f in sys.meta_path)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("body", ["", "class Listener:\n    pass\n"])
def test_a_module_that_has_nothing_to_skip_is_left_as_it_is(tmp_path, monkeypatch, body: str) -> None:
    (tmp_path / "plain_events.py").write_text(body + "kept = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(startup, "FOR_EDITORS", {"plain_events": ("Listener", "set_doc")})
    with quick():
        import plain_events
    monkeypatch.delitem(sys.modules, "plain_events")
    assert plain_events.kept == 1
    assert not hasattr(getattr(plain_events, "Listener", object), "set_doc")


def test_collections_stay_off_where_they_were_off() -> None:
    gc.disable()
    try:
        with quick():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
        gc.unfreeze()


def test_models_made_meanwhile_get_their_validator_when_they_are_first_asked() -> None:
    with quick():

        class Late(BaseModel):
            size: int

    class Soon(BaseModel):
        size: int

    assert type(Late.__pydantic_validator__).__name__ == "MockValSer"
    assert type(Soon.__pydantic_validator__).__name__ == "SchemaValidator"
    assert Late(size="3").size == Soon(size=3).size == 3
    with pytest.raises(ValueError, match="size"):
        Late(size="three")


def test_the_server_is_made_once() -> None:
    made = []

    class App:
        @staticmethod
        def create_app(blocks: str, mcp_server: bool) -> str:
            made.append(blocks)
            return blocks

    with unserved(App):
        assert App.create_app("laid out", mcp_server=False) is None
    assert App.create_app("launched", mcp_server=True) == "launched"
    assert made == ["launched"]
