"""What comes with hf_prune: the demo family."""

from pathlib import Path

from hf_prune.errors import InvalidData


def demo_folder() -> Path:
    """Folder of the bundled demo family: hf_prune/demo when installed, examples/demo in a checkout.

    Raises:
        InvalidData: neither is there.
    """
    package = Path(__file__).resolve().parent
    for folder in (package / "demo", package.parent / "examples" / "demo"):
        if (folder / "text").is_dir():
            return folder
    raise InvalidData("The bundled demo family is missing from this installation; install hf_prune again.")
