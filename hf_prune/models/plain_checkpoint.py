"""Plain checkpoints out of models that another library made: its noise, its errors and its files."""

import contextlib
import io
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path

from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging

from hf_prune.errors import HfPruneError, NotEnoughDisk
from hf_prune.hub import contents


def save_plain(model: PreTrainedModel, out: Path) -> None:
    """Write a plain model; undoing a quantisation must not be undone on the way to the file."""
    size = sum(t.nbytes for t in {t.data_ptr(): t for t in model.state_dict().values()}.values())
    if size > (free := shutil.disk_usage(out).free):
        raise NotEnoughDisk(
            f"The plain checkpoint needs {size / 1e9:.2f} GB in {out.parent.parent}, where {free / 1e9:.2f} GB are "
            "free; free some space."
        )
    model._weight_conversions = None
    with quietly():
        model.save_pretrained(out)


def copy_beside(folder: Path, out: Path, code: bool) -> None:
    """Put tokenizer and generation settings of a model beside a plain one, and its code where that may be run."""
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


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Keep advice and progress bars of other libraries off the screen."""
    bars, level = transformers_logging.is_progress_bar_enabled(), transformers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()
