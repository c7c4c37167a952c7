"""The rooms of the house: each module imports only to the right of the arrow, and heavy libraries have one home."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "danbooru_index"
ROOMS = [
    {"errors", "config", "records", "failpoints", "signals", "versions"},  # vocabulary
    {"batches", "queries", "addresses", "upload", "progress"},
    {"packing", "uniqueness", "fusion", "weights", "security"},  # press; kernels; what a checkpoint holds
    {"hub"},
    {"forward", "devices", "checkpoint", "object_store", "sources"},  # model; what intake and vault stand on
    {"encoder", "codec", "session"},
    {"shards", "durable"},  # intake, vault
    {"tables", "sampling"},
    {"preparation", "generations", "vector_index"},
    {"compaction"},
    {"reader", "throughput"},
    {"ranking", "status", "lifecycle"},
    {"search"},  # desk
    {"evaluation"},  # gauge
    {"selfcheck", "workers", "cluster"},  # engine
    {"training_data", "model_card"},
    {"training"},
    {"finetune", "doctor"},
    {"embedded"},
    {"projection", "lookahead"},
    {"pipeline"},
    {"rebuild", "rivals", "simulation"},
    {"benchmark"},
    {"encoder_benchmark", "job_benchmark"},
    {"cli"},  # door
]
HOMES = {
    "torch": {"encoder", "forward", "fusion", "devices", "training", "embedded", "weights"},
    "FlagEmbedding": {"encoder", "rivals", "training"},
    "transformers": {"encoder", "training", "embedded"},
    "ray": {"pipeline", "cluster", "session", "workers", "job_benchmark", "finetune"},
    "obstore": {"object_store"},
    "lance": {"tables", "vector_index", "reader"},
    "lancedb": {"tables", "reader"},
}
MODULES = sorted(path.stem for path in PACKAGE.glob("*.py") if path.stem != "__init__")


def imports(module):
    tree = ast.parse((PACKAGE / f"{module}.py").read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def test_every_module_has_a_room():
    assert sorted(module for room in ROOMS for module in room) == MODULES


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_from_rooms_before_its_own(module):
    level = next(level for level, room in enumerate(ROOMS) if module in room)
    allowed = {name for room in ROOMS[: level + 1] for name in room} - {module}
    own = {name.split(".")[1] for name in imports(module) if name.startswith("danbooru_index.")}
    assert own <= allowed, f"{module} reaches for {own - allowed}"


@pytest.mark.parametrize("module", MODULES)
def test_heavy_libraries_stay_at_home(module):
    for library in {name.split(".")[0] for name in imports(module)} & HOMES.keys():
        assert module in HOMES[library], f"{module} imports {library}"


@pytest.mark.parametrize("module", MODULES)
def test_every_module_says_its_role_and_is_of_readable_size(module):
    source = (PACKAGE / f"{module}.py").read_text(encoding="utf-8")
    docstring = ast.get_docstring(ast.parse(source))
    assert docstring
    assert len(docstring.splitlines()[0]) > 20
    functions = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)]
    longest = max(((node.end_lineno - node.lineno + 1, node.name) for node in functions), default=(0, ""))
    assert longest[0] <= 65, longest


def test_no_input_is_checked_by_assert_and_nothing_unsafe_is_called():
    for module in MODULES:
        tree = ast.parse((PACKAGE / f"{module}.py").read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            assert not isinstance(node, ast.Assert), (module, node.lineno)
            if isinstance(node, ast.Call):
                name = ast.unparse(node.func)
                assert name not in ("eval", "exec", "pickle.load", "pickle.loads"), (module, name)
                given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                assert name != "torch.load" or given["weights_only"] == "True", module
                for keyword in node.keywords:
                    if keyword.arg == "trust_remote_code":
                        assert ast.unparse(keyword.value) == "False"
