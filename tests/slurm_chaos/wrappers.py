"""Slurm's own commands, with faults that they cannot be told to have.

Each wrapper does the real thing, or not, and then says something else. What they do stands in a file, so that
a test can change it while they run.
"""

import shutil
from pathlib import Path

#: Ways in which the answer of sbatch is lost. The job is in Slurm each time but the last.
LOST = ("error", "hang", "silent", "noise", "killed", "half", "before")

_SBATCH = """\
#!/bin/sh
# The first submission of each token meets the fault that its number chooses; the next ones are honest.
here={here}
for word in "$@"; do case $word in --job-name=*) token=${{word#--job-name=}} ;; esac; done
faults=$(cat $here/sbatch.faults 2>/dev/null)
[ -n "$faults" ] && mkdir $here/seen/$token 2>/dev/null || exec {real} "$@"
set -- "$(( $(echo "$token" | cksum | cut -d' ' -f1) % $(echo $faults | wc -w) + 1 ))" "$@"
nth=$1; shift
fault=$(echo $faults | cut -d' ' -f$nth)
echo $fault >$here/seen/$token/fault
[ $fault = before ] || {real} "$@" >$here/seen/$token/id
case $fault in
    error) echo "sbatch: error: Batch job submission failed: Socket timed out on send/recv" >&2; exit 1 ;;
    before) echo "sbatch: error: Batch job submission failed: Unable to contact controller" >&2; exit 1 ;;
    hang) exec sleep 600 ;;
    silent) exit 0 ;;
    noise) echo "*** Welcome to our cluster ***"; cat $here/seen/$token/id; echo "It is Saturday."; exit 0 ;;
    killed) kill -9 $$ ;;
    half) printf 'x%s' "$(cat $here/seen/$token/id)"; exit 0 ;;
esac
"""

_SQUEUE = """\
#!/bin/sh
here={here}
case $(cat $here/squeue.fault 2>/dev/null) in
    fails) echo "slurm_load_jobs error: Unable to contact slurm controller (connect failure)" >&2; exit 1 ;;
    empty) exit 0 ;;
    hangs) exec sleep 600 ;;
    banner) echo "*** maintenance on Monday ***"; exit 0 ;;
    cut) {real} "$@" | head -c 300; exit 0 ;;
    lies) {real} "$@" | sed 's/|RUNNING|/|FAILED|/; s/|PENDING|/|CANCELLED|/' ; exit 0 ;;
    babble) {real} "$@" | sed 's/|RUNNING|/|GONE_FISHING|/; s/|PENDING|/|SCHROEDINGER|/' ; exit 0 ;;
    *) exec {real} "$@" ;;
esac
"""
#: What squeue may be told to do.
SQUEUE = ("fails", "empty", "hangs", "banner", "cut", "lies", "babble")


class Wrappers:
    """A directory of Slurm's commands for `SlurmPolicy.bin_dir`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        (directory / "seen").mkdir(parents=True)
        for name in ("sbatch", "squeue", "scancel", "scontrol", "sacct", "srun", "sinfo"):
            real = shutil.which(name)
            assert real is not None, f"{name} is missing"
            text = {"sbatch": _SBATCH, "squeue": _SQUEUE}.get(name)
            if text is None:
                (directory / name).symlink_to(real)
            else:
                (directory / name).write_text(text.format(here=directory, real=real))
                (directory / name).chmod(0o755)

    def lose(self, *faults: str) -> None:
        """From now on the first submission of each token meets one of these."""
        (self.directory / "sbatch.faults").write_text(" ".join(faults))

    def squeue(self, fault: str = "") -> None:
        """From now on squeue does so; "" = what it is told."""
        part = self.directory / "squeue.part"
        part.write_text(fault)
        part.rename(self.directory / "squeue.fault")

    def met(self) -> dict[str, str]:
        """Token to the fault that its first submission met."""
        return {path.parent.name: path.read_text().strip() for path in self.directory.glob("seen/*/fault")}
