"""What a failed upload is called: words that say which thing is wrong, and nothing secret.

A service's own words may carry key ids, and a client library's the endpoint; of both only the
kind is used (invariant 7).
"""

# boto3 has no types of its own.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from __future__ import annotations

import re
from typing import Any

from ltx_worker.delivery.bucket_config import NotPublic
from ltx_worker.errors import DeliveryFailed

_CREDENTIALS = "the storage refuses the credentials"
_CODES = {
    "InvalidAccessKeyId": _CREDENTIALS,
    "SignatureDoesNotMatch": _CREDENTIALS,
    "AuthorizationHeaderMalformed": f"{_CREDENTIALS}, or their region",
    "ExpiredToken": _CREDENTIALS,
    "InvalidToken": _CREDENTIALS,
    "Unauthorized": _CREDENTIALS,
    "401": _CREDENTIALS,
    "AccessDenied": "the credentials are not allowed to use the bucket",
    "403": "the credentials are not allowed to read what they wrote",
    "NoSuchBucket": "the bucket does not exist",
    "404": "what was uploaded is not there",
    "RequestTimeTooSkewed": "the clock of this machine is wrong",
    "BadDigest": "the file was damaged on its way",
}
_HINTS = {
    _CREDENTIALS: "Check the access key and its secret.",
    _CODES["NoSuchBucket"]: "Check the bucket's name and the account in the endpoint.",
    _CODES["AccessDenied"]: "The key needs to read and write objects of this bucket.",
    _CODES["403"]: "The key needs to read and write objects of this bucket.",
}


def delivery_failed(error: BaseException) -> DeliveryFailed | None:
    """The error for callers where `error` came from an upload; None for any other."""
    from botocore import exceptions  # noqa: PLC0415 - imported with the first upload, see bucket.py

    if isinstance(error, exceptions.ClientError):
        reason = _refusal(error.response)
    elif isinstance(error, NotPublic):
        reason = f"the storage's address {error}"
    elif isinstance(
        error,
        (
            exceptions.EndpointConnectionError,
            exceptions.ConnectTimeoutError,
            exceptions.ProxyConnectionError,
        ),
    ):
        reason = "the storage could not be reached"
    elif isinstance(error, exceptions.SSLError):
        reason = "the storage's certificate is not valid"
    elif isinstance(error, (exceptions.HTTPClientError, exceptions.ConnectionError)):
        reason = "the connection to the storage was lost"
    elif isinstance(error, exceptions.BotoCoreError):
        reason = f"the storage cannot be used ({type(error).__name__})"
    else:
        return None
    return DeliveryFailed(f"The upload failed: {reason}", hint=_HINTS.get(reason))


def _refusal(response: Any) -> str:
    """The reason in an answer of the service."""
    code = str(response.get("Error", {}).get("Code", ""))
    status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    if code in _CODES:
        return _CODES[code]
    if status >= 500 or status == 429:
        return f"the storage does not take it at present (status {status})"
    name = code if re.fullmatch(r"[A-Za-z]{1,40}", code) else f"status {status}"
    return f"the storage refuses it ({name})"
