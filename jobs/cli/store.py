"""Options of every command that opens a store afresh."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import click
from click.core import ParameterSource

from jobs.storage.s3_address import ENCRYPTIONS, SCHEME, S3Options

STORE_HELP = "Folder or s3://bucket/prefix that holds ciphertexts and job records."


def s3_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of stores in S3 to a command, which gets them as `s3: S3Options`."""

    @click.option("--endpoint-url", help="S3 server, if not Amazon's.")
    @click.option("--region", help="Region of the bucket.")
    @click.option("--profile", help="Named AWS profile that holds the credentials.")
    @click.option("--sse", type=click.Choice(ENCRYPTIONS), help="Encryption by the S3 server.")
    @click.option("--sse-kms-key-id", help="Key for --sse aws:kms.")
    @wraps(command)
    def folded(
        *arguments: Any,
        endpoint_url: str | None,
        region: str | None,
        profile: str | None,
        sse: str | None,
        sse_kms_key_id: str | None,
        **options: Any,
    ) -> Any:
        context = click.get_current_context()
        stores = context.params.get("stores") or (context.params.get("store_url"),)
        given = {
            "endpoint_url": endpoint_url,
            "region": region,
            "profile": profile,
            "sse": sse,
            "sse_kms_key_id": sse_kms_key_id,
        }
        if not any(store and store.startswith(SCHEME) for store in stores):
            # What files and the environment say of stores in S3 is no reason to refuse a folder.
            for name in given:
                if context.get_parameter_source(name) is not ParameterSource.COMMANDLINE:
                    given[name] = None
        return command(*arguments, s3=S3Options(*given.values()), **options)

    return folded
