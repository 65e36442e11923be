"""The app as a Space: a folder that holds it, and hf_prune itself beside it.

So a Space runs the very version that pushed it, and no package index has to know hf_prune.
"""

import shutil
from pathlib import Path

from hf_prune.data.bundled import demo_folder
from hf_prune.errors import HfPruneError

PAGES = ("app.py", "README.md", "requirements.txt")
LEFT_OUT = shutil.ignore_patterns("__pycache__", "*.pyc", "demo", "model_cards", "space")


def space_folder() -> Path:
    """The files of the Space: hf_prune/space when installed, space/ in a checkout.

    Raises:
        HfPruneError: neither is there.
    """
    return _beside("space", "app.py")


def write_space(folder: Path) -> Path:
    """Put the Space together in an empty folder and return that."""
    for name in PAGES:
        shutil.copyfile(space_folder() / name, folder / name)
    package = folder / "hf_prune"
    shutil.copytree(Path(__file__).parent, package, ignore=LEFT_OUT)
    shutil.copytree(demo_folder(), package / "demo")
    shutil.copytree(_beside("model_cards", "default.md"), package / "model_cards")
    return folder


def _beside(name: str, file: str) -> Path:
    package = Path(__file__).resolve().parent
    for folder in (package / name, package.parent / name):
        if (folder / file).is_file():
            return folder
    raise HfPruneError(f"The folder {name} is missing from this installation; install hf_prune again.")
