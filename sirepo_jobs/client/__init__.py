"""The Python client: submit work, wait for it, read its output.

    from sirepo_jobs.client import Client

    client = Client.from_environment()
    job = client.submit({"command": ["echo", "hello"]})
    ended = client.wait(job.jid)
    print(ended.state, ended.exit_code)
    print(b"".join(client.logs(job.jid)).decode())

Synchronous, safe to share between threads, and dependent on little: urllib3 and msgspec.
"""

from .client import Client
from .files import File
from .records import Event, Explanation, Job, Submitted, exit_status

__all__ = ["Client", "Event", "Explanation", "File", "Job", "Submitted", "exit_status"]
