"""A stand-in Hub over HTTP that the real huggingface_hub client talks to; it never leaves this machine.

server.py speaks HTTP; routes.py maps requests to the calls in reading.py, writing.py, pulls.py, running.py and
login.py; storage.py holds repos and contents, xet.py reads what came through Xet; faults.py makes chosen requests fail.
"""

from tests.hub.server import Hub
from tests.hub.storage import Repo, Storage

__all__ = ["Hub", "Repo", "Storage"]
