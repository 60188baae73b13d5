"""How a store in S3 is named: one URL that another process can reopen it by.

`s3://bucket/prefix?endpoint=http://host:port&region=R&profile=P&sse=S&kms_key_id=K`. Credentials
are never part of it: it stands in job records and on command lines.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, fields, replace
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

from nst.errors import StoreAddressError

SCHEME = "s3://"
PATIENCE = 75.0
"""Seconds for which a store that does not answer is asked again: a server's restart and more."""
ENCRYPTIONS = ("AES256", "aws:kms", "aws:kms:dsse")
ENDPOINT_VARIABLES = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{2,62}")


@dataclass(frozen=True)
class S3Options:
    """What may be said of a store in S3 beside bucket and prefix.

    Attributes:
        endpoint: URL of a server other than Amazon's.
        region: Region of the bucket, else the profile's or the environment's.
        profile: Named profile of the AWS configuration that holds the credentials.
        sse: Server-side encryption, one of `ENCRYPTIONS`.
        kms_key_id: Key for `aws:kms`, else the bucket's default.
    """

    endpoint: str | None = None
    region: str | None = None
    profile: str | None = None
    sse: str | None = None
    kms_key_id: str | None = None

    def given(self) -> dict[str, str]:
        """The options that are set, by name."""
        named = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in named.items() if value is not None}

    def fold(self, url: str) -> str:
        """A store's URL with these options in it; they win over those it has already.

        An endpoint that only the environment names is written down too: it says where the data
        is, and tomorrow's shell may not have it.

        Raises:
            StoreAddressError: if the URL is wrong, or options are given for a folder.
        """
        if not url.startswith(SCHEME):
            if self.given():
                names = ", ".join(name.replace("_", " ") for name in self.given())
                raise StoreAddressError(
                    f"store {without_secrets(url)} is a folder and takes no {names}; "
                    "give --store s3://bucket/prefix"
                )
            return url
        address = S3Address.parse(url)
        options = replace(address.options, **self.given())
        if options.endpoint is None:
            found = (os.environ.get(name) for name in ENDPOINT_VARIABLES)
            options = replace(options, endpoint=next((e for e in found if e), None))
        return S3Address(address.bucket, address.prefix, options).url


@dataclass(frozen=True)
class S3Address:
    """A store in S3, checked.

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
        for name, value in options.given().items():
            if not value or not value.isprintable():
                raise StoreAddressError(
                    f"store {self.name}: {name} is empty; leave it out or give one"
                )
        if options.endpoint is not None:
            _check_endpoint(self.name, options.endpoint)
        if options.sse is not None and options.sse not in ENCRYPTIONS:
            raise StoreAddressError(
                f"store {self.name}: no encryption {options.sse!r}; choose one of "
                + ", ".join(ENCRYPTIONS)
            )
        if options.kms_key_id is not None and not (options.sse or "").startswith("aws:kms"):
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
        query = urlencode(self.options.given(), safe=":/")
        return f"{self.name}?{query}" if query else self.name

    def key(self, key: str) -> str:
        """The object's key for a store's key."""
        return f"{self.prefix}/{key}" if self.prefix else key

    @staticmethod
    def parse(url: str) -> S3Address:
        """The address that a URL names.

        Raises:
            StoreAddressError: if it is malformed. The message shows no more of it than bucket
                and prefix: somebody may have put a password into it.
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
        known = [field.name for field in fields(S3Options)]
        names = [name for name, _ in query]
        for name in names:
            if name not in known or names.count(name) > 1:
                problem = "given twice" if name in known else "unknown"
                raise StoreAddressError(
                    f"store {without_secrets(url)}: option {name!r} is {problem}; "
                    f"there are {', '.join(known)}, and credentials come from the environment"
                )
        prefix = unquote(parts.path).removeprefix("/").removesuffix("/")
        return S3Address(parts.netloc, prefix, S3Options(**dict(query)))


def without_profile(url: str) -> str:
    """A store's URL for another machine, which does not have this one's AWS profiles."""
    if not url.startswith(SCHEME):
        return url
    address = S3Address.parse(url)
    return replace(address, options=replace(address.options, profile=None)).url


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
    if not right or parts.query or parts.fragment:
        raise StoreAddressError(
            f"store {name}: {without_secrets(endpoint)!r} is no endpoint of a server; {advice}"
        )
