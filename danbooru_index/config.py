"""Settings, read and checked once at the edge: frozen dataclasses, enums for every choice."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from danbooru_index.choices import Device, DeviceInfo, Precision
from danbooru_index.errors import UsageError
from danbooru_index.failpoints import Failpoint
from danbooru_index.prepare_config import RejectLimit

if TYPE_CHECKING:
    from danbooru_index.embeddings import TextEncoder


BASELINE_TAGS_PER_SECOND = 96.3
BASELINE_RECORDS = 1_386_373
BASELINE_VRAM_GB = 4.2
BASELINE_HARDWARE = "one RTX 4090"

SAMPLE_TAGS = Path(__file__).with_name("sample_tags.jsonl")  # 468 tags, written for this project

PRODUCTION_MODEL = "BAAI/bge-m3"
BUNDLED_MODEL = "m3-mini"
DEFAULT_MAX_LENGTH = 512
DEFAULT_MIN_FIDELITY = 0.7
DEFAULT_WAIT_FOR_NODES_S = 1800.0
SMALLEST_COLBERT_DIM = 8
LONGEST_MAX_LENGTH = 8192
MAX_TEXT_BYTES = 1 << 20
SLICE_BYTES = 128 << 20
HISTOGRAM_EDGES = (4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 256, 512, 1024, 2048, 4096, 8193)


class EncoderFactory(Protocol):
    """Builds an encoder on a worker, from that worker's settings: what may take the place of the
    model's forward pass.

    `device`: what it runs on, where it says so itself; None: what the worker finds.
    """

    @property
    def device(self) -> DeviceInfo | None: ...

    def __call__(self, settings: Any) -> TextEncoder: ...


@dataclass(frozen=True, slots=True)
class Tuning:
    """How a build uses its machines; the defaults are what was measured best, and no option sets
    them.

    `calls_at_once`: the fewest and the most shards that an encoder has in hand, two on the device,
    others written. `tasks_in_flight`: shards waiting for a tokeniser. `slice_bytes`: ColBERT bytes
    encoded before they are written. `hang_s`: seconds after which a device call hangs; None: from
    the model's size and the calls measured.
    """

    calls_at_once: tuple[int, int] = (3, 10)
    tasks_in_flight: int = 16
    slice_bytes: int = field(default_factory=lambda: SLICE_BYTES)
    hang_s: float | None = None


@dataclass(frozen=True, slots=True)
class BuildConfig:
    """What `build` is asked to do. `model` None: BAAI/bge-m3 on a usable GPU, an error elsewhere.

    `colbert_dim` None: ColBERT vectors in full; else projected to so many values, and refused where
    fewer than `min_fidelity` of the full top 10 are found again. `nsfw_words`: tags of a file
    without ratings are marked by their words. `accept_left_out`: a build that publishes ends with
    0, whatever it left out. `wait_for_nodes_s`: how long a build does without a node that can do
    its work. `reuse`: texts of which the published generation has vectors, by the same model,
    precision, codec and longest text, are not encoded again.

    `failpoints`, `tuning` and `encoder` have no option: faults for tests; how machines are used;
    and a factory that takes the place of the model's forward pass, for tests and benchmarks of
    everything around it.
    """

    shards: str
    index: str
    model: str | None = None
    device: Device = Device.AUTO
    num_gpus: int | None = None
    precision: Precision = Precision.AUTO
    max_length: int = DEFAULT_MAX_LENGTH
    tokens_per_batch: int | None = None
    strict: bool = False
    max_rejects: RejectLimit = field(default_factory=lambda: RejectLimit(count=0))
    address: str | None = None
    allow_failed_shards: bool = False
    query_instruction: str = ""
    colbert_dim: int | None = None
    min_fidelity: float = DEFAULT_MIN_FIDELITY
    nsfw_words: bool = True
    accept_left_out: bool = False
    wait_for_nodes_s: float = DEFAULT_WAIT_FOR_NODES_S
    reuse: bool = False
    failpoints: tuple[Failpoint, ...] = ()
    tuning: Tuning = field(default_factory=Tuning)
    encoder: EncoderFactory | None = None

    def __post_init__(self) -> None:
        if not 8 <= self.max_length <= LONGEST_MAX_LENGTH:
            raise UsageError(
                f"--max-length must be between 8 and {LONGEST_MAX_LENGTH}, not {self.max_length}"
            )
        if self.tokens_per_batch is not None and self.tokens_per_batch < 1:
            raise UsageError(f"--tokens-per-batch must be positive, not {self.tokens_per_batch}")
        if self.num_gpus is not None and self.num_gpus < 1:
            raise UsageError(
                f"--num-gpus must be at least 1, not {self.num_gpus}; without GPUs use --device cpu"
            )
        if self.colbert_dim is not None and self.colbert_dim < SMALLEST_COLBERT_DIM:
            raise UsageError(
                f"--colbert-dim must be at least {SMALLEST_COLBERT_DIM}, not {self.colbert_dim}"
            )
        if not 0 <= self.min_fidelity <= 1:
            raise UsageError(f"--min-fidelity must be between 0 and 1, not {self.min_fidelity}")
        if self.device is Device.CPU and self.num_gpus is not None:
            raise UsageError("--num-gpus and --device cpu contradict each other: leave one out")
        if self.device is Device.CPU and self.precision is Precision.FP16:
            raise UsageError(
                "--precision fp16 on a CPU is 8 times slower than fp32 there: use bf16 or fp32"
            )


@dataclass(frozen=True, slots=True)
class Weights:
    """The weight of each mode in a hybrid score: dense, sparse, ColBERT."""

    dense: float = 0.4
    sparse: float = 0.2
    colbert: float = 0.4

    @classmethod
    def parse(cls, word: str) -> Weights:
        """Read `0.4,0.2,0.4`; raise `UsageError` unless three finite numbers >= 0, not all 0."""
        try:
            values = [float(part) for part in word.split(",")]
        except ValueError:
            values = []
        if (
            len(values) != 3
            or not all(v >= 0 for v in values)
            or not 0 < sum(values) < float("inf")
        ):
            raise UsageError(
                "--weights takes three numbers, dense,sparse,colbert, such as 0.4,0.2,0.4; not"
                f" {word!r}"
            )
        return cls(*values)

    @property
    def total(self) -> float:
        return self.dense + self.sparse + self.colbert

    @property
    def shares(self) -> tuple[float, float, float]:
        """The three, of a sum of 1."""
        return self.dense / self.total, self.sparse / self.total, self.colbert / self.total


@dataclass(frozen=True, slots=True)
class Fusion:
    """What names and posts add to the M3 score of a hybrid search.

    `names`: tags that are named by the query stand first. `transliteration`, `spelling`, `prefix`:
    times the square of a name's similarity to the query. `popularity`: times log10(posts + 1).
    Chosen by `tests/scale/fusion.py` with m3-mini.
    """

    names: bool = True
    transliteration: float = 0.3
    spelling: float = 0.5
    prefix: float = 0.3
    popularity: float = 0.02

    def __post_init__(self) -> None:
        for name in ("transliteration", "spelling", "prefix", "popularity"):
            value = getattr(self, name)
            if not 0 <= value < float("inf"):
                raise UsageError(f"--{name} must be a finite number >= 0, not {value}")


@dataclass(frozen=True, slots=True)
class Filter:
    """Which records may answer: of one of `categories` (any, where empty), with so many posts, safe
    for work or not.

    Values, never an expression: what a user types is compared, not parsed. `min_post_count` leaves
    out records whose count is not known.
    """

    categories: tuple[str, ...] = ()
    min_post_count: int | None = None
    nsfw: bool = False

    def __post_init__(self) -> None:
        if self.min_post_count is not None and not 0 <= self.min_post_count < 1 << 63:
            raise UsageError(f"--min-post-count must be 0 or more, not {self.min_post_count}")
