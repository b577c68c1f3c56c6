"""Where the files of an attempt are: its run dir, and the agent that can look into it."""

from sirepo_jobs.compute_job import ComputeJob
from sirepo_jobs.errors import NotFound, Unavailable
from sirepo_jobs.job import FINAL, AttemptRecord, JobRecord, State
from sirepo_jobs.run_files import RunDir
from sirepo_jobs.supervisor import Supervisor


async def newest_attempt(supervisor: Supervisor, job: ComputeJob) -> int:
    """Which attempt is meant when nobody says which: the present one.

    Of a job that is over and whose present attempt never began, the last one that did (I13).
    """
    record = job.record
    if record.attempt > 1 and record.state in FINAL and not _may_have_files(record):
        await supervisor.commits.settled()
        for row in reversed(await supervisor.store.attempts(record.jid)):
            if _left_in(row):
                return row.attempt
    return record.attempt


async def run_dir(supervisor: Supervisor, job: ComputeJob, attempt: int) -> RunDir | None:
    """The run dir of an attempt; None while there is none. Raises `NotFound`."""
    found = await _stored(supervisor, job, attempt)
    if found is None:
        return None
    path, name, begun = found
    # an agent that nobody has heard of since the restart is brought anew, for the same environment
    agent = supervisor.agents.get(name) or supervisor.agents.at(supervisor.dispatch.environment(job))
    return RunDir(job.record.jid, job.record.serial, attempt, path, agent, begun)


async def _stored(supervisor: Supervisor, job: ComputeJob, attempt: int) -> tuple[str, str, bool] | None:
    record = job.record
    if not 0 <= attempt <= record.attempt:
        count = "1 attempt" if record.attempt == 1 else f"{record.attempt} attempts"
        raise NotFound(f"job {record.jid} has {count}, not {attempt}", code="no_such_attempt")
    if attempt == 0:
        return None
    if record.state is State.PURGED:
        return None
    # a job that waits for its next attempt has no agent, also when it ends without getting one
    if attempt == record.attempt and record.run_dir and record.agent:
        if not _may_have_files(record):
            return None
        return record.run_dir, record.agent, record.started_at is not None
    written = await supervisor.commits.settled()
    for row in await supervisor.store.attempts(record.jid):
        if row.attempt == attempt and (place := _left_in(row)):
            return place
    if not written and attempt < record.attempt:
        # where it is may stand in what is not written yet: no answer is better than an empty one (I13)
        raise Unavailable(f"attempt {attempt} is not written down yet: {supervisor.store.degraded}")
    return None


def _left_in(row: AttemptRecord) -> tuple[str, str, bool] | None:
    """Where the files of an attempt that is over are, as `_stored` says it; None where it cannot have any."""
    if row.run_dir and row.agent and row.proof != "never_claimed":
        return row.run_dir, row.agent, row.started_at is not None
    return None


def _may_have_files(record: JobRecord) -> bool:
    """Whether the present attempt may have written anything.

    That nobody saw it start says nothing once its agent is out of reach, or whoever watched over it was
    killed: then only a look into its run dir tells.
    """
    if record.started_at is not None or record.state is State.LOST:
        return True
    return record.state in FINAL and record.proof != "never_claimed"
