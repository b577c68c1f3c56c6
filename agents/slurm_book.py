"""What the broker knows: attempts, the submissions that they are in, and how both change.

Every change goes through `tell` (attempts) and `move` (submissions); `slurm_life` and `slurm_batch` decide,
and what follows from it is done here, or left for whoever runs Slurm's commands: `cancels`, `asks`, `work`.
"""

import asyncio
import contextlib
import os
import shutil
import sys
import time
import zlib
from collections.abc import Callable
from typing import Final

import msgspec

from sirepo_jobs.agents import exit_file, slurm_batch, slurm_files, slurm_life, slurm_situation
from sirepo_jobs.agents.birth import never
from sirepo_jobs.agents.slurm_batch import Batch
from sirepo_jobs.agents.slurm_commands import Commands, Pace
from sirepo_jobs.agents.slurm_life import Life, Phase
from sirepo_jobs.agents.words import FromSpawner, Over, Paused, Situated, Spawn, Spawned
from sirepo_jobs.driver import AgentSpec
from sirepo_jobs.errors import BadInput
from sirepo_jobs.protocol import Scheduling
from sirepo_jobs.reasons import Reason
from sirepo_jobs.slurm_options import SlurmOptions, Wanted, command, resolve
from sirepo_jobs.slurm_text import Row, clip

#: Attempts that come so shortly after one another may go to Slurm together.
GATHER_SECS: Final = 0.1
#: So much of what a batch script wrote is told.
SCRIPT_BYTES: Final = 500
#: A submission of an earlier broker is kept so long for attempts that are not told yet.
KEEP_SECS: Final = 300.0


class Attempt:
    """One attempt that is not over."""

    def __init__(self, spawn: Spawn, path: str, life: Life) -> None:
        self.spawn = spawn
        self.path = path
        self.life = life
        self.options = SlurmOptions()
        self.submission: Submission | None = None
        self.index = 0
        self.last_beat = 0
        #: Its processes stand still; None: not looked at yet.
        self.paused: bool | None = None
        #: As last listed, and its place in the queue then.
        self.row: Row | None = None
        self.position: int | None = None
        #: scontrol was asked for it, or is about to be.
        self.asking = False


class Submission:
    """One batch and the attempts in it, by task."""

    def __init__(self, token: str, directory: str, tasks: list[list[str]], batch: Batch) -> None:
        self.token = token
        self.directory = directory
        self.tasks = tasks
        self.batch = batch
        self.members: dict[str, Attempt] = {}
        self.options = SlurmOptions()
        self.grace_secs = 30.0
        #: Read from files: until then its attempts may still have to be told.
        self.keep_until = 0.0

    def task_id(self, index: int) -> str:
        """Slurm's id of a task."""
        return f"{self.batch.slurm_id}_{index}" if len(self.tasks) > 1 else self.batch.slurm_id


class Book:
    """All attempts of one agent that are not over."""

    def __init__(
        self, spec: AgentSpec, say: Callable[[FromSpawner], None], flush: Callable[[], None]
    ) -> None:
        assert spec.slurm is not None, "a broker without a Slurm to speak to"
        self.spec = spec
        self.policy = spec.slurm
        #: Tells the launcher, with the next `flush`.
        self.say = say
        self.flush = flush
        self.commands = Commands(spec.slurm, spec.pass_env)
        self.pace = Pace(spec.slurm.query_secs)
        self.home = f"{spec.home}/slurm"
        self.bells = f"{self.home}/bells"
        self.attempts: dict[int, Attempt] = {}
        self.by_run_dir: dict[str, Attempt] = {}
        self.submissions: dict[str, Submission] = {}
        #: Attempts that are to be put into a batch, in the order in which they came.
        self.unsent: dict[int, Attempt] = {}
        #: Until then they wait for company.
        self.gather_until = 0.0
        #: What scancel is to be told: (Slurm's id, gently).
        self.cancels: dict[tuple[str, bool], None] = {}
        #: What scontrol is to be asked.
        self.asks: dict[str, Attempt] = {}
        #: Place in the queue by Slurm's id.
        self.positions: dict[str, int] = {}
        #: There may be something to submit.
        self.work = asyncio.Event()

    # -- taking in

    def load(self) -> None:
        """Know the submissions of before again."""
        for entry in os.scandir(self.home):
            file = slurm_files.read_batch(f"{entry.path}/batch.json")
            if file is None:
                continue
            state = slurm_files.read_state(entry.path)
            batch = Batch()
            if state.slurm_id:
                batch = Batch(phase=slurm_batch.Phase.ACCEPTED, slurm_id=state.slurm_id)
            elif state.asked:
                # whether sbatch came that far nobody can tell
                batch = Batch(phase=slurm_batch.Phase.UNSURE, unsure_since=time.monotonic(), tries=1)
            submission = Submission(file.token, entry.path, file.tasks, batch)
            submission.keep_until = time.monotonic() + KEEP_SECS
            self.submissions[file.token] = submission

    def take(self, spawn: Spawn) -> None:
        path = f"{self.spec.run_root}/{spawn.run_dir}"
        life = Life(settle_secs=self.policy.settle_secs)
        attempt = Attempt(spawn, path, life)
        for submission in self.submissions.values():
            for index, run_dirs in enumerate(submission.tasks):
                if spawn.run_dir in run_dirs:
                    return self._adopt(attempt, submission, index)
        if (
            spawn.adopt
            or slurm_files.owner_of(path) is not None
            or exit_file.read(path, spawn.jid, spawn.attempt)
        ):
            return self._resolve_unsent(attempt)
        try:
            self._prepare(attempt)
        except BadInput as exc:
            self.say(never(spawn, Reason.SUBMIT_REJECTED, str(exc)))
        except OSError as exc:
            self.say(
                never(spawn, Reason.START_FAILED, f"cannot make the run dir {spawn.run_dir}: {exc.strerror}")
            )
        return None

    def _know(self, attempt: Attempt) -> None:
        self.attempts[attempt.spawn.ticket] = attempt
        self.by_run_dir[attempt.spawn.run_dir] = attempt

    def _adopt(self, attempt: Attempt, submission: Submission, index: int) -> None:
        """It was begun by an earlier broker, or is told twice."""
        if attempt.spawn.run_dir in self.by_run_dir:
            return
        self._know(attempt)
        self.join(attempt, submission, index)
        job = slurm_files.read_job(attempt.path)
        if job is not None:
            with contextlib.suppress(BadInput):
                submission.options = attempt.options = resolve(_wanted(job), self.policy)
            submission.grace_secs = job.grace_secs
        self.look(attempt)
        if submission.batch.phase is slurm_batch.Phase.ACCEPTED and not attempt.life.slurm_id:
            self.tell(attempt, slurm_life.Accepted(time.monotonic(), submission.task_id(index)))
        self.pace.hurry()
        self.work.set()

    def _resolve_unsent(self, attempt: Attempt) -> None:
        """No submission knows it: it ended, or was never given to Slurm and never will be."""
        self._know(attempt)
        self.look(attempt)
        text = "the agent was killed before it gave this to Slurm"
        if os.path.isdir(attempt.path):
            self.tell(attempt, slurm_life.Rejected(time.monotonic(), Reason.START_FAILED, text))
        else:
            self._end(attempt, never(attempt.spawn, Reason.START_FAILED, text))

    def _prepare(self, attempt: Attempt) -> None:
        """Make the run dir with all that the job needs, and let it wait for company."""
        spawn = attempt.spawn
        attempt.options = resolve(_wanted(spawn), self.policy)
        argv = command(
            spawn.command,
            attempt.options,
            image=self.spec.environment.image,
            policy=self.policy,
            run_dir=attempt.path,
        )
        os.makedirs(attempt.path, 0o700, exist_ok=True)
        job = msgspec.structs.replace(spawn, command=argv, cpus=attempt.options.cpus_per_task or spawn.cpus)
        slurm_files.put(f"{attempt.path}/{slurm_files.JOB}", job)
        self._know(attempt)
        if not self.unsent:
            self.gather_until = time.monotonic() + GATHER_SECS
        self.unsent[spawn.ticket] = attempt
        self.situate(attempt, text="it is about to be given to Slurm")
        self.work.set()

    def join(self, attempt: Attempt, submission: Submission, index: int) -> None:
        attempt.submission, attempt.index = submission, index
        submission.members[attempt.spawn.run_dir] = attempt

    # -- submissions

    @property
    def in_slurm(self) -> int:
        return len(self.attempts) - len(self.unsent)

    def move(self, submission: Submission, batch: Batch) -> None:
        """A submission is somewhere else now: its attempts hear of it."""
        before, submission.batch = submission.batch, batch
        if batch is before:
            return
        now = time.monotonic()
        match batch.phase:
            case slurm_batch.Phase.ACCEPTED:
                self._accepted(submission)
            case slurm_batch.Phase.REFUSED:
                self.commands.counts["refused"] += 1
                for attempt in list(submission.members.values()):
                    self.tell(attempt, slurm_life.Rejected(now, Reason.SUBMIT_REJECTED, batch.said))
            case slurm_batch.Phase.UNSURE:
                self.commands.counts["unclear"] += 1
                self.pace.hurry()
                text = "whether Slurm took it is not clear; it is looked for before it is submitted again"
                for attempt in submission.members.values():
                    self.situate(attempt, text=f"{text}: {batch.said}", reason=Reason.SCHEDULER_UNAVAILABLE)
            case slurm_batch.Phase.WAITING:
                for attempt in submission.members.values():
                    self.situate(attempt, text=batch.said or "it is submitted again", reason=Reason.SCHEDULER)
                self.work.set()
        self.flush()

    def _accepted(self, submission: Submission) -> None:
        slurm_id, now = submission.batch.slurm_id, time.monotonic()
        with contextlib.suppress(OSError):
            state = slurm_files.BatchState(asked=True, slurm_id=slurm_id)
            slurm_files.put(f"{submission.directory}/state.json", state)
        known = submission.members
        for index, run_dirs in enumerate(submission.tasks):
            task_id = submission.task_id(index)
            for run_dir in run_dirs:
                attempt = known.get(run_dir)
                if attempt is None:
                    continue
                with contextlib.suppress(OSError):
                    job = slurm_files.SlurmJob(token=submission.token, slurm_id=task_id)
                    slurm_files.put(f"{attempt.path}/slurm.json", job)
                self.tell(attempt, slurm_life.Accepted(now, task_id))
                if attempt.life.phase is Phase.QUEUED:
                    self.situate(attempt, text=f"Slurm has it as job {task_id}")
            if not any(run_dir in known for run_dir in run_dirs):
                self.cancels[task_id, False] = None  # all of it was canceled while it was submitted
        self.pace.hurry()

    def forget(self, submission: Submission) -> None:
        """Its last attempt is over; what Slurm may still have of it finds nothing to do."""
        if submission.members or submission.batch.phase in (
            slurm_batch.Phase.ASKED,
            slurm_batch.Phase.UNSURE,
        ):
            return
        if time.monotonic() < submission.keep_until:
            return
        self.submissions.pop(submission.token, None)
        shutil.rmtree(submission.directory, ignore_errors=True)

    # -- attempts

    def tell(self, attempt: Attempt, event: slurm_life.Event) -> None:
        """Let it happen, and do what follows."""
        attempt.life, effects = slurm_life.step(attempt.life, event)
        for effect in effects:
            self._do(attempt, effect)

    def _do(self, attempt: Attempt, effect: slurm_life.Effect) -> None:
        if attempt.spawn.ticket not in self.attempts:
            return  # an effect before this one ended it
        match effect:
            case slurm_life.Look():
                self.look(attempt)
            case slurm_life.Withdraw():
                self._withdraw(attempt)
            case slurm_life.Ask(slurm_id=slurm_id):
                self.asks[slurm_id] = attempt
            case slurm_life.Cancel(slurm_id=slurm_id, gently=gently):
                if slurm_id:
                    self.cancels[slurm_id, gently] = None
            case slurm_life.Start(at=at):
                self.unsent.pop(attempt.spawn.ticket, None)
                self.say(Spawned(ticket=attempt.spawn.ticket, pid=0, start=0, at=at))
            case slurm_life.Say(row=row):
                self.situate_row(attempt, row)
            case slurm_life.Deliver(over=over):
                self._end(attempt, over)
            case slurm_life.Finish(fields=fields):
                over = Over(ticket=attempt.spawn.ticket, at=time.time_ns() // 1000, **fields)
                if over.reason is not None and (said := self._script_said(attempt)):
                    over.message = f"{over.message}; its script said: {said}"
                self._measure(attempt, over)
                if over.began:
                    exit_file.write(attempt.path, attempt.spawn, over)
                self._end(attempt, over)

    def look(self, attempt: Attempt) -> None:
        """What its run dir says."""
        spawn = attempt.spawn
        if (found := exit_file.read(attempt.path, spawn.jid, spawn.attempt)) is not None:
            if attempt.life.began_at is None and (owner := slurm_files.owner_of(attempt.path)) is not None:
                self._note_owner(attempt, owner)
            self.tell(attempt, slurm_life.Recorded(time.monotonic(), exit_file.as_over(found, spawn.ticket)))
            return
        if attempt.life.began_at is None:
            owner = slurm_files.owner_of(attempt.path)
            if owner is not None and owner.slurm_id:
                self._begun(attempt, owner)
        else:
            beat = slurm_files.last_beat(attempt.path)
            if beat != attempt.last_beat:
                attempt.last_beat = beat
                self.tell(attempt, slurm_life.Beat(time.monotonic()))
            paused = slurm_files.is_paused(attempt.path)
            if paused is not attempt.paused:
                attempt.paused = paused
                self.say(Paused(ticket=spawn.ticket, at=time.time_ns() // 1000, on=paused))

    def _begun(self, attempt: Attempt, owner: slurm_files.Owner) -> None:
        self._note_owner(attempt, owner)
        self.tell(attempt, slurm_life.Begun(time.monotonic(), owner.slurm_id, owner.at))

    def _note_owner(self, attempt: Attempt, owner: slurm_files.Owner) -> None:
        """The job that has the claim is the right one, whatever sbatch said."""
        submission = attempt.submission
        if not owner.slurm_id:
            return
        if owner.slurm_id != attempt.life.slurm_id:
            with contextlib.suppress(OSError):
                token = "" if submission is None else submission.token
                job = slurm_files.SlurmJob(token=token, slurm_id=owner.slurm_id)
                slurm_files.put(f"{attempt.path}/slurm.json", job)
        if submission is None:
            return
        batch = slurm_batch.found(submission.batch, owner.slurm_id.partition("_")[0])
        if batch is not submission.batch:
            self.move(submission, batch)

    def _withdraw(self, attempt: Attempt) -> None:
        owner = slurm_files.Owner(
            nonce=slurm_files.new_nonce(),
            host=os.uname().nodename,
            pid=os.getpid(),
            at=time.time_ns() // 1000,
        )
        try:
            ours = slurm_files.claim(attempt.path, owner)
            if not ours:
                found = slurm_files.owner_of(attempt.path)
                ours = found is not None and not found.slurm_id  # by us, before
        except OSError as exc:
            log(f"{attempt.path}: the claim cannot be taken: {exc.strerror}")
            return  # asked for again
        self.tell(attempt, slurm_life.Withdrawn(time.monotonic(), ours))

    def _script_said(self, attempt: Attempt) -> str:
        """The end of what the batch script itself wrote: a module is missing, a Python does not start."""
        submission = attempt.submission
        if submission is None:
            return ""
        suffix = f".{attempt.index}" if len(submission.tasks) > 1 else ""
        try:
            with open(f"{submission.directory}/out{suffix}", "rb") as file:  # noqa: PTH123
                file.seek(max(0, os.fstat(file.fileno()).st_size - SCRIPT_BYTES))
                return clip(file.read().decode(errors="replace"))
        except OSError:
            return ""

    def _measure(self, attempt: Attempt, over: Over) -> None:
        for stream in ("stdout", "stderr"):
            with contextlib.suppress(OSError):
                setattr(over, f"{stream}_bytes", os.stat(f"{attempt.path}/{stream}").st_size)

    def _end(self, attempt: Attempt, over: Over) -> None:
        spawn, submission = attempt.spawn, attempt.submission
        self.attempts.pop(spawn.ticket, None)
        self.by_run_dir.pop(spawn.run_dir, None)
        self.unsent.pop(spawn.ticket, None)
        self.say(over)
        if submission is not None:
            submission.members.pop(spawn.run_dir, None)
            self.forget(submission)

    # -- where they stand, for people

    def position(self, slurm_id: str) -> int | None:
        """Place in the queue; tasks of an array that wait stand together."""
        return self.positions.get(slurm_id) or self.positions.get(slurm_id.partition("_")[0])

    def situate_row(self, attempt: Attempt, row: Row) -> None:
        attempt.row, attempt.position = row, self.position(row.slurm_id)
        now, task = time.monotonic(), attempt.submission
        said = slurm_situation.of_row(
            row,
            begun=attempt.life.began_at is not None,
            silent_secs=slurm_life.silent_secs(attempt.life, now),
            shares=task is not None and len(task.tasks[attempt.index]) > 1,
        )
        self.situate(attempt, text=said.text, reason=said.reason, row=row, never_starts=said.never)

    def situate(
        self,
        attempt: Attempt,
        *,
        text: str,
        reason: Reason | None = Reason.SCHEDULER,
        row: Row | None = None,
        never_starts: bool = False,
    ) -> None:
        spawn = attempt.spawn
        position = attempt.position if row is not None else None
        pending = row is not None and row.state == "PENDING"
        situation = Scheduling(
            jid=spawn.jid,
            serial=spawn.serial,
            attempt=spawn.attempt,
            at=time.time_ns() // 1000,
            id=row.slurm_id if row else attempt.life.slurm_id,
            state=row.state if row else "",
            word=row.reason if row else "",
            reason=reason,
            text=text[:1000],
            never=never_starts,
            starts_at=row.starts_at * 1_000_000 if row and pending and row.starts_at else None,
            position=position if pending else None,
            queued=len(self.positions) if pending and position else None,
            nodes=row.nodes if row else "",
        )
        self.say(Situated(ticket=spawn.ticket, situation=situation))


_decode_wanted = msgspec.json.Decoder(Wanted).decode


def _wanted(spawn: Spawn) -> Wanted:
    """What the job asks of Slurm, from its spec."""
    try:
        return _decode_wanted(spawn.spec)
    except (ValueError, RecursionError) as exc:
        raise BadInput(f"slurm: {exc}") from None


def mark(path: str) -> str:
    """Tells apart the same jid in two places of one user."""
    return f"{zlib.crc32(path.encode()):08x}"


def log(text: str) -> None:
    """Into the launcher's log."""
    sys.stderr.write(f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} broker: {text}\n")
    sys.stderr.flush()
