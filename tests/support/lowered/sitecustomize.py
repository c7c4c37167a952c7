"""The product's size thresholds, lowered: so that what happens above a size happens to a small
sample, in every process.

    PYTHONPATH=tests/support/lowered LOWERED="vector_index.INDEX_ROWS=100 compaction.FRAGMENTS=3" danbooru-index build ...

Python imports this module when it starts. A constant is set when its module has been imported,
before anybody reads it; the workers of a private Ray inherit both variables.
"""

import os
import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import PathFinder

LOWERED = [word.partition("=")[::2] for word in os.environ.get("LOWERED", "").split()]


HOMES = {f"danbooru_index.{name.rpartition('.')[0]}" for name, _ in LOWERED}


class _Lowering(Loader):
    """The module's own loader; afterwards its constants are set."""

    def __init__(self, loader):
        self._loader = loader

    def create_module(self, spec):
        return self._loader.create_module(spec)

    def exec_module(self, module):
        self._loader.exec_module(module)
        for name, value in LOWERED:
            home, _, constant = name.rpartition(".")
            if module.__name__ == f"danbooru_index.{home}":
                assert isinstance(getattr(module, constant), int), name
                setattr(module, constant, int(value))


class _Finder(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name not in HOMES:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Lowering(spec.loader)
        return spec


if LOWERED:
    sys.meta_path.insert(0, _Finder())
