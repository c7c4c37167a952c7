"""Names and shapes in a checkpoint's weight files against the architecture, without loading.

transformers fills in what a file lacks at random, and leaves out what it does not know, with a
warning that nobody reads. Here every tensor must be there, in its shape, before anything is built.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from danbooru_index.config import PRODUCTION_MODEL
from danbooru_index.errors import ModelError, first_line
from danbooru_index.model.checkpoint_files import HEADS, first_few, read_settings, weight_files
from danbooru_index.model.tensor_files import Shapes, load_tensors, read_shapes

if TYPE_CHECKING:
    pass

Load = Callable[[Path], dict[str, Any]]  # reads the tensors of one file
ANCHOR = "embeddings.word_embeddings.weight"  # the one tensor by which a prefix is recognised
# As DDP, DeepSpeed, torch.compile, FlagEmbedding, sentence-transformers and models with a head on
# top put before names.
PREFIX = re.compile(r"((module|_orig_mod|model|base_model|roberta|0|auto_model)\.)*")
UNUSED = re.compile(
    r"pooler\.dense\.(weight|bias)|embeddings\.position_ids|embeddings\.token_type_ids"
)
# heads of other tasks, which the encoder does without
BESIDE = re.compile(r"(lm_head|classifier|qa_outputs)\..*")


@dataclass(frozen=True, slots=True)
class Layout:
    """How weights are stored: the prefix of each name, and whether heads are among them."""

    prefix: str = ""
    heads_inside: bool = False

    @property
    def regular(self) -> bool:
        """Whether FlagEmbedding's own loader reads all of it."""
        return self.prefix in ("", "roberta.") and not self.heads_inside


def check_weights(folder: Path, settings: dict[str, Any]) -> Layout:
    """Compare every tensor of a checkpoint with what its configuration asks for; return how they
    are stored.

    Reads names and shapes only. Raises `ModelError` that names the first tensors that are missing,
    unexpected or of another shape, with both shapes.
    """
    found = _stored_shapes(folder)
    prefix = _prefix_of(folder, found)
    backbone, beside = _split(found, prefix)
    wanted = backbone_shapes(settings)
    _compare(
        folder,
        wanted,
        {name: shape for name, shape in backbone.items() if not UNUSED.fullmatch(name)},
    )
    heads = _head_shapes(int(settings["hidden_size"]))
    inside = {name: shape for name, shape in beside.items() if name in heads}
    if unknown := [name for name in beside if name not in heads and not BESIDE.fullmatch(name)]:
        raise ModelError(
            f"{folder}: {first_few(unknown)}: tensors that BGE-M3's format does not have"
        )
    gone = [name for name in HEADS if not (folder / name).is_file()]
    if gone and not inside:
        raise ModelError(
            f"{folder}: {' and '.join(gone)} missing: without its heads a model has no sparse"
            " weights and no ColBERT vectors (FlagEmbedding would make them up at random); use a"
            f" folder in the format of {PRODUCTION_MODEL}"
        )
    if not gone:  # FlagEmbedding reads these, whatever else is there
        inside = {
            f"{name.removesuffix('.pt')}.{part}": shape
            for name in HEADS
            for part, shape in read_shapes(folder / name).items()
        }
    _compare(folder, heads, inside)
    return Layout(prefix, bool(gone))


def backbone_shapes(settings: dict[str, Any]) -> Shapes:
    """The tensors, by transformers' names, that an XLM-R encoder's outputs depend on."""
    hidden, inner = int(settings["hidden_size"]), int(settings["intermediate_size"])
    types = int(settings.get("type_vocab_size", 2))
    shapes: Shapes = {
        "embeddings.word_embeddings.weight": (int(settings["vocab_size"]), hidden),
        "embeddings.position_embeddings.weight": (int(settings["max_position_embeddings"]), hidden),
        "embeddings.token_type_embeddings.weight": (types, hidden),
        "embeddings.LayerNorm.weight": (hidden,),
        "embeddings.LayerNorm.bias": (hidden,),
    }
    products = {
        "attention.self.query": (hidden, hidden),
        "attention.self.key": (hidden, hidden),
        "attention.self.value": (hidden, hidden),
        "attention.output.dense": (hidden, hidden),
        "intermediate.dense": (inner, hidden),
        "output.dense": (hidden, inner),
    }
    for number in range(int(settings["num_hidden_layers"])):
        layer = f"encoder.layer.{number}."
        for name, shape in products.items():
            shapes |= {f"{layer}{name}.weight": shape, f"{layer}{name}.bias": shape[:1]}
        for name in ("attention.output.LayerNorm", "output.LayerNorm"):
            shapes |= {f"{layer}{name}.weight": (hidden,), f"{layer}{name}.bias": (hidden,)}
    return shapes


def complete_weights(model: Any, folder: Path) -> None:
    """Put the checkpoint's own tensors into a model that FlagEmbedding has loaded from it (with its
    `sparse_linear` and `colbert_linear`), where its loader does not read them: from names with a
    prefix, and heads from among the weights.

    Raises `ModelError` as `check_weights` does.
    """
    settings = read_settings(folder)
    layout = check_weights(folder, settings)
    if layout.regular:
        return
    backbone, beside = _split(_stored_tensors(folder), layout.prefix)
    model.model.load_state_dict(
        {name: backbone[name] for name in backbone_shapes(settings)}, strict=False
    )
    for name in ("sparse_linear", "colbert_linear") if layout.heads_inside else ():
        getattr(model, name).load_state_dict(
            {part: beside[f"{name}.{part}"] for part in ("weight", "bias")}
        )


def stored_backbone(folder: Path, load: Load = load_tensors) -> dict[str, Any]:
    """The tensors of a checkpoint's backbone by transformers' names, as they are stored."""
    tensors = _stored_tensors(folder, load)
    return _split(tensors, _prefix_of(folder, tensors))[0]


def _stored_tensors(folder: Path, load: Load = load_tensors) -> dict[str, Any]:
    tensors: dict[str, Any] = {}
    for path in _tensor_files(folder):
        tensors |= load(path)
    return tensors


def _stored_shapes(folder: Path) -> Shapes:
    found: Shapes = {}
    for path in _tensor_files(folder):
        found |= read_shapes(path)
    return found


def _tensor_files(folder: Path) -> list[Path]:
    """The files that hold the weights; raise `ModelError` for one that is indexed, not there."""
    names = weight_files(path.name for path in folder.iterdir() if path.is_file())
    if names and not names[0].endswith(".index.json"):
        return [folder / names[0]]
    index = folder / names[0]
    try:
        parts = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        paths = [folder / str(part) for part in parts]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{index}: cannot be read ({first_line(error)}): fetch it again") from None
    if strangers := [str(part) for part in parts if part not in names]:
        raise ModelError(
            f"{index}: names {first_few(strangers)}, which {'is' if len(strangers) == 1 else 'are'}"
            " not there"
        )
    return paths


def _prefix_of(folder: Path, names: Iterable[str]) -> str:
    """What stands before the name of every backbone tensor."""
    anchors = [name for name in names if name.endswith(ANCHOR)]
    prefixes = [name.removesuffix(ANCHOR) for name in anchors]
    known = [prefix for prefix in prefixes if PREFIX.fullmatch(prefix)]
    if len(prefixes) == len(known) == 1:
        return known[0]
    if not prefixes:
        raise ModelError(
            f"{folder}: no tensor {ANCHOR}; it has {first_few(names)}: not a checkpoint in BGE-M3's"
            " format"
        )
    raise ModelError(
        f"{folder}: {first_few(anchors)}: which of them is the model, or what stands before its"
        " name, is not known"
    )


def _split(tensors: dict[str, Any], prefix: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The backbone by transformers' names, and the heads beside it, without a wrapper's prefix."""
    backbone = {
        name.removeprefix(prefix): value
        for name, value in tensors.items()
        if name.startswith(prefix)
    }
    if not prefix:
        own = re.compile(r"(embeddings|encoder|pooler)\..*")
        return (
            {name: value for name, value in backbone.items() if own.fullmatch(name)},
            {name: value for name, value in backbone.items() if not own.fullmatch(name)},
        )
    outer = prefix.removesuffix(prefix.split(".")[-2] + ".")
    beside = {
        name.removeprefix(outer): value
        for name, value in tensors.items()
        if not name.startswith(prefix)
    }
    return backbone, beside


def _head_shapes(hidden: int) -> Shapes:
    return {
        "sparse_linear.weight": (1, hidden),
        "sparse_linear.bias": (1,),
        "colbert_linear.weight": (hidden, hidden),
        "colbert_linear.bias": (hidden,),
    }


def _compare(folder: Path, wanted: Shapes, found: Shapes) -> None:
    """Raise `ModelError` for the first differences between two sets of tensors."""
    problems = []
    if missing := [name for name in wanted if name not in found]:
        problems.append(f"missing {first_few(missing)}")
    if unexpected := [name for name in found if name not in wanted]:
        problems.append(f"unexpected {first_few(unexpected)}")
    others = [name for name in wanted if name in found and found[name] != wanted[name]]
    if others:
        shown = [
            f"{name} is {_written(found[name])} instead of {_written(wanted[name])}"
            for name in others
        ]
        problems.append(first_few(shown))
    if problems:
        raise ModelError(
            f"{folder}: its tensors are not those that its config.json describes:"
            f" {'; '.join(problems)}"
        )


def _written(shape: tuple[int | str, ...]) -> str:
    return f"[{', '.join(map(str, shape))}]"
