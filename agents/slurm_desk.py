"""The launcher's desk where the jobs are Slurm's: they are nobody's children, and outlive everything here.

The same roster, journal and outbox as for processes; a broker stands where the spawners are. What differs is
what an end of ours means: of the launcher, of the broker, of this host's boot it means nothing to the jobs.
"""

from typing import Final

from sirepo_jobs.agents.crew import Place
from sirepo_jobs.agents.desk import Desk
from sirepo_jobs.agents.journal import Intent, Past
from sirepo_jobs.agents.recovery import Recovery
from sirepo_jobs.agents.words import Counted, FromRelay, FromSpawner, Kill, Over, Pause, Situated, Spawn
from sirepo_jobs.protocol import Counters, Scheduling, Welcome
from sirepo_jobs.reasons import Reason

BROKERS: Final = 1


class SlurmDesk(Desk):
    """What one launcher knows, and what follows from what it hears."""

    #: Where attempts stand, as last told, by ticket; and what Slurm was asked.
    _situations: dict[int, Scheduling]
    _counters: Counters | None
    #: To be ended as soon as a broker is there: grace by ticket.
    _unstopped: dict[int, float]

    def _restore(self, past: Past) -> None:
        self._situations = {}
        self._counters = None
        self._unstopped = {}
        super()._restore(past)
        for ticket, intent in self._intents.items():
            entry = self._roster.of_ticket(ticket)
            if entry is not None and not intent.started_at:
                entry.state = "starting"
            self._crew.ask(self._adopted(ticket, intent))

    def _adopted(self, ticket: int, intent: Intent) -> Spawn:
        """All that the broker needs in order to find out about an attempt of before."""
        spawn = self._spawns[ticket] = Spawn(
            ticket=ticket,
            mark=intent.mark,
            jid=intent.jid,
            serial=intent.serial,
            attempt=intent.attempt,
            command=[],
            run_dir=intent.run_dir,
            progress=intent.progress,
            cpus=intent.cpus,
            adopt=True,
        )
        return spawn

    def recovery(self) -> Recovery:
        """Nothing of earlier launchers is killed, and nothing is declared lost: the broker finds out."""
        return self._recovery({})

    def adopt(self, place: Place) -> None:
        """The broker is dead; the next one goes on from its files."""
        words, _, tickets = self._crew.died(place)
        self.hear_spawner(words)
        for ticket in tickets:
            if (spawn := self._spawns.get(ticket)) is not None:
                self._crew.ask(spawn)
            entry = self._roster.of_ticket(ticket)
            if entry is not None and entry.stopping is not None:
                self._unstopped[ticket] = entry.stopping

    def _stop(self, ticket: int, grace_secs: float, reason: Reason | None = None) -> None:
        # POSIT: only the broker knows whether it has begun, so nobody else may end it.
        if not self._crew.tell(ticket, Kill(ticket=ticket, grace_secs=grace_secs)):
            self._unstopped[ticket] = grace_secs

    def _pause(self, ticket: int, *, on: bool) -> None:
        self._crew.tell(ticket, Pause(ticket=ticket, on=on))

    def leave(self) -> None:
        """SIGTERM ends the agent and cancels nothing (SIR-60)."""
        self.leaving = True

    def hear_supervisor(self, frame: FromRelay) -> None:
        """The network side has heard from the supervisor."""
        super().hear_supervisor(frame)
        if any(isinstance(message, Welcome) for message in frame.msgs):
            notes: list[Scheduling | Counters] = list(self._situations.values())
            if self._counters is not None:
                notes.append(self._counters)
            self._upstream.note(notes)

    def hear_spawner(self, words: list[FromSpawner]) -> None:
        """The broker has told something."""
        super().hear_spawner(words)
        notes: list[Scheduling | Counters] = []
        for word in words:
            if isinstance(word, Situated):
                if self._roster.of_ticket(word.ticket) is not None:
                    self._situations[word.ticket] = word.situation
                    notes.append(word.situation)
            elif isinstance(word, Counted):
                self._counters = word.counters
                notes.append(word.counters)
        self._upstream.note(notes)

    def over(self, over: Over) -> None:
        """An attempt is over."""
        self._situations.pop(over.ticket, None)
        super().over(over)

    def decide(self, now: float) -> None:
        """Once per turn, when everybody has been heard."""
        super().decide(now)
        unstopped, self._unstopped = self._unstopped, {}
        for ticket, grace_secs in unstopped.items():
            if self._roster.of_ticket(ticket) is not None:
                self._stop(ticket, grace_secs)

    def _reserve(self, now: float) -> None:
        """Slurm starts jobs; nothing is kept in reserve here."""
