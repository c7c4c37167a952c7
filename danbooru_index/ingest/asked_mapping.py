"""`--map`: what a user says that the columns of his dump hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from danbooru_index.errors import UsageError, first_line
from danbooru_index.ingest.columns import SEVERAL, Columns, Field

NO_COLUMN = "-"


@dataclass(frozen=True, slots=True)
class AskedMapping:
    """What a user says about columns, before any file is seen: `tag=name,source==e621,notes=-`.

    `columns`: the columns of a field, empty for a field that is left out. `constants`: its value.
    """

    columns: Columns = field(default_factory=dict)
    constants: Mapping[Field, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, words: Sequence[str]) -> AskedMapping:
        """Read the values of `--map`: pairs, or a YAML file of them. Raises `UsageError`."""
        asked = cls()
        for word in words:
            for name, value in _pairs(word):
                asked = asked._with(name, value)
        return asked

    def _with(self, name: str, value: str) -> AskedMapping:
        try:
            of = Field(name.strip().lower())
        except ValueError:
            known = ", ".join(one.value for one in Field)
            raise UsageError(f"--map {name}={value}: no such field; there are {known}") from None
        if value.startswith("="):
            return replace(self, constants={**self.constants, of: value[1:]})
        if of not in SEVERAL and (of in self.columns or of in self.constants):
            raise UsageError(f"--map {name}={value}: {of.value} is mapped twice; it takes one")
        names = () if value == NO_COLUMN else (value,)
        before = self.columns.get(of, ()) if of in SEVERAL else ()
        return replace(self, columns={**self.columns, of: (*before, *names)})


def _pairs(word: str) -> list[tuple[str, str]]:
    """(field, value) pairs of one `--map`: its own, or those of the YAML file that it names."""
    if not word.strip():
        raise UsageError("--map is empty: field=column is needed, such as tag=name")
    if "=" not in word:
        return _pairs_of_file(Path(word))
    pairs = []
    for part in word.split(","):
        name, equals, value = part.partition("=")
        if not equals or not name.strip() or not value.strip():
            raise UsageError(
                f"--map {word}: {part.strip()!r} is not field=column; such as tag=name,text=cn_name"
            )
        pairs.append((name.strip(), value.strip()))
    return pairs


def _pairs_of_file(path: Path) -> list[tuple[str, str]]:
    import yaml

    try:
        fields = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(
            f"--map {path}: neither field=column nor a YAML file that is there"
        ) from None
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        raise UsageError(f"--map {path}: cannot be read as YAML ({first_line(error)})") from None
    if not isinstance(fields, dict) or not fields:
        raise UsageError(f"--map {path}: needs a line for each field, such as `tag: name`")
    pairs: list[tuple[str, str]] = []
    for name, value in fields.items():
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, dict) and set(one) == {"constant"}:
                pairs.append((str(name), f"={one['constant']}"))
            elif isinstance(one, (str, int)) and not isinstance(one, bool):
                pairs.append((str(name), str(one)))
            else:
                raise UsageError(
                    f"--map {path}: {name}: needs a column, a list of columns, '-', or"
                    " {constant: value}"
                )
    return pairs


def rename(columns: Columns, asked: AskedMapping) -> Columns:
    """What was recognised, changed as the user asks: a column that he gives to a field is taken
    from the field that it was recognised as.
    """
    taken = {name for names in asked.columns.values() for name in names}
    kept = {of: tuple(name for name in names if name not in taken) for of, names in columns.items()}
    merged = {**kept, **asked.columns}
    return {of: names for of, names in merged.items() if names and of not in asked.constants}
