"""An OpenID provider that signs everybody in as one user, without a question: the flow of a Space's login button."""

import secrets
import time
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, urlencode

from tests.hub.storage import Answer, Refused, answer

if TYPE_CHECKING:
    from tests.hub.server import Handler


def configuration(req: "Handler") -> dict:
    """Where the parts of the flow are."""
    at = req.hub.endpoint
    return {
        "issuer": at,
        "authorization_endpoint": f"{at}/oauth/authorize",
        "token_endpoint": f"{at}/oauth/token",
        "userinfo_endpoint": f"{at}/oauth/userinfo",
    }


def authorize(req: "Handler") -> Answer:
    """Back to the app at once, with a code."""
    code = secrets.token_hex(8)
    req.hub.codes[code] = next(iter(req.hub.users))
    back = req.query["redirect_uri"]
    more = urlencode({"code": code, "state": req.query["state"]})
    return answer(b"", 302, Location=f"{back}{'&' if '?' in back else '?'}{more}")


def token(req: "Handler") -> dict:
    """The access token for a code, once; who it is comes with it."""
    asked = {k: v[-1] for k, v in parse_qs(req.body.decode()).items()}
    if asked.get("code") not in req.hub.codes:
        raise Refused(400, "invalid_grant")
    access = req.hub.codes.pop(asked["code"])
    who = _who(req, access)
    return {"access_token": access, "token_type": "bearer", "expires_in": 28800,
            "expires_at": int(time.time()) + 28800, "scope": "openid profile", "userinfo": who}  # fmt: skip


def userinfo(req: "Handler") -> dict:
    """Who the token belongs to."""
    return _who(req, req.headers.get("Authorization", "").removeprefix("Bearer ").strip())


def _who(req: "Handler", access: str) -> dict:
    name = req.hub.users[access]
    return {"sub": name, "name": name, "preferred_username": name, "profile": f"{req.hub.endpoint}/{name}",
            "picture": f"{req.hub.endpoint}/{name}.png"}  # fmt: skip
