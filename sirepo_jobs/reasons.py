"""Why a job is where it is: the closed list of machine-readable reasons (SYS-08, peers' condition codes).

A reason says whose fault it is and whether trying the same again may help. The human sentence
beside it is the job's `situation`.
"""

from enum import StrEnum
from typing import NamedTuple


class Fault(StrEnum):
    """Who must act so that it does not happen again."""

    USER = "user"
    SYSTEM = "system"
    POLICY = "policy"


class About(NamedTuple):
    """What is fixed about a reason."""

    fault: Fault
    #: The same request may succeed when tried again unchanged.
    retryable: bool


class Reason(StrEnum):
    """Every word that may stand in a job's `reason`."""

    # why it waits
    RESOURCES = "RESOURCES"
    PRIORITY = "PRIORITY"
    QUOTA = "QUOTA"
    DEPENDENCY = "DEPENDENCY"
    HELD = "HELD"
    BEGIN_TIME = "BEGIN_TIME"
    AGENT_STARTING = "AGENT_STARTING"
    AGENT_UNREACHABLE = "AGENT_UNREACHABLE"
    AUTH_REQUIRED = "AUTH_REQUIRED"
    SCHEDULER = "SCHEDULER"
    RATE_LIMIT = "RATE_LIMIT"
    DRAINING = "DRAINING"
    RETRYING = "RETRYING"
    # why it ended, or is ending
    EXIT_NONZERO = "EXIT_NONZERO"
    SIGNALED = "SIGNALED"
    COMMAND_NOT_FOUND = "COMMAND_NOT_FOUND"
    COMMAND_NOT_EXECUTABLE = "COMMAND_NOT_EXECUTABLE"
    OUT_OF_MEMORY = "OUT_OF_MEMORY"
    TIME_LIMIT = "TIME_LIMIT"
    DISK_FULL = "DISK_FULL"
    OUTPUT_LIMIT = "OUTPUT_LIMIT"
    PROCESS_LIMIT = "PROCESS_LIMIT"
    IMAGE_PULL_FAILED = "IMAGE_PULL_FAILED"
    INSTALL_FAILED = "INSTALL_FAILED"
    BUILD_FAILED = "BUILD_FAILED"
    STAGE_IN_FAILED = "STAGE_IN_FAILED"
    STAGE_OUT_FAILED = "STAGE_OUT_FAILED"
    HOOK_FAILED = "HOOK_FAILED"
    SUBMIT_REJECTED = "SUBMIT_REJECTED"
    UNSATISFIABLE = "UNSATISFIABLE"
    NODE_FAILED = "NODE_FAILED"
    AGENT_LOST = "AGENT_LOST"
    LAUNCH_FAILED = "LAUNCH_FAILED"
    START_FAILED = "START_FAILED"
    PREEMPTED = "PREEMPTED"
    ALLOCATION_EXPIRED = "ALLOCATION_EXPIRED"
    CANCELED_BY_USER = "CANCELED_BY_USER"
    CANCELED_BY_ADMIN = "CANCELED_BY_ADMIN"
    DEPENDENCY_FAILED = "DEPENDENCY_FAILED"
    GANG_MEMBER_FAILED = "GANG_MEMBER_FAILED"
    QUOTA_EXCEEDED = "QUOTA_EXCEEDED"
    AUTH_EXPIRED = "AUTH_EXPIRED"
    SCHEDULER_UNAVAILABLE = "SCHEDULER_UNAVAILABLE"
    POISONED = "POISONED"
    INTERNAL_ERROR = "INTERNAL_ERROR"

    @property
    def about(self) -> About:
        """Fault and retryability of this reason."""
        return _ABOUT[self]


_USER = About(Fault.USER, retryable=False)
_USER_RETRY = About(Fault.USER, retryable=True)
_SYSTEM = About(Fault.SYSTEM, retryable=False)
_SYSTEM_RETRY = About(Fault.SYSTEM, retryable=True)
_POLICY = About(Fault.POLICY, retryable=False)
_POLICY_RETRY = About(Fault.POLICY, retryable=True)

_ABOUT: dict[Reason, About] = {
    Reason.RESOURCES: _POLICY_RETRY,
    Reason.PRIORITY: _POLICY_RETRY,
    Reason.QUOTA: _POLICY_RETRY,
    Reason.DEPENDENCY: _USER_RETRY,
    Reason.HELD: _USER_RETRY,
    Reason.BEGIN_TIME: _USER_RETRY,
    Reason.AGENT_STARTING: _SYSTEM_RETRY,
    Reason.AGENT_UNREACHABLE: _SYSTEM_RETRY,
    Reason.AUTH_REQUIRED: _USER_RETRY,
    Reason.SCHEDULER: _SYSTEM_RETRY,
    Reason.RATE_LIMIT: _POLICY_RETRY,
    Reason.DRAINING: _POLICY_RETRY,
    Reason.RETRYING: _SYSTEM_RETRY,
    Reason.EXIT_NONZERO: _USER_RETRY,
    Reason.SIGNALED: _USER_RETRY,
    Reason.COMMAND_NOT_FOUND: _USER,
    Reason.COMMAND_NOT_EXECUTABLE: _USER,
    Reason.OUT_OF_MEMORY: _USER_RETRY,
    Reason.TIME_LIMIT: _USER_RETRY,
    Reason.DISK_FULL: _SYSTEM_RETRY,
    Reason.OUTPUT_LIMIT: _USER,
    Reason.PROCESS_LIMIT: _USER,
    Reason.IMAGE_PULL_FAILED: _USER_RETRY,
    Reason.INSTALL_FAILED: _USER,
    Reason.BUILD_FAILED: _USER,
    Reason.STAGE_IN_FAILED: _USER_RETRY,
    Reason.STAGE_OUT_FAILED: _USER_RETRY,
    Reason.HOOK_FAILED: _POLICY,
    Reason.SUBMIT_REJECTED: _USER,
    Reason.UNSATISFIABLE: _USER,
    Reason.NODE_FAILED: _SYSTEM_RETRY,
    Reason.AGENT_LOST: _SYSTEM_RETRY,
    Reason.LAUNCH_FAILED: _SYSTEM_RETRY,
    Reason.START_FAILED: _SYSTEM_RETRY,
    Reason.PREEMPTED: _POLICY_RETRY,
    Reason.ALLOCATION_EXPIRED: _POLICY_RETRY,
    Reason.CANCELED_BY_USER: _USER,
    Reason.CANCELED_BY_ADMIN: _POLICY,
    Reason.DEPENDENCY_FAILED: _USER,
    Reason.GANG_MEMBER_FAILED: _USER,
    Reason.QUOTA_EXCEEDED: _POLICY,
    Reason.AUTH_EXPIRED: _USER_RETRY,
    Reason.SCHEDULER_UNAVAILABLE: _SYSTEM_RETRY,
    Reason.POISONED: _USER,
    Reason.INTERNAL_ERROR: _SYSTEM,
}
