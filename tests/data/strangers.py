"""What strangers may write, for hypothesis."""

from hypothesis import strategies as st

LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
JSON = st.recursive(
    LEAVES,
    lambda below: st.lists(below, max_size=3) | st.dictionaries(st.text(max_size=3), below),
    max_leaves=6,
)
KEYS = st.sampled_from(
    "text messages conversations conversation prompt completion response instruction input output history system tools "
    "role from content value tool_calls function_call name arguments type function id context choices answer".split()
)
WORDS = st.sampled_from("user assistant system tool human gpt function_call observation text a [1] {} ".split(" "))
RECORDS = st.recursive(
    LEAVES | WORDS | st.just("\ud800"),
    lambda below: st.lists(below, max_size=3) | st.dictionaries(KEYS, below, max_size=5),
    max_leaves=20,
)
"""Values of any shape under the keys that mean something."""
TURN = st.fixed_dictionaries(
    {"role": WORDS, "content": st.text(max_size=8) | st.none()},
    optional={"tool_calls": st.lists(st.fixed_dictionaries({"name": WORDS}, optional={"arguments": JSON}), max_size=2)},
)
CHATS = st.fixed_dictionaries(
    {"messages": st.lists(TURN, min_size=1, max_size=4)}, optional={"tools": st.lists(st.just({}))}
)
