"""Many reads, in order, on a disk and in an object store."""

import threading
import time

import pytest

from danbooru_index.storage.read_ahead import READ_AHEAD, THREADS, read_ahead


@pytest.mark.parametrize("local", [True, False])
def test_results_come_in_order_and_errors_in_their_place(local):
    def read(number):
        if number == 300:
            raise OSError("the 300th")
        return -number

    found = []
    with pytest.raises(OSError, match="the 300th"):
        found.extend(read_ahead(read, range(1000), local=local))
    assert found == [-number for number in range(300)]
    assert list(read_ahead(read, [], local=local)) == []


def test_in_an_object_store_many_are_asked_at_once_and_not_all():
    begun, among = [], threading.Barrier(THREADS, timeout=20)

    def read(number):
        begun.append(number)
        if number < THREADS:
            among.wait()  # only as many threads at once get past
        time.sleep(0.001)
        return number

    reading = read_ahead(read, range(10_000), local=False)
    assert next(reading) == 0
    assert THREADS <= len(begun) <= READ_AHEAD + 1
    reading.close()
