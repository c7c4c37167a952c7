"""An S3 server on loopback (moto), in a process of its own, with faults on request.

    python tests/support/s3_server.py PORT_FILE

PUT /_faults with JSON {"kind": "lost" | "busy" | "slow" | "", "share": 0.2, "seed": 1} sets what
happens to later requests: a reply of 500 after the request was done, 503 before it is, or up to 50
ms of delay.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from contextlib import contextmanager
from pathlib import Path


class Faults:
    """WSGI middleware in front of moto."""

    def __init__(self, application):
        self._application = application
        self._kind, self._share, self._chance, self.counts = "", 0.0, random.Random(0), {}

    def __call__(self, environ, start_response):
        if environ["PATH_INFO"] == "/_faults":
            return self._configure(environ, start_response)
        method = environ["REQUEST_METHOD"]
        hit = self._kind and self._chance.random() < self._share
        kind = self._kind if hit else ""
        if kind:
            self.counts[kind] = self.counts.get(kind, 0) + 1
        if kind == "slow":
            time.sleep(self._chance.uniform(0, 0.05))
        elif kind == "busy":
            start_response("503 Slow Down", [("Content-Type", "text/plain")])
            return [b"slow down"]
        elif kind == "lost" and method in ("PUT", "POST"):
            list(self._application(environ, lambda *_: None))
            start_response("500 Internal Server Error", [("Content-Type", "text/plain")])
            return [b"the reply was lost"]
        return self._application(environ, start_response)

    def _configure(self, environ, start_response):
        if environ["REQUEST_METHOD"] == "PUT":
            wanted = json.loads(environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0)))
            self._chance = random.Random(wanted["seed"])
            self._share, self._kind = wanted["share"], wanted["kind"]
        start_response("200 OK", [("Content-Type", "application/json")])
        return [json.dumps(self.counts).encode()]


def main() -> None:
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Quiet(WSGIRequestHandler):
        protocol_version = "HTTP/1.1"

        def log(self, *_):
            pass

    application = Faults(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, application, threaded=True, request_handler=Quiet)
    Path(sys.argv[1]).with_suffix(".tmp").write_text(str(server.port))
    Path(sys.argv[1]).with_suffix(".tmp").rename(sys.argv[1])
    server.serve_forever()


@contextmanager
def s3_server(folder: Path, bucket: str = "tags"):
    """A server with one bucket; the environment of this process, and of what it starts, points to
    it. Yields its URL.
    """
    from faults import kill, start

    port_file = folder / "port"
    process = start([sys.executable, __file__, port_file])
    while not port_file.exists():
        time.sleep(0.05)
        if process.poll() is not None:
            raise RuntimeError(process.err.read_text()[-1000:])
    url = f"http://127.0.0.1:{port_file.read_text()}"
    os.environ |= {
        "AWS_ENDPOINT_URL": url, "AWS_ACCESS_KEY_ID": "chaos", "AWS_SECRET_ACCESS_KEY": "chaos-secret",
        "AWS_REGION": "us-east-1", "AWS_DEFAULT_REGION": "us-east-1",
    }  # fmt: skip
    import boto3

    from danbooru_index.storage.s3_client import bucket_store

    bucket_store.cache_clear()  # a client of an earlier server's bucket of this name
    boto3.client("s3", endpoint_url=url).create_bucket(Bucket=bucket)
    try:
        yield url
    finally:
        kill(process.pid)
        process.wait()


def set_faults(url: str, kind: str, share: float = 0.3, seed: int = 0) -> dict:
    """Set the faults of a server; returns how many of each kind it has made so far."""
    import urllib.request

    body = json.dumps({"kind": kind, "share": share, "seed": seed}).encode()
    with urllib.request.urlopen(
        urllib.request.Request(f"{url}/_faults", body, method="PUT"), timeout=30
    ) as answer:
        return json.loads(answer.read())


if __name__ == "__main__":
    main()
