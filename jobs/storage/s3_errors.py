"""Which answers of an S3 server pass by themselves, and what the others mean for a user."""

from __future__ import annotations

import errno
import os
from typing import Any

import botocore.exceptions as boto
from boto3.exceptions import Boto3Error, RetriesExceededError
from botocore.parsers import ResponseParserError

from jobs.proxies import proxy_hint
from jobs.storage.s3_address import S3Address
from nst.errors import StoreError

REQUEST_ERRORS = (
    boto.BotoCoreError,
    boto.ClientError,
    Boto3Error,
    ResponseParserError,
    RecursionError,
)
"""What a request raises, one of these. botocore follows a redirect that leads back for ever."""
_WRITES = frozenset({"PutObject", "CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload"})
_TRANSIENT_CODES = frozenset(
    {
        "ConditionalRequestConflict",
        "OperationAborted",
        "RequestTimeout",
        "SlowDown",
        "Throttling",
        "ThrottlingException",
        "TooManyRequestsException",
        # The upload was forgotten by a server that went down: it is begun afresh.
        "NoSuchUpload",
    }
)
_FULL_CODES = frozenset({"QuotaExceeded", "XMinioStorageFull", "InsufficientStorage"})
_CREDENTIAL_CODES = frozenset(
    {"InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "AuthFailure"}
)
_EXPIRED_CODES = frozenset({"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired"})
_UNKNOWN_CODES = frozenset({"InvalidArgument", "InvalidRequest", "NotImplemented", "BadRequest"})
_FULL_STATUS, _UNSUPPORTED_STATUS = 507, 501
_REDIRECTED = (
    "the server redirects to another address; check --endpoint-url: https or http, host and port"
)


def status_of(error: BaseException) -> int:
    """HTTP status of a refused request, 0 of any other error."""
    response: dict[str, Any] = getattr(error, "response", None) or {}
    return int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def code_of(error: BaseException) -> str:
    """S3's name for a refusal, empty for any other error. HEAD requests get the bare status."""
    response: dict[str, Any] = getattr(error, "response", None) or {}
    return str(response.get("Error", {}).get("Code", ""))


def is_transient(error: BaseException) -> bool:
    """Whether the same request may succeed later: the network, a restart, a busy server."""
    if isinstance(error, boto.ClientError):
        status = status_of(error)
        lasting = code_of(error) in _FULL_CODES or status in (_FULL_STATUS, _UNSUPPORTED_STATUS)
        return not lasting and (status >= 500 or code_of(error) in _TRANSIENT_CODES)
    if isinstance(error, boto.SSLError) or _of_a_header(error):
        return False
    return isinstance(
        error,
        boto.ConnectionError | boto.HTTPClientError | boto.IncompleteReadError
        | RetriesExceededError,
    )  # fmt: skip


def _of_a_header(error: BaseException) -> bool:
    """Whether a request could not be sent since a credential holds what no header may."""
    return isinstance(error, boto.HTTPClientError) and "nvalid header value" in str(error)


def explain(error: Exception, address: S3Address, doing: str) -> StoreError:
    """One line on what went wrong and what to do.

    Only S3's codes are quoted: texts of servers may hold access keys.

    Args:
        error: One of `REQUEST_ERRORS`, or an OSError of a transfer.
        address: The store.
        doing: What failed, as in "cannot write jobs/1".
    """
    code, status = code_of(error), status_of(error)
    text = f"store {address.name}: {doing}: {_reason(error, address, code, status)}"
    return StoreError(" ".join(text.split()))


def _reason(error: Exception, address: S3Address, code: str, status: int) -> str:
    if isinstance(error, boto.ClientError):
        return _refusal(address, code, status, error.operation_name in _WRITES)
    if isinstance(error, boto.NoCredentialsError | boto.PartialCredentialsError):
        return (
            "there are no complete credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
            "or name a profile with --profile"
        )
    if isinstance(error, boto.ProfileNotFound):
        # Without the option, boto3 takes one from the environment.
        named = address.options.profile or os.environ.get("AWS_PROFILE", "")
        return f"no profile {named or 'default'}; see ~/.aws/config or change --profile"
    if isinstance(error, boto.CredentialRetrievalError | boto.TokenRetrievalError):
        return "credentials could not be fetched; renew them, as with: aws sso login"
    if isinstance(error, boto.SSLError):
        return (
            "no secure connection; check that the endpoint speaks https, and its certificate "
            "(AWS_CA_BUNDLE)"
        )
    if isinstance(error, boto.FlexibleChecksumError | boto.ChecksumError):
        return "the bytes received do not match their checksum; try again, or submit the job again"
    if isinstance(error, RecursionError):
        return _REDIRECTED
    if isinstance(error, ResponseParserError):
        return "what answers is no S3 server; check --endpoint-url, and that no proxy is between"
    if _of_a_header(error):
        return (
            "a credential holds a character that no request can carry, perhaps the line end of a "
            "file from Windows; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY again"
        )
    if is_transient(error):
        where = address.options.endpoint_url or "https://s3.amazonaws.com"
        shown = address.options.endpoint_url or "the server"
        return (
            f"{shown} does not answer{proxy_hint(where)}; check --endpoint-url, the network, and "
            "that it runs"
        )
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return "no space left; free some space"
    if isinstance(error, ValueError):
        return "a value of the AWS configuration is wrong; check endpoint, region and profile"
    return f"{type(error).__name__}; run: nst-batch doctor --store {address.name}"


def _refusal(address: S3Address, code: str, status: int, writing: bool) -> str:
    if code == "NoSuchBucket":
        server = address.options.endpoint_url
        return (
            f"there is no bucket {address.bucket}; check its name, or make it: "
            f"aws s3 mb s3://{address.bucket}" + (f" --endpoint-url {server}" if server else "")
        )
    if code in _CREDENTIAL_CODES:
        return (
            f"the credentials are wrong ({code}); check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY "
            "or --profile"
        )
    if code in _EXPIRED_CODES:
        return f"the credentials have ended ({code}); renew them, as with: aws sso login"
    if code == "RequestTimeTooSkewed":
        return "this machine's clock is wrong; set it (timedatectl set-ntp true)"
    if code in ("PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraint"):
        return "the bucket is in another region; give --region"
    if 300 <= status < 400:
        return _REDIRECTED
    if code in _FULL_CODES or status == _FULL_STATUS:
        return f"the store is full ({code}); free some space or choose another --store"
    if code.startswith("KMS") or "Encryption" in code:
        return f"encryption is refused ({code}); check --sse and --sse-kms-key-id"
    if code in ("BadDigest", "InvalidDigest", "XAmzContentSHA256Mismatch"):
        return f"the server received other bytes than were sent ({code}); check the network"
    if status in (401, 403):
        return (
            f"access is denied ({code}); give these credentials s3:GetObject, s3:PutObject, "
            "s3:DeleteObject, s3:AbortMultipartUpload, s3:ListBucket and "
            "s3:ListBucketMultipartUploads"
        )
    if status == _UNSUPPORTED_STATUS or (writing and code in _UNKNOWN_CODES):
        return (
            f"the server does not know this kind of request ({code}, HTTP {status}); it must take "
            "x-amz-checksum-sha256 and If-None-Match, as Amazon S3 or SeaweedFS 4.48 does"
        )
    if status >= 500:
        return f"the server fails ({code}, HTTP {status}); see its log and its free space"
    return f"refused ({code}, HTTP {status}); run: nst-batch doctor --store {address.name}"
