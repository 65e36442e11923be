"""YAML that somebody wrote, perhaps a stranger: values and nothing else, and nothing that grows without end."""

from typing import Any

import yaml

LONGEST_REASON = 300
"""Characters of what is wrong."""


class _Loader(yaml.SafeLoader):
    """A key that stands twice would lose a value; merge keys can grow without end."""

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        seen: set[str] = set()
        for key, _ in node.value:
            name = key.value if isinstance(key, yaml.ScalarNode) else ""
            if name in seen or key.tag.endswith(":merge"):
                problem = "stands twice" if name in seen else "is not read here"
                raise yaml.constructor.ConstructorError(problem=f"key {name!r} {problem}", problem_mark=key.start_mark)
            seen.add(name)


def read_yaml(text: str) -> Any:
    """The value of a text; None of an empty one.

    Raises:
        ValueError: why it has none, in one line.
    """
    try:
        return yaml.load(text, _Loader)
    except Exception as e:
        # Whatever PyYAML's constructors raise: dates without such a day, numbers without end, nesting without end.
        reason = " ".join(str(e).split()) or type(e).__name__
        raise ValueError("".join(c for c in reason if c.isprintable())[:LONGEST_REASON]) from None
