"""Names read by several processes: as by one, in order; a process that ends is told."""

import pyarrow as pa
import pytest

from danbooru_index.errors import StorageError
from danbooru_index.index.search_files import ANSWERED, make_search_arrays
from danbooru_index.index.spread import spread


def records(count, start=0):
    rows = [
        {
            "id": str(n), "tag": f"tag_{n}", "category": f"c{n % 3}", "text": f"【a】tag_{n} - 猫{n}",
            "source": "", "post_count": None if n % 5 == 0 else n, "aliases": [f"別名{n}", "same"],
            "nsfw": n % 2 == 0, "deprecated": n % 7 == 0,
        }
        for n in range(start, start + count)
    ]  # fmt: skip
    return pa.RecordBatch.from_pylist(rows)


def test_two_processes_make_the_same_arrays_as_one():
    batches = [records(40), records(3, 40), records(60, 43), records(1, 103)]
    assert set(ANSWERED) == set(batches[0].schema.names)
    one, two = make_search_arrays(batches), make_search_arrays(batches, workers=2)
    assert one.keys() == two.keys()
    for name, values in one.items():
        assert values.dtype == two[name].dtype
        assert values.tolist() == two[name].tolist(), name


def test_answers_come_in_order():
    batches = [records(n % 4 + 1, n) for n in range(30)]
    found = list(spread("danbooru_index.index.search_files:read_records_batch", batches, 2))
    assert [len(rows) for _, rows in found] == [batch.num_rows for batch in batches]
    assert [rows["json"][0].as_py()[:4] for _, rows in found] == [
        f'["{n}"'.encode()[:4] for n in range(30)
    ]


def test_a_process_that_ends_is_one_line():
    """Here since its function takes no batch; else since the system killed it."""
    with pytest.raises(StorageError, match=r"ended with \d+: run the same command again"):
        list(spread("os:abort", [records(2)], 2))
