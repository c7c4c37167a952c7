"""What `finetune` is asked to do, and what it reports."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from danbooru_index.choices import Device, Precision
from danbooru_index.errors import UsageError

LOWEST_TEMPERATURE, HIGHEST_LR, SHORTEST_LENGTH = 1e-4, 0.1, 8


@dataclass(frozen=True, slots=True)
class FinetuneConfig:
    """What `finetune` is asked to do. `pairs`: a pairs file or a tag dump; `model` None: the one
    that built the index.

    `group_size`: texts a query, one of them its answer; `batch_size`: queries a device and step;
    lengths in tokens; `warmup`: the share of the steps in which the learning rate rises; `ranks`,
    `mined_share`: see `Mining`.
    """

    pairs: str
    out: str
    index: str | None = None
    model: str | None = None
    names: tuple[str, ...] = ()
    held_out: tuple[str, ...] = ()
    lr: float = 1e-5
    batch_size: int = 32
    group_size: int = 8
    epochs: float = 1.0
    temperature: float = 0.02
    query_length: int = 64
    passage_length: int = 128
    warmup: float = 0.1
    save_steps: int = 200
    ranks: tuple[int, int] = (2, 20)
    mined_share: float = 0.7
    self_distill: bool = True
    seed: int = 0
    num_gpus: int | None = None
    device: Device = Device.AUTO
    precision: Precision = Precision.AUTO
    address: str | None = None

    def __post_init__(self) -> None:
        for name in ("lr", "batch_size", "group_size", "epochs", "temperature", "save_steps"):
            if not 0 < getattr(self, name) < math.inf:
                raise UsageError(
                    f"--{name.replace('_', '-')} must be positive, not {getattr(self, name)}"
                )
        if self.temperature < LOWEST_TEMPERATURE or self.lr > HIGHEST_LR:
            raise UsageError(
                f"--temperature is at least {LOWEST_TEMPERATURE}, --lr at most {HIGHEST_LR}: none"
                " would train"
            )
        shortest = min(self.query_length, self.passage_length)
        if shortest < SHORTEST_LENGTH or not 0 <= self.seed < 1 << 32:
            raise UsageError(
                f"--query-length, --passage-length: at least {SHORTEST_LENGTH} tokens; --seed from"
                " 0 to 2^32"
            )
        if self.num_gpus is not None and self.num_gpus < 1:
            raise UsageError(f"--num-gpus must be at least 1, not {self.num_gpus}")
        if not 1 <= self.ranks[0] <= self.ranks[1] or not 0 <= self.mined_share <= 1:
            raise UsageError("--ranks takes two ranks, in order; --mined-share a share of 1")
        if self.index is None and self.model is None:
            raise UsageError(
                "which model is to be tuned: pass --index, whose model it is then, or --model"
            )

    def decisive(self) -> dict[str, Any]:
        """The settings that a resumed training must share: all but where it runs."""
        left_out = {"out", "num_gpus", "device", "precision", "address", "save_steps"}
        return {name: value for name, value in asdict(self).items() if name not in left_out}


@dataclass(slots=True)
class FinetuneReport:
    """What a training did. Of the pairs set aside, before and after: `recall`, Recall@10 among
    their texts by dense score; `sparse`, the share of those texts that have any sparse weight.
    """

    out: str
    model_id: str
    base: str
    base_id: str
    pairs: int
    aside: int
    held_out: int
    steps: int
    seconds: float
    device: str
    precision: str
    workers: int
    resumed_at: int
    loss: list[float]
    recall: list[float]
    sparse: list[float]
    settings: dict[str, Any] = field(default_factory=dict)
    picture: str = "curves.svg"

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def to_text(self) -> str:
        resumed = f" (gone on from step {self.resumed_at:,})" if self.resumed_at else ""
        lines = [
            (
                f"{self.out}: tuned from {self.base} (id {self.base_id[:12]}), now id"
                f" {self.model_id[:12]}"
            ),
            (
                f"  pairs     {self.pairs:,}, and {self.aside:,} set aside; {self.held_out:,}"
                " held-out queries kept out"
            ),
            (
                f"  training  {self.steps:,} steps in {self.seconds:,.0f} s{resumed},"
                f" {self.precision} on {self.workers} x {self.device}"
            ),
            (
                f"  loss      {self.loss[0]:.3f} -> {self.loss[1]:.3f}; curves in"
                f" {self.out}/{self.picture}"
            ),
        ]
        if self.recall:
            before, after = self.recall
            lines.append(
                f"  found     {before:.1%} -> {after:.1%} of the pairs set aside, among the"
                " first 10"
            )
        if self.sparse:
            before, after = self.sparse
            lines.append(
                f"  sparse    {before:.1%} -> {after:.1%} of their texts have sparse"
                f" weights{_fewer(before, after)}"
            )
        lines.append(f"  next      danbooru-index build SHARDS --index INDEX --model {self.out}")
        return "\n".join(lines)


def _fewer(before: float, after: float) -> str:
    if after > before - 0.1:
        return ""
    return (
        ": pairs whose two sides share no token drive them to nothing; a hybrid search then rests"
        " on the other modes"
    )
