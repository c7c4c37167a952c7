"""Storage in an object store, `s3://bucket/prefix`: conditional writes, ownership by a lease.

Credentials come from the environment or the machine, as for Lance: AWS_ACCESS_KEY_ID,
AWS_SECRET_ACCESS_KEY, AWS_REGION; AWS_ENDPOINT_URL for a server that is not Amazon's.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from io import BufferedReader
from typing import Any, BinaryIO

from danbooru_index.errors import UsageError
from danbooru_index.failpoints import reach
from danbooru_index.storage.lease import leased
from danbooru_index.storage.s3_client import _endpoint, as_os_errors, bucket_store, obstore_module
from danbooru_index.storage.s3_reader import open_object


@dataclass(frozen=True, slots=True, order=True)
class S3Storage:
    """An object, or everything under a prefix; a folder is there when an object is under it. What
    the verbs mean says `base.Storage`: S3 writes whole objects, atomically and durably, so there is
    nothing to sync.

    Its length is that of the protocol: one verb of `Storage` after the other.
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
        return open_object(self.bucket, self.key)[0]

    def open_stamped(self) -> tuple[BufferedReader, tuple[int, int]]:
        file, version = open_object(self.bucket, self.key)
        return file, version.stamp

    def size(self) -> int:
        obstore = obstore_module()

        with as_os_errors(self):
            return int(obstore.head(bucket_store(self.bucket), self.key)["size"])

    def entries(self) -> list[S3Storage]:
        obstore = obstore_module()

        with as_os_errors(self):
            found = obstore.list_with_delimiter(bucket_store(self.bucket), self._prefix())
        keys = [*found["common_prefixes"], *(entry["path"] for entry in found["objects"])]
        return sorted(S3Storage(self.bucket, key) for key in keys)

    def sizes(self) -> dict[str, int]:
        return {
            entry["path"].removeprefix(self._prefix()): int(entry["size"])
            for entry in self._under(1000)
        }

    def make_folder(self) -> None: ...

    def create(self, content: bytes, *, durable: bool = True) -> bool:
        """False also for one's own object, if the reply was lost and the client asked again."""
        obstore = obstore_module()
        from obstore.exceptions import AlreadyExistsError

        if durable:
            reach("create.before_link")
        with as_os_errors(self):
            try:
                obstore.put(
                    bucket_store(self.bucket), self.key, content, mode="create", use_multipart=False
                )
            except AlreadyExistsError:
                return False
        if durable:
            reach("create.after_link")
        return True

    def replace(self, content: bytes) -> None:
        obstore = obstore_module()

        reach("replace.before_rename")
        with as_os_errors(self):
            obstore.put(bucket_store(self.bucket), self.key, content, use_multipart=False)
        reach("replace.after_rename")

    def replace_from(self, blocks: Iterable[bytes | memoryview]) -> None:
        self.replace(b"".join(blocks))

    def swap(self, content: bytes, version: str) -> str | None:
        """Replace the object if its e-tag is `version`; return the new one, None if it is not."""
        obstore = obstore_module()
        from obstore.exceptions import PreconditionError

        with as_os_errors(self):
            try:
                done = obstore.put(
                    bucket_store(self.bucket),
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
        obstore = obstore_module()

        with as_os_errors(self):
            found = obstore.get(bucket_store(self.bucket), self.key)
            return bytes(found.bytes()), str(found.meta["e_tag"])

    def rename(self, name: str) -> None:
        """Copy one object, then delete it."""
        obstore = obstore_module()

        with as_os_errors(self):
            obstore.copy(bucket_store(self.bucket), self.key, (self.parent / name).key)
            obstore.delete(bucket_store(self.bucket), self.key)

    def delete(self) -> None:
        obstore = obstore_module()

        with contextlib.suppress(FileNotFoundError), as_os_errors(self):
            obstore.delete(bucket_store(self.bucket), self.key)

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
        obstore = obstore_module()

        with as_os_errors(self):
            for part in obstore.list(bucket_store(self.bucket), self._prefix(), chunk_size=chunk):
                yield from part
