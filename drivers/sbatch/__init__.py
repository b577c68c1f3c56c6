"""Agents on the login nodes of Slurm clusters, over SSH, with nothing installed there (SIR-43..45).

driver.py        launch, look, stop; and what the doors need: logins, checks
session.py       one user on one cluster: the one connection, its coming back, why there is none
conversation.py  a login while a human answers; logins.py: how many there were
ssh.py           the room around asyncssh
tunnel.py        how an agent there reaches the supervisor here
remote.py        what is said in a shell there, and how answers are read
stage.py         our directory and the bundle there; checks.py: whether all is well
"""

from sirepo_jobs.drivers.sbatch.driver import SbatchDriver

__all__ = ["SbatchDriver"]
