"""Files on S3-compatible servers: obstore signs the URL of a file, which is then fetched like any other.

botocore finds the bucket's address and the credentials, once, in the main process. In a worker it would take tens of MB and most
of the time of each request. So a worker imports it only after its credentials have expired.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import cache
from http.client import HTTPResponse
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from shmgen._storage.http_store import HttpStore
from shmgen._storage.store import EXTRA, TIMEOUT, Body, T
from shmgen._urls import shown, shown_in
from shmgen.errors import FormatError, InputError

EARLY = 600
"""Seconds before they expire at which credentials are replaced."""

THREADS = "TOKIO_WORKER_THREADS"
"""The environment variable for the number of obstore's threads."""

SIGNED_FOR = timedelta(hours=1)
"""How long the URL of a file is valid."""

EXPIRED = re.compile(r"\((ExpiredToken|TokenRefreshRequired|InvalidToken)\)")

BUCKET = re.compile(r"[\w.-]+")


class Keys(NamedTuple):
    """Credentials; ``expires`` is in seconds since 1970, or None."""

    access: str
    secret: str
    token: str | None
    expires: float | None = None


class _Elsewhere(FormatError):
    def __init__(self, region: str) -> None:
        super().__init__(f"expected the bucket where S3 said that it is, found it in region {region}")
        self.region = region


class S3Store(HttpStore):
    """Files in a bucket; the options are described by `shmgen.Remote`."""

    def __init__(
        self,
        url: str,
        *,
        key: str | None = None,
        secret: str | None = None,
        token: str | None = None,
        anon: bool = False,
        profile: str | None = None,
        endpoint_url: str | None = None,
        region: str | None = None,
        requester_pays: bool = False,
        timeout: float = TIMEOUT,
    ) -> None:
        super().__init__("https://s3.amazonaws.com", timeout=timeout)  # until `_find` knows the bucket's address
        self._bucket, _, self._prefix = url.partition("://")[2].partition("/")
        if not BUCKET.fullmatch(self._bucket):
            raise InputError(f"expected a URL such as s3://bucket/folder, found {shown(url)!r}")
        self._endpoint, self._region, self._profile = endpoint_url, region, profile
        self._anonymous, self._pays = anon, requester_pays
        self._given = Keys(key, secret or "", token) if key else Keys("-", "-", None) if anon else None
        self._keys = self._given
        self._signer: tuple[Keys, Any] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_signer": None}

    def place(self, name: str) -> str:
        return f"s3://{self._bucket}/{self._key(name)}"

    def key(self, name: str) -> str:
        return f"{self._parts.geturl()} {self.place(name)}"

    def prepare(self) -> None:
        _session(self._profile)  # first, since it says what is not installed
        try:
            if self._keys is None:
                self._keys = _found(self._profile)
        except FormatError as error:
            raise InputError(f"{self.place('')}: {error}") from None
        self._find()

    def names(self) -> Iterator[str]:
        prefix = f"{self._prefix.rstrip('/')}/".lstrip("/")
        pays = {"RequestPayer": "requester"} if self._pays else {}
        try:
            for page in self._client().get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=prefix, **pays):
                keys = (found["Key"] for found in page.get("Contents", ()))
                yield from (key.removeprefix(prefix) for key in keys if key.endswith(".npy"))
        except Exception as error:  # botocore's have no class of their own
            raise InputError(f"{self.place('')}: expected a folder that can be listed, found: {shown_in(error)}") from None

    def _key(self, name: str) -> str:
        return "/".join(part for part in (self._prefix.rstrip("/") if name else self._prefix, name) if part)

    def _client(self) -> Any:
        session = _session(self._profile)
        from botocore import UNSIGNED
        from botocore.config import Config

        keys = self._keys or Keys("-", "-", None)
        return session.create_client(
            "s3",
            region_name=self._region,
            endpoint_url=self._endpoint,
            aws_access_key_id=keys.access,
            aws_secret_access_key=keys.secret,
            aws_session_token=keys.token,
            config=Config(
                connect_timeout=self._timeout,
                read_timeout=self._timeout,
                signature_version=UNSIGNED if self._anonymous else None,
                retries={"mode": "standard"},
            ),
        )

    def _find(self) -> None:
        try:
            client = self._client()
            url = client.generate_presigned_url("get_object", Params={"Bucket": self._bucket, "Key": "-"})
        except Exception as error:  # botocore's have no class of their own
            raise InputError(f"{self.place('')}: expected the address of a bucket, found: {shown_in(error)}") from None
        self._region = client.meta.region_name
        parts = urlsplit(url)
        self._parts = parts._replace(path=parts.path.removesuffix("/-"), query="")
        self._signer = None

    def _request(self, name: str) -> tuple[str, dict[str, str]]:
        if self._keys is None or (self._keys.expires is not None and time.time() > self._keys.expires - EARLY):
            self._keys = _found(self._profile)
        if self._signer is None or self._signer[0] is not self._keys:
            self._signer = self._keys, self._signing(self._keys)
        key = self._key(name)
        try:
            url = _obstore().sign(self._signer[1], "GET", key, SIGNED_FOR)
        except (ValueError, TypeError):
            raise FormatError(f"expected a key of UTF-8 text whose parts are none of '', '.' and '..', found {key!r}") from None
        return url.partition("?")[0] if self._anonymous else url, {}

    def _signing(self, keys: Keys) -> Any:
        from obstore.store import S3Store as Signer

        return Signer(
            self._bucket,
            endpoint=self._parts._replace(path=self._parts.path.removesuffix(f"/{self._bucket}")).geturl(),
            virtual_hosted_style_request=self._parts.netloc.startswith(f"{self._bucket}."),
            region=self._region or "us-east-1",
            request_payer=self._pays,
            client_options={"allow_http": True},
            # Not as options: those that are missing would be taken from the environment.
            credential_provider=lambda: {
                "access_key_id": keys.access,
                "secret_access_key": keys.secret,
                "token": keys.token,
                "expires_at": None,
            },
        )

    def _get(self, name: str, take: Callable[[Body], T], start: int, stop: int | None, patience: float) -> T:
        try:
            return super()._get(name, take, start, stop, patience)
        except _Elsewhere as error:
            self._region = error.region
            self._find()
        except FormatError as error:
            if self._given is not None or not EXPIRED.search(str(error)):
                raise
            self._keys = None
        return super()._get(name, take, start, stop, patience)

    def _look_at(self, response: HTTPResponse) -> None:
        region = response.headers.get("x-amz-bucket-region")
        if response.status in (301, 307, 400, 403) and region not in (None, self._region) and self._endpoint is None:
            raise _Elsewhere(region)


@cache
def _obstore() -> Any:
    """obstore with one thread. By itself it starts a thread for each processor, in each worker, when it first signs."""
    import obstore
    from obstore.store import MemoryStore

    before = os.environ.get(THREADS)
    os.environ[THREADS] = "1"
    try:
        obstore.list(MemoryStore()).collect()
    finally:
        if before is None:
            del os.environ[THREADS]
        else:
            os.environ[THREADS] = before
    return obstore


@cache
def _session(profile: str | None) -> Any:
    try:
        import obstore  # noqa: F401 # needed by workers; the main process raises the error if it is missing
        from botocore.session import Session
    except ImportError as error:
        raise InputError(f"s3:// needs {error.name}: {EXTRA}") from None
    return Session(profile=profile)


def _found(profile: str | None) -> Keys:
    """The credentials that botocore finds, and keeps fresh."""
    try:
        credentials = _session(profile).get_credentials()
        frozen = credentials and credentials.get_frozen_credentials()
    except Exception as error:  # botocore's have no class of their own
        raise FormatError(f"expected credentials, found: {shown_in(error)}") from None
    if not frozen:
        remedy = 'for a public bucket pass options={"anon": True}'
        raise FormatError(f"expected credentials in the environment, a profile, or of the machine, found none; {remedy}")
    expires = getattr(credentials, "_expiry_time", None)
    return Keys(frozen.access_key, frozen.secret_key, frozen.token, expires and expires.timestamp())
