"""The app as a Space: a folder that holds it, and hf_prune itself beside it.

So a Space runs the very version that pushed it, and no package index has to know hf_prune.
"""

import shutil
from pathlib import Path

from hf_prune.data.bundled import PACKAGE, bundled_folder, demo_folder

PAGES = ("app.py", "README.md", "requirements.txt")
LEFT_OUT = shutil.ignore_patterns("__pycache__", "*.pyc", "bundled")


def space_folder() -> Path:
    """The files that a Space begins with.

    Raises:
        InvalidData: they are missing from this installation.
    """
    return bundled_folder("space")


def write_space(folder: Path) -> Path:
    """Put the Space together in an empty folder and return that."""
    for name in PAGES:
        shutil.copyfile(space_folder() / name, folder / name)
    package = folder / "hf_prune"
    shutil.copytree(PACKAGE, package, ignore=LEFT_OUT)
    shutil.copytree(demo_folder(), package / "bundled" / "demo")
    shutil.copytree(bundled_folder("model_cards"), package / "bundled" / "model_cards")
    return folder
