"""Agents in containers, on one Docker engine or many (SIR-42, HYS-13..17).

driver.py     launch, look, stop
placement.py  PURE: which engine serves whom, by pools
policy.py     what administrators say: engines, pools, limits, mounts, who is whom
places.py     where files are, here and in volumes
examine.py    what is wrong with an engine
mounts.py     which directories of a host a container may see
container.py  PURE: what a container is, from policy, image and AgentSpec
images.py     how an image comes to an engine, once for all who want it
engine.py     the room around aiodocker: one engine, its answers and its silences
"""

from sirepo_jobs.drivers.docker.driver import DockerDriver

__all__ = ["DockerDriver"]
