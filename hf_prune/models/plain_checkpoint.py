"""Plain checkpoints out of models that another library made: its errors and its files."""

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

from transformers import PreTrainedModel

from hf_prune.errors import HfPruneError, NotEnoughDisk
from hf_prune.hub import contents
from hf_prune.models.noise import silent


def save_plain(model: PreTrainedModel, out: Path) -> None:
    """Write a plain model; undoing a quantisation must not be undone on the way to the file."""
    size = sum(t.nbytes for t in {t.data_ptr(): t for t in model.state_dict().values()}.values())
    if size > (free := shutil.disk_usage(out).free):
        raise NotEnoughDisk(
            f"The plain checkpoint needs {size / 1e9:.2f} GB in {out.parent.parent}, where {free / 1e9:.2f} GB are "
            "free; free some space."
        )
    model._weight_conversions = None
    with silent():
        model.save_pretrained(out)


def copy_beside(folder: Path, out: Path, code: bool) -> None:
    """Put tokenizer and generation settings of a model beside another's weights, and its code where that may run."""
    copy_tokenizer(folder, out)
    for path in (*folder.glob("generation_config.json"), *(folder.glob("*.py") if code else ())):
        shutil.copyfile(path, out / path.name)


def copy_tokenizer(folder: Path, out: Path) -> bool:
    """Put a folder's tokenizer into another, in place of what is there; whether it has one."""
    names = [p.relative_to(folder).as_posix() for p in (*folder.iterdir(), *folder.glob("*/*.jinja")) if p.is_file()]
    if not contents.matching(names, contents.VOCABULARIES):
        return False
    spoken = [p for p in contents.SPEECH if p != "generation_config.json"]
    for name in contents.matching(names, spoken):
        (out / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(folder / name, out / name)
    return True


def forget_tokenizer_code(folder: Path) -> None:
    """Take out of a tokenizer's settings what points to code beside them, where that does not come along."""
    settings = folder / "tokenizer_config.json"
    if settings.is_file():
        raw = json.loads(settings.read_bytes())
        if raw.pop("auto_map", None):
            settings.write_text(json.dumps(raw, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


@contextlib.contextmanager
def in_a_sentence(what: str, kind: type[HfPruneError]) -> Iterator[None]:
    """Errors of another library as one of ours."""
    try:
        yield
    except HfPruneError:
        raise
    except OSError as e:
        if e.errno == 28:
            raise NotEnoughDisk("The disk has no room for a plain checkpoint; free some space.") from None
        raise kind(f"{what}: {_first(e)}.") from None
    # What other libraries trip over ends in any error there is.
    except Exception as e:
        raise kind(f"{what}: {_first(e)}.") from None


def _first(error: Exception) -> str:
    return (str(error).strip().split("\n")[0][:200] or type(error).__name__).rstrip(".")
