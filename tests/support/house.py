"""The figures of the house, by `ast`: what the architecture test holds, and what HOUSE.md compares
with other projects.

python tests/support/house.py [FOLDER]
"""

import ast
import re
import statistics
import sys
import tokenize
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "danbooru_index"


@dataclass(frozen=True)
class Module:
    """One source file: its dotted name inside the package, text and tree."""

    name: str
    text: str
    tree: ast.Module

    @property
    def room(self):
        return self.name.rpartition(".")[0]

    @property
    def lines(self):
        return len(self.text.splitlines())


def modules(package=PACKAGE):
    for path in sorted(package.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        yield Module(
            ".".join(path.relative_to(package).with_suffix("").parts), text, ast.parse(text)
        )


def imports(tree):
    """Dotted names that a module imports; those inside functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def arrows(package=PACKAGE):
    """Module -> the project's own modules that it imports."""
    known = {module.name: module for module in modules(package)}
    found = {}
    for module in known.values():
        own = set()
        for name in imports(module.tree):
            inner = (
                name.removeprefix(f"{package.name}.") if name.startswith(f"{package.name}.") else ""
            )
            own |= {inner} & known.keys() or {inner.rpartition(".")[0]} & known.keys()
        found[module.name] = own - {module.name}
    return found


def circles(graph):
    """Modules that import themselves by way of others."""
    reached = {name: set(own) for name, own in graph.items()}
    for _ in graph:
        grown = {
            name: own.union(*(reached[other] for other in own)) for name, own in reached.items()
        }
        if grown == reached:
            break
        reached = grown
    return sorted(name for name, own in reached.items() if name in own)


def functions(tree):
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return [
        (node.end_lineno - node.lineno + 1, node.name)
        for node in ast.walk(tree)
        if isinstance(node, kinds)
    ]


def classes(tree):
    return [
        (n.end_lineno - n.lineno + 1, n.name) for n in ast.walk(tree) if isinstance(n, ast.ClassDef)
    ]


def comment_lines(text):
    tokens = tokenize.generate_tokens(iter(text.splitlines(keepends=True)).__next__)
    return len({token.start[0] for token in tokens if token.type == tokenize.COMMENT})


def broad_excepts(module):
    """The lines of a module that catch everything."""
    for node in ast.walk(module.tree):
        broad = isinstance(node, ast.ExceptHandler) and (
            node.type is None or ast.unparse(node.type) in ("Exception", "BaseException")
        )
        suppressed = isinstance(node, ast.Call) and re.search(
            r"suppress\((Base)?Exception", ast.unparse(node)
        )
        if broad or suppressed:
            yield node.lineno


def top_level(module):
    """Public and private names that a module defines at its top."""
    for node in module.tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield node.name
        elif isinstance(node, ast.Assign):
            yield from (
                n.id for target in node.targets for n in ast.walk(target) if isinstance(n, ast.Name)
            )
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield node.target.id


def twice_defined(package=PACKAGE):
    homes = defaultdict(list)
    for module in modules(package):
        for name in set(top_level(module)):
            homes[name].append(module.name)
    return {name: places for name, places in sorted(homes.items()) if len(places) > 1}


def percentile(values, share):
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def main(package):
    known = list(modules(package))
    graph = arrows(package)
    inner = {name: {o for o in own if "." in o} for name, own in graph.items() if "." in name}
    others = {name: own for name, own in inner.items() if not name.startswith("cli.")}
    lengths = [length for module in known for length, _ in functions(module.tree)]
    text = "".join(module.text for module in known)
    lines = text.splitlines()
    print(f"modules {len(known)}, lines {len(lines):,}")
    print(f"  over 250 lines: {[(m.name, m.lines) for m in known if m.lines > 250]}")
    print(
        f"functions {len(lengths)}: median {statistics.median(lengths):.0f}, p95"
        f" {percentile(lengths, 0.95)}"
    )
    print(
        "  longest:"
        f" {sorted(((n, f, m.name) for m in known for n, f in functions(m.tree)), reverse=True)[:4]}"
    )
    print(
        f"classes over 150 lines: {[(n, c) for m in known for n, c in classes(m.tree) if n > 150]}"
    )
    print(f"fan-out: {Counter({name: len(own) for name, own in others.items()}).most_common(6)}")
    print(
        "arrows a module, without those to root files:"
        f" {sum(map(len, inner.values())) / len(inner):.2f}"
    )
    print(f"circles: {circles(graph)}")
    print(f"comment lines: {sum(comment_lines(m.text) for m in known) / len(lines):.1%}")
    print(f"lines over 100 characters: {sum(len(line) > 100 for line in lines)}")
    caught = [f"{m.name}:{line}" for m in known for line in broad_excepts(m)]
    print(f"broad excepts {len(caught)}: {caught}")
    print(f"names defined twice: {twice_defined(package)}")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else PACKAGE)
