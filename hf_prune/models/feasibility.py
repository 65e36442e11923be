"""What can be done to the layers of a family, said before anything expensive begins; a row says it without torch."""

from collections.abc import Mapping, Sequence
from typing import Any

from hf_prune.errors import UnsupportedArchitecture
from hf_prune.models.families import CUT_BY_WIDTH, FAMILIES, Family, refuse


def family_from(settings: Mapping[str, Any], trust_remote_code: bool = False) -> Family | None:
    """The family of a config.json; None where only the model's own code, which is trusted, would tell.

    Raises:
        UnsupportedArchitecture: as `inference.family_of`.
    """
    row = FAMILIES.get(settings.get("model_type", ""))
    if row and not row.last:
        refuse(row, settings)
        return row
    if trust_remote_code and settings.get("auto_map"):
        return None
    # What has no row is read off its modules, and those are transformers'.
    from hf_prune.models.inference import config_of, family_of

    return family_of(config_of(settings))


def check_cut(settings: Mapping[str, Any], family: Family, kept: Sequence[int]) -> None:
    """Refuse layers that cannot stand without the others.

    Raises:
        UnsupportedArchitecture: as `numbering.sliced`.
    """
    if family.last or family.inferred or not isinstance(family.attention, str):
        from hf_prune.models.inference import config_of
        from hf_prune.models.numbering import sliced

        sliced(config_of(settings), family, kept)


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
