"""The command line: parses a verb, calls it, prints, and ends with the exit code.

Exit 0 done; 1 a problem the message explains; 2 wrong usage; 3 published, but some records or
shards were left out.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import NoReturn, TextIO

from danbooru_index.cli.building import add_build, add_prepare
from danbooru_index.cli.keeping import add_diff, add_prune, add_rollback, add_status, add_verify
from danbooru_index.cli.measuring import add_benchmark, add_doctor, add_evaluate
from danbooru_index.cli.options import Command
from danbooru_index.cli.rebuilding import add_rebuild
from danbooru_index.cli.searching import add_search
from danbooru_index.cli.training import add_finetune
from danbooru_index.errors import DanbooruIndexError, UsageError
from danbooru_index.signals import bounded_stops, terminable
from danbooru_index.versions import check_versions

STOPPED = "stopped; nothing is lost: run the same command to go on"


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, and exits 2."""

    def error(self, message: str) -> NoReturn:
        query = "; a query that begins with - goes after --" if message.endswith("QUERY") else ""
        raise UsageError(f"{message} (see {self.prog} --help{query})")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code. This project's errors are one line on stderr."""

    def run() -> int:
        _open_closed_streams()
        parsed = make_parser().parse_args(arguments)
        # not for --help: logging takes 4 ms
        from danbooru_index.log_lines import log_to_stderr, set_log_format

        log_to_stderr()
        set_log_format(getattr(parsed, "log_format", "text"))
        if parsed.verb != "doctor":  # which says more
            check_versions()
        with (
            _stdout_for_results() as out,
            bounded_stops(f"danbooru-index: {STOPPED}"),
            terminable(),
        ):
            command: Command = parsed.command
            return command(parsed, out)

    return guarded(run)


def _open_closed_streams() -> None:
    """Closed streams lead nowhere; what a stream cannot encode is escaped."""
    for name, number, mode in (("stdin", 0, "r"), ("stdout", 1, "w"), ("stderr", 2, "w")):
        stream = getattr(sys, name)
        if stream is None:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
            setattr(sys, name, os.fdopen(number, mode, closefd=False))
        elif mode == "w" and isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def guarded(run: Callable[[], int]) -> int:
    """The exit code of `run`, or of what it raises, said in one line on stderr."""
    try:
        return run()
    except DanbooruIndexError as error:
        _say_why(" ".join(str(error).split()), error.exit_code)
        return error.exit_code
    except KeyboardInterrupt:
        _say_why(STOPPED, 1)
        return 1
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        reason = error.strerror or " ".join(str(error).split())[:300]
        _say_why(f"{where}{reason}", 1)
        return 1
    except UnicodeError as error:
        reason = getattr(error, "reason", str(error))
        _say_why(f"a name or a text is not valid UTF-8 ({reason})", 1)
        return 1


def _say_why(message: str, code: int) -> None:
    """The last line on stderr of a command that ends with `code`."""
    logging = sys.modules.get("logging")
    if logging is not None and "danbooru_index.log_lines" in sys.modules:
        from danbooru_index.log_lines import event, writes_json

        if writes_json():
            log = logging.getLogger("danbooru_index")
            log.error(message, extra=event("ended", exit_code=code))
            return
    print(f"danbooru-index: {message}", file=sys.stderr)


def entry(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run one command and end the process with its exit code.

    At once, without the interpreter's own teardown: there, threads of Ray and Lance that a stop has
    left running crashed 1 in 10 stopped builds after their last line (measured). Ray is shut down
    by then.
    """
    code = main(arguments)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


@contextlib.contextmanager
def _stdout_for_results() -> Iterator[TextIO]:
    """Results go to the real stdout; whatever a library prints there meanwhile goes to stderr."""
    sys.stdout.flush()
    saved = os.dup(1)
    out = os.fdopen(saved, "w", encoding="utf-8", errors="replace", closefd=False)
    os.dup2(2, 1)
    try:
        yield out
    finally:
        with contextlib.suppress(BrokenPipeError):
            out.flush()
        os.dup2(saved, 1)
        os.close(saved)


def make_parser() -> argparse.ArgumentParser:
    """The parser of all verbs; parsed arguments name their function (`command`) and `verb`."""
    parser = _Parser(
        prog="danbooru-index",
        description="Turn a Danbooru tag dump into a searchable BGE-M3 index.",
        epilog="danbooru-index VERB --help shows an example of each verb.",
    )
    from danbooru_index import __version__

    parser.add_argument("--version", action="version", version=f"danbooru-index {__version__}")
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    for add in (
        add_prepare,
        add_build,
        add_rebuild,
        add_search,
        add_status,
        add_diff,
        add_verify,
        add_rollback,
        add_prune,
        add_evaluate,
        add_finetune,
        add_benchmark,
        add_doctor,
    ):
        add(verbs)
    return parser
