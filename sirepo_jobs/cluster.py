"""A cluster as its administrators see it: where to log in, what may be asked of it, and how often (SIR-43,
SIR-57).

One policy per cluster, read from one file that an administrator of the cluster can read too
(`cluster_file.py`). The SSH half stays with the driver; the Slurm half travels to the agent.
"""

from typing import Literal

from msgspec import Struct

#: Ways of proving who one is, in the order in which they are tried.
AuthKind = Literal["key", "keyboard-interactive", "password"]
#: How an agent reaches the supervisor: by itself, through the SSH connection, or over its standard streams.
Reach = Literal["direct", "forward", "stdio"]


class SshPolicy(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Where and how to log in. Paths name files of the supervisor's machine, `root` one of the cluster's."""

    host: str
    port: int = 22
    #: `host` or `host:port`, outermost first; their keys stand in `known_hosts` too.
    jump_hosts: list[str] = []
    #: Keys or certificate authorities of every host above (S56). A host that is not in it is not talked to.
    known_hosts: str
    auth: tuple[AuthKind, ...] = ("key", "keyboard-interactive", "password")
    #: User there of a user of the service, `{user}` filled in. Who logs in with credentials of their own may
    #: name another.
    username: str = "{user}"
    #: Private key of the service for a user, `{user}` filled in; "" where users bring their own credentials.
    #: SECURITY: used for `username` only, so it must be a key of that user alone.
    key_file: str = ""
    #: Directory of ours on the cluster, seen by login and compute nodes; `{user}` (its user there) must be in
    #: it unless it begins with `~/`, the user's home.
    root: str = "~/.sirepo_jobs"
    #: Tried in this order until the agent calls.
    reach: tuple[Reach, ...] = ("direct", "forward", "stdio")
    #: How the cluster reaches the agents' door: `wss://HOST:PORT/agent`; "" for the service's own word.
    agent_url: str = ""
    connect_secs: float = 20.0
    #: For a human to type a code.
    prompt_secs: float = 120.0
    #: A connection that is silent for three times as long is dead.
    keepalive_secs: float = 15.0
    #: Logins of one user in any 24 hours, failed ones too.
    logins_per_day: int = 50
    #: Sessions at once on one connection; sshd allows ten (MaxSessions).
    max_sessions: int = 6


class SlurmPolicy(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What may be asked of Slurm. Told to the agent at its start."""

    #: Directory of sbatch, squeue, scancel and sacct; "" = found by PATH.
    bin_dir: str = ""
    #: Variables that these commands need, such as SLURM_CONF.
    env: dict[str, str] = {}
    #: Allowed partitions, accounts and qualities of service; empty = those that Slurm allows.
    partitions: list[str] = []
    accounts: list[str] = []
    qos: list[str] = []
    #: Options for jobs that do not give them, by their name in a spec's `slurm`.
    defaults: dict[str, str | int] = {}
    #: Least time between two queries of one user.
    query_secs: float = 30.0
    #: Queries of all kinds; most of them are the one that `query_secs` paces.
    queries_per_minute: int = 20
    #: Runs of sbatch; jobs that ask for the same go together, as one array.
    submits_per_minute: int = 60
    #: Jobs of one user in Slurm's queue at once, waiting and running.
    max_jobs: int = 500
    #: Tasks of one array (Slurm's MaxArraySize less one, or fewer); 1 = every job by itself.
    max_array: int = 1000
    #: A command of Slurm that takes longer is given up, and has said nothing.
    command_secs: float = 60.0
    #: So long may a file take from a compute node to the login node.
    settle_secs: float = 60.0
    #: So long may Slurm take until it lists what it has accepted.
    submit_settle_secs: float = 15.0
    #: Limits of one job; 0 = Slurm's own.
    max_nodes: int = 0
    max_cpus: int = 0
    max_time_secs: float = 0.0
    #: Environment modules loaded before a job's command.
    modules: list[str] = []
    #: What runs a job's `image`; "" = images are refused.
    container: Literal["", "apptainer", "shifter"] = ""


class ClusterPolicy(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Everything about one cluster."""

    #: A short name, `[a-z][a-z0-9_]*`; stands in names of agents and in specs.
    name: str
    #: One line for people.
    description: str = ""
    ssh: SshPolicy
    slurm: SlurmPolicy = SlurmPolicy()
    #: Jobs are processes of the host itself: a workstation without Slurm. Never for a login node.
    processes: bool = False
