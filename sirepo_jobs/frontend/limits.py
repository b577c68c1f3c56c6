"""How much one request, one client and one front end may take (S36).

The depth of JSON needs no number here: what is deeper than the schema of a job spec does not fit
it and is refused, and the decoder itself stops long before it could exhaust the stack.
"""

from tornado.httputil import HTTPHeaders

from sirepo_jobs.errors import Error, TooLarge

#: Request line and headers together.
MAX_HEADER_BYTES = 32 << 10
#: Tornado hangs up without a word beyond this; between the two we can still say why.
MAX_READ_HEADER_BYTES = 64 << 10
#: Body of a request that needs none, or a few words.
MAX_SMALL_BODY_BYTES = 64 << 10
#: So much of a body that is too large is read and thrown away, so that the client reads our answer
#: instead of a broken connection.
MAX_DISCARD_BYTES = 64 << 20
#: Bodies above this are parsed in a thread, so that nobody else waits for them.
MAX_INLINE_PARSE_BYTES = 64 << 10
#: An answer up to this size is sent with its headers in one piece.
MAX_HELD_BYTES = 64 << 10
#: Requests under way at one time, streams among them.
MAX_EXCHANGES = 4000
#: Connections at one time, idle ones among them; each takes a descriptor, a stream two.
MAX_CONNECTIONS = 20_000
#: What a client sends while it is being answered is kept so far, then its connection is closed.
MAX_READ_BUFFER_BYTES = 1 << 20
#: Connections to the supervisor that are kept while nobody needs them.
MAX_IDLE_LINES = 32

#: A client must send its headers, or its next request, within so many seconds; the next look ends it.
IDLE_SECS = 120.0
#: And a whole body.
BODY_SECS = 300.0
#: Longest blocking query; clients ask again.
MAX_WAIT_SECS = 300.0
#: The supervisor answers within so many seconds (a blocking query: after its time).
ANSWER_SECS = 30.0
#: The same where an agent may have to be started first.
FILE_ANSWER_SECS = 150.0
#: Checking a cluster may bring it an agent.
CHECK_SECS = 600.0
#: So often we look whether clients are still there.
LOOK_SECS = 15.0
#: Requests in progress get so long when the front end ends.
DRAIN_SECS = 5.0
#: What `Retry-After` says.
RETRY_AFTER_SECS = 1


class HeadersTooLarge(Error):
    """The request line and headers are longer than we read."""

    code = "headers_too_large"
    http_status = 431


def check_headers(target: str, headers: HTTPHeaders) -> None:
    """Raise `HeadersTooLarge` over the limit."""
    size = len(target) + sum(len(name) + len(value) + 4 for name, value in headers.get_all())
    if size > MAX_HEADER_BYTES:
        raise HeadersTooLarge(
            f"request line and headers are {size} bytes, at most {MAX_HEADER_BYTES} are read"
        )


def body_too_large(limit: int) -> TooLarge:
    """What to say to a body over the limit."""
    return TooLarge(
        f"the body is larger than {limit} bytes; send fewer jobs in one request", code="body_too_large"
    )
