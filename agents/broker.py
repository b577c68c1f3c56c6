"""Speaks with Slurm for one agent: one process beside the launcher, in the place of the spawners.

The launcher asks it as it asks a spawner, and hears of it when an attempt begins and ends. What it
remembers stands in files that its successor reads (`slurm_files`), so it may die at any moment: nothing is
canceled, and nothing is submitted twice. `slurm_life` decides about attempts and `slurm_batch` about
submissions; here it is done.
"""

import asyncio
import contextlib
import os
import shutil
import signal
import sys
import time
import zlib
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from sirepo_jobs.agents import exit_file, process, slurm_batch, slurm_files, slurm_life
from sirepo_jobs.agents.birth import never
from sirepo_jobs.agents.lane import Lane
from sirepo_jobs.agents.slurm_batch import Batch
from sirepo_jobs.agents.slurm_commands import Commands, Pace
from sirepo_jobs.agents.slurm_life import Life, Phase
from sirepo_jobs.agents.words import (
    Counted,
    FromSpawner,
    Go,
    Kill,
    Over,
    Pause,
    Paused,
    Situated,
    Spawn,
    Spawned,
    decode_to_spawner,
    pack,
)
from sirepo_jobs.driver import AgentSpec
from sirepo_jobs.errors import BadInput
from sirepo_jobs.protocol import Counters, Scheduling
from sirepo_jobs.reasons import Reason
from sirepo_jobs.slurm_options import SlurmOptions, Wanted, command, resolve, warning_secs
from sirepo_jobs.slurm_states import Stage, meaning, wait
from sirepo_jobs.slurm_text import (
    COMMAND_ENV,
    PREFIX,
    SCRIPT,
    Forgotten,
    NoAccounting,
    Record,
    Row,
    parse_accounts,
    parse_canceled,
    parse_listing,
    parse_order,
    parse_shown,
    parse_submitted,
    pending_order,
    sacct,
    sbatch,
    scancel,
    show,
    squeue,
    suspend,
)

#: Bells are looked at so often, and run dirs in turns: so many each time.
LOOK_SECS: Final = 0.25
LOOKS: Final = 40
#: Attempts that come so shortly after one another may go to Slurm together.
GATHER_SECS: Final = 0.1
#: sbatch runs at once: one that hangs shall not stop the others.
SUBMITTERS: Final = 4
#: So often are counters told while they change.
COUNT_SECS: Final = 2.0
#: Of so many ids at once is scancel told.
MAX_CANCELS: Final = 100
#: The place in the queue is asked for with every n-th listing.
ORDER_EVERY: Final = 3
#: A submission of an earlier broker is kept so long for attempts that are not told yet.
KEEP_SECS: Final = 300.0
#: The accounting is asked about so many days.
ACCOUNT_DAYS: Final = 14


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


class _Key(NamedTuple):
    options: SlurmOptions
    grace_secs: float


class Broker:
    """One broker process."""

    def __init__(self, spec: AgentSpec, lane: Lane) -> None:
        assert spec.slurm is not None, "a broker without a Slurm to speak to"
        self._spec = spec
        self._policy = spec.slurm
        self._lane = lane
        self._commands = Commands(spec.slurm, spec.pass_env)
        self._pace = Pace(spec.slurm.query_secs)
        self._home = f"{spec.home}/slurm"
        self._bells = f"{self._home}/bells"
        self._user = str(os.getuid())
        self._attempts: dict[int, Attempt] = {}
        self._by_run_dir: dict[str, Attempt] = {}
        self._submissions: dict[str, Submission] = {}
        #: Attempts that are to be put into a batch, in the order in which they came.
        self._unsent: dict[int, Attempt] = {}
        self._gather_until = 0.0
        self._cancels: dict[tuple[str, bool], None] = {}
        self._asks: dict[str, Attempt] = {}
        self._pauses: list[tuple[Attempt, bool]] = []
        self._words: list[FromSpawner] = []
        self._round: list[Attempt] = []
        #: None: not tried yet.
        self._accounting: bool | None = None
        self._positions: dict[str, int] = {}
        self._listings = 0
        self._told_counts: dict[str, int] = {}
        self._count_at = 0.0
        self._work = asyncio.Event()
        self._gone = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    async def run(self) -> None:
        """Until the launcher has hung up."""
        os.makedirs(self._bells, 0o700, exist_ok=True)
        self._load()
        self._loop.add_reader(self._lane.fileno(), self._hear)
        tasks = [
            *(asyncio.create_task(self._submit(), name=f"submit {n}") for n in range(SUBMITTERS)),
            asyncio.create_task(self._list(), name="list"),
            asyncio.create_task(self._cancel(), name="cancel"),
            asyncio.create_task(self._ask(), name="ask"),
            asyncio.create_task(self._watch(), name="watch"),
        ]
        gone = asyncio.create_task(self._gone.wait(), name="gone")
        done, _ = await asyncio.wait((*tasks, gone), return_when=asyncio.FIRST_COMPLETED)
        for task in (*tasks, gone):
            task.cancel()
        await asyncio.gather(*tasks, gone, return_exceptions=True)
        for task in done:
            if task is not gone:
                task.result()  # its own error ends this process; the next one goes on from the files

    # -- the launcher

    def _hear(self) -> None:
        for frame in self._lane.take():
            for word in decode_to_spawner(frame):
                match word:
                    case Spawn():
                        self._take(word)
                    case Kill(ticket=ticket, grace_secs=grace_secs):
                        if (attempt := self._attempts.get(ticket)) is not None:
                            self._tell(attempt, slurm_life.CancelAsked(time.monotonic(), grace_secs))
                    case Pause(ticket=ticket, on=on):
                        if (attempt := self._attempts.get(ticket)) is not None:
                            self._pauses.append((attempt, on))
                    case Go():
                        pass  # nothing is ever in reserve here
        if self._lane.closed:
            self._loop.remove_reader(self._lane.fileno())
            self._gone.set()
        else:
            self._flush()

    def _say(self, word: FromSpawner) -> None:
        self._words.append(word)

    def _flush(self) -> None:
        if self._words:
            words, self._words = self._words, []
            self._lane.put(pack(words))
        self._lane.flush()
        if self._lane.pending and not self._lane.closed:
            self._loop.add_writer(self._lane.fileno(), self._write)

    def _write(self) -> None:
        self._lane.flush()
        if not self._lane.pending:
            self._loop.remove_writer(self._lane.fileno())

    # -- taking in

    def _load(self) -> None:
        """Know the submissions of before again."""
        for entry in os.scandir(self._home):
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
            self._submissions[file.token] = submission

    def _take(self, spawn: Spawn) -> None:
        path = f"{self._spec.run_root}/{spawn.run_dir}"
        life = Life(settle_secs=self._policy.settle_secs)
        attempt = Attempt(spawn, path, life)
        for submission in self._submissions.values():
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
            self._say(never(spawn, Reason.SUBMIT_REJECTED, str(exc)))
        except OSError as exc:
            self._say(
                never(spawn, Reason.START_FAILED, f"cannot make the run dir {spawn.run_dir}: {exc.strerror}")
            )
        return None

    def _know(self, attempt: Attempt) -> None:
        self._attempts[attempt.spawn.ticket] = attempt
        self._by_run_dir[attempt.spawn.run_dir] = attempt

    def _adopt(self, attempt: Attempt, submission: Submission, index: int) -> None:
        """It was begun by an earlier broker, or is told twice."""
        if attempt.spawn.run_dir in self._by_run_dir:
            return
        self._know(attempt)
        self._join(attempt, submission, index)
        job = slurm_files.read_job(attempt.path)
        if job is not None:
            with contextlib.suppress(BadInput):
                submission.options = attempt.options = resolve(_wanted(job), self._policy)
            submission.grace_secs = job.grace_secs
        self._look(attempt)
        if submission.batch.phase is slurm_batch.Phase.ACCEPTED and not attempt.life.slurm_id:
            self._tell(attempt, slurm_life.Accepted(time.monotonic(), submission.task_id(index)))
        self._pace.hurry()
        self._work.set()

    def _resolve_unsent(self, attempt: Attempt) -> None:
        """No submission knows it: it ended, or was never given to Slurm and never will be."""
        self._know(attempt)
        self._look(attempt)
        text = "the agent was killed before it gave this to Slurm"
        if os.path.isdir(attempt.path):
            self._tell(attempt, slurm_life.Rejected(time.monotonic(), Reason.START_FAILED, text))
        else:
            self._end(attempt, never(attempt.spawn, Reason.START_FAILED, text))

    def _prepare(self, attempt: Attempt) -> None:
        """Make the run dir with all that the job needs, and let it wait for company."""
        spawn = attempt.spawn
        attempt.options = resolve(_wanted(spawn), self._policy)
        argv = command(
            spawn.command,
            attempt.options,
            image=self._spec.environment.image,
            policy=self._policy,
            run_dir=attempt.path,
        )
        os.makedirs(attempt.path, 0o700, exist_ok=True)
        job = msgspec.structs.replace(spawn, command=argv, cpus=attempt.options.cpus_per_task or spawn.cpus)
        slurm_files.put(f"{attempt.path}/{slurm_files.JOB}", job)
        self._know(attempt)
        if not self._unsent:
            self._gather_until = time.monotonic() + GATHER_SECS
        self._unsent[spawn.ticket] = attempt
        self._situate(attempt, text="it is about to be given to Slurm")
        self._work.set()

    def _join(self, attempt: Attempt, submission: Submission, index: int) -> None:
        attempt.submission, attempt.index = submission, index
        submission.members[attempt.spawn.run_dir] = attempt

    # -- submitting

    async def _submit(self) -> None:
        while True:
            submission = self._next_submission()
            if submission is None:
                self._work.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._idle_secs()):
                        await self._work.wait()
                continue
            await self._sbatch(submission)
            self._flush()

    def _idle_secs(self) -> float:
        return min(0.5, max(self._gather_until - time.monotonic(), 0.02)) if self._unsent else 0.5

    def _next_submission(self) -> Submission | None:
        """What may go to Slurm now, marked as being asked."""
        now = time.monotonic()
        due = [
            one for one in self._submissions.values()
            if one.batch.phase is slurm_batch.Phase.WAITING and one.batch.due <= now and one.members
        ]  # fmt: skip
        if not due and not (self._unsent and now >= self._gather_until):
            return None
        if self._commands.submits.wait_secs() > 0:
            return None
        submission = due[0] if due else self._gather()
        if submission is not None:
            self._commands.submits.take()
            submission.batch = slurm_batch.asked(submission.batch)
        return submission

    @property
    def _in_slurm(self) -> int:
        return len(self._attempts) - len(self._unsent)

    def _gather(self) -> Submission | None:
        """The first that waits and those that ask for the same, as many as may go: a new submission."""
        room = self._policy.max_jobs - self._in_slurm
        if room <= 0:
            return None
        first = next(iter(self._unsent.values()))
        key = _Key(first.options, first.spawn.grace_secs)
        pack_size = first.options.pack
        most = max(1, self._policy.max_array) * pack_size if first.options.array else pack_size
        company = [one for one in self._unsent.values() if _Key(one.options, one.spawn.grace_secs) == key][
            : max(1, min(most, room))
        ]
        for one in company:
            del self._unsent[one.spawn.ticket]
        dirs = [one.spawn.run_dir for one in company]
        tasks = [dirs[at : at + pack_size] for at in range(0, len(dirs), pack_size)]
        token = f"{PREFIX}{first.spawn.jid}-{first.spawn.attempt}-{_mark(first.path)}"
        submission = Submission(token, f"{self._home}/{token}", tasks, Batch())
        submission.options, submission.grace_secs = first.options, first.spawn.grace_secs
        for index, run_dirs in enumerate(tasks):
            for run_dir in run_dirs:
                self._join(self._by_run_dir[run_dir], submission, index)
        self._submissions[token] = submission
        return submission

    async def _sbatch(self, submission: Submission) -> None:
        try:
            self._write_down(submission)
        except OSError as exc:
            text = f"cannot write down what is given to Slurm: {exc.strerror}"
            submission.batch = slurm_batch.postponed(submission.batch, text, time.monotonic())
            for attempt in submission.members.values():
                self._situate(attempt, text=text, reason=Reason.DISK_FULL)
            return
        packed = max(len(dirs) for dirs in submission.tasks)
        argv = sbatch(
            self._policy,
            submission.token,
            submission.options,
            output=f"{submission.directory}/out",
            grace_secs=submission.grace_secs,
            tasks=len(submission.tasks),
            packed=packed,
        )
        said = await self._commands.run(
            "submits",
            argv,
            SCRIPT.encode(),
            env={
                "SIREPO_JOBS_BATCH": f"{submission.directory}/batch.json",
                "SIREPO_JOBS_PAYLOAD": "\n".join(payload_argv()),
                "SIREPO_JOBS_LIB": os.environ.get("PYTHONPATH", ""),
                "SIREPO_JOBS_MODULES": " ".join(self._policy.modules),
                "SIREPO_JOBS_WARNING_SECS": str(warning_secs(submission.options, submission.grace_secs)),
            },
        )
        answer = parse_submitted(said.rc, said.out, said.err)
        others = any(one.life.slurm_id for one in self._attempts.values())
        before = submission.batch
        self._move(submission, slurm_batch.answered(before, answer, time.monotonic(), others=others))

    def _write_down(self, submission: Submission) -> None:
        """Before sbatch is run, so that whoever comes after us knows of it (C1)."""
        os.makedirs(submission.directory, 0o700, exist_ok=True)
        file = slurm_files.BatchFile(
            token=submission.token, tasks=submission.tasks, run_root=self._spec.run_root, bells=self._bells
        )
        if submission.batch.tries == 1:
            slurm_files.put(f"{submission.directory}/batch.json", file, sync=True)
        slurm_files.put(f"{submission.directory}/state.json", slurm_files.BatchState(asked=True), sync=True)

    def _move(self, submission: Submission, batch: Batch) -> None:
        """A submission is somewhere else now: its attempts hear of it."""
        before, submission.batch = submission.batch, batch
        if batch is before:
            return
        now = time.monotonic()
        match batch.phase:
            case slurm_batch.Phase.ACCEPTED:
                self._accepted(submission)
            case slurm_batch.Phase.REFUSED:
                self._commands.counts["refused"] += 1
                for attempt in list(submission.members.values()):
                    self._tell(attempt, slurm_life.Rejected(now, Reason.SUBMIT_REJECTED, batch.said))
            case slurm_batch.Phase.UNSURE:
                self._commands.counts["unclear"] += 1
                self._pace.hurry()
                text = "whether Slurm took it is not clear; it is looked for before it is submitted again"
                for attempt in submission.members.values():
                    self._situate(attempt, text=f"{text}: {batch.said}", reason=Reason.SCHEDULER_UNAVAILABLE)
            case slurm_batch.Phase.WAITING:
                for attempt in submission.members.values():
                    self._situate(
                        attempt, text=batch.said or "it is submitted again", reason=Reason.SCHEDULER
                    )
                self._work.set()
        self._flush()

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
                self._tell(attempt, slurm_life.Accepted(now, task_id))
                if attempt.life.phase is Phase.QUEUED:
                    self._situate(attempt, text=f"Slurm has it as job {task_id}")
            if not any(run_dir in known for run_dir in run_dirs):
                self._cancels[task_id, False] = None  # all of it was canceled while it was submitted
        self._pace.hurry()

    # -- attempts

    def _tell(self, attempt: Attempt, event: slurm_life.Event) -> None:
        """Let it happen, and do what follows."""
        attempt.life, effects = slurm_life.step(attempt.life, event)
        for effect in effects:
            self._do(attempt, effect)

    def _do(self, attempt: Attempt, effect: slurm_life.Effect) -> None:
        if attempt.spawn.ticket not in self._attempts:
            return  # an effect before this one ended it
        match effect:
            case slurm_life.Look():
                self._look(attempt)
            case slurm_life.Withdraw():
                self._withdraw(attempt)
            case slurm_life.Ask(slurm_id=slurm_id):
                self._asks[slurm_id] = attempt
            case slurm_life.Cancel(slurm_id=slurm_id, gently=gently):
                if slurm_id:
                    self._cancels[slurm_id, gently] = None
            case slurm_life.Start(at=at):
                self._unsent.pop(attempt.spawn.ticket, None)
                self._say(Spawned(ticket=attempt.spawn.ticket, pid=0, start=0, at=at))
            case slurm_life.Say(row=row):
                self._situate_row(attempt, row)
            case slurm_life.Deliver(over=over):
                self._end(attempt, over)
            case slurm_life.Finish(fields=fields):
                over = Over(ticket=attempt.spawn.ticket, at=time.time_ns() // 1000, **fields)
                self._measure(attempt, over)
                if over.began:
                    spawn = attempt.spawn
                    exit_file.write(attempt.path, spawn.jid, spawn.serial, spawn.attempt, over)
                self._end(attempt, over)

    def _look(self, attempt: Attempt) -> None:
        """What its run dir says."""
        spawn = attempt.spawn
        if (found := exit_file.read(attempt.path, spawn.jid, spawn.attempt)) is not None:
            self._tell(attempt, slurm_life.Recorded(time.monotonic(), exit_file.as_over(found, spawn.ticket)))
            return
        if attempt.life.began_at is None:
            owner = slurm_files.owner_of(attempt.path)
            if owner is not None and owner.slurm_id:
                self._begun(attempt, owner)
        else:
            beat = slurm_files.last_beat(attempt.path)
            if beat != attempt.last_beat:
                attempt.last_beat = beat
                self._tell(attempt, slurm_life.Beat(time.monotonic()))

    def _begun(self, attempt: Attempt, owner: slurm_files.Owner) -> None:
        submission = attempt.submission
        if submission is not None:
            # the job that has the claim is the right one, whatever sbatch said
            batch = slurm_batch.found(submission.batch, owner.slurm_id.partition("_")[0])
            if batch is not submission.batch:
                self._move(submission, batch)
        if owner.slurm_id != attempt.life.slurm_id:
            with contextlib.suppress(OSError):
                token = submission.token if submission is not None else ""
                job = slurm_files.SlurmJob(token=token, slurm_id=owner.slurm_id)
                slurm_files.put(f"{attempt.path}/slurm.json", job)
        self._tell(attempt, slurm_life.Begun(time.monotonic(), owner.slurm_id, owner.at))

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
            _log(f"{attempt.path}: the claim cannot be taken: {exc.strerror}")
            return  # asked for again
        self._tell(attempt, slurm_life.Withdrawn(time.monotonic(), ours))

    def _measure(self, attempt: Attempt, over: Over) -> None:
        for stream in ("stdout", "stderr"):
            with contextlib.suppress(OSError):
                setattr(over, f"{stream}_bytes", os.stat(f"{attempt.path}/{stream}").st_size)

    def _end(self, attempt: Attempt, over: Over) -> None:
        spawn, submission = attempt.spawn, attempt.submission
        self._attempts.pop(spawn.ticket, None)
        self._by_run_dir.pop(spawn.run_dir, None)
        self._unsent.pop(spawn.ticket, None)
        self._say(over)
        if submission is not None:
            submission.members.pop(spawn.run_dir, None)
            self._forget(submission)

    def _forget(self, submission: Submission) -> None:
        """Its last attempt is over; what Slurm may still have of it finds nothing to do."""
        if submission.members or submission.batch.phase in (
            slurm_batch.Phase.ASKED,
            slurm_batch.Phase.UNSURE,
        ):
            return
        if time.monotonic() < submission.keep_until:
            return
        self._submissions.pop(submission.token, None)
        shutil.rmtree(submission.directory, ignore_errors=True)

    # -- watching the shared file system

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(LOOK_SECS)
            self._hear_bells()
            now = time.monotonic()
            for attempt in self._some():
                self._look(attempt)
                if attempt.spawn.ticket in self._attempts:
                    self._tell(attempt, slurm_life.Tick(now))
            self._count(now)
            self._flush()

    def _hear_bells(self) -> None:
        try:
            names = [entry.name for entry in os.scandir(self._bells)]
        except OSError:
            return
        if not names:
            return
        known = {(one.spawn.jid, str(one.spawn.attempt)): one for one in self._attempts.values()}
        for name in sorted(names):
            jid, _, rest = name.rpartition(".")
            jid, _, number = jid.rpartition(".")
            attempt = known.get((jid, number))
            if attempt is not None:
                self._look(attempt)
                if rest == "over" and attempt.spawn.ticket in self._attempts:
                    continue  # its record is on its way: keep the bell
            with contextlib.suppress(OSError):
                os.unlink(f"{self._bells}/{name}")

    def _some(self) -> list[Attempt]:
        """Those in doubt, and the next of all the others."""
        doubtful = [
            one for one in self._attempts.values() if one.life.phase is Phase.DOUBTFUL or one.life.withdrawn
        ]
        if not self._round:
            self._round = list(self._attempts.values())
        some, self._round = self._round[:LOOKS], self._round[LOOKS:]
        return [one for one in {*doubtful, *some} if one.spawn.ticket in self._attempts]

    # -- asking Slurm

    async def _list(self) -> None:
        while True:
            await asyncio.sleep(max(0.05, min(self._pace.due - time.monotonic(), 0.25)))
            self._sweep()
            if time.monotonic() < self._pace.due or not self._submissions:
                continue
            if not self._commands.queries.take():
                continue
            await self._listing()
            self._flush()

    def _sweep(self) -> None:
        """Submissions that ended while sbatch was under way, or of which nobody speaks any more."""
        for submission in list(self._submissions.values()):
            if not submission.members and submission.batch.phase is slurm_batch.Phase.UNSURE:
                since = submission.batch.unsure_since or 0.0
                if time.monotonic() < since + 60 * self._policy.submit_settle_secs:
                    continue  # should Slurm have it after all, a listing finds it, and scancel ends it
                submission.batch = msgspec.structs.replace(submission.batch, phase=slurm_batch.Phase.REFUSED)
            self._forget(submission)

    async def _listing(self) -> None:
        asked_at = time.monotonic()
        before = {token: one.batch.phase for token, one in self._submissions.items()}
        said = await self._commands.run("queries", squeue(self._policy, self._user), env=COMMAND_ENV)
        listing = parse_listing(said.rc, said.out, said.err)
        if listing is None:
            self._pace.unanswered()
            if self._pace.failing == 3:
                self._complain(said.err or f"squeue ended with {said.rc}")
            return
        self._listings += 1
        self._commands.counts["noise"] += listing.noise
        if self._listings % ORDER_EVERY == 1 and any(row.state == "PENDING" for row in listing.rows):
            await self._order()
        seen: set[str] = set()
        changed = False
        for row in listing.rows:
            changed = self._listed(row, seen) or changed
        if listing.sound:
            await self._not_listed(asked_at, before, seen)
        self._pace.answered(changed=changed)

    def _listed(self, row: Row, seen: set[str]) -> bool:
        submission = self._submissions.get(row.token)
        if submission is None:
            return False
        seen.add(row.token)
        batch = slurm_batch.found(submission.batch, row.slurm_id.partition("_")[0])
        if batch is not submission.batch:
            self._move(submission, batch)
        told = False
        ours = submission.tasks[row.task] if row.task < len(submission.tasks) else []
        for run_dir in ours:
            attempt = submission.members.get(run_dir)
            if attempt is not None:
                before = attempt.life.told
                seen.add(run_dir)
                self._tell(attempt, slurm_life.Listed(time.monotonic(), row))
                told = told or attempt.life.told != before
        alive = meaning(row.state).stage in (Stage.WAITING, Stage.RUNNING, Stage.PAUSED)
        if alive and not any(run_dir in submission.members for run_dir in ours):
            self._cancels[row.slurm_id, False] = None  # all that it was for is over
        return told

    async def _not_listed(
        self, asked_at: float, before: dict[str, slurm_batch.Phase], seen: set[str]
    ) -> None:
        """A sound answer has them not: of an unsure batch that may mean No, of an accepted job doubt."""
        unsure = [
            one for token, one in self._submissions.items()
            if token not in seen and before.get(token) is slurm_batch.Phase.UNSURE
        ]  # fmt: skip
        accounts = await self._accounts([one.token for one in unsure]) if unsure else []
        for submission in unsure:
            mine = [record for record in accounts or [] if record.token == submission.token]
            if mine:
                batch = slurm_batch.found(submission.batch, mine[0].slurm_id.partition("_")[0])
            elif accounts is None:
                continue
            else:
                batch = slurm_batch.unknown(submission.batch, asked_at, self._policy.submit_settle_secs)
            self._move(submission, batch)
        for attempt in list(self._attempts.values()):
            mine_in = attempt.submission
            if (
                mine_in is not None
                and attempt.spawn.run_dir not in seen
                and before.get(mine_in.token) is slurm_batch.Phase.ACCEPTED
            ):
                self._tell(attempt, slurm_life.Missing(time.monotonic()))

    async def _accounts(self, tokens: list[str]) -> list[Record] | None:
        """What the accounting has of these names; None when it does not answer, empty when there is none."""
        if self._accounting is False:
            return []
        said = await self._commands.run(
            "accounts", sacct(self._policy, self._user, tokens, ACCOUNT_DAYS), env=COMMAND_ENV
        )
        try:
            records = parse_accounts(said.rc, said.out, said.err)
        except NoAccounting:
            self._accounting = False
            return []
        self._accounting = self._accounting or records is not None
        # A site that never had any answers in many ways; one that had some is waited for.
        return [] if records is None and self._accounting is None else records

    async def _ask(self) -> None:
        """Single jobs: those whose end a listing suggests, and that left no record."""
        while True:
            if not self._asks or not self._commands.queries.take():
                await asyncio.sleep(0.1)
                continue
            slurm_id = next(iter(self._asks))
            attempt = self._asks.pop(slurm_id)
            if attempt.spawn.ticket not in self._attempts:
                continue
            said = await self._commands.run("asks", show(self._policy, slurm_id), env=COMMAND_ENV)
            answer = parse_shown(slurm_id, said.rc, said.out, said.err)
            if isinstance(answer, Record) and attempt.submission and answer.token != attempt.submission.token:
                answer = Forgotten(slurm_id)  # the id is somebody else's now (F124)
            if isinstance(answer, Forgotten) and attempt.submission is not None:
                answer = await self._accounted(attempt, answer)
            if answer is not None and attempt.spawn.ticket in self._attempts:
                self._tell(attempt, slurm_life.Told(time.monotonic(), answer))
                self._flush()

    async def _accounted(self, attempt: Attempt, answer: Forgotten) -> Record | Forgotten | None:
        assert attempt.submission is not None
        records = await self._accounts([attempt.submission.token])
        if records is None:
            return None
        mine = [one for one in records if one.slurm_id == answer.slurm_id]
        return mine[-1] if mine else answer

    async def _order(self) -> None:
        said = await self._commands.run("queries", pending_order(self._policy), env=COMMAND_ENV)
        order = parse_order(said.rc, said.out)
        if order is not None:
            self._positions = {slurm_id: place for place, slurm_id in enumerate(order, 1)}

    def _complain(self, text: str) -> None:
        for attempt in self._attempts.values():
            if attempt.life.phase is Phase.QUEUED:
                self._situate(
                    attempt,
                    text=f"Slurm does not answer; its job is looked after as soon as it does: {text.strip()}",
                    reason=Reason.SCHEDULER_UNAVAILABLE,
                )

    # -- cancel, suspend

    async def _cancel(self) -> None:
        while True:
            while self._pauses:
                await self._pause(*self._pauses.pop(0))
            if not self._cancels:
                await asyncio.sleep(0.05)
                continue
            for gently in (False, True):
                ids = [one for one, how in self._cancels if how is gently][:MAX_CANCELS]
                for one in ids:
                    del self._cancels[one, gently]
                if ids:
                    said = await self._commands.run(
                        "cancels", scancel(self._policy, ids, "TERM" if gently else ""), env=COMMAND_ENV
                    )
                    if not parse_canceled(said.rc, said.err):
                        _log(f"scancel of {len(ids)} jobs: {said.err.strip()[:200]}")
            self._pace.hurry()

    async def _pause(self, attempt: Attempt, on: bool) -> None:
        if attempt.life.phase is not Phase.RUNNING:
            return
        said = await self._commands.run("cancels", suspend(self._policy, attempt.life.slurm_id, on=on))
        if said.rc == 0 and attempt.spawn.ticket in self._attempts:
            self._say(Paused(ticket=attempt.spawn.ticket, at=time.time_ns() // 1000, on=on))
            self._flush()

    # -- telling

    def _situate_row(self, attempt: Attempt, row: Row) -> None:
        about = meaning(row.state)
        if about.stage is Stage.WAITING:
            why = wait(row.reason)
            text = why.text or f"Slurm gives the reason {row.reason}"
            reason, never_starts = why.reason, why.never
            if row.state != "PENDING":
                text, reason, never_starts = about.text, Reason.SCHEDULER, False
        else:
            text, reason, never_starts = about.text or f"Slurm says {row.state}", None, False
        word = f" ({row.reason})" if about.stage is Stage.WAITING and row.reason else ""
        self._situate(
            attempt,
            text=f"Slurm job {row.slurm_id} is {row.state}{word}: {text}",
            reason=reason,
            row=row,
            never_starts=never_starts,
        )

    def _situate(
        self,
        attempt: Attempt,
        *,
        text: str,
        reason: Reason | None = Reason.SCHEDULER,
        row: Row | None = None,
        never_starts: bool = False,
    ) -> None:
        spawn = attempt.spawn
        parent = row.slurm_id.partition("_")[0] if row else ""
        position = (self._positions.get(row.slurm_id) or self._positions.get(parent)) if row else None
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
            queued=len(self._positions) if pending and position else None,
            nodes=row.nodes if row else "",
        )
        self._say(Situated(ticket=spawn.ticket, situation=situation))

    def _count(self, now: float) -> None:
        if now < self._count_at:
            return
        counts = {
            **self._commands.counts,
            "in_slurm": self._in_slurm,
            "waiting": len(self._unsent),
            "running": sum(one.life.phase is Phase.RUNNING for one in self._attempts.values()),
        }
        if counts != self._told_counts:
            self._told_counts, self._count_at = counts, now + COUNT_SECS
            self._say(Counted(counters=Counters(at=time.time_ns() // 1000, counts=counts)))


_decode_wanted = msgspec.json.Decoder(Wanted).decode


def _wanted(spawn: Spawn) -> Wanted:
    """What the job asks of Slurm, from its spec."""
    try:
        return _decode_wanted(spawn.spec)
    except msgspec.DecodeError as exc:
        raise BadInput(f"slurm: {exc}") from None


def _mark(path: str) -> str:
    """Tells apart the same jid in two places of one user."""
    return f"{zlib.crc32(path.encode()):08x}"


def payload_argv() -> list[str]:
    """How this very program is started with the verb that compute nodes want."""
    words = Path("/proc/self/cmdline").read_bytes().decode(errors="surrogateescape").split("\0")[:-1]
    if words[-1:] in (["start"], ["run"]):
        return [*words[:-1], "payload"]
    return [sys.executable, "-P", "-m", "sirepo_jobs.agents", "payload"]


def _log(text: str) -> None:
    sys.stderr.write(f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} broker: {text}\n")
    sys.stderr.flush()


def main(spec: AgentSpec, lane: Lane) -> None:
    """The whole life of a broker process, just forked from the launcher."""
    process.set_name("sj-broker")
    process.die_with_parent()
    process.hide_memory()
    os.umask(0o077)
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, lambda *_: None)

    async def run() -> None:
        await Broker(spec, lane).run()

    asyncio.run(run())
