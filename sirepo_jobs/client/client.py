"""`Client`: the calls of the API as methods."""

import re
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import datetime
from pathlib import Path
from time import monotonic
from types import TracebackType
from typing import Any, Literal, Self, overload
from urllib.parse import quote

import msgspec

from sirepo_jobs.errors import NotFound
from sirepo_jobs.resources import parse_secs
from sirepo_jobs.spec import JobSpec

from . import download
from .download import Progress
from .files import File, FilePath, FileStream, files_path, listing
from .records import Event, Explanation, Job, JobPage, Submitted, job_of
from .streams import LogStream, server_events
from .transport import READ_SECS, Params, Transport
from .where import Place, find

Spec = JobSpec | Mapping[str, Any]
#: One blocking query; longer waits ask again.
_WAIT_SECS = 60.0
#: Checking a cluster may bring it an agent.
_CHECK_SECS = 600.0


class Client(AbstractContextManager["Client"]):
    """The service, for one user. Errors are those of `sirepo_jobs.errors`, with the server's sentence.

    While the service is away a call is tried again for `patience_secs`, then raises `Unavailable`.
    Streams and waits count from the last thing that worked.
    """

    def __init__(
        self, url: str, token: str, *, patience_secs: float = 30.0, ca_certs: str | None = None
    ) -> None:
        """`ca_certs` names a file with the certificates to trust instead of the system's."""
        self._start(Place(lambda: url.rstrip("/"), token), patience_secs, ca_certs)

    def _start(self, place: Place, patience_secs: float, ca_certs: str | None) -> None:
        self.transport = Transport(place, patience_secs=patience_secs, ca_certs=ca_certs)

    @classmethod
    def from_environment(
        cls,
        root: str | Path | None = None,
        *,
        url: str | None = None,
        token_file: str | Path | None = None,
        patience_secs: float = 30.0,
        ca_certs: str | None = None,
    ) -> Self:
        """The client for what the arguments name.

        Else for `SIREPO_JOBS_URL` with `SIREPO_JOBS_TOKEN_FILE` or `SIREPO_JOBS_TOKEN`, else for the
        service that was started in the root (`$SIREPO_JOBS_ROOT`, or the user's own).
        """
        client = cls.__new__(cls)
        client._start(find(root=root, url=url, token_file=token_file), patience_secs, ca_certs)
        return client

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the connections back; safe to repeat."""
        self.transport.close()

    @overload
    def submit(self, spec: Spec, *, idempotency_key: str | None = None) -> Submitted: ...

    @overload
    def submit(self, spec: Sequence[Spec], *, idempotency_key: str | None = None) -> list[Submitted]: ...

    def submit(
        self, spec: Spec | Sequence[Spec], *, idempotency_key: str | None = None
    ) -> Submitted | list[Submitted]:
        """Hand in one job, or many that are accepted together or not at all.

        When it returns, the jobs are durable. It may be repeated with the same `idempotency_key`
        (one is made up for each call) and the jobs exist once.

            client.submit({"command": ["lmp", "-in", "in.melt"], "resources": {"cpus": 2}})
        """
        batch = not isinstance(spec, JobSpec | Mapping)
        answer = self._hand_in({"jobs": spec} if batch else spec, idempotency_key)
        if batch:
            return msgspec.convert(answer["jobs"], list[Submitted])
        return msgspec.convert(answer, Submitted)

    def run(
        self, spec: Spec, *, timeout: float | str | None = None, idempotency_key: str | None = None
    ) -> Job:
        """Hand in one job: the job when it has ended. `submit` and `wait` in one request.

        Raises `TimeoutError` after `timeout`; the job goes on, and the error names it.

            client.run({"command": ["true"]}).exit_code
        """
        deadline = _deadline(timeout)
        answer = self._hand_in(spec, idempotency_key, _left(deadline))
        if "version" in answer and (job := job_of(answer)).ended:
            return job
        return self._wait(answer["jid"], deadline)

    def _hand_in(self, body: Any, idempotency_key: str | None, wait_secs: float = 0.0) -> Any:
        return self.transport.call(
            "POST",
            "/api/v1/jobs",
            {"wait": f"{wait_secs:.3f}s"} if wait_secs else None,
            body=msgspec.json.encode(body),
            headers={"Idempotency-Key": idempotency_key or secrets.token_urlsafe(18)},
            read_secs=READ_SECS + wait_secs,
        )

    def get(self, jid: str, *, wait: float | str | None = None, version: int | None = None) -> Job:
        """One job; with `wait` and `version` as soon as its version is above `version`."""
        wait_secs = parse_secs(wait) if wait is not None else 0.0
        params = {"wait": f"{wait_secs:g}s" if wait is not None else None, "version": version}
        return job_of(self.transport.call("GET", _path(jid), params, read_secs=READ_SECS + wait_secs))

    def jobs(
        self,
        *,
        state: str | Iterable[str] = (),
        user: str | None = None,
        name_prefix: str | None = None,
        tags: Mapping[str, str] | None = None,
        queue: str | None = None,
        driver: str | None = None,
        created_after: datetime | None = None,
        created_before: datetime | None = None,
        limit: int | None = None,
    ) -> Iterator[Job]:
        """Jobs, newest first, page after page; `active` and `final` stand for all such states."""
        states = state if isinstance(state, str) else ",".join(state)
        cursor: str | None = None
        left = limit
        while left is None or left > 0:
            page = msgspec.convert(
                self.transport.call(
                    "GET",
                    "/api/v1/jobs",
                    {
                        "state": states,
                        "user": user,
                        "name_prefix": name_prefix,
                        "tag": [f"{name}:{value}" for name, value in (tags or {}).items()],
                        "queue": queue,
                        "driver": driver,
                        "created_after": created_after.isoformat() if created_after else None,
                        "created_before": created_before.isoformat() if created_before else None,
                        "cursor": cursor,
                        "limit": min(left, 1000) if left is not None else 200,
                    },
                ),
                JobPage,
            )
            yield from map(job_of, page.jobs)
            cursor = page.next_cursor
            if left is not None:
                left -= len(page.jobs)
            if cursor is None:
                return

    def cancel(self, jid: str) -> Job:
        """Ask a job to end; asking again, or too late, changes nothing."""
        return self._tell(jid, "cancel")

    def hold(self, jid: str) -> Job:
        """Keep a job from running; one that runs is ended first, and starts anew when it is released."""
        return self._tell(jid, "hold")

    def release(self, jid: str) -> Job:
        """Let a held job go on. Raises `Conflict` when it is not held, nor queued already."""
        return self._tell(jid, "release")

    def retry(self, jid: str, *, serial: int | None = None) -> Job:
        """Run a job again that has ended: a new run of the same jid. Raises `Conflict` while it runs.

        `serial` names the run that is to be done again; a later run is left alone. When left out it
        is the present one.
        """
        serial = self.get(jid).serial if serial is None else serial
        return self._tell(jid, "retry", {"serial": serial})

    def suspend(self, jid: str) -> Job:
        """Stop the processes of a running job; they keep their memory and their place."""
        return self._tell(jid, "suspend")

    def resume(self, jid: str) -> Job:
        """Let the processes of a suspended job go on."""
        return self._tell(jid, "resume")

    def declare_lost(self, jid: str) -> Job:
        """An operator's word: the present attempt of a job whose agent is out of reach is no more.

        Raises `Conflict` where the agent can be asked instead.
        """
        return self._tell(jid, "declare-lost")

    def change(
        self,
        jid: str,
        *,
        name: str | None = None,
        priority: int | None = None,
        tags: Mapping[str, str | None] | None = None,
        limits: Mapping[str, str | float | None] | None = None,
    ) -> Job:
        """Have something about a job another way; a tag or limit that is None is taken away.

        Limits can be changed while the job does not run: raises `Conflict` otherwise.
        """
        given = {"name": name, "priority": priority, "tags": tags, "limits": limits}
        body = msgspec.json.encode({key: value for key, value in given.items() if value is not None})
        return job_of(self.transport.call("PATCH", _path(jid), body=body))

    def change_many(self, changes: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Change up to 1000 jobs in one transaction; a result for each, with its `status`.

        client.change_many([{"jid": a, "priority": 9}, {"jid": b, "tags": {"old": None}}])
        """
        answer = self.transport.call("PATCH", "/api/v1/jobs", body=msgspec.json.encode(changes))
        return list(answer["results"])

    def _tell(self, jid: str, verb: str, params: Params | None = None) -> Job:
        return job_of(self.transport.call("POST", f"{_path(jid)}/{verb}", params, body=b""))

    def explain(self, jid: str) -> Explanation:
        """Why a job waits, failed, was ended, or runs where it runs."""
        answer = self.transport.call("GET", f"{_path(jid)}/explain")
        return msgspec.convert({**answer, "raw": answer}, Explanation)

    def wait(self, jid: str, *, timeout: float | str | None = None) -> Job:
        """The job when it has ended. Raises `TimeoutError` after `timeout`; the job goes on."""
        return self._wait(jid, _deadline(timeout))

    def _wait(self, jid: str, deadline: float | None) -> Job:
        while True:
            left = _left(deadline)
            # one question, answered at the end: whatever happens to the job before is nobody's business here
            params = {"wait": f"{left:.3f}s", "until": "ended"}
            job = job_of(self.transport.call("GET", _path(jid), params, read_secs=READ_SECS + left))
            if job.ended:
                return job
            if deadline is not None and monotonic() >= deadline:
                raise TimeoutError(f"job {jid} is still {job.state}")

    def logs(
        self,
        jid: str,
        stream: Literal["stdout", "stderr"] = "stdout",
        *,
        offset: int = 0,
        attempt: int | None = None,
        follow: bool = False,
    ) -> LogStream:
        """The job's output as it is, from byte `offset` on; with `follow` until the attempt has ended.

        After a broken connection it goes on at the next byte of the same attempt: every byte comes
        once. A job that has not started has no output; with `follow` its start is waited for.
        """
        return LogStream(self.transport, _path(jid), stream, offset, attempt, follow)

    def files(
        self, jid: str, path: FilePath = "", *, attempt: int | None = None, recursive: bool = True
    ) -> Iterator[File]:
        """What lies in the job's run dir, or in the directory `path` of it, in order of names."""
        return listing(self.transport, files_path(_path(jid), path), attempt, recursive=recursive)

    def read_file(
        self,
        jid: str,
        path: FilePath,
        *,
        offset: int = 0,
        length: int | None = None,
        attempt: int | None = None,
    ) -> bytes:
        """A file of the run dir, or `length` bytes of it."""
        if length == 0:
            return b""
        stop = None if length is None else offset + length
        return b"".join(self.stream_file(jid, path, offset=offset, stop=stop, attempt=attempt))

    def stream_file(
        self,
        jid: str,
        path: FilePath,
        *,
        offset: int = 0,
        stop: int | None = None,
        attempt: int | None = None,
    ) -> FileStream:
        """The bytes of a file of the run dir, piece by piece.

        After a broken connection it goes on at the next byte; raises `Conflict` when the file has changed.
        """
        target = files_path(_path(jid), path)
        return FileStream(self.transport, target, attempt, offset=offset, stop=stop)

    def download(
        self,
        jid: str,
        path: FilePath,
        to: str | Path,
        *,
        attempt: int | None = None,
        progress: Progress | None = None,
    ) -> Path:
        """Bring a file of the run dir to `to`; what is there is replaced when all of the new one is here.

        Meanwhile it lies beside it, under a name that ends in `.part`: a download that was cut off goes on
        there the next time, unless the file has changed. `progress` is told `(bytes here, bytes of all)`.
        """
        place = Path(to)
        download.download(self.transport, files_path(_path(jid), path), attempt, place, progress)
        return place

    def download_archive(
        self,
        jid: str,
        to: str | Path,
        path: FilePath = "",
        *,
        attempt: int | None = None,
        progress: Progress | None = None,
    ) -> Path:
        """Bring the run dir, or the directory `path` of it, as a zip archive to `to`.

        Links and whatever else is no file are left out; `SKIPPED.txt`, the last entry, names them.
        """
        place = Path(to)
        download.download_archive(self.transport, files_path(_path(jid), path), attempt, place, progress)
        return place

    def events(self, after: int | None = None) -> Iterator[Event]:
        """What happens to jobs, without end: everything after `after`, or from now on.

        After a broken connection it goes on after the last event that it gave.
        """
        return server_events(self.transport, after)

    def clusters(self) -> list[dict[str, Any]]:
        """Slurm clusters, and how each stands for the caller."""
        answer: list[dict[str, Any]] = self.transport.call("GET", "/api/v1/clusters")["clusters"]
        return answer

    def login(self, cluster: str, order: Mapping[str, str]) -> dict[str, Any]:
        """Begin to log in there; `state` says whether it asks (`prompts`), or is over."""
        path = f"{_cluster(cluster)}/login"
        answer: dict[str, Any] = self.transport.call(
            "POST", path, body=msgspec.json.encode(dict(order)), repeat=False
        )
        return answer

    def answer_login(self, cluster: str, login: str, answers: Sequence[str]) -> dict[str, Any]:
        """Answer the prompts, in order; with no answers, see how it stands."""
        path = f"{_cluster(cluster)}/login/{quote(login, safe='')}"
        body = msgspec.json.encode({"answers": list(answers)})
        answer: dict[str, Any] = self.transport.call("POST", path, body=body, repeat=False)
        return answer

    def logout(self, cluster: str) -> dict[str, Any]:
        """End the connection; jobs there go on."""
        answer: dict[str, Any] = self.transport.call("DELETE", f"{_cluster(cluster)}/login")
        return answer

    def check_cluster(self, cluster: str) -> dict[str, Any]:
        """Everything that a job there will need, looked at; may take a minute."""
        answer: dict[str, Any] = self.transport.call(
            "POST", f"{_cluster(cluster)}/check", repeat=False, read_secs=_CHECK_SECS
        )
        return answer

    def agents(self) -> list[dict[str, Any]]:
        """One's own agents, or everybody's for administrators, by name."""
        answer: list[dict[str, Any]] = self.transport.call("GET", "/api/v1/agents")["agents"]
        return answer

    def drain_agent(self, agent: str) -> dict[str, Any]:
        """Give an agent no more work; it ends when it has finished what it has. A fresh one follows."""
        return self._tell_agent(agent, "drain")

    def stop_agent(self, agent: str) -> dict[str, Any]:
        """End an agent and its jobs; returns when it is gone."""
        return self._tell_agent(agent, "stop")

    def declare_gone(self, agent: str) -> dict[str, Any]:
        """An operator's word: an agent that is out of reach is gone, and everything that it ran.

        Raises `Conflict` while it is connected.
        """
        return self._tell_agent(agent, "declare-gone")

    def _tell_agent(self, agent: str, verb: str) -> dict[str, Any]:
        path = f"/api/v1/agents/{quote(agent, safe='')}/{verb}"
        answer: dict[str, Any] = self.transport.call("POST", path, body=b"")
        return answer

    def create_token(
        self,
        user: str,
        *,
        role: str = "user",
        scopes: Iterable[str] = (),
        name: str = "",
        expires_in: float | str = "30d",
    ) -> dict[str, Any]:
        """A new token for `user`; `token` in the answer is shown this once. For administrators."""
        order = {"user": user, "role": role, "scopes": list(scopes), "name": name, "expires_in": expires_in}
        body = msgspec.json.encode(order)
        answer: dict[str, Any] = self.transport.call("POST", "/api/v1/tokens", body=body, repeat=False)
        return answer

    def tokens(self, user: str | None = None) -> list[dict[str, Any]]:
        """One's own tokens, or everybody's for administrators, the newest first."""
        answer: list[dict[str, Any]] = self.transport.call("GET", "/api/v1/tokens", {"user": user})["tokens"]
        return answer

    def revoke_token(self, token_id: str) -> dict[str, Any]:
        """End a token for good; again changes nothing."""
        if not re.fullmatch("[0-9a-f]{12}", token_id):
            why = f"there is no token {token_id!r}: ids are twelve hexadecimal digits, as lists show them"
            raise NotFound(why, code="token_not_found")
        path = f"/api/v1/tokens/{quote(token_id, safe='')}"
        answer: dict[str, Any] = self.transport.call("DELETE", path)
        return answer


def _deadline(timeout: float | str | None) -> float | None:
    """By the monotonic clock."""
    return None if timeout is None else monotonic() + parse_secs(timeout)


def _left(deadline: float | None) -> float:
    """How long the next question may wait for its answer."""
    return _WAIT_SECS if deadline is None else max(0.0, min(deadline - monotonic(), _WAIT_SECS))


def _cluster(name: str) -> str:
    return f"/api/v1/clusters/{quote(name, safe='')}"


def _path(jid: str) -> str:
    if not jid or not jid.isascii() or not all(char.isalnum() or char in "_.-" for char in jid):
        # Spelled so it would lead to another place of the API than a job.
        why = f"there is no job {jid!r}: ids have letters, digits, '-', '_' and '.'"
        raise NotFound(why, code="job_not_found")
    return f"/api/v1/jobs/{quote(jid, safe='')}"
