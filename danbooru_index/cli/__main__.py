"""`python -m danbooru_index.cli`: the command, by the interpreter that runs it."""

from danbooru_index.cli.entry import entry

entry()
