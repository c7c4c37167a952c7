"""What a run tells: the bar and the lines, the report's arithmetic, the picture."""

import io
import json
import logging
import re
import time
from collections import Counter
from xml.etree import ElementTree

import pytest

from danbooru_index import log_lines
from danbooru_index import progress as progress_module
from danbooru_index.cluster.resources import worker_environment
from danbooru_index.index.completion import CompletionRecord, TablePart
from danbooru_index.index.schema import TABLES
from danbooru_index.index.shard_stats import ShardStats, WorkerStats
from danbooru_index.pipeline.report import BuildReport
from danbooru_index.pipeline.report_files import save_report
from danbooru_index.pipeline.reporting import count_records, count_work
from danbooru_index.progress import Progress, StartUp
from danbooru_index.storage.local import LocalStorage


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: now[0])
    return now


def test_a_bar_on_a_terminal(clock):
    stream = Terminal()
    bar = Progress(1000, 1000.0, stream)
    for records in (100, 300, 600):
        clock[0] += 2
        bar.show(records)
    bar.close()
    text = stream.getvalue()
    assert "encoding" in text
    assert "600/1000" in text
    assert "x baseline" in text
    assert "tag/s" in text


def test_plain_lines_every_ten_seconds_elsewhere(clock, caplog):
    caplog.set_level("INFO", "danbooru_index")
    bar = Progress(96_300, 1000.0, io.StringIO())
    for second in range(1, 36):
        clock[0] = 1000.0 + second
        bar.show((second - 1) * 963)
    bar.close()
    lines = caplog.messages
    assert len(lines) == 3
    shown = re.fullmatch(
        r"([\d,]+) of 96,300 records \((\d+)%\), ([\d,.]+) tags/s, ([\d,]+) s left, ([\d.]+)x"
        r" baseline",
        lines[1],
    )
    assert shown
    rate = float(shown[3].replace(",", ""))
    assert rate == pytest.approx(963, rel=0.1)
    assert float(shown[5]) == pytest.approx(rate / 96.3, abs=0.01)


def test_reused_records_are_no_speed_of_encoding(clock, caplog):
    caplog.set_level("INFO", "danbooru_index")
    for stream in (io.StringIO(), Terminal()):
        bar = Progress(96_300, 1000.0, stream, reuses=True)
        for second in range(1, 15):
            clock[0] = 1000.0 + second
            bar.show((second - 1) * 963)
        bar.close()
    [line] = caplog.messages
    assert re.fullmatch(
        r"[\d,]+ of 96,300 records \(\d+%\), [\d,.]+ records/s, reused ones among them, [\d,]+ s"
        r" left",
        line,
    )
    assert "reusing and encoding" in stream.getvalue()
    assert "baseline" not in stream.getvalue()


def test_the_count_never_falls_and_the_timeline_stays_small(clock):
    bar = Progress(10**6, 1000.0, io.StringIO())
    for second in range(5000):
        clock[0] += 1
        bar.show(second * 10 - (50 if second % 7 == 0 else 0))
    assert len(bar.timeline) <= 401
    counts = [count for _, count in bar.timeline]
    assert counts == sorted(counts)
    assert counts[-1] == 49_990


def record(rows, started, ended, worker="node:1", encode=1.0):
    stats = ShardStats(
        tokens=rows * 12, truncated=1, histogram=(0, rows, 0), computed=rows * 10, processed=rows * 10,
        flops=5e12, read=0.5, encode=encode, write=0.25, started=started, ended=ended,
        worker=WorkerStats(worker, 0, 4_200_000_000),
    )  # fmt: skip
    tables = {name: TablePart(bytes=1000) for name in TABLES}
    return CompletionRecord(
        "s", "f", "a", rows, rows + 2, tables, [{"reason": "empty_text"}] * 2, stats
    )


def make_report():
    report = BuildReport(
        "i", "g1", "published", "BAAI/bge-m3", "a" * 64, "NVIDIA H200", "fp16", "f"
    )
    done = [record(963, 0.0, 2.0), record(963, 2.0, 4.0, encode=2.0)]
    count_records(report, done)
    count_work(report, done, report.device, 20.0)
    report.seconds.startup = 10.0
    report.timeline = [(10.0, 0), (12.0, 963), (14.0, 1926)]
    return report


def test_the_reports_arithmetic():
    fields = make_report().to_dict()
    assert fields["records"] == fields["encoded"] == 1926
    assert fields["rejected"] == {"empty_text": 4}
    assert fields["tags_per_second"] == {"encode": 481.5, "end_to_end": 96.3}
    assert fields["baseline"]["ratio"] == 5.0
    assert fields["baseline"]["hours_for_1386373"] == pytest.approx(0.8, abs=0.001)
    (device,) = fields["devices"]
    assert device["busy_share"] == 0.75
    assert device["tags_per_second"] == 481.5
    assert device["tflops_per_second"] == pytest.approx(10 / 3, abs=1e-3)
    assert device["peak_memory_bytes"] == 4_200_000_000
    assert fields["seconds"]["write"] == 0.5
    assert fields["padding_waste"] == 0


def test_nothing_done_is_no_division_by_zero():
    report = BuildReport(
        "i", "g1", "already published: nothing to do", "m", "a" * 64, "CPU", "fp32", "f"
    )
    fields = report.to_dict()
    assert fields["baseline"]["hours_for_1386373"] is None
    assert fields["tags_per_second"]["encode"] == 0
    assert "nothing to do" in report.to_text()


def test_the_report_says_what_differs_from_the_baseline():
    text = make_report().to_text()
    for word in ("RTX 4090", "BAAI/bge-m3 in fp16 on NVIDIA H200", "compares jobs, not machines"):
        assert word in text


def test_the_picture_shows_the_baseline_and_is_saved_with_the_report(tmp_path):
    report = make_report()
    report.rejected = Counter()
    save_report(report, LocalStorage(tmp_path))
    root = ElementTree.parse(tmp_path / "report.svg").getroot()
    assert root.tag.endswith("svg")
    classes = [node.get("class") for node in root.iter()]
    assert {"base", "curve", "blue"} <= set(classes), "the baseline, the speed, token lengths"
    assert json.loads((tmp_path / "report.json").read_text())["picture"] == str(
        tmp_path / "report.svg"
    )


def test_the_hubs_settings_reach_the_workers_but_never_the_token(monkeypatch):
    settings = {
        "HF_ENDPOINT": "https://mirror",
        "HF_HOME": "/h",
        "HF_HUB_OFFLINE": "1",
        "HF_TOKEN": "secret",
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    passed = worker_environment()
    assert {name: passed[name] for name in ("HF_ENDPOINT", "HF_HOME", "HF_HUB_OFFLINE")} == {
        name: settings[name] for name in ("HF_ENDPOINT", "HF_HOME", "HF_HUB_OFFLINE")
    }
    assert "secret" not in passed.values()


def test_start_up_is_one_moving_line_with_its_steps():
    """On a terminal; it goes when the first record is done, and a bar comes in its place."""
    stream = Terminal()
    start_up = StartUp(stream)
    start_up.step("starting Ray")
    time.sleep(0.6)
    start_up.step("loading the model")
    time.sleep(0.5)
    bar = Progress(100, time.monotonic(), stream, start_up=start_up)
    bar.show(0)
    assert "encoding" not in stream.getvalue()
    bar.show(10)
    bar.close()
    moving, _, rest = stream.getvalue().rpartition("\r\x1b[K")
    assert "\n" not in moving
    assert "start-up 0 s, starting Ray ..." in moving
    assert re.search(r"start-up 1 s, starting Ray 1 s, loading the model \.\.\.$", moving)
    assert rest.lstrip("\r").startswith("encoding")
    start_up.close()


def test_start_up_is_a_line_every_ten_seconds_elsewhere(monkeypatch, caplog):
    caplog.set_level("INFO", "danbooru_index")
    monkeypatch.setattr(progress_module, "LINE_EVERY_S", 0.2)
    with StartUp(io.StringIO()) as start_up:
        start_up.step("starting Ray")
        time.sleep(0.5)
    time.sleep(0.3)
    lines = caplog.messages
    assert 1 <= len(lines) <= 3
    assert set(lines) <= {"start-up 0 s, starting Ray ...", "start-up 1 s, starting Ray ..."}


def test_what_else_is_said_does_not_stand_in_the_moving_line(monkeypatch):
    """A line takes its place, another library's bar has the terminal for itself."""
    stream = Terminal()
    monkeypatch.setattr(log_lines.sys, "stderr", stream)
    shown = logging.Logger("shown")
    shown.addHandler(log_lines.LineHandler())
    with StartUp(stream) as start_up:
        start_up.step("checking the model")
        time.sleep(0.3)
        shown.info("model org/m3: 7 files")
        with log_lines.other_bars():
            before = stream.getvalue()
            time.sleep(0.5)
            assert stream.getvalue() == before
        time.sleep(0.3)
        assert len(stream.getvalue()) > len(before)
    assert "\r\x1b[Kmodel org/m3: 7 files\n" in before
    assert before.endswith("\r\x1b[K")
