"""What the weight files of a checkpoint hold: names and shapes of tensors, without loading them, against the architecture.

transformers fills in what a file lacks at random, and leaves out what it does not know, with a warning that nobody reads.
Here every tensor must be there, in its shape, before anything is built.
"""

from __future__ import annotations

import io
import json
import pickle
import re
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from danbooru_index.config import PRODUCTION_MODEL
from danbooru_index.errors import ModelError, first_line

if TYPE_CHECKING:
    import torch

WEIGHTS = ("model.safetensors", "pytorch_model.bin")
HEADS = ("sparse_linear.pt", "colbert_linear.pt")
TOKENIZERS = ("tokenizer.json", "sentencepiece.bpe.model")
SETTINGS = ("config.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
NUMBERS = (
    "hidden_size",
    "intermediate_size",
    "max_position_embeddings",
    "num_attention_heads",
    "num_hidden_layers",
    "vocab_size",
)
# What another value of makes it another model, which the packed forward pass does not compute, or hides a file from its id.
FIXED = {
    "is_decoder": (False, None),
    "add_cross_attention": (False, None),
    "position_embedding_type": ("absolute", None),
}
REFUSED = ("auto_map", "transformers_weights", "quantization_config")
LFS_POINTER = b"version https://git-lfs.github.com/spec/"
ANCHOR = "embeddings.word_embeddings.weight"  # the one tensor by which a prefix is recognised
# As DDP, DeepSpeed, torch.compile, FlagEmbedding, sentence-transformers and models with a head on top put before names.
PREFIX = re.compile(r"((module|_orig_mod|model|base_model|roberta|0|auto_model)\.)*")
UNUSED = re.compile(r"pooler\.dense\.(weight|bias)|embeddings\.position_ids|embeddings\.token_type_ids")
BESIDE = re.compile(r"(lm_head|classifier|qa_outputs)\..*")  # heads of other tasks, which the encoder does without
NAMED = 4  # tensors in a message

Shapes = dict[str, tuple[int | str, ...]]  # what is not a float of its own accord has its type before the sizes
FLOATS = ("F64", "F32", "F16", "BF16")
FLOAT_STORAGES = ("DoubleStorage", "FloatStorage", "HalfStorage", "BFloat16Storage")


@dataclass(frozen=True, slots=True)
class Layout:
    """How a checkpoint's weights are stored: what stands before each name, and whether the heads are among them."""

    prefix: str = ""
    heads_inside: bool = False

    @property
    def regular(self) -> bool:
        """Whether FlagEmbedding's own loader reads all of it."""
        return self.prefix in ("", "roberta.") and not self.heads_inside


def weight_files(names: Iterable[str]) -> list[str]:
    """Of the files of a folder or repository those that transformers loads weights from: the first form that is there."""
    present = set(names)
    for form in WEIGHTS:
        if form in present:
            return [form]
        index = f"{form}.index.json"
        if index in present:
            stem, suffix = form.rsplit(".", 1)
            return [index, *sorted(n for n in present if n.startswith(f"{stem}-") and n.endswith(f".{suffix}"))]
    return []


def needed_files(names: Iterable[str]) -> set[str]:
    """Of all files of a folder or repository those that decide its numbers: one form of the weights, heads, tokenizer,
    settings."""
    present = set(names)
    return {*weight_files(present), *(present & {*HEADS, *TOKENIZERS, *SETTINGS})}


def read_settings(folder: Path) -> dict[str, Any]:
    """`config.json` of a checkpoint in BGE-M3's format; raise `ModelError` for another one, and for numbers that are missing,
    which transformers would make up."""
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path}: cannot be read ({first_line(error, 120)})") from None
    kind = config.get("model_type") if isinstance(config, dict) else None
    if kind != "xlm-roberta":
        raise ModelError(f"{path}: model_type is {kind!r}; BGE-M3's format is 'xlm-roberta'")
    numbers = {name: config.get(name) for name in NUMBERS} | {"type_vocab_size": config.get("type_vocab_size", 2)}
    wrong = [name for name, value in numbers.items() if type(value) is not int or not 0 < value < 1 << 31]
    if wrong:
        raise ModelError(
            f"{path}: {' and '.join(wrong)}: a positive number is needed; not a checkpoint in BGE-M3's format"
        )
    if config["hidden_size"] % config["num_attention_heads"]:
        raise ModelError(f"{path}: {config['num_attention_heads']} heads do not divide {config['hidden_size']} values")
    if not isinstance(config.get("layer_norm_eps"), float) or type(config.get("pad_token_id", 1)) is not int:
        raise ModelError(f"{path}: layer_norm_eps and pad_token_id: numbers are needed")
    others = [f"{name} {config.get(name)!r}" for name, values in FIXED.items() if config.get(name) not in values]
    if others := others + [name for name in REFUSED if config.get(name) is not None]:
        raise ModelError(f"{path}: {', '.join(others)}: not BGE-M3's format, whose files are plain weights and no code")
    settings: dict[str, Any] = config
    return settings


def refuse_pointers(folder: Path, names: Iterable[str]) -> None:
    """Raise `ModelError` for files that git-lfs has not fetched: 130 bytes of text in the place of the content."""
    pointers = []
    for name in names:
        with (folder / name).open("rb") as file:
            if file.read(len(LFS_POINTER)) == LFS_POINTER:
                pointers.append(name)
    if pointers:
        raise ModelError(
            f"{folder}: {_some(pointers)}: git-lfs pointers, not the files themselves: run git lfs pull in that folder "
            "(git lfs install first)"
        )


def check_weights(folder: Path, settings: dict[str, Any]) -> Layout:
    """Compare every tensor of a checkpoint with what its configuration asks for; return how they are stored.

    Reads names and shapes only. Raises `ModelError` that names the first tensors that are missing, unexpected or of
    another shape, with both shapes.
    """
    found = _stored_shapes(folder)
    prefix = _prefix_of(folder, found)
    backbone, beside = _split(found, prefix)
    wanted = backbone_shapes(settings)
    _compare(folder, wanted, {name: shape for name, shape in backbone.items() if not UNUSED.fullmatch(name)})
    heads = _head_shapes(int(settings["hidden_size"]))
    inside = {name: shape for name, shape in beside.items() if name in heads}
    if unknown := [name for name in beside if name not in heads and not BESIDE.fullmatch(name)]:
        raise ModelError(f"{folder}: {_some(unknown)}: tensors that BGE-M3's format does not have")
    gone = [name for name in HEADS if not (folder / name).is_file()]
    if gone and not inside:
        raise ModelError(
            f"{folder}: {' and '.join(gone)} missing: without its heads a model has no sparse weights and no ColBERT "
            f"vectors (FlagEmbedding would make them up at random); use a folder in the format of {PRODUCTION_MODEL}"
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
    """The tensors of an XLM-R encoder of this configuration that its outputs depend on, by name, as transformers has them."""
    hidden, inner = int(settings["hidden_size"]), int(settings["intermediate_size"])
    shapes: Shapes = {
        "embeddings.word_embeddings.weight": (int(settings["vocab_size"]), hidden),
        "embeddings.position_embeddings.weight": (int(settings["max_position_embeddings"]), hidden),
        "embeddings.token_type_embeddings.weight": (int(settings.get("type_vocab_size", 2)), hidden),
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


def read_shapes(path: Path) -> Shapes:
    """The shape of each tensor in one file, by name. Raises `ModelError` for a file that is not whole, or holds other
    things than tensors."""
    try:
        if path.suffix == ".safetensors":
            from safetensors import safe_open

            with safe_open(path, framework="numpy") as file:
                slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            return {name: _typed(s.get_dtype(), s.get_dtype() in FLOATS, s.get_shape()) for name, s in slices.items()}
        if (known := _archived_shapes(path)) is not None:
            return known
        tensors = load_tensors(path, device="meta").items()
        return {name: _typed(str(t.dtype), t.is_floating_point() and t.itemsize > 1, t.shape) for name, t in tensors}
    except ModelError:
        raise
    except Exception as error:  # safetensors has an error of its own for each way to be damaged, torch many
        raise ModelError(f"{path}: cannot be read as tensors ({first_line(error)}): fetch it again") from None


class _ShapeReader(pickle.Unpickler):
    """Reads the index of a torch archive: of each tensor its type and sizes, of nothing else anything."""

    def find_class(self, module: str, name: str) -> Any:
        """The three things that an index of plain tensors names; any other is refused, so that no code can run."""
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda storage, _offset, sizes, *_: _typed(storage, storage in FLOAT_STORAGES, sizes)
        if module == "torch" and name.endswith("Storage"):
            return name
        raise pickle.UnpicklingError(f"{module}.{name}")

    def persistent_load(self, pid: Any) -> Any:
        return pid[1]


def _archived_shapes(path: Path) -> Shapes | None:
    """The shapes in an archive of plain tensors, as torch writes it since 1.6, without importing torch (a second of a
    build's start); None for any other file, of which torch knows what it is."""
    try:
        with zipfile.ZipFile(path) as archive:
            (index,) = [name for name in archive.namelist() if name.endswith("/data.pkl")]
            found = _ShapeReader(io.BytesIO(archive.read(index))).load()
    except (
        OSError,
        ValueError,
        zipfile.BadZipFile,
        pickle.UnpicklingError,
        EOFError,
        TypeError,
        LookupError,
        AttributeError,
    ):
        return None
    plain = isinstance(found, dict) and all(isinstance(k, str) and isinstance(v, tuple) for k, v in found.items())
    return dict(found) if plain else None


def _typed(kind: str, is_float: bool, sizes: Iterable[int]) -> tuple[int | str, ...]:
    return tuple(sizes) if is_float else (kind, *sizes)


def load_tensors(path: Path, device: str = "cpu") -> dict[str, torch.Tensor]:
    """The tensors of one file, by name, never running code; on device `meta`: their names and shapes alone."""
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return dict(load_file(path, device=device))
    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = torch.load(path, map_location=device, weights_only=True, mmap=_is_zip(path))
    except pickle.UnpicklingError:  # torch's own advice is to switch `weights_only` off
        raise ModelError(
            f"{path}: holds more than tensors, which could run code and is never loaded: save its state_dict, or safetensors"
        ) from None
    except Exception as error:  # torch has no narrower one for a damaged file
        raise ModelError(f"{path}: cannot be read as tensors ({first_line(error, 80)}): fetch it again") from None
    if not isinstance(found, dict) or not all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in found.items()
    ):
        raise ModelError(f"{path}: holds other things than named tensors: save the model's state_dict alone")
    return found


def complete_weights(model: Any, folder: Path) -> None:
    """Put the checkpoint's own tensors into a model that FlagEmbedding has loaded from it (with its `sparse_linear` and
    `colbert_linear`), where its loader does not read them: from names with a prefix, and heads from among the weights.

    Raises `ModelError` as `check_weights` does.
    """
    settings = read_settings(folder)
    layout = check_weights(folder, settings)
    if layout.regular:
        return
    tensors: dict[str, torch.Tensor] = {}
    for path in _tensor_files(folder):
        tensors |= load_tensors(path)
    backbone, beside = _split(tensors, layout.prefix)
    model.model.load_state_dict({name: backbone[name] for name in backbone_shapes(settings)}, strict=False)
    for name in ("sparse_linear", "colbert_linear") if layout.heads_inside else ():
        getattr(model, name).load_state_dict({part: beside[f"{name}.{part}"] for part in ("weight", "bias")})


def _stored_shapes(folder: Path) -> Shapes:
    found: Shapes = {}
    for path in _tensor_files(folder):
        found |= read_shapes(path)
    return found


def _tensor_files(folder: Path) -> list[Path]:
    """The files that hold the weights; raise `ModelError` where an index names one that is not there."""
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
        raise ModelError(f"{index}: names {_some(strangers)}, which {'is' if len(strangers) == 1 else 'are'} not there")
    return paths


def _prefix_of(folder: Path, names: Iterable[str]) -> str:
    """What stands before the name of every backbone tensor."""
    anchors = [name for name in names if name.endswith(ANCHOR)]
    prefixes = [name.removesuffix(ANCHOR) for name in anchors]
    known = [prefix for prefix in prefixes if PREFIX.fullmatch(prefix)]
    if len(prefixes) == len(known) == 1:
        return known[0]
    if not prefixes:
        raise ModelError(f"{folder}: no tensor {ANCHOR}; it has {_some(names)}: not a checkpoint in BGE-M3's format")
    raise ModelError(
        f"{folder}: {_some(anchors)}: which of them is the model, or what stands before its name, is not known"
    )


def _split(tensors: dict[str, Any], prefix: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The backbone by the names that transformers has, and what stands beside it (heads), without the wrappers' prefix."""
    backbone = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    if not prefix:
        own = re.compile(r"(embeddings|encoder|pooler)\..*")
        return (
            {name: value for name, value in backbone.items() if own.fullmatch(name)},
            {name: value for name, value in backbone.items() if not own.fullmatch(name)},
        )
    outer = prefix.removesuffix(prefix.split(".")[-2] + ".")
    beside = {name.removeprefix(outer): value for name, value in tensors.items() if not name.startswith(prefix)}
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
        problems.append(f"missing {_some(missing)}")
    if unexpected := [name for name in found if name not in wanted]:
        problems.append(f"unexpected {_some(unexpected)}")
    others = [name for name in wanted if name in found and found[name] != wanted[name]]
    if others:
        shown = [f"{name} is {_written(found[name])} instead of {_written(wanted[name])}" for name in others]
        problems.append(_some(shown))
    if problems:
        raise ModelError(f"{folder}: its tensors are not those that its config.json describes: {'; '.join(problems)}")


def _written(shape: tuple[int | str, ...]) -> str:
    return f"[{', '.join(map(str, shape))}]"


def _some(names: Iterable[str]) -> str:
    """The first few of them, and how many more there are."""
    known = list(names)
    more = f" and {len(known) - NAMED} more" if len(known) > NAMED else ""
    return ", ".join(known[:NAMED]) + more


def _is_zip(path: Path) -> bool:
    """Whether torch wrote the file in its present form, which can be mapped; the one before 1.6 must be read whole."""
    with path.open("rb") as file:
        return file.read(2) == b"PK"
