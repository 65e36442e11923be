"""Text, chats and tasks as people have them: read like their plain spelling, or refused by file and line."""

import codecs
import importlib.metadata
import json
from pathlib import Path

import pytest

from hf_prune import hub
from hf_prune.data.chat_templates import rendered
from hf_prune.data.corpora import SPLITS, load_corpora
from hf_prune.data.task_sources import load_tasks
from hf_prune.data.windows import windows
from hf_prune.errors import HfPruneError, InvalidData, InvalidRecipe
from hf_prune.events import Stage
from hf_prune.pipeline import compress
from hf_prune.planning import plan
from tests.data.texts import jsonl, lines, words
from tests.runs import base, recipe

CHATML = """{%- for m in messages -%}<{{ m.role }}>{{ m.content }}
{%- for call in m.tool_calls %}[{{ call.function.name }} {{ call.function.arguments.city }}]{% endfor %}
{% endfor %}"""
STRICT = """{{ bos_token }}{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}
{{ raise_exception('Roles must alternate user/assistant') }}{% endif %}[{{ m.role }}] {{ m.content }}{% endfor %}"""
TEXTS = [words(k) for k in range(40)]
PAIRS = [(words(k, 12), words(k + 500, 12)) for k in range(60)]


def turns(asked, said, who="user", whom="assistant", role="role", content="content"):
    return [{role: who, content: asked}, {role: whom, content: said}]


def text_records():
    return [{"text": t} for t in TEXTS]


def chat_records(**more):
    return [{"messages": turns(*pair), **more} for pair in PAIRS]


def shared(key="conversations", who="human", whom="gpt"):
    return [{key: turns(*pair, who, whom, "from", "value")} for pair in PAIRS]


def raw(text, name="mine.jsonl", encoding="utf-8"):
    def write(home):
        (home / name).write_bytes(text.encode(encoding, "surrogatepass"))
        return home / name

    return write


def rows(records, name="mine.jsonl", end="\n", mark=b""):
    def write(home):
        path = lines(home / name, records, end)
        path.write_bytes(mark + path.read_bytes())
        return path

    return write


def array(records, name="mine.json", indent=None):
    return raw(json.dumps(records, indent=indent), name)


def spoilt(line, number=3):
    """Good records with one bad line among them."""
    good = [json.dumps(r) for r in text_records()]
    return raw("\n".join([*good[: number - 1], line if isinstance(line, str) else json.dumps(line), *good[number:]]))


PLAIN, CHATS = rows(text_records()), rows(chat_records())
READ = {
    "a byte order mark": (rows(text_records(), mark=codecs.BOM_UTF8), PLAIN),
    "a mark before prose": (raw("\ufeff" + "\n\n".join(TEXTS), "mine.txt"), raw("\n\n".join(TEXTS), "mine.txt")),
    "marks in the middle": (raw("\n".join("\ufeff" + json.dumps(r) for r in text_records())), PLAIN),
    "line ends of Windows and empty lines": (rows(text_records(), end="\r\n\r\n  \r\n"), PLAIN),
    "an array": (array(text_records()), PLAIN),
    "an array over lines in a .jsonl": (array(text_records(), "mine.jsonl", indent=1), PLAIN),
    "an array with a mark": (raw("\ufeff" + json.dumps(text_records(), indent=1), "mine.json"), PLAIN),
    "lines in a .json": (rows(text_records(), "mine.json"), PLAIN),
    "an array of texts": (array(TEXTS), PLAIN),
    "an array of letters": (array([{"from": "a@b.c", "role": "reader", "text": t} for t in TEXTS]), PLAIN),
    "texts line by line": (rows(TEXTS), PLAIN),
    "NaN in a key nobody reads": (rows([{**r, "score": float("nan")} for r in text_records()]), PLAIN),
    "empty texts": (rows([{"text": t} for t in ("", " \n", *TEXTS, "")]), PLAIN),
    "prompt and completion": (rows([{"prompt": t[:9], "completion": t[9:]} for t in TEXTS]), PLAIN),
    "chats in an array": (array(chat_records()), CHATS),
    "lists of messages": (rows([r["messages"] for r in chat_records()]), CHATS),
    "ShareGPT": (rows(shared()), CHATS),
    "ShareGPT in an array": (array(shared(), indent=2), CHATS),
    "ShareGPT with other names": (rows(shared("conversation", "User", "Assistant")), CHATS),
    "conversations of roles": (rows([{"conversations": r["messages"]} for r in chat_records()]), CHATS),
    "messages from somebody": (rows(shared("messages")), CHATS),
    "parts of text": (rows([{"messages": turns(*([{"type": "text", "text": t}] for t in p))} for p in PAIRS]), CHATS),
    "keys nobody reads": (rows(chat_records(id=1, source="web", text_id=None)), CHATS),
    "instruction and output": (rows([{"instruction": a, "input": "", "output": b} for a, b in PAIRS]), CHATS),
    "prompt and response": (rows([{"prompt": a, "response": b} for a, b in PAIRS]), CHATS),
    "a conversation in two halves": (
        rows([{"prompt": turns(*p)[:1], "completion": turns(*p)[1:]} for p in PAIRS]),
        CHATS,
    ),
    "instruction and input": (
        rows([{"instruction": a, "input": "Here.", "output": b} for a, b in PAIRS]),
        rows([{"messages": turns(f"{a}\n\nHere.", b)} for a, b in PAIRS]),
    ),
    "what was said before": (
        rows([{"instruction": a, "output": b, "history": [["Hi.", "Ho."]]} for a, b in PAIRS]),
        rows([{"messages": [*turns("Hi.", "Ho."), *turns(a, b)]} for a, b in PAIRS]),
    ),
    "a system beside ShareGPT": (
        rows([{**r, "system": "Be kind."} for r in shared()]),
        rows([{"messages": [{"role": "system", "content": "Be kind."}, *turns(*p)]} for p in PAIRS]),
    ),
}
"""How people write text and chats, and the plain spelling of the same."""
BAD = {
    "UTF-16": (raw(json.dumps(text_records()), encoding="utf-16"), "mine.jsonl is UTF-16; save it as UTF-8"),
    "UTF-16 without a mark": (raw('{"text": "a"}', encoding="utf-16-le"), "mine.jsonl is UTF-16 or no text"),
    "UTF-32": (raw("text", "mine.txt", encoding="utf-32"), "mine.txt is UTF-32; save it as UTF-8"),
    "Latin": (raw('{"text": "caf\xe9"}', encoding="latin-1"), "Cannot read the data file .* must be readable UTF-8"),
    "broken JSON": (spoilt('{"text": "a"'), r"Line 3 of .*mine.jsonl is not .*delimiter.*character 13"),
    "a broken first line": (spoilt('{"text": "a"', 1), "Line 1 of .*mine.jsonl is not .*delimiter"),
    "a broken array": (raw('[{"text": "a"},\n {"text": }]', "mine.json"), "Line 2 of .*mine.json is not .*Expecting"),
    "too deep": (spoilt("[" * 100_000), "Line 3 of .*nested too deeply"),
    "a huge number": (spoilt('{"text": ' + "1" * 5000 + "}"), "Line 3 of .*digits"),
    "a number": (spoilt({"text": 3}), r"Line 3 of .*\(its text is a number\)"),
    "NaN": (spoilt('{"text": NaN}'), r"Line 3 of .*\(its text is NaN\)"),
    "null": (spoilt({"text": None}), r"Line 3 of .*\(its text is null\)"),
    "nothing": (spoilt("null"), r"Line 3 of .*\(it is null\)"),
    "an object in text": (spoilt({"text": {"body": "a"}}), r"Line 3 of .*\(its text is an object\)"),
    "an object around text": (spoilt({"data": {"text": "a"}}), r"Line 3 of .*\(it has 'data' and no text\)"),
    "an entry of an array": (array([*text_records(), {"body": 1}]), r"Entry 41 of .*mine.json is not .*'body'"),
    "an object around an array": (array({"data": text_records()}, indent=1), "Line 1 of .*it has 'data' and no text"),
    "half of a character": (spoilt({"text": "a \ud83d"}), "Line 3 of .*half of a character"),
    "half of one in a chat": (spoilt({"messages": turns("\udc00", "b")}), "Line 3 of .*half of a character"),
    "no messages": (spoilt({"messages": []}), r"Line 3 of .*\(it has no messages\)"),
    "no messages beside a system": (
        spoilt({"conversations": [], "system": "s"}),
        r"Line 3 of .*\(it has no messages\)",
    ),
    "a message without content": (spoilt({"messages": [{"role": "user"}]}), "Line 3 of .*content of a message is null"),
    "null for content": (spoilt({"messages": turns("a", None)}), "Line 3 of .*the content of a message is null"),
    "a number for content": (spoilt({"messages": turns("a", 5)}), "Line 3 of .*the content of a message is a number"),
    "nobody's message": (spoilt({"messages": [{"content": "a"}]}), "Line 3 of .*a message has no role"),
    "a picture": (
        spoilt({"messages": turns([{"type": "image_url", "image_url": {"url": "x"}}], "b")}),
        "Line 3 of .*holds 'image_url', and only text is read",
    ),
    "an unknown speaker": (
        spoilt({"conversations": turns("a", "b", "alice", "bob", "from", "value")}),
        "Line 3 of .*a message is from 'alice', which is none of system, human",
    ),
    "half an exchange": (spoilt({"instruction": "a", "output": None}), r"Line 3 of .*\(its output is null\)"),
    "a call of nothing": (spoilt({"messages": [{"role": "a", "tool_calls": [{}]}]}), "Line 3 .*does not name"),
    "tools as prose": (spoilt({"messages": turns("a", "b"), "tools": "hammer"}), "Line 3 .*its tools cannot be read"),
}
"""Files that nobody can read for sure, and what is said of them."""


def system(home):
    return lines(home / "mine.jsonl", [{"messages": [{"role": "system", "content": "s"}, *turns(*p)]} for p in PAIRS])


def called(city="Oslo", **more):
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": json.dumps({"city": city})}}
    return [
        {"role": "user", "content": "How warm is it?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "12 degrees", **more},
        {"role": "assistant", "content": "It is warm."},
    ]


def calls(home):
    return lines(home / "mine.jsonl", [{"messages": called(f"Oslo {k}")} for k in range(60)])


def two_answers(home):
    return lines(home / "mine.jsonl", [{"messages": [*turns(*p), turns(*p)[1]]} for p in PAIRS])


REFUSED = {
    "no template": (CHATS, None, r"Line \d+ of .*mine.jsonl is a chat, but .*no chat template"),
    "an exchange without a template": (rows([{"instruction": a, "output": b} for a, b in PAIRS]), None, "is a chat"),
    "a system message": (
        system,
        "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + CHATML,
        r"refuses Line \d+ of .*mine.jsonl \(System role not supported\); it knows no system messages: put",
    ),
    "two answers in a row": (
        two_answers,
        STRICT,
        r"refuses Line \d+ .*\(Roles must alternate.*\); make one message of",
    ),
    "calls that it has no words for": (
        calls,
        "{% for m in messages %}[{{ m.role }}] {{ m.content }}{% endfor %}",
        r"leaves out the tool calls or results of Line \d+ of .*; leave such chats out",
    ),
    "results that it has no words for": (
        calls,
        CHATML.replace("m.content", "m.content if m.role != 'tool' else ''"),
        "leaves out the tool calls or results",
    ),
    "a template that fails": (CHATS, "{{ messages.nothing.at.all }}", r"refuses Line \d+ .*undefined|has no attribute"),
    "a template with a fault": (CHATS, "{% for m in messages %}", r"refuses Line \d+ of .*; change the chat"),
    "a template that says nothing": (CHATS, "{# {{ messages }} #}", r"makes nothing of Line \d+ of"),
    "a template that would run code": (
        CHATS,
        "{{ messages.__class__.__mro__[1].__subclasses__() }}",
        "refuses .*unsafe",
    ),
    "named templates without a usual one": (CHATS, {"rag": CHATML}, "refuses Line"),
}
"""Chats that the base's template does not take: builder, template, and what is said."""


def speaker(home, template=CHATML, **special):
    """A tiny base that was taught to chat."""
    folder = base(home / "base")
    if isinstance(template, dict):
        special["chat_template"] = [{"name": n, "template": t} for n, t in template.items()]
    elif template is not None:
        (folder / "chat_template.jinja").write_text(template)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | special))
    return folder


def tokenizer_of(folder):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return tokenizer_of(speaker(tmp_path_factory.mktemp("taught")))


def planned(wanted):
    """What `plan` says to a recipe: nothing, or why not."""
    try:
        plan(wanted, hub.peek(wanted.base))
    except HfPruneError as e:
        return str(e)


def compressed(wanted):
    """What `compress` says before it searches, and the stages it came through."""
    stages = []
    try:
        events = compress(wanted)
        while "baselines" not in stages:
            event = next(events)
            stages += [event.name] if isinstance(event, Stage) else []
        events.close()
    except HfPruneError as e:
        return str(e), stages
    return None, stages


def one_sentence(said):
    assert "\n" not in said and said.endswith(".") and len(said) < 700
    return said


@pytest.mark.parametrize("case", READ)
def test_what_people_write_gives_the_windows_of_its_plain_spelling(tmp_path, tokenizer, case):
    for name in ("theirs", "ours"):
        (tmp_path / name).mkdir()
    theirs, ours = (make(tmp_path / name) for make, name in zip(READ[case], ("theirs", "ours"), strict=True))
    for split in ("search", "selection", "report", "heal"):
        found, wanted = (windows([str(f)], tokenizer, split, 4, 64) for f in (theirs, ours))
        assert found.tokens.equal(wanted.tokens) and found.digest == wanted.digest


@pytest.mark.parametrize("case", BAD)
def test_plan_and_compress_refuse_a_file_alike_before_the_base_is_read(tmp_path, case):
    make, says = BAD[case]
    wanted = recipe(tmp_path, base=str(speaker(tmp_path)), data=(str(make(tmp_path)),))
    with pytest.raises(InvalidData, match=says) as caught:
        windows(wanted.data.text, None, "search", 1, 32)
    assert planned(wanted) == str(caught.value) == one_sentence(str(caught.value))
    assert compressed(wanted) == (str(caught.value), [])


@pytest.mark.parametrize("case", REFUSED)
def test_a_chat_that_the_template_does_not_take_is_refused_by_its_line(tmp_path, case):
    make, template, says = REFUSED[case]
    tokenizer = tokenizer_of(speaker(tmp_path, template))
    with pytest.raises(InvalidData, match=says) as caught:
        windows([str(make(tmp_path))], tokenizer, "search", 1, 32)
    one_sentence(str(caught.value))


@pytest.mark.parametrize("split", ["search", "selection", "report", "heal"])
def test_every_split_of_a_folder_is_read_and_checked_alike(tmp_path, tokenizer, split):
    for number, name in enumerate(("search", "selection", "report", "heal")):
        records = [{"messages": turns(words(100 * number + k), "yes")} for k in range(30)]
        lines(tmp_path / f"tale.{name}.jsonl", records)
    path = tmp_path / f"tale.{split}.jsonl"
    good = windows([str(tmp_path)], tokenizer, split, 3, 32)
    path.write_text("\ufeff" + json.dumps([json.loads(line) for line in path.read_text().splitlines()], indent=1))
    assert windows([str(tmp_path)], tokenizer, split, 3, 32).digest == good.digest
    path.write_text(path.read_text().replace('"role": "user"', '"role": null', 1))
    with pytest.raises(InvalidData, match=rf"Entry 1 of .*tale\.{split}\.jsonl .*has no role"):
        windows([str(tmp_path)], tokenizer, "search", 3, 32)


def test_a_run_stops_at_the_chat_that_its_template_refuses(tmp_path):
    wanted = recipe(tmp_path, base=str(speaker(tmp_path, STRICT)), data=(str(two_answers(tmp_path)),))
    said, stages = compressed(wanted)
    assert "refuses Line" in said and stages == ["pull"] and planned(wanted) is None


def test_a_chat_that_only_healing_would_come_to_is_refused_before_the_search(tmp_path):
    data = tmp_path / "text"
    data.mkdir()
    for number, name in enumerate(("search", "selection", "report")):
        lines(data / f"a.{name}.jsonl", [{"messages": turns(words(90 * number + k), "yes")} for k in range(60)])
    bad = [{"messages": [*turns("a", "b"), turns("a", "c")[1]]}]
    lines(data / "a.heal.jsonl", bad)
    wanted = recipe(tmp_path, base=str(speaker(tmp_path, STRICT)), data=(str(data),))
    assert compressed(wanted)[0] is None
    said, stages = compressed(wanted.replace(heal=1000, output=str(tmp_path / "other")))
    assert "refuses Line 1 of" in said and "a.heal.jsonl" in said and stages == ["pull"]


# Tools


def test_calls_and_results_of_tools_reach_the_template_in_its_own_words(tmp_path, tokenizer):
    calls(tmp_path)
    text = tokenizer.decode(windows([str(tmp_path / "mine.jsonl")], tokenizer, "search", 4, 128).tokens.flatten())
    assert "[weather Oslo" in text and "<tool>12 degrees" in text and "None" not in text and "null" not in text


def shared_calls(city):
    value = json.dumps({"name": "weather", "arguments": {"city": city}})
    said = {"human": "How warm is it?", "function_call": value, "observation": "12 degrees", "gpt": "It is warm."}
    return {"conversations": [{"from": who, "value": text} for who, text in said.items()]}


def legacy_calls(city):
    asked, call, result, answer = called(city)
    function = call.pop("tool_calls")[0]["function"]
    return {"messages": [asked, {**call, "function_call": function}, {**result, "role": "function"}, answer]}


def flat_calls(city):
    asked, call, result, answer = called(city)
    flat = [{"name": "weather", "arguments": {"city": city}}]
    return {"messages": [asked, {**call, "content": [], "tool_calls": flat}, result, answer]}


@pytest.mark.parametrize("spelled", [shared_calls, legacy_calls, flat_calls])
def test_ways_to_write_a_call_are_one(tmp_path, tokenizer, spelled):
    cities = [f"Oslo {k}" for k in range(60)]
    data = [
        rows(records, f"{number}.jsonl")(tmp_path)
        for number, records in enumerate((map(spelled, cities), ({"messages": called(c)} for c in cities)))
    ]
    # Each file is cut by documents, which keep what a call is named by: so both are read whole.
    found = [
        sorted(rendered(d, tokenizer) for s in SPLITS for d in load_corpora([str(f)])[0].documents[s]) for f in data
    ]
    assert found[0] == found[1] and "[weather Oslo 0]" in found[0][0]


def test_tools_that_are_offered_are_handed_to_the_template(tmp_path):
    template = "{% for t in tools %}({{ t.function.name }}){% endfor %}" + CHATML
    taught = tokenizer_of(speaker(tmp_path, template))
    tools = [{"type": "function", "function": {"name": "hammer"}}]
    for given in (tools, json.dumps(tools)):
        path = lines(tmp_path / "mine.jsonl", chat_records(tools=given))
        assert "(hammer)" in taught.decode(windows([str(path)], taught, "search", 2, 64).tokens[0])


def test_a_chat_that_some_templates_refuse_is_read_where_one_takes_it(tmp_path, tokenizer):
    for make in (system, two_answers):
        assert len(windows([str(make(tmp_path))], tokenizer, "search", 3, 64).tokens) == 3


@pytest.mark.parametrize("name", ["ns/typo", "typo"])
def test_a_mistyped_dataset_is_found_out_by_plan_and_compress_before_the_base_is_pulled(hub_server, tmp_path, name):
    wanted = recipe(tmp_path, base=str(base(tmp_path / "base")), data=(name,))
    said, stages = compressed(wanted)
    assert said.startswith(f"There is no file or folder {name} here, and the dataset") and stages == []
    assert planned(wanted) == one_sentence(said)


# One start token

WITH_START = {"{{ bos_token }}" + CHATML, "{{ bos_token }}{{ bos_token }}" + CHATML, CHATML}


def started(folder):
    """The same tokenizer, which begins every text with its start token."""
    path = folder / "tokenizer.json"
    raw = json.loads(path.read_text())
    raw["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}},
    }
    raw["added_tokens"] = [
        {"id": i, "content": t, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
         "special": True} for i, t in enumerate(["<s>", "</s>"])
    ]  # fmt: skip
    path.write_text(json.dumps(raw))
    return tokenizer_of(folder)


@pytest.mark.parametrize("make", [CHATS, PLAIN, rows([{"text": "<s>" + t} for t in TEXTS])], ids=range(3))
def test_every_window_has_one_start_token_whoever_else_writes_one(tmp_path, make):
    found = []
    for number, template in enumerate(sorted(WITH_START)):
        taught = started(speaker(tmp_path / str(number), template))
        got = windows([str(make(tmp_path))], taught, "search", 6, 32)
        assert got.bos and ((got.tokens == taught.bos_token_id).sum(1) == 1).all() and (got.tokens[:, 0] == 0).all()
        found.append(got.digest)
    assert len(set(found)) == 1


@pytest.mark.parametrize("end", ["</s>", "<s>"])
def test_where_the_tokenizer_adds_none_a_chat_has_the_one_of_its_template(tmp_path, end):
    taught = tokenizer_of(speaker(tmp_path, "{{ bos_token }}" + CHATML, eos_token=end))
    stream = windows([str(CHATS(tmp_path))], taught, "search", 8, 64).tokens.flatten().tolist()
    begins = [i for i, token in enumerate(stream) if token == taught.bos_token_id]
    assert begins[0] == 0 and len(begins) > 2 and all(b - a > 1 for a, b in zip(begins, begins[1:], strict=False))
    assert all(taught.decode(stream[i + 1 : i + 7]) == "<user>" for i in begins if i + 7 < len(stream))


# Tasks

ITEMS = [{"context": f"number {k} is", "choices": ["odd", "even"], "answer": 1 - k % 2} for k in range(9)]
TASKS_READ = {
    "a byte order mark": rows(ITEMS, mark=codecs.BOM_UTF8),
    "an array": array(ITEMS, indent=2),
    "an array in a .jsonl": array(ITEMS, "mine.jsonl"),
    "line ends of Windows": rows(ITEMS, end="\r\n\r\n"),
    "keys nobody reads": rows([{**item, "id": float("nan")} for item in ITEMS]),
}
TASKS_BAD = {
    "UTF-16": (raw("[]", encoding="utf-16"), "The task file .*mine.jsonl is UTF-16; save it as UTF-8"),
    "broken JSON": (raw(json.dumps(ITEMS[0]) + '\n{"context": "a"'), r"Line 2 of .*mine.jsonl is not .*character 16"),
    "a list": (rows([ITEMS[0], [1]]), r"Line 2 of .*\(it is a list\)"),
    "no answer": (rows([ITEMS[0], {"context": "a", "choices": ["b", "c"]}]), r"Line 2 of .*\(it has no answer\)"),
    "choices in one text": (rows([ITEMS[0], {**ITEMS[0], "choices": "abc"}]), r"Line 2 .*\(its choices are text\)"),
    "choices by letter": (rows([{**ITEMS[0], "choices": {"a": "b"}}]), r"Line 1 .*\(its choices are an object\)"),
    "a number among choices": (rows([{**ITEMS[0], "choices": ["a", 2]}]), "Line 1 of .* needs a context string"),
    "null for context": (rows([{**ITEMS[0], "context": None}]), "Line 1 of .* needs a context string"),
    "NaN for the answer": (
        rows([{**ITEMS[0], "answer": float("nan")}]),
        "Line 1 of .*has answer nan, not one of 0 to 1",
    ),
    "a letter for the answer": (rows([{**ITEMS[0], "answer": "A"}]), "Line 1 of .*has answer 'A', not one of 0 to 1"),
    "half of a character": (rows([{**ITEMS[0], "choices": ["a", "\ud800"]}]), "Line 1 of .*half of a character"),
    "an empty array": (raw("[]"), "is empty"),
}


@pytest.mark.parametrize("case", TASKS_READ)
def test_task_files_are_read_as_people_have_them(tmp_path, case):
    (found,) = load_tasks([TASKS_READ[case](tmp_path)])
    assert [(i.context, list(i.choices), i.answer) for i in found.items] == [tuple(item.values()) for item in ITEMS]


@pytest.mark.parametrize("field", ["tasks", "search_tasks"])
@pytest.mark.parametrize("case", TASKS_BAD)
def test_plan_and_compress_refuse_a_task_file_alike_before_the_base_is_read(tmp_path, case, field):
    make, says = TASKS_BAD[case]
    data = (str(jsonl(tmp_path / "text.jsonl", TEXTS)),)
    wanted = recipe(tmp_path, base=str(base(tmp_path / "base")), data=data, **{field: (str(make(tmp_path)),)})
    with pytest.raises(InvalidData, match=says) as caught:
        load_tasks(wanted.flat()[field])
    assert planned(wanted) == str(caught.value) == one_sentence(str(caught.value))
    assert compressed(wanted) == (str(caught.value), [])


# Names of nothing


@pytest.mark.parametrize(
    "name", ["typo.jsonl", "typo.json", "typo.txt", "./typo", "text/typo.jsonl", "/typo", "~/typo"]
)
@pytest.mark.parametrize("field", ["data", "tasks", "search_tasks"])
def test_a_mistyped_file_is_said_not_to_be_here_before_anything_is_read(tmp_path, monkeypatch, name, field):
    monkeypatch.chdir(tmp_path)
    if field != "data" and name == "typo.txt":
        name = "./typo.txt"
    wanted = recipe(tmp_path, base=str(base(Path("base"))), data=(str(jsonl(Path("a.jsonl"), TEXTS)),))
    wanted = wanted.replace(**{field: (name,)})
    said, stages = compressed(wanted)
    assert stages == [] and name in said and ("no data file or folder" in said or "there is no" in said.lower())
    assert planned(wanted) == one_sentence(said)


@pytest.mark.parametrize("name", ["typo", "folder/typo", "folder/typo:config"])
def test_a_mistyped_folder_of_text_is_said_not_to_be_here_and_then_what_the_hub_says(hub_server, name):
    with pytest.raises(InvalidData, match=f"^There is no file or folder {name.split(':')[0]} here, and the dataset"):
        windows([name], None, "search", 1, 32)
    if "/" in name:
        with pytest.raises(InvalidData, match="^There is no file or folder folder/typo here, and the dataset"):
            load_tasks([name])


def test_a_mistyped_task_is_said_not_to_be_here_before_lm_eval_is_asked_for(monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError

    monkeypatch.setattr(importlib.metadata, "version", missing)
    with pytest.raises(
        InvalidRecipe, match="^There is no file arc_typo here, and harness tasks need the package lm_eval"
    ):
        load_tasks(["arc_typo"])


@pytest.mark.slow
def test_a_mistyped_task_is_said_not_to_be_here_and_then_what_lm_eval_has():
    with pytest.raises(
        InvalidRecipe, match="^There is no file arc_esy here, and lm_eval .* has no task 'arc_esy'; did"
    ):
        load_tasks(["arc_esy"])


@pytest.mark.parametrize("field", ["tasks", "search_tasks", "lm_eval"])
def test_a_mistyped_file_of_lm_eval_is_found_out_before_the_search(tmp_path, field):
    data = (str(jsonl(tmp_path / "a.jsonl", TEXTS)),)
    wanted = recipe(tmp_path, base=str(base(tmp_path / "base")), data=data, **{field: ("typo.yaml",)})
    said, stages = compressed(wanted)
    assert "Cannot read the task file" in one_sentence(said) and stages == [] and planned(wanted) == said
