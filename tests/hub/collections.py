"""Collections: a title, and models with notes."""

import re
from typing import TYPE_CHECKING

from tests.hub.storage import Answer, Refused, answer

if TYPE_CHECKING:
    from tests.hub.server import Handler

NOW = "2026-01-02T03:04:05.000Z"


def create(req: "Handler") -> Answer | dict:
    """A new collection in a namespace of the asker; 409 with its slug where there is one of that title."""
    ask = req.json()
    if not req.owns(f"{ask['namespace']}/x"):
        raise Refused(403, f"You don't have the rights to create a collection under {ask['namespace']}")
    if len(ask["title"]) >= 60:
        raise Refused(400, "title must be shorter than 60 characters")
    slug = f"{ask['namespace']}/{re.sub('[^a-z0-9]+', '-', ask['title'].lower())}-{'0' * 24}"
    if slug in req.hub.collections:
        return answer({"error": "Collection already exists", "slug": slug}, 409)
    made = {"slug": slug, "title": ask["title"], "owner": {"name": ask["namespace"]}, "items": [], "lastUpdated": NOW,
            "position": 0, "private": ask["private"], "theme": "blue", "upvotes": 0}  # fmt: skip
    req.hub.collections[slug] = made
    return made


def found(req: "Handler") -> list[dict]:
    """Those of an owner that the asker may see; their places follow from their order."""
    owner = req.query.get("owner")
    every = [c for c in req.hub.collections.values() if not owner or c["owner"]["name"] == owner]
    shown = [c for c in every if not c["private"] or req.owns(c["slug"])]
    return [{k: v for k, v in c.items() if k != "position"} for c in shown]


def look(req: "Handler", slug: str) -> dict:
    """One of them."""
    if slug not in req.hub.collections or req.hub.collections[slug]["private"] and not req.owns(slug):
        raise Refused(404, "Collection not found")
    return req.hub.collections[slug]


def add(req: "Handler", slug: str) -> Answer | dict:
    """A model at the end; 409 where it is in it."""
    collection, ask = look(req, slug), req.json()
    if not req.owns(slug):
        raise Refused(403, "You don't have the rights to write to this collection")
    id = ask["item"]["id"]
    req.readable(ask["item"]["type"], id)
    if any(item["id"] == id for item in collection["items"]):
        return answer({"error": "Item already in the collection"}, 409)
    item = {"_id": f"{len(collection['items']):024d}", "id": id, "type": ask["item"]["type"], "repoType": "model",
            "position": len(collection["items"]), "note": {"text": ask.get("note", "")}}  # fmt: skip
    collection["items"].append(item)
    return collection
