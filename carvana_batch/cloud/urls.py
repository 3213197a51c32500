"""URLs of folders in buckets, the clients for them, and their errors in words."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NoReturn

from carvana_batch.errors import CarvanaBatchError, UsageError

Store = Any
"""A client of obstore, which may not be installed."""

SCHEMES = {"s3": "S3Store", "gs": "GCSStore", "az": "AzureStore"}
"""The schemes of URLs, and the clients of obstore for them."""

RETRY_SECONDS = 60.0
"""For so long the client repeats a request that failed because the store was away or busy."""

LONGEST_PAUSE = 3.0
"""Most seconds between two tries."""

ENDPOINTS = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT")
"""Variables of the environment that name another server than Amazon's."""

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://(.*)", re.DOTALL)

_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class StoreError(CarvanaBatchError):
    """A store does not do what is asked of it; what was done so far is kept, and a run can be resumed."""


@dataclass(frozen=True, slots=True)
class BucketUrl:
    """A folder in a bucket, or an object.

    Attributes:
        scheme: one of ``SCHEMES``.
        bucket: the bucket, or the container.
        prefix: the path below it, without "/" at either end; "" for the whole bucket.
    """

    scheme: str
    bucket: str
    prefix: str = ""

    @classmethod
    def parse(cls, text: str) -> BucketUrl:
        """Read ``scheme://bucket/prefix``.

        Raises:
            UsageError: it is another URL, or has what such a URL must not have, such as a password. The
                message never repeats what may be a secret.
        """
        match = _URL.fullmatch(text)
        if match is None or match[1].lower() not in SCHEMES:
            known = ", ".join(f"{scheme}://" for scheme in SCHEMES)
            scheme = f"{match[1]}:// is" if match else "it is"
            raise UsageError(f"Folders in buckets have URLs that begin with {known}; {scheme} none of them.")
        scheme, (bucket, _, prefix) = match[1].lower(), match[2].partition("/")
        if "@" in bucket or "?" in text or "#" in text:
            raise UsageError(
                f"The URL {scheme}://... has a user, a password or a query in it. Give scheme://bucket/folder"
                " alone, and credentials by the environment (docs/buckets.md)."
            )
        prefix = prefix.rstrip("/")
        parts = prefix.split("/") if prefix else []
        if not _BUCKET.fullmatch(bucket) or any(part in ("", ".", "..") for part in parts):
            raise UsageError(f"{text} is not a URL of the form {scheme}://bucket/folder.")
        return cls(scheme, bucket, prefix)

    def __str__(self) -> str:
        return f"{self.scheme}://{self.bucket}" + (f"/{self.prefix}" if self.prefix else "")

    def __truediv__(self, name: str) -> BucketUrl:
        return BucketUrl(self.scheme, self.bucket, f"{self.prefix}/{name}" if self.prefix else name)

    @property
    def parent(self) -> BucketUrl:
        return BucketUrl(self.scheme, self.bucket, self.prefix.rpartition("/")[0])

    @property
    def name(self) -> str:
        """The last part."""
        return self.prefix.rpartition("/")[2]

    def is_below(self, other: BucketUrl) -> bool:
        """Whether it is below another one, or the same."""
        if (self.scheme, self.bucket) != (other.scheme, other.bucket):
            return False
        return not other.prefix or f"{self.prefix}/".startswith(f"{other.prefix}/")


def is_url(text: str) -> bool:
    """Whether a text is meant as a URL rather than a path."""
    return _URL.fullmatch(text) is not None


def open_store(url: BucketUrl) -> Store:
    """The client for a folder in a bucket; names of objects are relative to it. Not to be used after a fork.

    Credentials and endpoint come from where the library looks itself, such as ``AWS_ACCESS_KEY_ID``.

    Raises:
        UsageError: the library is missing, or what is set for it does not suffice.
    """
    try:
        from obstore import store
        from obstore.exceptions import BaseError
    except ModuleNotFoundError as error:
        raise UsageError(
            f"{url} needs the library obstore, which is missing: pip install 'carvana-batch[cloud]'"
        ) from error
    if url.scheme == "s3":
        _check_endpoint()
    retry = {
        "max_retries": 1000,  # time is what counts
        "retry_timeout": timedelta(seconds=RETRY_SECONDS),
        "backoff": {"max_backoff": timedelta(seconds=LONGEST_PAUSE)},
    }
    try:
        client: Store = getattr(store, SCHEMES[url.scheme])(
            url.bucket, prefix=url.prefix or None, retry_config=retry
        )
    except (BaseError, ValueError) as error:
        raise UsageError(f"{url} cannot be opened: {describe(error)}.") from error
    return client


def _check_endpoint() -> None:
    """Check what the client would die of, or report without a reason. The message never repeats a value."""
    for name in ENDPOINTS:
        endpoint = os.environ.get(name, "")
        if endpoint and not re.fullmatch(r"https?://[^\s/]+(/\S*)?", endpoint):
            raise UsageError(f"{name} is not a URL. Write it as http://host:port or https://host.")
        if endpoint.startswith("http:") and not os.environ.get("AWS_ALLOW_HTTP"):
            raise UsageError(f"{name} begins with http:, which needs AWS_ALLOW_HTTP=true.")


def store_error(url: BucketUrl, error: Exception) -> StoreError:
    """What to raise if a store failed at ``url``: one line that says what is wrong, without secrets."""
    from obstore.exceptions import PermissionDeniedError, UnauthenticatedError

    again = "What was done so far is kept; run the same command again to go on."
    if is_no_bucket(error):
        return StoreError(f"{url}: there is no bucket {url.bucket}. Check the URL and the endpoint.")
    if "invalid path" in str(error):
        return StoreError(
            f"{url}: there is an object whose name cannot be that of a file: {describe(error)}. Rename it, or"
            " give a folder without it."
        )
    denied = isinstance(error, PermissionDeniedError | UnauthenticatedError)
    if denied or re.search(r"status code: 40[13]\b", str(error)):  # which listing does not tell by its class
        return StoreError(
            f"{url}: permission denied. Check that the credentials are those of this bucket, and may list,"
            f" read and write there. {again}"
        )
    return StoreError(f"{url}: the store failed: {describe(error)}. {again}")


def raise_store_error(url: BucketUrl, error: Exception) -> NoReturn:
    """Raise :func:`store_error`, or the error itself if it is none of a store."""
    if isinstance(error, CarvanaBatchError):
        raise error
    raise store_error(url, error) from error


def is_no_bucket(error: Exception) -> bool:
    """Whether a store says that there is no such bucket or container."""
    return any(word in str(error) for word in ("NoSuchBucket", "ContainerNotFound", "bucket does not exist"))


def describe(error: Exception) -> str:
    """An error of the client in one line, without the query of a URL, which may hold a signature."""
    line = str(error).partition("\n")[0].partition(": <")[0]
    line = re.sub(r"(https?://)[^\s/@]*@", r"\1", line)
    line = re.sub(r"\?[^\s]*", "", line)
    return line.strip().rstrip(":.- ") or type(error).__name__
