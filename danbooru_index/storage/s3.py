"""Storage in an object store, `s3://bucket/prefix`: conditional writes (If-None-Match, If-Match),
ownership by a lease.

Credentials come from the environment or the machine, as for Lance: AWS_ACCESS_KEY_ID,
AWS_SECRET_ACCESS_KEY, AWS_REGION; AWS_ENDPOINT_URL for a server that is not Amazon's.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from importlib import import_module
from typing import TYPE_CHECKING, Any, BinaryIO

from danbooru_index.errors import InstallationError, UsageError, first_line
from danbooru_index.failpoints import reach
from danbooru_index.storage.lease import leased

if TYPE_CHECKING:
    from obstore.store import S3Store

RETRY_S = 30.0


@dataclass(frozen=True, slots=True, order=True)
class S3Storage:
    """An object, or everything under a prefix; a folder is there when an object is under it. What
    the verbs mean says `base.Storage`: S3 writes whole objects, atomically and durably, so there is
    nothing to sync.
    """

    bucket: str
    key: str = ""

    @classmethod
    def parse(cls, text: str) -> S3Storage:
        """`s3://bucket/prefix` -> a location; raise `UsageError` for another form."""
        bucket, _, key = text.removeprefix("s3://").strip("/").partition("/")
        if (
            not bucket
            or any(part in ("", ".", "..") for part in key.split("/") if key)
            or not set("#?").isdisjoint(text)
        ):
            raise UsageError(f"{text}: not of the form s3://bucket/prefix")
        return cls(bucket, key)

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.key}".rstrip("/")

    def __truediv__(self, name: str) -> S3Storage:
        return S3Storage(self.bucket, f"{self.key}/{name}".strip("/"))

    @property
    def name(self) -> str:
        return self.key.rpartition("/")[2]

    @property
    def parent(self) -> S3Storage:
        return S3Storage(self.bucket, self.key.rpartition("/")[0])

    def absolute(self) -> S3Storage:
        return self

    def local_path(self) -> None:
        return None

    def exists(self) -> bool:
        try:
            self.size()
        except FileNotFoundError:
            return False
        return True

    def is_folder(self) -> bool:
        return next(self._under(1), None) is not None

    def read(self) -> bytes:
        return self.read_version()[0]

    def open(self) -> BinaryIO:
        return io.BytesIO(self.read())

    def size(self) -> int:
        obstore = _obstore()

        with _as_os_errors(self):
            return int(obstore.head(_store(self.bucket), self.key)["size"])

    def entries(self) -> list[S3Storage]:
        obstore = _obstore()

        with _as_os_errors(self):
            found = obstore.list_with_delimiter(_store(self.bucket), self._prefix())
        keys = [*found["common_prefixes"], *(entry["path"] for entry in found["objects"])]
        return sorted(S3Storage(self.bucket, key) for key in keys)

    def sizes(self) -> dict[str, int]:
        return {
            entry["path"].removeprefix(self._prefix()): int(entry["size"])
            for entry in self._under(1000)
        }

    def make_folder(self) -> None: ...

    def create(self, content: bytes, *, durable: bool = True) -> bool:
        """After a lost reply the client asks again and is told that the object is there: False for
        one of its own.
        """
        obstore = _obstore()
        from obstore.exceptions import AlreadyExistsError

        if durable:
            reach("create.before_link")
        with _as_os_errors(self):
            try:
                obstore.put(
                    _store(self.bucket), self.key, content, mode="create", use_multipart=False
                )
            except AlreadyExistsError:
                return False
        if durable:
            reach("create.after_link")
        return True

    def replace(self, content: bytes) -> None:
        obstore = _obstore()

        reach("replace.before_rename")
        with _as_os_errors(self):
            obstore.put(_store(self.bucket), self.key, content, use_multipart=False)
        reach("replace.after_rename")

    def swap(self, content: bytes, version: str) -> str | None:
        """Replace the object if it is still the version given (its e-tag); return the new one, None
        if it was not.
        """
        obstore = _obstore()
        from obstore.exceptions import PreconditionError

        with _as_os_errors(self):
            try:
                done = obstore.put(
                    _store(self.bucket),
                    self.key,
                    content,
                    mode={"e_tag": version},
                    use_multipart=False,
                )
            except PreconditionError:
                return None
        return str(done["e_tag"])

    def read_version(self) -> tuple[bytes, str]:
        """The content and its e-tag."""
        obstore = _obstore()

        with _as_os_errors(self):
            found = obstore.get(_store(self.bucket), self.key)
            return bytes(found.bytes()), str(found.meta["e_tag"])

    def rename(self, name: str) -> None:
        """Copy one object, then delete it."""
        obstore = _obstore()

        with _as_os_errors(self):
            obstore.copy(_store(self.bucket), self.key, (self.parent / name).key)
            obstore.delete(_store(self.bucket), self.key)

    def delete(self) -> None:
        obstore = _obstore()

        with contextlib.suppress(FileNotFoundError), _as_os_errors(self):
            obstore.delete(_store(self.bucket), self.key)

    def hide(self, witness: str) -> S3Storage:
        (self / witness).delete()
        return self

    def remove_tree(self) -> None:
        with contextlib.suppress(OSError):
            for name in self.sizes():
                (self / name).delete()

    def sync(self) -> None: ...

    def sync_tree(self) -> None: ...

    def uncache(self) -> None: ...

    def owned(self) -> contextlib.AbstractContextManager[None]:
        return leased(str(self), self / ".owner.json")

    @property
    def ownership_lapses(self) -> bool:
        return True

    def free_bytes(self) -> float:
        return math.inf

    def lance_options(self) -> dict[str, str]:
        return _endpoint()

    def _prefix(self) -> str:
        return f"{self.key}/" if self.key else ""

    def _under(self, chunk: int) -> Iterator[Any]:
        obstore = _obstore()

        with _as_os_errors(self):
            for part in obstore.list(_store(self.bucket), self._prefix(), chunk_size=chunk):
                yield from part


def _endpoint() -> dict[str, str]:
    url = (
        os.environ.get("AWS_ENDPOINT_URL_S3")
        or os.environ.get("AWS_ENDPOINT_URL")
        or os.environ.get("AWS_ENDPOINT")
    )
    if not url:
        return {}
    return {"aws_endpoint": url} | ({"allow_http": "true"} if url.startswith("http://") else {})


def _obstore() -> Any:
    try:
        return import_module("obstore")
    except ModuleNotFoundError:
        raise InstallationError(
            "s3:// needs obstore: pip install -c constraints.txt -e '.[s3]'"
        ) from None


@lru_cache(maxsize=16)
def _store(bucket: str) -> S3Store:
    from obstore.store import S3Store

    options: dict[str, Any] = dict(_endpoint())
    client = {"allow_http": True} if options.pop("allow_http", None) else {}
    retry = {"retry_timeout": timedelta(seconds=RETRY_S)}
    return S3Store(bucket, client_options=client, retry_config=retry, **options)


@contextlib.contextmanager
def _as_os_errors(path: S3Storage) -> Iterator[None]:
    exceptions = _obstore().exceptions
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
