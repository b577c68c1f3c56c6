"""What runs on the other side: the launcher, its spawners and the agent.

    start.py      the command that a driver runs: daemonises the launcher, or finds the one that lives
    launcher.py   parent of everything: one loop, no network
      desk.py       what is said comes here, is decided, written down and passed on
      roster.py     pure: which attempts there are, and when each starts
      outbox.py     pure: records until they are acknowledged
      journal.py    what must be remembered through the launcher's death
      recovery.py   what became of attempts that an earlier launcher began
      crew.py       the spawners, as the launcher sees them; slate.py: what they have in hand
      upstream.py   the network side, as the launcher sees it
    spawner.py    parent of jobs: one small loop, two of them
      birth.py      how an attempt becomes a process
      nursery.py    waits, keeps limits, leaves nothing behind
      crowd.py      when to count processes, and whose they are; pens.py: the kernel's limit on them
      child.py      one attempt whose main process is our child; how its end is told; exit_file.py: exit.json
      containment.py, oom.py: what a container of our own used; whether its memory ran out
    broker.py     instead of the spawners where jobs are Slurm's: one loop, no children but Slurm's commands
      slurm_desk.py the launcher's desk then
      slurm_book.py what is known; slurm_life.py, slurm_batch.py: pure: how attempts and submissions go on,
                    slurm_end.py: what is told of one that left no record
      slurm_situation.py pure: where an attempt stands, in words for people
      slurm_submitter.py, slurm_asker.py, slurm_commands.py: sbatch, squeue and the like, within limits
      slurm_files.py claims, bells and submissions on the shared file system
    payload.py    inside a Slurm job: claims, runs and records the attempt
    agent.py      the network side: connects out, again for ever
      session.py    one connection; link.py: to the launcher; attempts.py: what lives
      unrenewed.py  pure: orders with a lease wait until that is surely renewed
      readings.py   outputs by offset; progress.py; run_tree.py of the floor below: opened safely
      file_readings.py other files, in ranges; listing.py: what lies there; archive.py: all of it as a zip
      hang.py       file systems that do not answer are noticed, and not waited for again
    handover.py   one agent for a home that several login nodes share
    bundles.py    versions of the agent that lie on a cluster, and the end of those that nobody needs
    relay.py      carries one caller of a socket over standard streams, for a driver
    words.py      words between these processes; lane.py: how they travel; process.py: facts from /proc

Only the standard library, websockets, msgspec, floor 1 and the driver's AgentSpec are imported (design 2).
"""
