"""A collection of repos that belong together; made once, and a repeat adds only what is missing."""

import time
from collections.abc import Callable, Mapping

from huggingface_hub import HfApi

from hf_prune.hub.publish import PushResult, explained
from hf_prune.hub.retries import Retry

LONGEST_TITLE = 59
"""Characters; the Hub takes fewer than sixty."""


def collect(
    title: str,
    namespace: str,
    notes: Mapping[str, str],
    *,
    private: bool = True,
    sleep: Callable[[float], None] = time.sleep,
) -> PushResult:
    """Put models into the collection of that title in a namespace.

    Args:
        title: of the collection; one of the same title is taken up again.
        namespace: whose it is.
        notes: what stands beside every model, by its repo.
        private: visibility of a collection that is made.
        sleep: pause between tries, in seconds.

    Returns:
        Its address, its slug in the place of a commit, and whether anything was added.

    Raises:
        PublishError: what the Hub refused and what to do.
    """
    call, api, title = Retry(sleep), HfApi(), title[:LONGEST_TITLE]
    try:
        found = call(lambda: list(api.list_collections(owner=namespace)))
        mine = next((c for c in found if c.title == title), None)
        made = mine or call(api.create_collection, title, namespace=namespace, private=private, exists_ok=True)
        there = {item.item_id for item in call(api.get_collection, made.slug).items}
        missing = [repo for repo in notes if repo not in there]
        for repo in missing:
            call(api.add_collection_item, made.slug, repo, "model", note=notes[repo], exists_ok=True)
        return PushResult(made.url, made.slug, mine is None or bool(missing))
    except Exception as e:
        raise explained(e, f"the collection {title}") from e
