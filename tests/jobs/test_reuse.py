"""Rebuilds that encode only what changed: exactly that, and every other vector to the bit."""

import json
from dataclasses import replace

import lancedb
import numpy as np
import pytest

from danbooru_index.choices import Device, Precision
from danbooru_index.config import BuildConfig
from danbooru_index.errors import BuildFailedError
from danbooru_index.failpoints import Failpoint
from danbooru_index.index.catalog import IndexRoot
from danbooru_index.index.status import verify
from danbooru_index.pipeline.guards import GuardLimits
from danbooru_index.pipeline.rebuild import RebuildConfig, rebuild

pytestmark = [pytest.mark.ray, pytest.mark.slow]
UNGUARDED = GuardLimits(max_shrink=1.0, max_explanation_loss=1.0)


class Nights:
    """One index, rebuilt again and again from a dump that each night writes anew."""

    def __init__(self, folder, checkpoint, **options):
        self.dump, self.index = folder / "d.jsonl", folder / "i"
        options = {"device": Device.CPU, "precision": Precision.FP32} | options
        self.build = BuildConfig("", str(self.index), model=str(checkpoint), **options)

    def night(self, records, *, reuse=True, guards=UNGUARDED, code=0, **options):
        """One rebuild; its report."""
        lines = (json.dumps(record, ensure_ascii=False) for record in records)
        self.dump.write_text("\n".join(lines) + "\n", encoding="utf-8")
        build = replace(self.build, **options)
        config = RebuildConfig((str(self.dump),), build, shard_rows=40, reuse=reuse, guards=guards)
        report, found = rebuild(config)
        assert found == code
        return report

    def current(self):
        return IndexRoot(self.index).current()

    def rows(self):
        """Of every record that is published, in row order: id, text, and its three outputs as
        bytes.
        """
        tables = {
            name: lancedb.connect(str(self.current().path)).open_table(name).to_arrow()
            for name in ("dense", "sparse", "colbert")
        }
        dense, sparse = tables["dense"], tables["sparse"]
        outputs = zip(
            dense["vector"].to_pylist(),
            sparse["token_ids"].to_pylist(),
            sparse["weights"].to_pylist(),
            tables["colbert"]["vectors"].to_pylist(),
            strict=True,
        )
        made = [tuple(np.array(part).tobytes() for part in row) for row in outputs]
        return list(zip(dense["id"].to_pylist(), dense["text"].to_pylist(), made, strict=True))

    def vectors(self):
        """The outputs of each text."""
        return {text: made for _, text, made in self.rows()}

    def flip(self, name, place):
        """Change one bit of the data file of a table that holds the shard at this place."""
        data = self.current().path.local_path() / f"{name}.lance" / "data"
        path = sorted(data.iterdir())[place]
        content = bytearray(path.read_bytes())
        content[len(content) // 3] ^= 1
        path.write_bytes(content)


@pytest.fixture
def records(sample):
    return [dict(record) for record in sample[:120]]


def test_only_what_changed_is_encoded(ray_session, records, checkpoint, tmp_path):
    nights = Nights(tmp_path, checkpoint)
    first = nights.night(records)
    assert (first.encoded, first.reused) == (120, 0)
    before = nights.vectors()
    born = verify(str(nights.index)).oldest_vector_at

    # what the text does not hold, another order, other ids
    for number, record in enumerate(records):
        record |= {"id": f"n{number}", "post_count": number, "nsfw": not number % 3}
    records = records[::-1]
    same = nights.night(records)
    assert (same.encoded, same.reused, same.records) == (0, 120, 120)
    assert [row[0] for row in nights.rows()] == [record["id"] for record in records]
    assert nights.vectors() == before
    assert same.encode_rate == 0
    assert "the vectors of 120 records" in same.to_text()

    # texts that change, records that go and come, a text that occurs twice; stopped, and gone on
    changed = [record | {"text": f"{record['text']} anew"} for record in records[5:8]]
    twice = {**records[9], "id": "twice", "tag": "twice"}
    added = {**records[9], "id": "added", "tag": "added", "text": "a text that nobody had"}
    records = [*records[:5], *changed, *records[20:60], twice, added, *records[60:]]
    with pytest.raises(BuildFailedError):
        nights.night(records, failpoints=(Failpoint("encode.before_record", action="error"),))
    third = nights.night(records)
    assert third.records == 5 + 3 + 40 + 2 + 60
    found = verify(str(nights.index))
    assert (found.problems, found.reused) == ([], 106)
    assert found.oldest_vector_at == born, "a vector's age is not that of its last copy"
    assert "the oldest encoded" in found.to_text()
    after = nights.vectors()
    kept = after.keys() & before.keys()
    assert len(kept) == 106
    assert all(after[text] == before[text] for text in kept)

    # within the parity of a build from nothing, and ids, order and rows equal
    reused = nights.rows()
    plain = nights.night([*records, twice | {"id": "x"}], reuse=False)
    assert (plain.encoded, plain.reused) == (plain.records, 0)
    anew = nights.rows()[:-1]
    assert [row[:2] for row in anew] == [row[:2] for row in reused]
    for (_, _, old), (_, _, new) in zip(reused, anew, strict=True):
        vectors = [np.frombuffer(made[0], np.float64) for made in (old, new)]
        assert np.abs(vectors[0] - vectors[1]).max() < 2e-3
        assert old[1] == new[1], "other tokens"


def test_damage_does_not_travel_and_another_kind_is_not_reused(
    ray_session, records, checkpoint, tmp_path
):
    """Rot in two shards: they are encoded anew, and the third is not."""
    nights = Nights(tmp_path, checkpoint)
    nights.night(records)
    before = nights.vectors()
    nights.flip("dense", 0)
    nights.flip("colbert", 1)
    report = nights.night(records[::-1])
    spoilt = 120 - report.reused
    assert spoilt in (40, 80), "file names are not in the order of shards"
    assert report.encoded == spoilt
    assert any("its vectors are damaged" in note for note in report.notes)
    assert verify(str(nights.index)).problems == []
    after = nights.vectors()
    assert sum(after[text] == made for text, made in before.items()) >= report.reused

    other = nights.night(records, max_length=64)
    assert other.reused == 0
    assert any("every text is encoded" in note and "max length" in note for note in other.notes)

    # a table without its files
    for path in (nights.current().path.local_path() / "dense.lance" / "data").iterdir():
        path.unlink()
    report = nights.night(records[1:], max_length=64)
    assert (report.encoded, report.reused) == (119, 0)
    assert any("nothing can be used again" in note for note in report.notes)
    assert verify(str(nights.index)).problems == []


@pytest.mark.long
def test_a_projection_is_kept_and_measured_again(ray_session, records, checkpoint, tmp_path):
    nights = Nights(tmp_path, checkpoint, colbert_dim=32, min_fidelity=0.1)
    first = nights.night(records)
    before = nights.vectors()
    second = nights.night([*records[10:], records[0] | {"id": "new", "text": "quite another"}])
    assert second.codec["name"] == first.codec["name"]
    assert (second.encoded, second.reused) == (1, 110)
    assert second.codec["records"] != first.codec["records"]
    assert second.codec["fitted_on"] == first.codec["fitted_on"] == 120
    assert 0.1 <= second.codec["overlap"] <= 1
    after = nights.vectors()
    assert all(after[record["text"]] == before[record["text"]] for record in records[10:])
    fitted = nights.night(records[:90], reuse=False)
    assert fitted.codec["name"] != first.codec["name"]
    assert fitted.reused == 0
