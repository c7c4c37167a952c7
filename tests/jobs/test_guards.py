"""What a rebuild checks before it publishes: each guard fails for its reason, keeps the old
generation, and lets what was built be published without encoding.
"""

import json

import pytest
from test_reuse import Nights

from danbooru_index.errors import UsageError
from danbooru_index.index.catalog import IndexRoot
from danbooru_index.pipeline.guards import GuardError, GuardLimits, explained_share, parse_share
from danbooru_index.prepare_config import RejectLimit

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def canaries(path, records):
    """Queries that a generation answers which has these records."""
    lines = [{"query": r["tag"], "relevant": [r["tag"]], "kind": r["category"]} for r in records]
    path.write_text("\n".join(json.dumps(line) for line in lines), encoding="utf-8")
    return str(path)


def failed(error):
    return {one["name"] for one in error.value.guards if one["passed"] is False}


def test_each_guard_keeps_the_old_generation(ray_session, sample, checkpoint, tmp_path):
    nights = Nights(tmp_path, checkpoint)
    records = [dict(record) for record in sample[:100]]
    queries = canaries(tmp_path / "q.jsonl", records[70:])
    guards = GuardLimits(queries=queries, max_rejects=RejectLimit(count=0))
    first = nights.night(records, guards=guards)
    assert first.guards == [], "there is nothing to compare the first with"

    spoilt = [
        record if number > 40 else {"id": record["id"], "tag": record["tag"], "text": record["tag"]}
        for number, record in enumerate(records[:80])
    ]
    with pytest.raises(GuardError) as error:
        nights.night([*spoilt, {"id": "", "text": ""}], guards=guards)
    assert failed(error) == {"records", "explanations", "rejects", "quality"}
    said = str(error.value)
    assert "80 records, -20.0% against 100 (--max-shrink 5%)" in said
    assert "1 of 81 records of the dump left out" in said
    assert "of the texts explain their tag" in said
    assert "mAP@10" in said
    assert "--publish-anyway" in said
    assert nights.current().id == first.generation
    [quality] = [one for one in error.value.guards if one["name"] == "quality"]
    assert quality["details"]["change"][0] < -0.02

    # the same dump once more fails alike, and encodes nothing
    built = IndexRoot(nights.index).generations()[-1]
    assert built.manifest.sealed
    with pytest.raises(GuardError):
        nights.night([*spoilt, {"id": "", "text": ""}], guards=guards)
    anyway = GuardLimits(queries=queries, publish_anyway=True)
    published = nights.night([*spoilt, {"id": "", "text": ""}], guards=anyway, code=3)
    assert published.state == "published: it was complete, nothing was encoded"
    assert nights.current().id == built.id
    assert len(IndexRoot(nights.index).generations()) == 2

    # what holds is published, and every guard says what it found
    good = nights.night([*records, records[0] | {"id": "more"}], guards=guards)
    assert [one["name"] for one in good.guards] == [
        "records", "explanations", "rejects", "vectors", "quality",
    ]  # fmt: skip
    assert all(one["passed"] for one in good.guards), good.guards
    assert "guard     vectors: " in good.to_text()
    assert "39 unchanged texts" in good.to_text()
    bare = sum(r["text"] in (r["tag"], f"【{r['category']}】{r['tag']}") for r in records)
    assert explained_share(nights.current()) == pytest.approx(1 - bare / 101)


def test_vectors_that_changed_are_not_published(
    ray_session, sample, checkpoint, tmp_path, monkeypatch
):
    """As where a library computes otherwise than it did."""
    nights = Nights(tmp_path, checkpoint)
    records = [dict(record) for record in sample[:40]]
    nights.night(records)
    last = nights.current()
    monkeypatch.setattr("danbooru_index.pipeline.guards.SAME", 1.1)
    with pytest.raises(GuardError) as error:
        nights.night(records[::-1], guards=GuardLimits())
    assert failed(error) == {"vectors"}
    assert nights.current().id == last.id


def test_limits_are_shares():
    assert parse_share("5%", "--max-shrink") == 0.05
    assert parse_share(".02", "--max-quality-loss") == 0.02
    for word in ("much", "nan", "", "5%%"):
        with pytest.raises(UsageError, match="--max-shrink takes a share"):
            parse_share(word, "--max-shrink")
    with pytest.raises(UsageError, match="--max-shrink must be between"):
        GuardLimits(max_shrink=2.0)
