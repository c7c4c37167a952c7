"""Which model: a folder, a hub name fetched from a hub on loopback, the cache; every failure one
clear line.

The hub's client reads its environment when it is imported, so each case runs in a process of its
own.
"""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from hub import serve
from processes import ROOT, run_cli

from danbooru_index.config import PRODUCTION_MODEL
from danbooru_index.errors import ModelError
from danbooru_index.model.checkpoint import BUNDLED_MODEL, default_model, model_id, resolve_model
from danbooru_index.pipeline.worker_model import local_model

TOKEN = "hf_" + "S3cretS3cret" * 3
SCRIPT = """
import sys
from danbooru_index.model.checkpoint import resolve_model
from danbooru_index.errors import DanbooruIndexError
from danbooru_index.log_lines import log_to_stderr
log_to_stderr()
try:
    found = resolve_model(sys.argv[1])
    print(found.path, found.model_id)
except DanbooruIndexError as error:
    print(f"{type(error).__name__}: {error}")
"""


def resolve(name, home, **env):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    environment |= {"HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1", **env}
    answer = subprocess.run(
        [sys.executable, "-c", SCRIPT, name],
        capture_output=True,
        text=True,
        env=environment,
        cwd=ROOT,
        timeout=60,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr
    return answer.stdout.strip(), answer.stderr


@pytest.fixture(scope="module")
def repository(checkpoint, tmp_path_factory):
    """The checkpoint as it is published: with ONNX copies, images and both forms of the weights."""
    folder = tmp_path_factory.mktemp("repo") / "repo"
    shutil.copytree(checkpoint, folder)
    (folder / "onnx").mkdir()
    (folder / "onnx" / "model.onnx_data").write_bytes(b"x" * 100_000)
    (folder / "imgs").mkdir()
    (folder / "imgs" / "bm25.jpg").write_bytes(b"x")
    (folder / "pytorch_model.bin").write_bytes(b"x" * 100_000)
    (folder / "README.md").write_text("# model")
    return folder


def test_only_what_is_needed_is_fetched_and_the_cache_serves_without_a_hub(
    repository, checkpoint, tmp_path
):
    with serve({"org/m3": repository}) as hub:
        out, err = resolve("org/m3", tmp_path / "home", HF_ENDPOINT=hub.url, HF_TOKEN=TOKEN)
        asked = [path for method, path in hub.requests if method == "GET" and "/resolve/" in path]
    path, fetched_id = out.split()
    assert fetched_id == model_id(checkpoint)
    assert "7 files, 0.00 GB" in err
    assert len(asked) == 7
    assert not any(
        word in path for path in asked for word in ("onnx", "imgs", "pytorch_model", "README")
    )
    assert any(TOKEN in header for header in hub.authorization)
    assert TOKEN not in out + err
    assert resolve("org/m3", tmp_path / "home", HF_HUB_OFFLINE="1")[0].split()[0] == path
    out, err = resolve("org/m3", tmp_path / "home", HF_ENDPOINT=hub.url)
    assert out.split()[0] == path
    assert "taken from the cache" in err


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("org/other", {}, "no such model"),
        ("org/m3", {"require_token": TOKEN}, "HF_TOKEN"),
        ("org/m3", {"fail_with": 503}, "answered 503"),
    ],
)
def test_a_hub_that_refuses(repository, tmp_path, name, options, words):
    with serve({"org/m3": repository}, **options) as hub:
        out, err = resolve(name, tmp_path / "home", HF_ENDPOINT=hub.url)
    assert out.startswith("ModelError: ")
    assert words in out
    assert "HF_ENDPOINT" in out
    assert "--model a local folder" in out
    assert "Traceback" not in err


def test_a_hub_that_is_not_there_and_offline_without_a_copy(tmp_path):
    out, _ = resolve("org/m3", tmp_path / "home", HF_ENDPOINT="http://127.0.0.1:9")
    assert "cannot be reached" in out
    assert "HF_ENDPOINT" in out
    out, _ = resolve("org/m3", tmp_path / "home", HF_HUB_OFFLINE="1")
    assert "HF_HUB_OFFLINE is set" in out


def test_an_endpoint_that_is_no_address(tmp_path):
    out, err = resolve("org/m3", tmp_path / "home", HF_ENDPOINT="https://host:abc")
    assert out.splitlines()[-1].startswith("ModelError: HF_ENDPOINT=https://host:abc: ")
    assert "Traceback" not in err


def test_a_repository_without_heads(repository, tmp_path):
    folder = tmp_path / "repo"
    shutil.copytree(repository, folder)
    (folder / "colbert_linear.pt").unlink()
    with serve({"org/m3": folder}) as hub:
        out, _ = resolve("org/m3", tmp_path / "home", HF_ENDPOINT=hub.url)
    assert "colbert_linear.pt missing" in out


@pytest.mark.parametrize("name", ["./gone", "/no/such/folder", "gone", "a/b/c"])
def test_a_folder_that_is_not_there(name):
    with pytest.raises(ModelError, match="no such folder"):
        resolve_model(name)


def test_the_embedded_model_is_chosen_only_without_a_gpu_and_says_so(caplog):
    caplog.set_level("INFO", "danbooru_index")
    assert default_model("cuda") == PRODUCTION_MODEL
    assert not caplog.messages
    assert default_model("cpu") == BUNDLED_MODEL
    assert "m3-mini, the small embedded model; --model BAAI/bge-m3" in caplog.text


def test_a_folder_of_another_model_is_refused(checkpoint, tmp_path):
    folder = tmp_path / "bert"
    shutil.copytree(checkpoint, folder)
    config = folder / "config.json"
    config.write_text(config.read_text().replace("xlm-roberta", "bert"))
    with pytest.raises(ModelError, match="model_type is 'bert'"):
        resolve_model(str(folder))
    config.write_text("{")
    with pytest.raises(ModelError, match="cannot be read"):
        resolve_model(str(folder))


@pytest.mark.long
@pytest.mark.ray
@pytest.mark.slow
def test_a_build_from_a_hub(repository, sample_shards, tmp_path):
    """The driver fetches; the workers get the local path. The token appears nowhere."""
    with serve({"org/m3": repository}) as hub:
        env = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": TOKEN}
        done = run_cli(
            "build",
            sample_shards,
            "--index",
            tmp_path / "index",
            "--model",
            "org/m3",
            "--device",
            "cpu",
            env=env,
        )
    assert done.returncode == 0, done.stderr
    assert "org/m3" in done.stdout
    assert TOKEN not in done.stdout + done.stderr
    written = [path for path in Path(tmp_path / "index").rglob("*") if path.is_file()]
    assert written
    assert not any(TOKEN.encode() in path.read_bytes() for path in written)


def test_a_worker_reads_a_model_again_only_where_the_file_system_says_that_it_changed(
    checkpoint, tmp_path, monkeypatch
):
    """Same size and time of modification, other bytes: noticed. Copied or touched, the same bytes:
    taken.
    """
    path, copied = tmp_path / "model", tmp_path / "copied"
    shutil.copytree(checkpoint, path)
    shutil.copytree(checkpoint, copied)
    known = resolve_model(str(path))
    settings = SimpleNamespace(model=str(path), model_id=known.model_id, model_stamp=known.stamp)
    settings.model_path = str(copied)
    assert local_model(settings) == str(copied)
    settings.model_path = str(path)
    with monkeypatch.context() as patch:
        patch.setattr(
            "danbooru_index.pipeline.worker_model.model_id",
            lambda folder: pytest.fail("read again"),
        )
        assert local_model(settings) == str(path)
    head = path / "sparse_linear.pt"
    before = head.stat()
    content = bytearray(head.read_bytes())
    content[-1] ^= 1
    time.sleep(0.05)  # the file system's clock has ticked
    head.write_bytes(bytes(content))
    os.utime(head, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (head.stat().st_size, head.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    with pytest.raises(ModelError, match="is not the model this build began with"):
        local_model(settings)
