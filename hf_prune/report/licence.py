"""Which licence a model made from others carries."""

from collections.abc import Sequence

from hf_prune.report.schema.model import SourceCard

STRICTNESS = tuple(
    tuple(group.split())
    for group in (
        "cc0-1.0 unlicense wtfpl pddl 0bsd zlib",
        "mit isc bsd bsd-2-clause bsd-3-clause bsl-1.0 ncsa artistic-2.0 postgresql afl-3.0 ms-pl",
        "apache-2.0 ecl-2.0 cc-by-2.0 cc-by-3.0 cc-by-4.0 cdla-permissive-1.0 cdla-permissive-2.0 odc-by",
        "mpl-2.0 lgpl-2.1 lgpl-3.0 lgpl epl-1.0 epl-2.0 eupl-1.1 eupl-1.2 cdla-sharing-1.0 lgpl-lr c-uda",
        "cc-by-sa-3.0 cc-by-sa-4.0 odbl gpl gpl-2.0 gpl-3.0 agpl-3.0 osl-3.0 gfdl",
        "openrail openrail++ creativeml-openrail-m bigscience-openrail-m bigscience-bloom-rail-1.0 bigcode- "
        "openrail-m gemma llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 deepfloyd-if-license",
        "cc-by-nd-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 "
        "cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 apple-amlr apple-ascl fair-noncommercial-research-license intel- "
        "research h-research",
        "other",
        "unknown",
    )
)
"""Licence identifiers of the Hub from free to strict: later groups restrict more, and so do later names in a group."""


def inherited_licence(parents: Sequence[SourceCard]) -> tuple[str, str]:
    """The most restrictive licence among the parents, and a sentence about it.

    A parent without a licence makes the result `unknown`: nothing was granted that could be passed on.
    """
    names = {p.repo: [x.lower() for x in listed(p.license)] or ["unknown"] for p in parents}
    every = sorted({x for found in names.values() for x in found}, key=_strictness)
    licence = every[-1] if every else "unknown"
    if licence == "unknown":
        silent = [repo for repo, found in names.items() if "unknown" in found]
        return licence, f"unknown. {' and '.join(silent) or 'The base model'} states none; ask its author before use."
    if len(every) == 1:
        return licence, f"{licence}, inherited from the base model."
    return licence, f"{licence}, the most restrictive of the parents' ({', '.join(every)}). Their terms all apply."


def listed(stated: str | Sequence[str] | None) -> list[str]:
    """What a card says once, several times or not at all, as a list."""
    if not stated:
        return []
    return [stated] if isinstance(stated, str) else list(stated)


def _strictness(licence: str) -> tuple[int, int]:
    for i, group in enumerate(STRICTNESS):
        if licence in group:
            return i, group.index(licence)
    # A name nobody ranked may hold any term: stricter than all that are known, but it is a licence.
    return len(STRICTNESS) - 2, 1
