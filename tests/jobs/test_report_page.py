"""The report as a page: rendered in a real browser, wide and as a phone, light and dark."""

import json
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest

from danbooru_index.pipeline.charts import lengths, throughput
from danbooru_index.pipeline.report import BuildReport
from danbooru_index.pipeline.report_files import draw, save_report
from danbooru_index.storage.local import LocalStorage

BROWSER = shutil.which("chromium")
BASELINE = 96.3
PROBE = """<script>
const wide = [...document.querySelectorAll("h1, h2, p, li, td, .cards div, svg")]
  .filter(e => e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML.slice(0, 90));
const clipped = [...document.querySelectorAll("svg text")].filter(e => {
  const own = e.getBoundingClientRect(), of = e.ownerSVGElement.getBoundingClientRect();
  return own.left < of.left - 1 || own.right > of.right + 1; }).map(e => e.textContent);
const style = getComputedStyle(document.body);
document.title = JSON.stringify({ wide, clipped, ink: style.color, paper: style.backgroundColor,
  scroll: document.documentElement.scrollWidth, width: innerWidth,
  font: Math.min(...[...document.querySelectorAll("svg text")].map(e => e.getBoundingClientRect().height)) });
</script>"""


@pytest.fixture
def report(tmp_path):
    """A report of everything that one can hold, with words that would be markup."""
    made = BuildReport(
        "i<b>", "g000002-abcdef01", "published", "m3", "0" * 64, "a GPU", "fp16", "f"
    )
    made.records, made.read, made.encoded, made.reused = 137_317, 137_400, 9_317, 128_000
    made.rejected.update({"empty_text": 80, "unparsable_line": 3})
    made.reject_samples = [
        {
            "reason": "empty_text",
            "source": "d.csv",
            "line": 7,
            "detail": "<script>alert(1)</script>",
        }
    ]
    made.seconds.total, made.seconds.startup, made.seconds.encode = 60.0, 20.0, 30.0
    made.seconds.index, made.seconds.verify = 8.0, 2.0
    made.timeline = [(20.0 + n / 2, min(137_317, n * 2_300)) for n in range(1, 60)]
    made.histogram = [0, 10, 900, 4_000, 800, 30, 5, 0, 1]
    made.work = {
        f"machine-with-a-name-that-is-long-indeed-and-longer-{n}:1234": [(20.0, 33.0), (35.0, 49.5)]
        for n in range(30)
    }
    made.notes = ["note " * 40]
    made.guards = [
        {"name": "records", "passed": True, "message": "137,317 records", "details": None},
        {"name": "rejects", "passed": None, "message": "without a limit", "details": None},
        {
            "name": "quality", "passed": False, "message": "mAP@10 .5",
            "details": {"kinds": {"zh": [0.61, 0.5, 100], "<i>ja": [0.4, 0.41, 80]}},
        },
    ]  # fmt: skip
    kinds = ("added", "removed", "other text", "other category", "other number of posts")
    tags = ["x" * 60, "1girl", "<b>", "^_^"]
    made.changes = {"before": "g1"} | {kind: {"count": 5_000, "tags": tags} for kind in kinds}
    return made


def rendered(page, folder, width, *options):
    """What a browser makes of a page: what the probe measured."""
    probed = folder / "probed.html"
    text = page.read_text(encoding="utf-8")
    probed.write_text(text.replace("</body>", f"{PROBE}</body>"), encoding="utf-8")
    done = subprocess.run(
        [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--window-size={width},2000",
         f"--user-data-dir={folder}/profile", *options, "--dump-dom", f"file://{probed}"],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    title = re.search(r"<title>(.*?)</title>", done.stdout, re.DOTALL)[1]
    return json.loads(title.replace("&amp;", "&").replace("&lt;", "<").replace("&gt;", ">"))


@pytest.mark.skipif(
    BROWSER is None and not os.environ.get("CI_BROWSER"),
    reason="chromium is not here: apt-get install chromium",
)
@pytest.mark.slow
def test_it_reads_well_wide_and_on_a_phone_light_and_dark(report, tmp_path):
    save_report(report, LocalStorage(tmp_path))
    wide = rendered(tmp_path / "report.html", tmp_path, 1200)
    phone = rendered(tmp_path / "report.html", tmp_path, 500)
    for found in (wide, phone):
        assert found["scroll"] <= found["width"], found
        assert (found["wide"], found["clipped"]) == ([], []), found
        assert found["font"] >= 9, "too small to read"
    dark = rendered(
        tmp_path / "report.html", tmp_path, 500, "--blink-settings=preferredColorScheme=0"
    )
    assert dark["paper"] != phone["paper"]
    assert dark["ink"] != phone["ink"]


class Tags(HTMLParser):
    """The tags of a page, and all that it would fetch."""

    def __init__(self):
        super().__init__()
        self.open, self.fetched, self.names = [], [], set()

    def handle_starttag(self, tag, attrs):
        self.names.add(tag)
        self.fetched += [v for k, v in attrs if k in ("src", "href", "xlink:href", "action")]
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.names.add(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_it_is_one_whole_file_and_what_it_quotes_stays_text(report, tmp_path):
    save_report(report, LocalStorage(tmp_path))
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    tags = Tags()
    tags.feed(text)
    assert tags.open == []
    assert tags.fetched == []
    assert not {"script", "img", "link"} & tags.names
    assert "url(" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    for word in (
        "137,317", "9,317", "128,000", "310.6/s", "3.22x", "the ratio compares jobs",
        "Guards", "failed", "Changes since g1", "Known queries", "0.610", "Left out", "and 6 more",
        "Records whose vectors were used again count here",
    ):  # fmt: skip
        assert word in text, word
    drawn = (tmp_path / "report.svg").read_text(encoding="utf-8")
    assert drawn.count("<svg ") == 4
    assert report.to_dict()["page"] == str(tmp_path / "report.html")


def test_a_report_of_nothing_has_a_page_too(tmp_path):
    empty = BuildReport("i", "g1", "published", "m", "0" * 64, "cpu", "fp32", "f")
    save_report(empty, LocalStorage(tmp_path))
    assert "Throughput" not in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert all(not chart for chart in draw(empty).values())


def test_the_curve_begins_at_the_first_token_and_keeps_the_sum():
    """1,000 records a second from second 20 on: a curve at 1,000 from 0 to 10 s."""
    points = [(20.0 + n / 10, n * 100) for n in range(1, 101)]
    drawn = throughput(points, 20.0, BASELINE)
    [curve] = re.findall(r'class="curve" d="([^"]+)"', drawn)
    heights = {float(y) for y in re.findall(r" ([\d.]+)H", curve)}
    assert max(heights) - min(heights) < 0.3, "the rate is the same all along"
    assert "seconds since the first token" in drawn
    assert throughput([], 0.0, BASELINE) == throughput([(3.0, 0)], 0.0, BASELINE) == ""


def test_bars_of_lengths_have_areas_that_compare():
    """As many texts of 8 to 11 tokens as of 16 to 31: the second bar is 4 times as wide and a
    quarter as high.
    """
    drawn = lengths([0, 0, 1000, 0, 1000], (4, 8, 12, 16, 32))
    bars = re.findall(r'width="([\d.]+)" height="([\d.]+)"><title>[^<]*: ([\d,]+) texts', drawn)
    full = [(float(w) + 1, float(h)) for w, h, count in bars if count == "1,000"]
    assert full[1][0] / full[0][0] == pytest.approx(4, rel=0.05)
    assert full[0][1] / full[1][1] == pytest.approx(4, rel=0.05)
