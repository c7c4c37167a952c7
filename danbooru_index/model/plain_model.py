"""BGE-M3's modules with a checkpoint's tensors in them, without transformers and FlagEmbedding.

Importing those takes four to six seconds, in every actor of a build and in every search:
`PackedModel` computes the forward pass itself, and reads only modules and their weights, by
transformers' names. What is here is tested to be equal to the bit to what FlagEmbedding loads;
where it may not be, FlagEmbedding loads.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from danbooru_index.choices import Precision
from danbooru_index.model.checkpoint_files import HEADS, read_settings
from danbooru_index.model.loading import fitting
from danbooru_index.model.tensor_files import load_tensors
from danbooru_index.model.weights import check_weights, stored_backbone

if TYPE_CHECKING:
    import torch

Tensors = dict[str, "torch.Tensor"]


def load_plain_model(path: str, device: str, precision: Precision) -> Any | None:
    """The model of a folder, on its device; None where only FlagEmbedding knows how to load it.

    Raises `ModelError` for tensors that are not those of its `config.json`.
    """
    folder = Path(path)
    settings = read_settings(folder)
    if settings.get("hidden_act", "gelu") != "gelu" or not check_weights(folder, settings).regular:
        return None
    import torch

    kinds = {Precision.FP16: torch.float16, Precision.BF16: torch.bfloat16}
    kind = kinds.get(precision, torch.float32)

    def placed(tensors: Tensors) -> Tensors:
        return {name: tensor.to(device=device, dtype=kind) for name, tensor in tensors.items()}

    with torch.inference_mode(), fitting(path, device):
        backbone = placed(stored_backbone(folder))
        heads = {name: placed(load_tensors(folder / name)) for name in HEADS}
        return SimpleNamespace(
            model=_backbone(backbone, settings),
            **{name.removesuffix(".pt"): _linear(tensors, "") for name, tensors in heads.items()},
        )


def _backbone(tensors: Tensors, settings: dict[str, Any]) -> SimpleNamespace:
    import torch

    epsilon = float(settings["layer_norm_eps"])
    config = SimpleNamespace(**{"pad_token_id": 1} | settings)
    layers = []
    for number in range(int(settings["num_hidden_layers"])):
        at = f"encoder.layer.{number}."
        attention = SimpleNamespace(
            self=SimpleNamespace(
                **{
                    part: _linear(tensors, f"{at}attention.self.{part}.")
                    for part in ("query", "key", "value")
                }
            ),
            output=_closing(tensors, f"{at}attention.output.", epsilon),
        )
        inner = SimpleNamespace(
            dense=_linear(tensors, f"{at}intermediate.dense."),
            intermediate_act_fn=torch.nn.functional.gelu,
        )
        layers.append(
            SimpleNamespace(
                attention=attention,
                intermediate=inner,
                output=_closing(tensors, f"{at}output.", epsilon),
            )
        )
    return SimpleNamespace(
        embeddings=_Embeddings(tensors, epsilon),
        encoder=SimpleNamespace(layer=layers),
        config=config,
    )


class _Embeddings:
    """The sum of a token's, its type's and its position's embedding, normalised."""

    def __init__(self, tensors: Tensors, epsilon: float) -> None:
        self._words, self._types, self._positions = (
            tensors[f"embeddings.{name}_embeddings.weight"]
            for name in ("word", "token_type", "position")
        )
        self._norm = _layer_norm(tensors, "embeddings.LayerNorm.", epsilon)

    def __call__(self, input_ids: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        """[1, P] each -> [1, P, D], added in transformers' order."""
        from torch.nn.functional import embedding

        words = embedding(input_ids, self._words) + self._types[0]
        hidden: torch.Tensor = self._norm(words + embedding(position_ids, self._positions))
        return hidden


def _closing(tensors: Tensors, at: str, epsilon: float) -> SimpleNamespace:
    return SimpleNamespace(
        dense=_linear(tensors, f"{at}dense."),
        LayerNorm=_layer_norm(tensors, f"{at}LayerNorm.", epsilon),
    )


def _linear(tensors: Tensors, at: str) -> Any:
    from torch import nn

    weight = tensors[f"{at}weight"]
    module = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
    module.weight = nn.Parameter(weight, requires_grad=False)
    module.bias = nn.Parameter(tensors[f"{at}bias"], requires_grad=False)
    return module


def _layer_norm(tensors: Tensors, at: str, epsilon: float) -> Any:
    from torch import nn

    module = nn.LayerNorm(len(tensors[f"{at}weight"]), eps=epsilon, device="meta")
    module.weight = nn.Parameter(tensors[f"{at}weight"], requires_grad=False)
    module.bias = nn.Parameter(tensors[f"{at}bias"], requires_grad=False)
    return module
