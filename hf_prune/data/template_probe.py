"""Run by path in a process of its own: renders chats by a stranger's template, which may loop or grow without end.

Every line of stdin is a JSON object of arguments of transformers' `render_jinja_template`; every answer, a line of
stdout, has the `text`, or the `error` that the template ended in. Imports nothing of hf_prune, and so no torch.
"""

import ctypes
import json
import signal
import sys
from typing import Any

from transformers.utils.chat_template_utils import render_jinja_template

MEMORY = 512 << 20
"""Bytes that templates may take beside what is there already."""
LONGEST_TEXT = 32 << 20
"""Characters that a chat may become."""
DIES_WITH_PARENT = 1


def limit() -> None:
    """Take no more memory than that, and end with whoever started this; as far as the system can."""
    if sys.platform != "linux":
        return
    import resource

    ctypes.CDLL(None).prctl(DIES_WITH_PARENT, signal.SIGKILL)
    with open("/proc/self/statm", encoding="ascii") as file:
        most = int(file.read().split()[0]) * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def answer(asked: dict[str, Any]) -> dict[str, str]:
    """What the template makes of one chat."""
    try:
        text = render_jinja_template(**asked)[0][0]
    except MemoryError:
        return {"error": "it takes more memory than a chat may"}
    except Exception as e:
        return {"error": " ".join(str(e).split())[:1000] or type(e).__name__}
    if len(text) > LONGEST_TEXT:
        return {"error": f"it makes more than {LONGEST_TEXT} characters of it"}
    return {"text": text}


def main() -> None:
    """Answer until nobody asks."""
    # Imported with the first template otherwise, which may take all memory.
    render_jinja_template(conversations=[[{"role": "user", "content": ""}]], chat_template="{{ messages }}")
    limit()
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
