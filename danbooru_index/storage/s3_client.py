"""obstore's client of a bucket, made once, as the environment says; its errors as `OSError`."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from datetime import timedelta
from functools import lru_cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

from danbooru_index.errors import InstallationError, first_line

if TYPE_CHECKING:
    from obstore.store import S3Store


RETRY_S = 30.0


def _endpoint() -> dict[str, str]:
    url = (
        os.environ.get("AWS_ENDPOINT_URL_S3")
        or os.environ.get("AWS_ENDPOINT_URL")
        or os.environ.get("AWS_ENDPOINT")
    )
    if not url:
        return {}
    return {"aws_endpoint": url} | ({"allow_http": "true"} if url.startswith("http://") else {})


def obstore_module() -> Any:
    """The library, where it is installed; raise `InstallationError`."""
    try:
        return import_module("obstore")
    except ModuleNotFoundError:
        raise InstallationError(
            "s3:// needs obstore: pip install -c constraints.txt -e '.[s3]'"
        ) from None


@lru_cache(maxsize=16)
def bucket_store(bucket: str) -> S3Store:
    """The one client of a bucket in this process."""
    from obstore.store import S3Store

    options: dict[str, Any] = dict(_endpoint())
    client = {"allow_http": True} if options.pop("allow_http", None) else {}
    retry = {"retry_timeout": timedelta(seconds=RETRY_S)}
    return S3Store(bucket, client_options=client, retry_config=retry, **options)


@contextlib.contextmanager
def as_os_errors(path: object) -> Iterator[None]:
    """What obstore raises for `path`, as `FileNotFoundError` or another `OSError`."""
    exceptions = obstore_module().exceptions
    try:
        yield
    except (FileNotFoundError, exceptions.NotFoundError):
        raise FileNotFoundError(2, "no such object", str(path)) from None
    except exceptions.BaseError as error:
        said = (
            f"cannot be used ({first_line(error, 240)}); check the bucket, AWS_ENDPOINT_URL and the"
            " credentials"
        )
        raise OSError(5, said, str(path)) from None
