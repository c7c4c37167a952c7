"""The one error family that users see: each carries the exit code its command ends with.

A message says what happened, where, and what to do. The command line catches `DanbooruIndexError`
and nothing else.
"""

import contextlib
from collections.abc import Iterator


def first_line(error: BaseException, limit: int = 200) -> str:
    """What an error of a library says, in one line; its kind where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:limit]


def in_one_line(error: BaseException, limit: int = 600) -> str:
    """All that an error says, on one line, cut after a whole sentence."""
    text = " ".join(str(error).split()) or type(error).__name__
    if len(text) <= limit:
        return text
    end = max(text.rfind(mark, 0, limit) for mark in (". ", "; ", ": "))
    return text[: end + 1] if end > limit // 3 else f"{text[:limit]}..."


class DanbooruIndexError(Exception):
    """A problem that the message explains (exit code 1)."""

    exit_code = 1


class UsageError(DanbooruIndexError):
    """Wrong usage: an option, a path or a value that cannot be meant (exit code 2)."""

    exit_code = 2


class InstallationError(DanbooruIndexError):
    """A library that is missing, or older than is safe."""


class InputError(DanbooruIndexError):
    """An input that cannot be read as tag records."""


class RejectedRecordsError(InputError):
    """Records were rejected and `--strict` was asked for."""


class ModelError(DanbooruIndexError):
    """A model that cannot be found, loaded or used; `missing`: not here, nor to be fetched."""

    def __init__(self, message: str, *, missing: bool = False) -> None:
        super().__init__(message)
        self.missing = missing


class DeviceError(DanbooruIndexError):
    """A device that was asked for, or is there, and cannot be used."""


class ClusterError(DanbooruIndexError):
    """A Ray cluster that cannot be reached, or lacks what the job needs."""


@contextlib.contextmanager
def as_error(kind: type[DanbooruIndexError], message: str, limit: int = 300) -> Iterator[None]:
    """Whatever a library raises while it reads a file, as one of ours; `{}` in `message`: why."""
    try:
        yield
    except DanbooruIndexError:
        raise
    except Exception as error:
        # torch, safetensors, transformers and tokenizers share no narrower class; nor has openpyxl
        reason = in_one_line(error, limit)
        name = type(error).__name__
        raise kind(
            message.replace("{}", reason if reason == name else f"{name}: {reason}")
        ) from None


def as_model_error(message: str, limit: int = 300) -> contextlib.AbstractContextManager[None]:
    """Errors of a library that loads a model's file, as `ModelError`; `{}` in `message`: why."""
    return as_error(ModelError, message, limit)


class StorageError(DanbooruIndexError):
    """An index that cannot be written, read or trusted."""


class IndexBusyError(StorageError):
    """Another process owns this index."""


class BuildFailedError(DanbooruIndexError):
    """Some shards or a check failed: nothing was published, and the build can be resumed."""
