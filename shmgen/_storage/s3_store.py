"""Files in S3, or in what speaks as S3 does: requests are signed here, and sent as those to any other server.

botocore finds the bucket's address and the credentials, once, in the main process. For a request it needs ten times the processor
time that the request itself takes, so workers import it only when credentials have expired.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from hashlib import sha256
from hmac import digest
from http.client import HTTPResponse
from typing import Any, NamedTuple, TypeVar
from urllib.parse import quote, urlsplit

from shmgen._storage.http_store import HttpStore
from shmgen._storage.remote import EXTRA
from shmgen.errors import FormatError, InputError

T = TypeVar("T")

OPTIONS = {"key", "secret", "token", "anon", "profile", "endpoint_url", "requester_pays", "client_kwargs"}
"""Of s3fs: what is understood here. With any other, s3fs itself gets the files."""

CLIENT_OPTIONS = {"region_name", "endpoint_url"}

EARLY = 600
"""Seconds before credentials expire in which others are used."""

NOTHING = sha256(b"").hexdigest()

EXPIRED = ("ExpiredToken", "TokenRefreshRequired", "InvalidToken")


class Keys(NamedTuple):
    """Credentials; ``expires`` is in seconds since 1970, or None."""

    access: str
    secret: str
    token: str | None
    expires: float | None = None


class _Elsewhere(Exception):
    """The bucket is in another region, which is the argument."""


class _Expired(Exception):
    """The credentials have expired."""


class S3Store(HttpStore):
    """Files in S3.

    Args:
        url: ``s3://bucket/folder``, or that of a file.
        options: as s3fs takes them; see `OPTIONS`.
    """

    def __init__(self, url: str, options: Mapping[str, Any]) -> None:
        bucket, _, self._prefix = url.partition("://")[2].partition("/")
        self._connections = {}
        if not bucket:
            raise InputError(f"expected a URL such as s3://bucket/folder, found {url!r}")
        super().__init__(f"https://{quote(bucket)}")  # until it is known where the bucket is
        self.root = url
        self._options = dict(options)
        self._bucket = bucket
        client = options.get("client_kwargs") or {}
        self._endpoint = options.get("endpoint_url") or client.get("endpoint_url")
        self._region = client.get("region_name")
        self._profile = options.get("profile")
        self._anonymous = bool(options.get("anon"))
        if options.get("requester_pays"):
            self._headers["x-amz-request-payer"] = "requester"
        self._keys: Keys | None = None
        self._given = None
        if options.get("key"):
            self._given = self._keys = Keys(options["key"], options.get("secret") or "", options.get("token"))

    @staticmethod
    def takes(options: Mapping[str, Any]) -> bool:
        """Whether all of these are understood here."""
        return options.keys() <= OPTIONS and (options.get("client_kwargs") or {}).keys() <= CLIENT_OPTIONS

    def place(self, name: str) -> str:
        return f"s3://{self._bucket}/{self._key(name)}"

    def prepare(self) -> None:
        if self._keys is None and not self._anonymous:
            try:
                self._keys = _found(self._profile)
            except FormatError as error:
                raise InputError(f"{self.root}: {error}") from None
        self._find()

    def names(self) -> Iterator[str]:
        from shmgen._storage.fsspec_store import FsspecStore

        return FsspecStore(self.root, self._options).names()

    def _key(self, name: str) -> str:
        return "/".join(part for part in (self._prefix.rstrip("/") if name else self._prefix, name) if part)

    def _find(self) -> None:
        """Where the bucket is."""
        session = _session(self._profile)
        try:
            client = session.create_client(
                "s3",
                region_name=self._region,
                endpoint_url=self._endpoint,
                aws_access_key_id="-",
                aws_secret_access_key="-",  # noqa: S106
            )
            url = client.generate_presigned_url("get_object", Params={"Bucket": self._bucket, "Key": "-"})
        except Exception as error:  # of botocore, which has no end of them
            raise InputError(f"{self.root}: expected the address of a bucket, found: {error}") from None
        self._region = client.meta.region_name
        parts = urlsplit(url)
        self._parts = parts._replace(path=parts.path.removesuffix("-"), query="")
        self._host = parts.netloc

    def _signed(self, name: str, headers: dict[str, str]) -> tuple[str, dict[str, str]]:
        path = self._parts.path + quote(self._key(name), errors="surrogateescape")
        headers = {**self._headers, **headers}
        if not self._anonymous:
            headers |= signature(self._usable_keys(), str(self._region), self._host, path, self._headers)
        return self._parts._replace(path=path).geturl(), headers

    def _usable_keys(self) -> Keys:
        if self._keys is None or (self._keys.expires is not None and time.time() > self._keys.expires - EARLY):
            self._keys = _found(self._profile)
        return self._keys

    def _follow(self, name: str, take: Callable[[Any], T], start: int, stop: int | None) -> T:
        try:
            return super()._follow(name, take, start, stop)
        except _Elsewhere as region:
            self._region = str(region)
            self._find()
        except _Expired:
            self._keys = None
        try:
            return super()._follow(name, take, start, stop)
        except (_Elsewhere, _Expired) as error:
            raise FormatError(f"expected the file, found {error}") from None

    def _answered(self, response: HTTPResponse, take: Callable[[Any], T], start: int) -> T:
        region = response.headers.get("x-amz-bucket-region")
        if response.status in (301, 400, 403) and region not in (None, self._region) and self._endpoint is None:
            raise _Elsewhere(region)
        try:
            return super()._answered(response, take, start)
        except FormatError as error:
            if self._given is None and response.status in (400, 403) and any(code in str(error) for code in EXPIRED):
                raise _Expired(str(error)) from None
            raise


def signature(keys: Keys, region: str, host: str, path: str, headers: Mapping[str, str]) -> dict[str, str]:
    """The headers that sign a GET, by AWS Signature Version 4.

    Args:
        keys: to sign with.
        region: of the bucket.
        host: as in the header.
        path: quoted.
        headers: of the request, of which those of Amazon are signed.
    """
    now = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    added = {"x-amz-content-sha256": NOTHING, "x-amz-date": now}
    if keys.token:
        added["x-amz-security-token"] = keys.token
    theirs = {name: value for name, value in headers.items() if name.startswith("x-amz-")}
    signed = dict(sorted({"host": host, **theirs, **added}.items()))
    names = ";".join(signed)
    request = "\n".join(["GET", path, "", *(f"{name}:{value}" for name, value in signed.items()), "", names, NOTHING])
    scope = f"{now[:8]}/{region}/s3/aws4_request"
    text = f"AWS4-HMAC-SHA256\n{now}\n{scope}\n{sha256(request.encode()).hexdigest()}"
    proof = digest(_signing_key(keys.secret, now[:8], region), text.encode(), "sha256").hex()
    added["Authorization"] = f"AWS4-HMAC-SHA256 Credential={keys.access}/{scope}, SignedHeaders={names}, Signature={proof}"
    return added


@cache
def _signing_key(secret: str, day: str, region: str) -> bytes:
    key = f"AWS4{secret}".encode()
    for part in (day, region, "s3", "aws4_request"):
        key = digest(key, part.encode(), "sha256")
    return key


@cache
def _session(profile: str | None) -> Any:
    try:
        from botocore.session import Session
    except ImportError:
        raise InputError(f"s3:// needs s3fs: {EXTRA}") from None
    return Session(profile=profile)


def _found(profile: str | None) -> Keys:
    """The credentials that botocore finds, and keeps fresh."""
    try:
        credentials = _session(profile).get_credentials()
        frozen = credentials and credentials.get_frozen_credentials()
    except InputError:
        raise
    except Exception as error:  # of botocore, which has no end of them
        raise FormatError(f"expected credentials, found: {error}") from None
    if not frozen:
        raise FormatError(
            "expected credentials in the environment, a profile, or of the machine, found none; for a public bucket pass "
            'storage_options={"anon": True}'
        )
    expires = getattr(credentials, "_expiry_time", None)
    return Keys(frozen.access_key, frozen.secret_key, frozen.token, expires and expires.timestamp())
