"""Errors as clients see them: RFC 9457 problems with a stable `code`, and never a traceback (S63)."""

from http import HTTPStatus

import msgspec
from msgspec import Struct

from sirepo_jobs.errors import Error

CONTENT_TYPE = "application/problem+json"


class Problem(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The body of every answer with a status of 400 and above."""

    #: `urn:sirepo-jobs:problem:<code>`.
    type: str
    title: str
    status: int
    code: str
    detail: str
    request_id: str
    #: JSON pointer to the offending place in the request body.
    pointer: str = ""


class MethodNotAllowed(Error):
    """The route exists, with other methods."""

    code = "method_not_allowed"
    http_status = 405

    def __init__(self, message: str, *, allow: str) -> None:
        super().__init__(message)
        #: For the `Allow` header.
        self.allow = allow


_encode = msgspec.json.Encoder().encode


def problem(error: Error, request_id: str) -> bytes:
    """The body that tells of `error`."""
    return _encode(
        Problem(
            type=f"urn:sirepo-jobs:problem:{error.code}",
            title=error.code.replace("_", " "),
            status=error.http_status,
            code=error.code,
            detail=str(error),
            request_id=request_id,
            pointer=getattr(error, "pointer", ""),
        )
    )


def phrase(status: int) -> str:
    """`404` -> `Not Found`."""
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Unknown"
