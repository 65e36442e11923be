"""What comes with hf_prune besides code: the demo family, card templates and the Space."""

from pathlib import Path

from hf_prune.errors import InvalidData

PACKAGE = Path(__file__).resolve().parents[1]


def bundled_folder(name: str, checkout: str | None = None) -> Path:
    """A folder that is packed as hf_prune/bundled/NAME and stands at `checkout` (default NAME) in a checkout.

    Raises:
        InvalidData: neither is there.
    """
    for folder in (PACKAGE / "bundled" / name, PACKAGE.parent / (checkout or name)):
        if folder.is_dir():
            return folder
    raise InvalidData(f"The bundled folder {name} is missing from this installation; install hf_prune again.")


def demo_folder() -> Path:
    """Models, text and tasks of the demo.

    Raises:
        InvalidData: as `bundled_folder`.
    """
    return bundled_folder("demo", "examples/demo")
