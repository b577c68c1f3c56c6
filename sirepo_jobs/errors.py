"""The error tree. Each class says whose fault it is, what HTTP answers and whether trying again may help.

    Error
    ├── BadInput            the caller sent something that cannot be meant (422)
    │   └── TooLarge        ... and it is too big (413)
    ├── Unauthorized        no valid credentials (401)
    ├── Forbidden           known, but not allowed (403)
    ├── NotFound            no such thing, or not yours: the two look the same (404)
    ├── Conflict            the request contradicts what is already there (409)
    ├── Unavailable         we cannot serve now; try again (503)
    ├── RemoteError         an agent spoke nonsense: hang up, keep the state
    ├── LaunchError         a driver could not start an agent
    └── StoreError          the store cannot be used
        └── StoreLocked     another supervisor holds it

Messages carry values and say what to do: "cpus=64, this driver has 2; ask for at most 2".
"""

from typing import ClassVar

from .reasons import Reason


class Error(Exception):
    """Something went wrong that we foresaw."""

    #: Stable, machine-readable; part of the HTTP contract.
    code: str = "error"
    #: What the HTTP door answers.
    http_status: ClassVar[int] = 500
    #: True where the same request may succeed later.
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, *, code: str | None = None) -> None:
        super().__init__(message)
        if code is not None:
            self.code = code


class BadInput(Error):
    """The caller's words cannot be meant; nothing was changed."""

    code = "bad_input"
    http_status = 422

    def __init__(self, message: str, *, code: str | None = None, pointer: str = "") -> None:
        super().__init__(message, code=code)
        #: JSON pointer to the offending place in the request body, "" for the whole.
        self.pointer = pointer


class TooLarge(BadInput):
    """A limit on size was exceeded."""

    code = "too_large"
    http_status = 413


class Unauthorized(Error):
    """No valid credentials came with the request."""

    code = "unauthorized"
    http_status = 401


class Forbidden(Error):
    """The caller is known and may not do this."""

    code = "forbidden"
    http_status = 403


class NotFound(Error):
    """Nothing of that name that the caller may see."""

    code = "not_found"
    http_status = 404


class Conflict(Error):
    """The request contradicts what is already there."""

    code = "conflict"
    http_status = 409


class Unavailable(Error):
    """The service cannot do this at the moment."""

    code = "unavailable"
    http_status = 503
    retryable = True


class RemoteError(Error):
    """The other side of a connection said what it may not say; hang up and keep the state."""

    code = "remote_error"
    http_status = 502


class LaunchError(Error):
    """A driver could not start an agent."""

    code = "launch_failed"
    http_status = 503

    def __init__(self, message: str, *, retry: bool, reason: Reason = Reason.LAUNCH_FAILED) -> None:
        super().__init__(message)
        #: Whether launching again may help.
        self.retry = retry
        #: What the jobs that wait for it say.
        self.reason = reason


class StoreError(Error):
    """The store cannot be used; the message says why and what to do."""

    code = "store_error"
    #: It is mended, or the next supervisor has a store that works: to be asked again.
    http_status = 503


class StoreLocked(StoreError):
    """Another supervisor works on this store."""

    code = "store_locked"
