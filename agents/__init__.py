"""What runs on the other side: the launcher, its spawners and the agent.

    start.py     the command that a driver runs: daemonises the launcher, or finds the one that lives
    launcher.py  parent of everything: journal, order of starts, records until they are acknowledged
    spawner.py   parent of jobs: starts them, waits for them, leaves nothing of them behind
    agent.py     the network side: a thin relay, and the reader of outputs

Only the standard library, websockets, msgspec and floor 1 are imported here (design 2).
"""
