"""PURE: which engine has whom, by pools of engines that do not overlap (SIR-42).

A user is in the pool that names them, else in the one of `*`, else outside of all pools, with the engines
that stand in none. Nobody is ever placed on engines of others.
"""

from collections import Counter
from collections.abc import Mapping
from typing import Final

from msgspec import Struct

from sirepo_jobs.errors import BadInput

#: In a pool's users: everybody whom no other pool names.
EVERYBODY: Final = "*"


class PoolPolicy(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Engines that are for some users alone."""

    #: None: its users wait, as while the last engine is being repaired.
    engines: list[str]
    #: `*`: everybody whom no other pool names. None: its engines get nobody new.
    users: list[str]


def check_pools(pools: Mapping[str, PoolPolicy], engines: Mapping[str, object]) -> None:
    """Raises `BadInput` unless each engine and each user is in one pool at most, and all engines exist."""
    engine_in: dict[str, str] = {}
    user_in: dict[str, str] = {}
    for name, pool in pools.items():
        for engine in pool.engines:
            if engine not in engines:
                there_are = ", ".join(sorted(engines))
                raise BadInput(f"pools.{name}: there is no engine {engine!r}; there are: {there_are}")
        for what, words, taken in (("engine", pool.engines, engine_in), ("user", pool.users, user_in)):
            for word in words:
                if (other := taken.setdefault(word, name)) != name:
                    raise BadInput(
                        f"pools.{name}: {what} {word!r} is in pool {other!r} already; pools may not overlap"
                    )
    free = sorted(set(engines) - set(engine_in))
    if EVERYBODY in user_in and free:
        raise BadInput(
            f"engines.{free[0]} is in no pool and would serve nobody, since pool {user_in[EVERYBODY]!r} has"
            " everybody else ('*'); name it in a pool"
        )


class Placement:
    """Who is on which engine. All containers of one user are started on one engine."""

    def __init__(self, cpus: Mapping[str, int], pools: Mapping[str, PoolPolicy]) -> None:
        """`cpus`: of each engine. The pools have passed `check_pools`."""
        self._cpus = dict(cpus)
        self._pools = {name: list(pool.engines) for name, pool in pools.items()}
        self._pool_of = {user: name for name, pool in pools.items() for user in pool.users}
        in_pools = {engine for pool in pools.values() for engine in pool.engines}
        self._free = [name for name in cpus if name not in in_pools]
        #: user -> engine
        self._hosts: dict[str, str] = {}
        #: Engines that did not answer when they were asked last.
        self._silent: set[str] = set()
        #: Users who have had something on their engine: they cannot move.
        self._settled: set[str] = set()

    def pool_of(self, user: str) -> str | None:
        """The pool of that user; None outside of all pools."""
        return self._pool_of.get(user, self._pool_of.get(EVERYBODY))

    def engines_of(self, user: str) -> list[str]:
        """The engines that may have this user's containers."""
        pool = self.pool_of(user)
        return self._free if pool is None else self._pools[pool]

    def host_of(self, user: str) -> str:
        """The engine that has this user's agents, else the one of theirs with the fewest users per cpu.

        An engine that did not answer gets nobody new; whoever lives there waits for it. "" where no engine
        may have them.
        """
        if (known := self._hosts.get(user)) is not None:
            return known
        if not (theirs := self.engines_of(user)):
            return ""
        fit = [name for name in theirs if name not in self._silent]
        if not fit:  # all of them are asked again
            fit = theirs
            self._silent.difference_update(theirs)
        users = Counter(self._hosts.values())
        best = min(fit, key=lambda name: (users[name] / self._cpus[name], name))
        self._hosts[user] = best
        return best

    def remember(self, user: str, engine: str) -> None:
        """An agent of before the restart is there: its user stays, unless their pool is another by now.

        Then that agent goes on where it is, and what is started from now on is started in the pool.
        """
        if engine in self.engines_of(user):
            self._hosts[user] = engine
            self._settled.add(user)

    def answered(self, user: str, engine: str) -> None:
        """The user has something there from now on."""
        self._silent.discard(engine)
        if self._hosts.get(user) == engine:
            self._settled.add(user)

    def fell_silent(self, user: str, engine: str) -> None:
        """It did not answer: a user who has nothing there yet is placed anew."""
        self._silent.add(engine)
        if user not in self._settled and self._hosts.get(user) == engine:
            del self._hosts[user]

    def why_nowhere(self, user: str) -> str:
        """For a user whom no engine may have: why, and who can change it."""
        if (pool := self.pool_of(user)) is not None:
            return (
                f"pool {pool!r}, which user {user!r} is in, has no engine; the administrator can give it"
                " one in docker_file"
            )
        return (
            f"user {user!r} is in no pool, and every engine is kept for the users of a pool; the"
            " administrator can name the user, or '*', in a pool of docker_file"
        )

    def bounds(self, user: str) -> str:
        """Words behind an engine's trouble: where else the user could go; "" outside of all pools."""
        if (pool := self.pool_of(user)) is None:
            return ""
        others = [name for name in self._pools[pool] if name not in self._silent]
        if others:
            return ""
        return f" (no engine of pool {pool!r}, which user {user!r} is in, answers now)"
