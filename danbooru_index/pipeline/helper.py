"""An encoder without work encodes again what others are late with: see `backup_tasks`."""

from __future__ import annotations

import threading
import time
from typing import Protocol

from danbooru_index.pipeline.protocol import ShardResult, Task, TokenizedShard, WorkerSettings
from danbooru_index.pipeline.tokenize_stage import TokenizeShard

ASK_EVERY_S = 1.0


class Attempting(Protocol):
    """What the helper needs of the encoder whose process it shares."""

    @property
    def idle(self) -> bool: ...

    def attempt(self, given: TokenizedShard, stage: str) -> ShardResult: ...


class Helper(threading.Thread):
    """Asks the progress actor for a late shard whenever its encoder has none in hand. It takes no
    place among the calls that Ray sends, so it never keeps a shard waiting.

    What fails here is nobody's outcome: the shard still has the attempt that was late.
    """

    def __init__(self, settings: WorkerSettings, encoder: Attempting, name: str) -> None:
        super().__init__(name="helper", daemon=True)
        self._settings, self._encoder, self._id = settings, encoder, name

    def run(self) -> None:
        """Until the progress actor is gone, as it is when the driver waits for nothing more."""
        import ray
        from ray.exceptions import RayError

        tokenizer: TokenizeShard | None = None
        while True:
            time.sleep(ASK_EVERY_S)
            if self._encoder.idle:
                try:
                    task = ray.get(self._settings.progress.claim.remote(self._id))
                except RayError:
                    return
                if task is not None:
                    # loaded before there is a task: that takes seconds
                    tokenizer = tokenizer or TokenizeShard(self._settings)
                if task and tokenizer:
                    given = tokenizer.tokenize(Task.from_bytes(task), "reread")
                    self._encoder.attempt(given, "backup")
