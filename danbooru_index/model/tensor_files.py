"""Tensors in files: names and shapes without loading, or all of it; never running code."""

from __future__ import annotations

import io
import pickle
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from danbooru_index.embeddings import Array
from danbooru_index.errors import ModelError, as_model_error

if TYPE_CHECKING:
    import torch


# what is not a float of its own accord has its type before the sizes
Shapes = dict[str, tuple[int | str, ...]]
FLOATS = ("F64", "F32", "F16", "BF16")
NUMPY_FLOATS = ("F64", "F32", "F16")
STORED = {"DoubleStorage": np.float64, "FloatStorage": np.float32, "HalfStorage": np.float16}
# What reading an archive that is none, or holds something else, raises.
NOT_PLAIN = (
    OSError,
    ValueError,
    zipfile.BadZipFile,
    pickle.UnpicklingError,
    EOFError,
    TypeError,
    LookupError,
    AttributeError,
)
FLOAT_STORAGES = ("DoubleStorage", "FloatStorage", "HalfStorage", "BFloat16Storage")


def read_shapes(path: Path) -> Shapes:
    """The shape of each tensor in one file, by name. Raises `ModelError` for a file that is not
    whole, or holds other things than tensors.
    """
    with as_model_error(f"{path}: cannot be read as tensors ({{}}): fetch it again"):
        if path.suffix == ".safetensors":
            from safetensors import safe_open

            with safe_open(path, framework="numpy") as file:
                slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            return {
                name: _typed(s.get_dtype(), s.get_dtype() in FLOATS, s.get_shape())
                for name, s in slices.items()
            }
        if (known := _archived_shapes(path)) is not None:
            return known
        tensors = load_tensors(path, device="meta").items()
        return {
            name: _typed(str(t.dtype), t.is_floating_point() and t.itemsize > 1, t.shape)
            for name, t in tensors
        }


class _ShapeReader(pickle.Unpickler):
    """Reads the index of a torch archive: each tensor's type and sizes, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        """The three things that an index of plain tensors names; any other is refused."""
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda storage, _offset, sizes, *_: _typed(
                storage, storage in FLOAT_STORAGES, sizes
            )
        if module == "torch" and name.endswith("Storage"):
            return name
        raise pickle.UnpicklingError(f"{module}.{name}")

    def persistent_load(self, pid: Any) -> Any:
        return pid[1]


class _ArrayReader(_ShapeReader):
    """Reads the index of a torch archive: each tensor as an array, and nothing else."""

    read: Callable[[str], bytes]

    def find_class(self, module: str, name: str) -> Any:
        """As of shapes; storages of NumPy's types alone."""
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _array
        return super().find_class(module, name)

    def persistent_load(self, pid: Any) -> Any:
        _, kind, key, *_ = pid
        return np.frombuffer(self.read(str(key)), STORED[kind])


def _array(
    storage: Array, offset: int, sizes: Sequence[int], strides: Sequence[int], *_: Any
) -> Array:
    """A tensor of a storage, as torch rebuilds it: contiguous ones alone."""
    contiguous = [int(np.prod(sizes[axis + 1 :])) for axis in range(len(sizes))]
    count = int(np.prod(sizes))
    if list(strides) != contiguous or offset < 0 or offset + count > len(storage):
        raise pickle.UnpicklingError("a view")
    return storage[offset : offset + count].reshape(sizes)


def _archived_shapes(path: Path) -> Shapes | None:
    """The shapes in an archive of plain tensors, as torch writes it since 1.6, without importing
    torch (a second of a build's start); None for any other file, of which torch knows what it is.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            (index,) = [name for name in archive.namelist() if name.endswith("/data.pkl")]
            found = _ShapeReader(io.BytesIO(archive.read(index))).load()
    except NOT_PLAIN:
        return None
    plain = isinstance(found, dict) and all(
        isinstance(k, str) and isinstance(v, tuple) for k, v in found.items()
    )
    return dict(found) if plain else None


def _typed(kind: str, is_float: bool, sizes: Iterable[int]) -> tuple[int | str, ...]:
    return tuple(sizes) if is_float else (kind, *sizes)


class NotForNumPyError(Exception):
    """A file of tensors that only torch reads, or of a type that NumPy lacks."""


def load_arrays(path: Path) -> dict[str, Array]:
    """The tensors of one file as NumPy's arrays, without importing torch, never running code.

    Raises `NotForNumPyError`.
    """
    if path.suffix == ".safetensors":
        from safetensors import safe_open

        with (
            as_model_error(f"{path}: cannot be read as tensors ({{}}): fetch it again"),
            safe_open(path, framework="numpy") as file,
        ):
            names = list(file.keys())
            known = all(file.get_slice(name).get_dtype() in NUMPY_FLOATS for name in names)
            arrays = {name: file.get_tensor(name) for name in names if known}
        if not known:
            raise NotForNumPyError(path)
        return arrays
    try:
        with zipfile.ZipFile(path) as archive:
            (index,) = [name for name in archive.namelist() if name.endswith("/data.pkl")]
            folder = index.removesuffix("data.pkl")
            order = [n for n in archive.namelist() if n == f"{folder}byteorder"]
            if order and archive.read(order[0]) != b"little":
                raise NotForNumPyError(path)
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                raise NotForNumPyError(path)  # torch writes none; what it unpacks to is not known
            reader = _ArrayReader(io.BytesIO(archive.read(index)))
            reader.read = lambda key: archive.read(f"{folder}data/{key}")
            found = reader.load()
    except NOT_PLAIN:
        raise NotForNumPyError(path) from None
    plain = isinstance(found, dict) and all(
        isinstance(k, str) and isinstance(v, np.ndarray) for k, v in found.items()
    )
    if not plain:
        raise NotForNumPyError(path)
    return dict(found)


def load_tensors(path: Path, device: str = "cpu") -> dict[str, torch.Tensor]:
    """The tensors of one file, by name, never running code; on `meta`: names and shapes only."""
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        with as_model_error(f"{path}: cannot be read as tensors ({{}}): fetch it again", 80):
            return dict(load_file(path, device=device))
    import torch

    with (
        as_model_error(f"{path}: cannot be read as tensors ({{}}): fetch it again", 80),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        try:
            found = torch.load(path, map_location=device, weights_only=True, mmap=_is_zip(path))
        except pickle.UnpicklingError:  # torch's own advice is to switch `weights_only` off
            raise ModelError(
                f"{path}: holds more than tensors, which could run code and is never loaded: save"
                " its state_dict, or safetensors"
            ) from None
    if not isinstance(found, dict) or not all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in found.items()
    ):
        raise ModelError(
            f"{path}: holds other things than named tensors: save the model's state_dict alone"
        )
    return found


def _is_zip(path: Path) -> bool:
    """Whether torch wrote the file in the form that can be mapped, since 1.6."""
    with path.open("rb") as file:
        return file.read(2) == b"PK"
