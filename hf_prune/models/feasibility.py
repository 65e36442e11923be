"""What can be done to the layers of a family, said before anything expensive begins."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from hf_prune.errors import UnsupportedArchitecture
from hf_prune.models.families import CUT_BY_WIDTH, Family

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def check_cut(config: "PretrainedConfig", family: Family, kept: Sequence[int]) -> None:
    """Refuse layers that cannot stand without the others.

    Raises:
        UnsupportedArchitecture: as `numbering.sliced`.
    """
    from hf_prune.models.numbering import sliced

    sliced(config, family, kept)


def require_halves(family: Family, asked: Sequence[str], *, modular: bool = False) -> None:
    """Refuse what is asked of the halves of layers that have none.

    Args:
        family: of the layers.
        asked: flags that ask for it.
        modular: whether the output of each half must be that of one module.

    Raises:
        UnsupportedArchitecture: names the first flag.
    """
    if asked and not (family.modular if modular else family.halved):
        raise UnsupportedArchitecture(
            f"{asked[0]} takes attention and MLP of a layer by themselves, and those of {family.model_type} are no two "
            "parts that hf_prune knows; leave it out."
        )


def require_widths(family: Family) -> None:
    """Refuse layers that cannot be made narrower.

    Raises:
        UnsupportedArchitecture: names the families that can.
    """
    if family.model_type not in CUT_BY_WIDTH:
        raise UnsupportedArchitecture(
            f"Width pruning knows {', '.join(CUT_BY_WIDTH)}, not {family.model_type!r}; choose --method collapse, "
            "which removes whole layers."
        )


def require_one_kind(family: Family, kinds: Sequence[int]) -> None:
    """Refuse to merge layers of several kinds.

    Raises:
        UnsupportedArchitecture: says which method deletes instead.
    """
    if len(set(kinds)) > 1:
        raise UnsupportedArchitecture(
            f"The layers of this {family.model_type} are of {len(set(kinds))} kinds, which cannot be merged with each "
            "other; choose --method collapse with --rules keep."
        )
