"""How a store in S3 is named: one URL that another process can reopen it by.

`s3://bucket/prefix?endpoint=http://host:port&region=R&profile=P&sse=S&kms_key_id=K`. Credentials
are never part of it: it stands in job records and on command lines.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

from nst.errors import StoreAddressError

SCHEME = "s3://"
PATIENCE = 75.0
"""Seconds for which a store that does not answer is asked again: a server's restart and more."""
ENCRYPTIONS = ("AES256", "aws:kms", "aws:kms:dsse")
ENDPOINT_VARIABLES = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{2,62}")


def _option(help: str, query: str) -> Any:
    return field(default=None, metadata={"help": help, "query": query})


@dataclass(frozen=True, kw_only=True)
class S3Options:
    """What may be said of a store in S3 beside bucket and prefix.

    A field's metadata holds its `help` and its name in a URL, `query`.
    """

    endpoint_url: str | None = _option("S3 server, if not Amazon's.", "endpoint")
    region: str | None = _option("Region of the bucket.", "region")
    profile: str | None = _option("Named AWS profile that holds the credentials.", "profile")
    sse: str | None = _option(f"Encryption by the S3 server: {', '.join(ENCRYPTIONS)}.", "sse")
    sse_kms_key_id: str | None = _option("Key for --sse aws:kms.", "kms_key_id")

    def in_url(self) -> dict[str, str]:
        """The options that are set, by their names in a URL."""
        named = {f.metadata["query"]: getattr(self, f.name) for f in fields(S3Options)}
        return {name: value for name, value in named.items() if value is not None}


_FIELDS = {f.metadata["query"]: f.name for f in fields(S3Options)}
"""By its name in a URL, an option's field."""


@dataclass(frozen=True)
class S3Address:
    """A store in S3, checked; see `jobs.storage.store.Address`.

    Attributes:
        bucket: An existing bucket.
        prefix: What all keys begin with, without slashes at its ends; may be empty.
        options: Server, profile, encryption.

    Raises:
        StoreAddressError: on creation, if a part cannot be right.
    """

    bucket: str
    prefix: str = ""
    options: S3Options = S3Options()
    remote: ClassVar[bool] = True
    takes: ClassVar[frozenset[str]] = frozenset(_FIELDS.values())

    def __post_init__(self) -> None:
        if not _BUCKET.fullmatch(self.bucket):
            raise StoreAddressError(
                f"store {SCHEME}{self.bucket}: that is no name of a bucket; "
                "give s3://bucket/prefix with 3 to 63 letters, digits, dots and hyphens"
            )
        if self.prefix and any(part in ("", ".", "..") for part in self.prefix.split("/")):
            raise StoreAddressError(
                f"store {self.name}: the prefix has an empty part; give s3://bucket/a"
            )
        self._check_options()

    def _check_options(self) -> None:
        options = self.options
        for name, value in options.in_url().items():
            if not value:
                raise StoreAddressError(
                    f"store {self.name}: {name} is empty; leave it out or give one"
                )
            if not value.isprintable():
                raise StoreAddressError(
                    f"store {self.name}: {name} holds a character that is not printed, perhaps the "
                    "line end of a file from Windows; write it again"
                )
        if options.endpoint_url is not None:
            _check_endpoint(self.name, options.endpoint_url)
        if options.sse is not None and options.sse not in ENCRYPTIONS:
            raise StoreAddressError(
                f"store {self.name}: no encryption {options.sse!r}; choose one of "
                + ", ".join(ENCRYPTIONS)
            )
        if options.sse_kms_key_id is not None and not (options.sse or "").startswith("aws:kms"):
            raise StoreAddressError(
                f"store {self.name}: a KMS key needs aws:kms; add --sse aws:kms"
            )

    @property
    def name(self) -> str:
        """Bucket and prefix, as errors name the store."""
        return f"{SCHEME}{self.bucket}/{quote(self.prefix)}".rstrip("/")

    @property
    def url(self) -> str:
        """What `parse` makes this address of again."""
        query = urlencode(self.options.in_url(), safe=":/")
        return f"{self.name}?{query}" if query else self.name

    @property
    def folder(self) -> None:
        """See `Address`."""

    def with_options(self, given: Mapping[str, str]) -> S3Address:
        """See `Address`.

        An endpoint that only the environment names is written down too: it says where the data
        is, and tomorrow's shell may not have it.
        """
        options = replace(self.options, **given)
        if options.endpoint_url is None:
            found = (os.environ.get(name) for name in ENDPOINT_VARIABLES)
            options = replace(options, endpoint_url=next((e for e in found if e), None))
        return replace(self, options=options)

    def portable(self) -> S3Address:
        """See `Address`: other machines do not have this one's AWS profiles."""
        return replace(self, options=replace(self.options, profile=None))

    @property
    def path(self) -> str:
        """See `Address`."""
        return self.prefix

    def at(self, path: str) -> S3Address:
        """See `Address`."""
        return replace(self, prefix="" if path == "." else path)

    def key(self, key: str) -> str:
        """The object's key for a store's key."""
        return f"{self.prefix}/{key}" if self.prefix else key

    @staticmethod
    def parse(url: str) -> S3Address:
        """The address that a URL names.

        Raises:
            StoreAddressError: if it is malformed. The message shows no more of it than bucket
                and prefix: the rest may hold a password.
        """
        try:
            parts = urlsplit(url)
            query = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
        except ValueError as error:
            raise StoreAddressError(
                f"store {without_secrets(url)} is malformed; give s3://bucket/prefix"
            ) from error
        if "@" in parts.netloc:
            raise StoreAddressError(
                f"store {without_secrets(url)}: credentials do not belong into a URL; "
                "use --profile or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            )
        if parts.fragment:
            raise StoreAddressError(f"store {without_secrets(url)}: write # in a prefix as %23")
        names = [name for name, _ in query]
        for name in names:
            if name not in _FIELDS or names.count(name) > 1:
                problem = "given twice" if name in _FIELDS else "unknown"
                raise StoreAddressError(
                    f"store {without_secrets(url)}: option {name!r} is {problem}; "
                    f"there are {', '.join(_FIELDS)}, and credentials come from the environment"
                )
        prefix = unquote(parts.path).removeprefix("/").removesuffix("/")
        options = S3Options(**{_FIELDS[name]: value for name, value in query})
        return S3Address(parts.netloc, prefix, options)


def without_secrets(url: str) -> str:
    """A URL for an error message: without user, password and query."""
    return re.sub(r"//[^/]*@", "//", url.partition("?")[0])


def _check_endpoint(name: str, endpoint: str) -> None:
    advice = "give http://host:port or https://host"
    try:
        parts = urlsplit(endpoint)
        right = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        right = False
    if "@" in endpoint:
        raise StoreAddressError(
            f"store {name}: credentials do not belong into an endpoint; {advice}"
        )
    if right and parts.path not in ("", "/"):
        raise StoreAddressError(
            f"store {name}: {without_secrets(endpoint)!r} is no endpoint of a server: leave out "
            f"{parts.path}; a bucket belongs into s3://bucket/prefix"
        )
    if not right or parts.query or parts.fragment:
        raise StoreAddressError(
            f"store {name}: {without_secrets(endpoint)!r} is no endpoint of a server; {advice}"
        )
