"""Seeded bugs, as data: what a tired programmer could have written, and which harness must say so (F158).

Each changes one text that stands exactly once in its file. `SIM` means the simulation; anything else is what
pytest is given. `bin/mutants` applies each to a copy of the tree.
"""

from typing import Final, NamedTuple

SIM: Final = "sim"


class Mutant(NamedTuple):
    """One bug."""

    name: str
    file: str
    old: str
    new: str
    caught_by: str = SIM


MUTANTS: Final = (
    # -- what is promised before it is true
    Mutant(
        "accepted before it is durable",
        "sirepo_jobs/intake.py",
        '        await self._supervisor.commits.written(then)\n        failpoints.hit("submit.after_commit")',
        '        failpoints.hit("submit.after_commit")',
    ),
    Mutant(
        "a key that was used is taken for new",
        "sirepo_jobs/intake.py",
        "            self._known.add(user, row.key)\n",
        "",
        "tests/integration/test_supervisor.py",
    ),
    Mutant(
        "records acknowledged before their commit",
        "sirepo_jobs/agent_talk.py",
        "self._supervisor.commits.after(partial(_acknowledge, line, last))",
        "line.acknowledge(last)",
    ),
    Mutant(
        "sent before the intent is durable",
        "sirepo_jobs/dispatch.py",
        "        self._supervisor.commits.after(partial(self._supervisor.orders.run, job, job.record.attempt))\n",
        "        self._supervisor.orders.run(job, job.record.attempt)\n",
    ),
    Mutant(
        "records told before they are on disk",
        "agents/outbox.py",
        "if kept.seq > self._synced or (records and size > max_bytes):",
        "if records and size > max_bytes:",
        "tests/unit/test_agent_journal.py",
    ),
    Mutant(
        "events shown before they are durable",
        "sirepo_jobs/supervisor.py",
        "        self.commits.unit.events.append(row)\n",
        "        self.commits.unit.events.append(row)\n        self.events.publish([row])\n",
    ),
    # -- slots
    Mutant(
        "a slot is given back twice",
        "sirepo_jobs/slots.py",
        "        need = self._held.pop(holder, None)\n",
        "        need = self._held.get(holder)\n",
        "tests/unit/test_slots_scheduler.py",
    ),
    Mutant(
        "a slot is never given back",
        "sirepo_jobs/op.py",
        "            op.pool.give_back(op)\n            self.wake",
        "            self.wake",
    ),
    Mutant(
        "nobody is woken when slots are free",
        "sirepo_jobs/op.py",
        "            op.pool.give_back(op)\n            self.wake((Need.CPUS, op.pool.name))",
        "            op.pool.give_back(op)",
    ),
    Mutant(
        "slots are taken though they are not free",
        "sirepo_jobs/slots.py",
        "        if not need.fits(self.free):\n            return False\n        self.adopt",
        "        self.adopt",
    ),
    Mutant(
        "the successor of one that never began has no slots",
        "sirepo_jobs/agent_talk.py",
        "        if message.successor and job.op is not None:\n",
        "        if message.began and message.successor and job.op is not None:\n",
        "tests/integration/test_found_by_simulation.py",
    ),
    Mutant(
        "a run dir stays taken",
        "sirepo_jobs/op.py",
        "            del self._run_dirs[op.jid]\n",
        "",
    ),
    Mutant(
        "a standby op is counted for ever",
        "sirepo_jobs/op.py",
        "            op.standby = False\n            op.place.standbys -= 1\n",
        "            op.standby = False\n",
    ),
    # -- fences
    Mutant(
        "epoch and session are not looked at",
        "sirepo_jobs/agent_line.py",
        "elif (frame.epoch, frame.session) != (self._supervisor.store.epoch, self.session):",
        "elif False:",
        "tests/unit/test_agent_line.py",
    ),
    Mutant(
        "the agent listens to old sessions",
        "agents/session.py",
        "            if (received.epoch, received.session) == (self._epoch, self._session):",
        "            if True:",
        "tests/integration/test_launcher_order.py",
    ),
    Mutant(
        "a stale attempt is accepted",
        "sirepo_jobs/lifecycle.py",
        '    if event.serial == job.serial and event.attempt == job.attempt:\n        return ""\n',
        '    return ""\n',
        "tests/unit/test_lifecycle.py",
    ),
    Mutant(
        "a known attempt is begun again",
        "agents/roster.py",
        '        if entry is not None:\n            return [TellAgain(key)] if entry.state == "ended" else []\n',
        '        if entry is not None and entry.state == "ended":\n            return [TellAgain(key)]\n',
    ),
    Mutant(
        "the end is final no more",
        "sirepo_jobs/lifecycle.py",
        "        if job.state in FINAL and event.fenced:\n",
        "        if job.state in FINAL and event.fenced and not isinstance(event, Exited):\n",
        "tests/unit/test_lifecycle.py",
    ),
    Mutant(
        "any agent may speak of any job",
        "sirepo_jobs/agent_talk.py",
        "job.record.state not in HELD_BY_AGENT or job.record.agent != agent.name:",
        "job.record.state not in HELD_BY_AGENT:",
        "tests/integration/test_supervisor_races.py tests/integration/test_supervisor.py",
    ),
    Mutant(
        "an agent that came back without records is told to run again",
        "sirepo_jobs/agent_talk.py",
        "                if fresh:\n                    self.lost",
        "                if False:\n                    self.lost",
        "tests/integration/test_leases.py",
    ),
    Mutant(
        "what is canceled starts after all",
        "agents/roster.py",
        "        if key in self._canceled:\n",
        "        if False:\n",
        "tests/unit/test_agent_roster.py",
    ),
    Mutant(
        "a record twice is news",
        "sirepo_jobs/agent_talk.py",
        "            return isinstance(message, protocol.Exited)\n",
        "            return True\n",
        "tests/integration/test_found_by_simulation.py",
    ),
    Mutant(
        "a gap in the records is no matter",
        "sirepo_jobs/agent_talk.py",
        "        if agent.heard is not None and seq > agent.heard + 1:",
        "        if False:",
        "tests/integration/test_found_by_simulation.py",
    ),
    # -- the outbox and the journal
    Mutant(
        "an outbox with a gap",
        "agents/outbox.py",
        "        self._sent = self.acked\n",
        "        self._sent = max(self.acked, self._sent)\n",
    ),
    Mutant(
        "the process is asked for before the intent",
        "agents/desk.py",
        "        self._journal.intend(intent)\n        spawn = ",
        "        spawn = ",
    ),
    Mutant(
        "acknowledged records are said again after a crash",
        "agents/journal.py",
        "        while past.kept and past.kept[0][0].seq <= past.acked:\n            past.kept.popleft()\n",
        "",
    ),
    Mutant(
        "a line that was changed is believed",
        "agents/journal.py",
        '        if len(line) < 11 or b"%08x" % zlib.crc32(line[9:]) != line[:8]:\n            break\n',
        "",
        "tests/unit/test_agent_journal.py",
    ),
    Mutant(
        "what stands behind a lost line comes back",
        "agents/journal.py",
        "            os.ftruncate(self._fd, good)\n            self._ahead = good\n",
        "            pass\n",
        "tests/unit/test_agent_journal.py",
    ),
    Mutant(
        "a launcher tells what the one before had not synced",
        "agents/journal.py",
        "        os.fdatasync(self._fd)\n        if past is None:\n",
        "        if past is None:\n",
        "tests/unit/test_agent_journal.py",
    ),
    Mutant(
        "lines are told without a sync",
        "agents/journal.py",
        "            return False\n        os.fdatasync(self._fd)\n",
        "            return False\n",
    ),
    Mutant(
        "an attempt of before a crash is never forgotten",
        "agents/journal.py",
        "        past.kept.append((Kept(record.seq, payload, key if isinstance(record, Exited) else None), record))",
        "        past.kept.append((Kept(record.seq, payload, None), record))",
    ),
    Mutant(
        "the numbers begin anew after a crash",
        "agents/journal.py",
        "        past.last_seq = record.seq\n",
        "",
    ),
    # -- truth
    Mutant(
        "a killed launcher's attempts are called successful",
        "agents/recovery.py",
        '            proof="boot_changed" if self._rebooted else "launcher_lost",',
        '            exit_code=0,\n            proof="wait_status",',
    ),
    Mutant(
        "with each connection a slow reader gets a further window",
        "sirepo_jobs/output.py",
        "        reading.chunks.clear()\n        reading.offset -= waiting\n        reading.untaken -= waiting\n",
        "",
        "tests/unit/test_output_model.py",
    ),
    Mutant(
        "one that is sent again runs at once beside others",
        "sirepo_jobs/agent_talk.py",
        "        for op in unsent:\n",
        "        for op in unsent[:0]:\n",
        "tests/integration/test_found_by_simulation.py",
    ),
    Mutant(
        "a second recovery does not know whom the first has killed",
        "agents/recovery.py",
        "{ticket for ticket, intent in intents.items() if intent.condemned}",
        "set[int]()",
        "tests/unit/test_agent_launcher.py",
    ),
    Mutant(
        "what was killed is called by its exit record",
        "agents/recovery.py",
        "        if self._rebooted or not self._open:\n            return False\n",
        "        return False\n",
    ),
    Mutant(
        "a hello that was long on its way is believed",
        "sirepo_jobs/agent_talk.py",
        "        if not (fresh or rebooted) and hello.made_at and hello.made_at <= agent.hello_made_at:",
        "        if False:",
        "tests/integration/test_found_by_simulation.py",
    ),
    Mutant(
        "what may have begun before a reboot is begun again",
        "sirepo_jobs/agent_talk.py",
        "                if item is None and rebooted and record.started_at is None",
        "                if False and record.started_at is None",
        "tests/integration/test_found_by_simulation.py",
    ),
    Mutant(
        "a job that is looked at leaves memory",
        "sirepo_jobs/compute_job.py",
        "                self.release(job)  # it may stand among those that may go\n",
        "",
        "tests/integration/test_found_by_simulation.py",
    ),
    Mutant(
        "leftovers live on",
        "agents/nursery.py",
        "                remaining.add(owner.ticket)\n                _kill_leftover(pid)",
        "                pass",
    ),
    Mutant(
        "a signal is an exit code",
        "agents/child.py",
        "        signal=-code if code < 0 else None,",
        "        signal=None,",
    ),
    Mutant(
        "whatever ends after a cancel is canceled",
        "sirepo_jobs/lifecycle.py",
        "    if job.stopping and event.stopped and event.reason is not Reason.TIME_LIMIT:",
        "    if job.stopping:",
    ),
    Mutant(
        "we end it, and it is not said",
        "agents/nursery.py",
        "        child.stopped = True\n        child.reason = reason\n",
        "        child.reason = reason\n",
    ),
    Mutant(
        "a silent agent's jobs have failed",
        "sirepo_jobs/lifecycle.py",
        "    return replace(job, state=S.LOST, reason=event.reason, situation=event.message), ()",
        "    return replace(job, state=S.ERROR, reason=event.reason, situation=event.message), ()",
        "tests/unit/test_lifecycle.py",
    ),
    # -- nobody is forgotten
    Mutant(
        "what was said to a lost connection is not said again",
        "sirepo_jobs/agent_talk.py",
        "                    self._supervisor.commits.after(partial(self._supervisor.orders.run, job, record.attempt))\n",
        "",
    ),
    Mutant(
        "a cancel is not repeated to an agent that comes back",
        "sirepo_jobs/agent_talk.py",
        "            self._supervisor.commits.after(say)\n",
        "            pass\n",
        "tests/integration/test_found_by_simulation.py",
    ),
    Mutant(
        "after a restart nobody is taken to run",
        "sirepo_jobs/supervisor.py",
        " and not job.spec.resources.fits(agent.pool.free)\n",
        "\n",
        "tests/integration/test_found_by_simulation.py",
    ),
    Mutant(
        "heartbeats are confirmed by whoever hears them",
        "sirepo_jobs/renewals.py",
        "                await self._supervisor.store.check_ours()\n",
        "                pass\n",
        "tests/integration/test_found_by_simulation.py",
    ),
    Mutant(
        "one that came while a page was read is forgotten",
        "sirepo_jobs/scheduler.py",
        "            entries = [entry for entry in entries if entry[:2] < first]\n",
        "            pass\n",
        "tests/unit/test_slots_scheduler.py",
    ),
    Mutant(
        "the queue is not read after a restart",
        "sirepo_jobs/supervisor.py",
        "            self.scheduler.expect_rows(user)\n",
        "            pass\n",
    ),
    Mutant(
        "a job that failed is not queued again",
        "sirepo_jobs/lifecycle.py",
        "        return replace(new, failures=failures), (EndAttempt(reason, situation), Enqueue())",
        "        return replace(new, failures=failures), (EndAttempt(reason, situation),)",
    ),
    Mutant(
        "a reader is not taken up again after a cut",
        "sirepo_jobs/output.py",
        "            else:\n                self._resume(reading)",
        "            else:\n                pass",
    ),
    Mutant(
        "chunks that do not fit are taken",
        "sirepo_jobs/output.py",
        "or reading.agent is not agent or offset != reading.offset:",
        "or reading.agent is not agent:",
    ),
    Mutant(
        "a full disk keeps the launcher busy",
        "agents/desk.py",
        "        return self._next_sync if self._outbox.unsynced and not self.disk_full else None",
        "        return self._next_sync if self._outbox.unsynced else None",
        "tests/unit/test_desk.py",
    ),
    Mutant(
        "an agent that ends costs jobs their starts",
        "sirepo_jobs/lifecycle.py",
        "(not job.stopping and event.reason is not Reason.DRAINING)",
        "(not job.stopping)",
        "tests/integration/test_found_by_simulation.py",
    ),
)
