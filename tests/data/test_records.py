"""Records are the same however a file lays them out, and each knows its place."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hf_prune.data.local_files import here, looks_local, read_text
from hf_prune.data.records import records
from hf_prune.errors import InvalidData
from tests.data.strangers import JSON

TOLD = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
LAYOUTS = {
    "lines": lambda values: "\n".join(map(json.dumps, values)),
    "lines apart": lambda values: "\r\n \r\n\n".join(map(json.dumps, values)) + "\n",
    "an array": json.dumps,
    "an array over lines": lambda values: json.dumps(values, indent=2),
}


@TOLD
@given(
    st.lists(st.dictionaries(st.sampled_from("abc"), JSON), min_size=1), st.sampled_from(list(LAYOUTS)), st.booleans()
)
def test_every_layout_holds_the_same_records_in_order(tmp_path, values, layout, marked):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" * marked + LAYOUTS[layout](values).encode())
    found = list(records(path, "data", "right"))
    # NaN is not equal to itself; its spelling is.
    assert [json.dumps(value) for _, value in found] == [json.dumps(value) for value in values]
    numbers = [int(where.split()[1]) for where, _ in found]
    assert numbers == sorted(set(numbers)) and all(where.endswith(f" of {path}") for where, _ in found)


@TOLD
@given(st.one_of(st.binary(max_size=60), st.text(max_size=60).map(lambda text: text.encode("utf-8", "surrogatepass"))))
def test_whatever_bytes_a_file_has_it_is_read_or_refused_in_a_sentence(tmp_path, content):
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    try:
        assert all(where.endswith(f" of {path}") for where, _ in records(path, "data", "right"))
    except InvalidData as e:
        assert str(path) in str(e) and "\n" not in str(e)


@TOLD
@given(st.text(alphabet="ab\n\r\t \x0b\x85\u2028\ufeffä", max_size=40))
def test_text_is_what_python_reads_without_its_mark(tmp_path, text):
    path = tmp_path / "a.txt"
    path.write_bytes(text.encode())
    assert read_text(path, "data") == path.read_text(encoding="utf-8-sig")


@pytest.mark.parametrize("entry", ["", "a" * 5000, "a\0b", "~nobody-at-all/x", "/nothing/at/all"])
def test_names_that_no_file_can_have_are_not_here(entry):
    assert here(entry) is None


def test_a_name_is_local_by_how_it_begins_or_ends():
    assert all(looks_local(name, (".jsonl",)) for name in ("./a", "/a", "~/a", "ns/a.jsonl"))
    assert not any(looks_local(name, (".jsonl",)) for name in ("a", "ns/a", "ns/a:b"))
