"""How the `hf` command finds hf-prune: a manifest among its extensions."""

import json
import shutil
import sys
from datetime import UTC, datetime
from pathlib import Path

from hf_prune.atomic_files import write_text
from hf_prune.errors import InvalidRecipe

EXTENSION = Path("~/.local/share/hf/extensions/hf-prune/manifest.json")


def register() -> Path:
    """Write the manifest that makes `hf prune ...` work, and say where.

    Raises:
        InvalidRecipe: no hf-prune command is installed.
    """
    path = EXTENSION.expanduser()
    manifest = {
        # GitHub names cannot begin with an underscore: `hf extensions update` can never fetch a stranger's code.
        "owner": "_local",
        "repo": "hf-prune",
        "repo_id": "_local/hf-prune",
        "short_name": "prune",
        "executable_path": str(_executable()),
        "type": "python",
        "installed_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "description": "Make a smaller model out of a model on the Hub.",
        "commit_sha": None,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(manifest, indent=2) + "\n")
    return path


def _executable() -> Path:
    called = Path(sys.argv[0])
    beside = Path(sys.executable).parent / "hf-prune"
    found = shutil.which("hf-prune")
    for path in (called, beside, *([Path(found)] if found else [])):
        if path.name == "hf-prune" and path.is_file():
            return path.absolute()
    raise InvalidRecipe(
        "There is no hf-prune command beside this Python; install the package first (pip install -e .)."
    )
