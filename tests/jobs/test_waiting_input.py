"""What keeps Ray Data from letting go of encoders that are to help others."""

from types import SimpleNamespace

import pyarrow as pa
import pytest

from danbooru_index.pipeline.dataset import waiting_input
from danbooru_index.pipeline.progress_actor import ProgressActor

pytestmark = pytest.mark.ray


def test_an_input_stays_open_without_a_row_until_the_progress_actor_is_gone(ray_session):
    """All rows of the other input arrive; the end comes with the actor's, and so do no more."""
    import ray

    told = ray.remote(num_cpus=0)(ProgressActor).remote()
    rows = ray.data.from_arrow([pa.table({"n": [n]}) for n in range(3)])
    both = rows.union(waiting_input(SimpleNamespace(progress=told), {}))
    bundles = both.map_batches(lambda batch: batch, batch_size=1, batch_format="pyarrow")
    seen, open_still = [], []
    for bundle in bundles.iter_internal_ref_bundles():
        for entry in bundle.blocks:
            seen += ray.get(entry.ref).to_pydict().get("n", [])
        if len(seen) == 3 and not open_still:
            open_still.append(ray.get(told.may_help.remote()))
            ray.kill(told)
    assert (sorted(seen), open_still) == ([0, 1, 2], [True])
