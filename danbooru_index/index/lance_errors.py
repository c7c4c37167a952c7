"""What Lance says of a fault, as `OSError` and in a line; without importing Lance, which takes most
of a second.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


@contextlib.contextmanager
def panics_as_errors() -> Iterator[None]:
    """A panic inside Lance (rotten bytes, a failing disk) as `OSError`; it is no Exception."""
    try:
        yield
    except BaseException as error:  # a panic is no Exception, and its class cannot be imported
        if type(error).__name__ != "PanicException":
            raise
        raise OSError(f"Lance panicked: {lance_reason(error)}") from None


def lance_reason(error: BaseException | None) -> str:
    """The first words of an error of Lance's, without its source location."""
    text = str(error).splitlines()[0] if error and str(error) else type(error).__name__
    for word in (
        "No space left on device",
        "Read-only file system",
        "Permission denied",
        "File too large",
    ):
        if word in str(error):
            return word
    return text.split(", /home/")[0][:300]
