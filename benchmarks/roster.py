"""Who takes part, with which settings, and in what: data."""

from dataclasses import dataclass, field

#: Workloads, and how much of each in a full run and in a quick one.
COUNTS = {
    "throughput": (5000, 500),
    "throughput_single": (5000, 500),
    "latency": (300, 50),
    "submit": (10_000, 2000),
    "requests": (3000, 300),
    "log_follow": (200, 50),
}
#: What the numbers of a workload are.
UNITS = {
    "throughput": "jobs/s",
    "throughput_single": "jobs/s",
    "latency": "ms",
    "submit": "jobs/s",
    "requests": "requests/s",
    "log_follow": "MB/s",
}
_BOTH = ("throughput", "latency")


@dataclass(frozen=True, kw_only=True)
class Contestant:
    """One row of the results."""

    name: str
    #: limit | ours | peer
    kind: str
    #: File in `contestants/`, and its arguments.
    script: str
    words: tuple[str, ...] = ()
    workloads: tuple[str, ...] = _BOTH
    #: What pip puts into its environment; those with the same list share one. Empty: the project's own.
    packages: tuple[str, ...] = ()
    #: Programs it needs, and the Debian packages that bring them.
    programs: dict[str, str] = field(default_factory=dict)
    environ: dict[str, str] = field(default_factory=dict)
    #: Whether an accepted job outlives a crash of the queue.
    durable: bool = False
    #: Less of everything: one job takes it so long that the full number would take minutes.
    share: float = 1.0


def _on_redis(
    name: str, script: str, package: str, *words: str, keep: str = "none", share: float = 1.0
) -> Contestant:
    return Contestant(
        name=name,
        kind="peer",
        script=script,
        words=words,
        packages=(package,),
        programs={"redis-server": "redis-server"},
        environ={"BENCH_PERSISTENCE": keep},
        durable=keep == "always",
        share=share,
    )


ROSTER = (
    Contestant(
        name="limit: C posix_spawn, 2 spawners",
        kind="limit",
        script="limit.py",
        workloads=("throughput", "latency", "log_follow"),
        programs={"cc": "gcc libc6-dev"},
    ),
    Contestant(
        name="limit: the same with a run dir and two files",
        kind="limit",
        script="limit.py",
        words=("files",),
        workloads=("throughput",),
        programs={"cc": "gcc libc6-dev"},
    ),
    Contestant(
        name="sirepo_jobs",
        kind="ours",
        script="ours.py",
        workloads=("throughput", "throughput_single", "latency", "submit", "requests", "log_follow"),
        durable=True,
    ),
    _on_redis("huey, no persistence", "huey_peer.py", "huey[redis]"),
    _on_redis("Dramatiq, 2 x 8 threads, no persistence", "dramatiq_peer.py", "dramatiq[redis]", "8"),
    _on_redis("Celery, no persistence", "celery_peer.py", "celery[redis]", share=0.4),
    _on_redis("Celery, durable", "celery_peer.py", "celery[redis]", keep="always", share=0.2),
    _on_redis("RQ, no persistence", "rq_peer.py", "rq", share=0.2),
    Contestant(name="Ray", kind="peer", script="ray_peer.py", packages=("ray[default]",)),
    Contestant(name="Parsl", kind="peer", script="parsl_peer.py", packages=("parsl",), share=0.4),
    Contestant(name="Dask", kind="peer", script="dask_peer.py", packages=("distributed",), share=0.4),
    Contestant(
        name="HyperQueue", kind="peer", script="hyperqueue_peer.py", packages=("hyperqueue",), share=0.4
    ),
    Contestant(
        name="Procrastinate on PostgreSQL",
        kind="peer",
        script="procrastinate_peer.py",
        packages=("procrastinate", "psycopg[binary,pool]"),
        durable=True,
        share=0.2,
    ),
    Contestant(
        name="GNU parallel",
        kind="peer",
        script="parallel_peer.py",
        programs={"parallel": "parallel"},
        share=0.2,
    ),
    Contestant(
        name="Slurm: srun, arrays by sbatch",
        kind="peer",
        script="slurm_peer.py",
        durable=True,
        share=0.04,
    ),
)
