"""Every error a user can meet: one sentence saying what is wrong, where, and what to do."""


class HfPruneError(Exception):
    """Base of all errors raised on purpose; the CLI prints its message and exits with `exit_code`."""

    exit_code = 1


class InvalidRecipe(HfPruneError):
    """The request contradicts itself, names something unknown, or cannot be met."""

    exit_code = 2


class InvalidReport(InvalidRecipe):
    """What was named holds no report of hf_prune, a broken one, or one that a later version wrote."""


class InvalidBlueprint(HfPruneError):
    """A blueprint file is malformed or refers to layers or sources that do not exist."""

    exit_code = 2


class UnsupportedArchitecture(HfPruneError):
    """The model family is unknown and its module tree is ambiguous, or its config has rules we cannot slice."""

    exit_code = 3


class IncompatibleSources(HfPruneError):
    """Sources of one blueprint do not have the same shapes, or an adapter does not fit its base."""

    exit_code = 3


class SourceError(HfPruneError):
    """A source cannot be read."""

    exit_code = 4


class SourceNotFound(SourceError):
    """No such folder, repo or revision."""


class SourceForbidden(SourceError):
    """The repo is gated or private for this login."""


class SourceOffline(SourceError):
    """The Hub cannot be reached and the files are not cached."""


class AdapterAlone(SourceError):
    """An adapter was named without the base it belongs to."""


class UnsafeSource(SourceError):
    """The source holds only pickles, or needs custom code, and nobody allowed it."""


class BrokenCheckpoint(SourceError):
    """A shard is missing, truncated or malformed, a tensor is absent, or weights are not finite."""


class NotEnoughDisk(SourceError):
    """The download or the result does not fit on the disk."""


class InvalidData(HfPruneError):
    """A calibration, selection, report or task file is missing, empty, malformed or overlaps another split."""

    exit_code = 5


class DataOffline(InvalidData):
    """A dataset is not in the cache, and the Hub cannot be reached."""


class StaleJournal(HfPruneError):
    """The journal was written by another recipe or another version of the numerics."""

    exit_code = 6


class ReloadMismatch(HfPruneError):
    """The saved model, loaded afresh, is not the model that was searched."""

    exit_code = 7


class Misread(HfPruneError):
    """A source, loaded afresh by stock transformers, is not the model that was read."""

    exit_code = 7


class BaseOverflow(SourceError):
    """The base's own forward leaves the numbers of its precision."""


class PublishError(HfPruneError):
    """The Hub refused the upload or could not be reached for it."""

    exit_code = 8


class CannotWrite(HfPruneError):
    """The disk is full or read-only, or a path cannot be written or read."""

    exit_code = 9
