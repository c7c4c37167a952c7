"""How an encoder uses its device: frozen, and given when it is made."""

from __future__ import annotations

import math
from dataclasses import dataclass

NEVER_FILL = math.inf


@dataclass(frozen=True, slots=True)
class EncoderTuning:
    """None: what was measured best for the device and precision at hand.

    `tokens_per_batch`: slots of a device call, from which it is halved when memory runs out.
    `attention`: one of `Encoder.attentions`; `blocks`: the sizes of block that texts are packed
    into, 0 for none. `streams`: device calls at once on a CPU, each on its share of the cores.
    `min_fill_ratio`: from which share of a full call on a call is padded to full size, for which
    layers are compiled; `NEVER_FILL`: from none.
    """

    tokens_per_batch: int | None = None
    attention: str | None = None
    blocks: tuple[int, ...] | None = None
    streams: int | None = None
    min_fill_ratio: float | None = None
