"""Calls that start something: hardware of a Space, jobs."""

from typing import TYPE_CHECKING

from tests.hub.storage import DATE, Refused

if TYPE_CHECKING:
    from tests.hub.server import Handler

MADE = "000000000000000000000001"


def hardware(req: "Handler", id: str) -> dict:
    """Remember what a Space should run on."""
    req.writable("space", id)
    req.hub.hardware[id] = req.json()["flavor"]
    return {"stage": "BUILDING", "hardware": {"current": None, "requested": req.json()["flavor"]}, "gcTimeout": None}


def job(req: "Handler", namespace: str) -> dict:
    """Keep what was asked for; nothing is run."""
    if not (user := req.user()):
        raise Refused(401, "Invalid username or password.")
    if user != namespace:
        raise Refused(403, "You may not start jobs there")
    asked = req.json()
    req.hub.jobs.append(asked)
    owner = {"id": user, "name": user, "type": "user"}
    about = {"command": asked["command"], "dockerImage": asked.get("dockerImage"), "flavor": asked["flavor"]}
    return {"id": MADE, "createdAt": DATE, "owner": owner, "status": {"stage": "SCHEDULING"}, **about}
