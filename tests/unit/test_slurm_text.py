"""Slurm's answers as it gave them (22.05.8, recorded), and as it never should."""

import shlex

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sirepo_jobs.cluster import SlurmPolicy
from sirepo_jobs.errors import BadInput
from sirepo_jobs.reasons import Reason
from sirepo_jobs.resources import Resources
from sirepo_jobs.slurm_options import (
    SlurmOptions,
    Wanted,
    WantedLimits,
    check,
    command,
    cpus,
    flags,
    resolve,
    warning_secs,
)
from sirepo_jobs.slurm_states import STATES, Stage, meaning, wait
from sirepo_jobs.slurm_text import (
    SCRIPT,
    Accepted,
    Forgotten,
    NoAccounting,
    Record,
    Refused,
    Unclear,
    parse_accounts,
    parse_canceled,
    parse_listing,
    parse_order,
    parse_partitions,
    parse_shown,
    parse_submitted,
    sbatch,
    scancel,
    squeue,
)

LISTING = """\
4|4|N/A|FAILED|1795833710|1795833710|4294901756||BadConstraints|sbatch
2_1|2|1|PENDING|N/A|1795833710|4294901758||JobArrayTaskLimit|sj-a
2_2|2|2|PENDING|1795833999|1795833710|4294901758||JobArrayTaskLimit|sj-a
3|3|N/A|PENDING|N/A|1795833710|4294901757||PartitionNodeLimit|sj-b
2_0|2|0|RUNNING|1795833711|1795833710|4294901758|n[1-2]|None|sj-a
5|5|N/A|RUNNING|1795833711|1795833710|4294901755|n1|None|somebody|else's
"""
SHOWN = (
    "JobId=2 ArrayJobId=2 ArrayTaskId=1 ArrayTaskThrottle=1 JobName=sj-a UserId=root(0) GroupId=root(0) "
    "MCS_label=N/A Priority=4294901758 Nice=0 Account=(null) QOS=(null) JobState=PENDING "
    "Reason=JobArrayTaskLimit Dependency=(null) Requeue=1 Restarts=0 BatchFlag=1 Reboot=0 ExitCode=0:0 "
    "NodeList= NumNodes=1 NumCPUs=1 NumTasks=1 CPUs/Task=1 Command=(null) WorkDir=/work\n"
)
FAILED_TO = "sbatch: error: Batch job submission failed: "
POLICY = SlurmPolicy()


@pytest.mark.parametrize(
    ("rc", "out", "err", "kind"),
    [
        (0, "17\n", "", Accepted("17")),
        (0, "17;dev\n", "", Accepted("17")),
        (1, "", FAILED_TO + "Invalid partition name specified", Refused),
        (1, "", FAILED_TO + "Requested node configuration is not available\n", Refused),
        (1, "", FAILED_TO + "Memory specification can not be satisfied\n", Refused),
        (1, "", FAILED_TO + "Invalid feature specification", Refused),
        (1, "", FAILED_TO + "Invalid account or account/partition combination specified", Refused),
        (1, "", FAILED_TO + "Invalid qos specification", Refused),
        (1, "", FAILED_TO + "Node count specification invalid", Refused),
        (1, "", FAILED_TO + "Requested time limit is invalid (missing or exceeds some limit)", Refused),
        (255, "", "sbatch: unrecognized option '--bogus'\nTry \"sbatch --help\"\n", Refused),
        (255, "", "sbatch: error: Invalid --time specification\n", Refused),
        (1, "", FAILED_TO + "Job violates accounting/QOS policy (job submit limit)", Refused),
        (1, "", FAILED_TO + "Unable to contact slurm controller (connect failure)", Unclear),
        (1, "", FAILED_TO + "Socket timed out on send/recv operation", Unclear),
        (1, "", FAILED_TO + "Zero Bytes were transmitted or received", Unclear),
        (1, "", FAILED_TO + "I/O error writing script/environment to file", Unclear),
        (1, "", FAILED_TO + "Protocol authentication error", Unclear),
        (1, "", FAILED_TO + "Unexpected message received", Unclear),
        (-9, "", "", Unclear),
        (-1, "", "submits took more than 60 s", Unclear),
        (0, "", "", Unclear),
        (0, "Welcome to the cluster\n17\n", "", Unclear),
        (0, "17\n18\n", "", Unclear),
        (0, "x17", "", Unclear),
        (0, "0\n", "", Unclear),
        (1, "17\n", FAILED_TO + "Invalid partition name specified", Unclear),
        (1, "", "", Unclear),
    ],
)  # fmt: skip
def test_what_sbatch_answered(rc: int, out: str, err: str, kind: object) -> None:
    answer = parse_submitted(rc, out, err)
    assert answer == kind if isinstance(kind, Accepted) else type(answer) is kind
    if isinstance(answer, Refused):
        assert answer.text == err.strip()
        assert answer.may_pass == ("submit limit" in err)


@given(st.integers(-20, 256), st.text(), st.text())
@example(0, "1" * 500, "")
def test_nothing_but_one_number_is_an_id(rc: int, out: str, err: str) -> None:
    answer = parse_submitted(rc, out, err)
    if isinstance(answer, Accepted):
        assert rc == 0
        assert answer.slurm_id.isdecimal()
        assert out.strip().startswith(answer.slurm_id)
    else:
        assert answer.text
        assert len(answer.text) < 2100


def test_a_listing_has_ours_alone() -> None:
    listing = parse_listing(0, LISTING, "")
    assert listing is not None
    assert listing.sound
    assert [(row.slurm_id, row.token, row.task, row.state) for row in listing.rows] == [
        ("2_1", "sj-a", 1, "PENDING"),
        ("2_2", "sj-a", 2, "PENDING"),
        ("3", "sj-b", 0, "PENDING"),
        ("2_0", "sj-a", 0, "RUNNING"),
    ]
    assert listing.rows[1].starts_at == 1795833999
    assert listing.rows[0].starts_at is None
    assert listing.rows[3].nodes == "n[1-2]"


@pytest.mark.parametrize(
    ("rc", "out", "err", "said"),
    [
        (1, "", "slurm_load_jobs error: Unable to contact slurm controller (connect failure)", None),
        (1, LISTING, "", None),
        (-1, "", "queries took more than 60 s", None),
        (0, "", "", True),
        (0, "*** maintenance on Monday ***\n" + LISTING, "", False),
        (0, LISTING[:-40], "", False),
        (0, LISTING, "squeue: warning: cluster b does not answer", False),
    ],
)
def test_only_a_sound_listing_says_that_something_is_not_there(
    rc: int, out: str, err: str, said: bool | None
) -> None:
    listing = parse_listing(rc, out, err)
    assert (listing is None) if said is None else listing is not None and listing.sound is said


@given(st.data())
def test_a_cut_listing_says_no_more_than_the_whole(data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(LISTING)))
    cut = parse_listing(0, LISTING[:at], "")
    whole = parse_listing(0, LISTING, "")
    assert cut is not None
    assert whole is not None
    rows = {row.slurm_id: row for row in whole.rows}
    for row in cut.rows:
        full = rows[row.slurm_id]
        assert (row.state, row.task, row.reason) == (full.state, full.task, full.reason)
        assert full.token.startswith(row.token)  # a cut name is nobody's


@given(st.integers(0, 1), st.text(), st.text())
def test_hostile_text_raises_nothing(rc: int, out: str, err: str) -> None:
    parse_listing(rc, out, err)
    parse_shown("1", rc, out, err)
    parse_order(rc, out)
    parse_partitions(rc, out)
    parse_canceled(rc, err)
    meaning(out)
    wait(out)
    if "accounting storage is disabled" not in err.lower():
        parse_accounts(rc, out, err)


def test_one_job_is_shown_or_clearly_unknown() -> None:
    shown = parse_shown("2_1", 0, SHOWN, "")
    assert shown == Record("2_1", "PENDING", "sj-a", 1, 0)
    assert not shown.ended
    assert parse_shown("2_5", 0, SHOWN, "") is None
    unknown = "slurm_load_jobs error: Invalid job id specified\n"
    assert parse_shown("99", 1, "", unknown) == Forgotten("99")
    assert parse_shown("99", 1, "", "slurm_load_jobs error: Unable to contact slurm controller") is None
    assert parse_shown("99", 0, "", "") is None
    ended = SHOWN.replace("PENDING", "FAILED").replace("ExitCode=0:0", "ExitCode=0:9")
    assert parse_shown("2_1", 0, ended, "") == Record("2_1", "FAILED", "sj-a", 1, None, 9)


def test_accounts() -> None:
    out = "7|COMPLETED|0:0|n1|sj-x\n8_2|CANCELLED by 1000|0:15|n1|sj-y\n9|FAILED|1:0|n1|others\n"
    assert parse_accounts(0, out, "") == [
        Record("7", "COMPLETED", "sj-x", 0, 0, None, "n1"),
        Record("8_2", "CANCELLED", "sj-y", 2, None, 15, "n1"),
    ]
    assert parse_accounts(1, "", "sacct: error: Problem talking to the database: Connection refused") is None
    with pytest.raises(NoAccounting):
        parse_accounts(1, "", "Slurm accounting storage is disabled")


def test_partitions() -> None:
    found = parse_partitions(0, "debug*|up|infinite|2|8|4000|gpu:2\nshort|down|2:00|1|8|4000|(null)\n")
    assert found is not None
    assert [(one.name, one.is_default, one.up, one.nodes, one.gres) for one in found] == [
        ("debug", True, True, 2, "gpu:2"),
        ("short", False, False, 1, ""),
    ]


def test_every_state_has_a_meaning() -> None:
    documented = [  # squeue(1), JOB STATE CODES
        "BOOT_FAIL", "CANCELLED", "COMPLETED", "CONFIGURING", "COMPLETING", "DEADLINE", "FAILED", "NODE_FAIL",
        "OUT_OF_MEMORY", "PENDING", "PREEMPTED", "RUNNING", "RESV_DEL_HOLD", "REQUEUE_FED", "REQUEUE_HOLD",
        "REQUEUED", "RESIZING", "REVOKED", "SIGNALING", "SPECIAL_EXIT", "STAGE_OUT", "STOPPED", "SUSPENDED",
        "TIMEOUT",
    ]  # fmt: skip
    assert [state for state in documented if state not in STATES] == []
    assert all(about.text for about in STATES.values())
    assert meaning("CANCELLED by 1000") == meaning("CANCELLED+") == STATES["CANCELLED"]
    assert meaning("SCHROEDINGER").stage is Stage.UNKNOWN
    ended = [state for state, about in STATES.items() if about.stage is Stage.ENDED]
    assert all(STATES[state].reason for state in ended if state not in ("COMPLETED", "FAILED"))


def test_pending_reasons() -> None:
    assert wait("PartitionTimeLimit").never
    assert wait("DependencyNeverSatisfied").reason is Reason.UNSATISFIABLE
    assert wait("QOSMaxCpuPerUserLimit").reason is Reason.QUOTA
    assert wait("AssocGrpCPUMinutesLimit").reason is Reason.QUOTA
    assert wait("QOSMaxWallDurationPerJobLimit").never
    assert wait("ReqNodeNotAvail, UnavailableNodes:n1").reason is Reason.RESOURCES
    assert wait("(something new)").reason is Reason.SCHEDULER


# --- what is asked ----------------------------------------------------------------------------------


def test_options_follow_from_resources_and_limits() -> None:
    wanted = Wanted(
        resources=Resources(cpus=4, memory=8 << 30, gpus=2, nodes=2), limits=WantedLimits(hard=3590)
    )
    options = resolve(wanted, POLICY)
    assert flags(options, grace_secs=30.0) == [
        "--time=60", "--signal=B:USR1@35", "--nodes=2", "--cpus-per-task=4", "--gpus=2", "--mem=4096M",
    ]  # fmt: skip
    mpi = resolve(Wanted(resources=Resources(cpus=16), slurm=SlurmOptions(srun=True)), POLICY)
    assert (mpi.ntasks, mpi.cpus_per_task, cpus(mpi)) == (16, None, 16)
    given = resolve(
        Wanted(resources=Resources(cpus=4), slurm=SlurmOptions(time=60, ntasks=2)),
        SlurmPolicy(defaults={"partition": "long", "time": 7200}),
    )
    assert (given.partition, given.time, given.ntasks, given.cpus_per_task) == ("long", 60, 2, None)


def test_the_warning_leaves_most_of_the_time() -> None:
    assert warning_secs(SlurmOptions(time=60), 30) == 10
    assert warning_secs(SlurmOptions(time=36000), 30) == 35
    assert warning_secs(SlurmOptions(), 30) == 0


@pytest.mark.parametrize(
    ("options", "policy", "word"),
    [
        (SlurmOptions(partition="-p x"), POLICY, "not a name"),
        (SlurmOptions(partition="short"), SlurmPolicy(partitions=["long"]), "there are: long"),
        (SlurmOptions(nodes=9), SlurmPolicy(max_nodes=4), "at most 4"),
        (SlurmOptions(ntasks=9), SlurmPolicy(max_cpus=4), "at most 4"),
        (SlurmOptions(time=7200), SlurmPolicy(max_time_secs=3600.0), "at most 1h"),
        (SlurmOptions(constraint="a b"), POLICY, "no combination"),
        (SlurmOptions(mpi="pmi2"), POLICY, "srun"),
        (SlurmOptions(time=0), POLICY, "more than 0"),
        (SlurmOptions(time=float("nan")), POLICY, "more than 0"),
        (SlurmOptions(time=float("inf")), POLICY, "at most"),
        (SlurmOptions(time=1e300), POLICY, "at most"),
    ],
)
def test_what_may_not_be_asked(options: SlurmOptions, policy: SlurmPolicy, word: str) -> None:
    with pytest.raises(BadInput, match=word):
        resolve(Wanted(slurm=options), policy)


@given(st.from_type(SlurmOptions))
def test_no_option_can_be_taken_for_another(options: SlurmOptions) -> None:
    if any(check(options)):
        return
    for word in sbatch(POLICY, "sj-x", options, output="/o", grace_secs=1.0)[1:]:
        assert word.startswith("--")
        assert shlex.split(shlex.quote(word)) == [word]
        assert "\n" not in word


def test_commands() -> None:
    here = SlurmPolicy(bin_dir="/opt/slurm/bin")
    argv = sbatch(here, "sj-j-1-ab", SlurmOptions(array_limit=5), output="/h/100%/out", grace_secs=1, tasks=9)
    assert argv[0] == "/opt/slurm/bin/sbatch"
    assert {"--no-requeue", "--parsable", "--job-name=sj-j-1-ab", "--comment=sj-j-1-ab"} <= set(argv)
    assert "--array=0-8%5" in argv
    assert "--output=/h/100%%/out.%a" in argv
    assert squeue(POLICY, "0")[3:5] == ["-t", "all"]
    assert scancel(POLICY, ["1", "2_3"]) == ["scancel", "1", "2_3"]
    assert scancel(POLICY, ["1"], "TERM") == ["scancel", "--signal=TERM", "--batch", "1"]
    assert SCRIPT.startswith("#!/bin/sh\n")


def test_a_command_in_its_container_by_srun() -> None:
    def built(container: str, image: str | None = "i.sif") -> list[str]:
        policy = SlurmPolicy(container=container, bin_dir="/b")  # type: ignore[arg-type]
        return command(["lmp"], SlurmOptions(srun=True, mpi="pmi2"), image=image, policy=policy, run_dir="/r")

    srun = ["/b/srun", "--mpi=pmi2", "--kill-on-bad-exit=1", "--"]
    assert built("", None) == [*srun, "lmp"]
    assert built("apptainer") == [
        *srun,
        "apptainer",
        "exec",
        "--bind",
        "/r",
        "--pwd",
        "/r",
        "--",
        "i.sif",
        "lmp",
    ]
    assert built("shifter") == [*srun, "shifter", "--image=i.sif", "--workdir=/r", "--", "lmp"]
    with pytest.raises(BadInput, match="no containers"):
        built("")
