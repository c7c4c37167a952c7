"""From a stranger's dump to answers: its columns, its other names, what is not safe for work."""

import json

import pytest
from test_pipeline import config

from danbooru_index.cli.entry import main
from danbooru_index.index.status import status
from danbooru_index.ingest.prepare import prepare
from danbooru_index.pipeline.build import build
from danbooru_index.prepare_config import DumpConfig, PrepareConfig

pytestmark = [pytest.mark.ray, pytest.mark.slow]

DUMP = """数量;标签;中文;别名
900,000;school_uniform;校服;seifuku、制服
682,894;nude;裸体;naked
3,000;cockpit;驾驶舱;
1,000;cat_ears;猫耳;nekomimi
"""


def search(index, model, query, capfd, *more):
    words = ["search", str(index), query, "--model", str(model), "--device", "cpu", "--json"]
    assert main([*words, *more]) == 0
    return json.loads(capfd.readouterr().out)


def test_a_dump_in_chinese_gb18030_and_semicolons_is_found_by_its_names(
    tmp_path, ray_session, checkpoint, capfd
):
    (tmp_path / "标签.csv").write_bytes(DUMP.encode("gb18030"))
    shards, index = tmp_path / "shards", tmp_path / "index"
    dump = DumpConfig(encoding="gb18030", map=("category==general",))
    prepare(PrepareConfig((str(tmp_path / "标签.csv"),), str(shards), dump=dump))
    report = build(config(shards, index, checkpoint))
    assert (report.records, report.nsfw_marks) == (4, "words")
    assert "nsfw      marked by words" in report.to_text()
    assert report.to_dict()["nsfw_marks"] == "words"

    told = status(str(index))
    assert told.to_dict()["generations"][0]["nsfw_marks"] == "words"
    assert "nsfw by words" in told.to_text()

    answer = search(index, checkpoint, "nude", capfd)
    assert answer["nsfw_marks"] == "words"
    assert {hit["tag"] for hit in answer["hits"]} == {"school_uniform", "cockpit", "cat_ears"}
    hits = search(index, checkpoint, "nude", capfd, "--nsfw")["hits"]
    assert "nude" in {hit["tag"] for hit in hits}
    by_tag = {hit["tag"]: hit for hit in hits}
    assert by_tag["school_uniform"]["text"] == "【general】school_uniform - 校服, seifuku"
    assert by_tag["school_uniform"]["post_count"] == 900_000


def test_a_rebuild_reads_it_the_same_way(tmp_path, ray_session, checkpoint, capfd):
    (tmp_path / "dump.csv").write_text("x,7,5,\nnude,0,4,\n")
    index, words = tmp_path / "index", ["--model", str(checkpoint), "--device", "cpu", "--json"]
    command = ["rebuild", str(tmp_path / "dump.csv"), "--index", str(index), *words]
    assert main([*command, "--site", "e621", "--no-nsfw-words"]) == 0
    assert json.loads(capfd.readouterr().out)["nsfw_marks"] == "no ratings"
    hits = search(index, checkpoint, "x", capfd)["hits"]
    assert {hit["tag"]: hit["category"] for hit in hits} == {"x": "meta", "nude": "general"}
