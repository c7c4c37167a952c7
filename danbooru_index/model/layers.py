"""XLM-R's layers on [tokens, width] matrices; weights arranged to save passes over memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer's weights [out, in] and what they read.

    A sublayer ends with LayerNorm(x + inner W + b). Its input here is x + b, to which the product
    is added in place: no pass over memory for the sum. The LayerNorm before it gives x + b, b being
    added to its own bias; the other reader of x + b has b's share taken out of its bias: (x + b) V
    + (c - b V). The same numbers but for rounding.
    """

    qkv: torch.Tensor
    qkv_bias: torch.Tensor
    output: torch.Tensor
    attended: Callable[[torch.Tensor], torch.Tensor]
    inner: torch.Tensor
    inner_bias: torch.Tensor
    activation: Callable[[torch.Tensor], torch.Tensor]
    outer: torch.Tensor
    ended: Callable[[torch.Tensor], torch.Tensor]

    def project(self, hidden: torch.Tensor) -> torch.Tensor:
        """Queries, keys and values, [P, 3 D]."""
        from torch.nn.functional import linear

        return linear(hidden, self.qkv, self.qkv_bias)

    def finish(self, attended: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """What follows attention; overwrites `hidden`."""
        from torch.nn.functional import linear

        hidden = self.attended(hidden.addmm_(attended, self.output.t()))  # [P, D], in place
        inner = self.activation(linear(hidden, self.inner, self.inner_bias))
        return self.ended(hidden.addmm_(inner, self.outer.t()))

    def finish_anew(self, attended: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """The same, in a form that can be fused."""
        from torch.nn.functional import linear

        hidden = self.attended(linear(attended, self.output) + hidden)
        inner = self.activation(linear(hidden, self.inner, self.inner_bias))
        return self.ended(linear(inner, self.outer) + hidden)


@dataclass(frozen=True, slots=True)
class FusedLayer:
    """A layer's two parts, compiled for whole calls."""

    project: Callable[[torch.Tensor], torch.Tensor]
    finish: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def arrange_layers(layers: Any) -> tuple[torch.Tensor, list[Layer]]:
    """What is added to the embeddings, and the layers."""
    import torch

    arranged = []
    closing = [layer.attention.output.dense.bias.data for layer in layers]  # of each attention
    for layer, bias, following in zip(
        layers, closing, [*closing[1:], torch.zeros_like(closing[0])], strict=True
    ):
        qkv, qkv_bias = _fuse(layer.attention.self)
        inner, outer = layer.intermediate.dense, layer.output.dense
        arranged.append(
            Layer(
                qkv,
                _without(qkv_bias, qkv, bias),
                layer.attention.output.dense.weight.data,
                _norm(layer.attention.output.LayerNorm, outer.bias.data),
                inner.weight.data,
                _without(inner.bias.data, inner.weight.data, outer.bias.data),
                layer.intermediate.intermediate_act_fn,
                outer.weight.data,
                _norm(layer.output.LayerNorm, following),
            )
        )
    return closing[0], arranged


def _without(bias: torch.Tensor, weight: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """The bias of a product whose input is shifted."""
    return (bias.float() - weight.float() @ shift.float()).to(bias.dtype)


def _norm(module: Any, shift: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    """A LayerNorm whose result is shifted."""
    from torch.nn.functional import layer_norm

    weight, bias = module.weight.data, (module.bias.data.float() + shift.float()).to(shift.dtype)
    return lambda hidden: layer_norm(hidden, module.normalized_shape, weight, bias, module.eps)


def _fuse(attention: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """The query, key and value projections of a layer as one; the three become views of it."""
    import torch

    parts = [attention.query, attention.key, attention.value]
    weight = torch.cat([part.weight.data for part in parts])  # [3 D, D]
    bias = torch.cat([part.bias.data for part in parts])  # [3 D]
    for part, own_weight, own_bias in zip(parts, weight.chunk(3), bias.chunk(3), strict=True):
        part.weight.data, part.bias.data = own_weight, own_bias
    return weight, bias
