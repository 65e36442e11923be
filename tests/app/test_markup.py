from hypothesis import given
from hypothesis import strategies as st

from hf_prune.app import markup
from hf_prune.report.schema.model import LayerFate

EVIL = "<script>alert('x')</script>"


@given(st.text())
def test_text_stays_text(text):
    for html in (
        markup.note(EVIL + text),
        markup.table((EVIL,), [(text + EVIL,)], EVIL),
        markup.bar(1, 2, EVIL + text),
    ):
        assert "<script" not in html


def test_no_path_of_the_machine_gets_out():
    path = "/srv/app/run.json"
    for html in (markup.note(f"see {path}"), markup.table(("a",), [(path,)], "t"), markup.bar(1, 2, f"pull: {path}")):
        assert "/srv" not in html


def test_a_strip_has_a_box_per_layer_and_a_legend_of_what_is_there():
    layers = [LayerFate(source=i, fate=fate) for i, fate in enumerate(("kept", "removed", "kept"))]
    html = markup.strip(layers, "three layers")
    assert html.count("<b class='kept'") == 2 and html.count("<b class='removed'") == 1
    assert "merged" not in html and "three layers" in html


def test_a_picture_carries_itself():
    html = markup.picture(b"\x89PNG", "a.png", "What is seen")
    assert html.count("data:image/png;base64,iVBORw==") == 2 and "download='a.png'" in html


def test_a_bar_never_leaves_its_frame():
    assert "width:100.0%" in markup.bar(5, 2, "") and "width:0.0%" in markup.bar(5, 0, "")
