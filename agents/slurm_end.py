"""What is told of an attempt in Slurm that left no exit record: Slurm's word is all there is. Pure.

Each function returns fields of `words.Over`. `verdict` is what Slurm said when asked about this one job,
`canceled` whether somebody had wanted it to end.
"""

from typing import Any

from sirepo_jobs.reasons import Reason
from sirepo_jobs.slurm_states import meaning
from sirepo_jobs.slurm_text import NOTHING_TO_DO, Forgotten, Record


def unbegun(
    verdict: Record | Forgotten | None, reason: Reason | None, message: str, *, canceled: bool
) -> dict[str, Any]:
    """Nobody else can have its claim any more. `reason` and `message`: of a refusal, where there was one."""
    if canceled:
        reason, message = None, "canceled before it began"
    elif not message:
        reason, message = _why_unbegun(verdict)
    return {
        "reason": reason,
        "message": message,
        "stopped": canceled,
        "began": False,
        "proof": "never_claimed",
    }


def _why_unbegun(verdict: Record | Forgotten | None) -> tuple[Reason, str]:
    if isinstance(verdict, Record):
        about = meaning(verdict.state)
        reason = about.reason or Reason.START_FAILED
        return reason, f"Slurm job {verdict.slurm_id} ended before it began: {about.text} ({verdict.state})"
    return Reason.START_FAILED, "Slurm does not know its job any more, and it had not begun"


def unrecorded(
    verdict: Record | Forgotten | None, slurm_id: str, began_at: int | None, *, canceled: bool
) -> dict[str, Any]:
    """It began, and its record had time to appear."""
    fields: dict[str, Any] = {"began": True, "started_at": began_at, "proof": "scheduler"}
    if isinstance(verdict, Record):
        return fields | _as_said(verdict, canceled=canceled)
    fields["stopped"] = canceled
    fields["reason"] = None if canceled else Reason.NODE_FAILED
    fields["message"] = (
        f"Slurm does not know job {slurm_id} any more, it gives no sign of life, "
        "and it left no exit record: its node may have failed"
    )
    return fields


def _as_said(verdict: Record, *, canceled: bool) -> dict[str, Any]:
    about = meaning(verdict.state)
    stopped = verdict.state == "CANCELLED" and canceled
    fields: dict[str, Any] = {
        "stopped": stopped,
        "exit_code": verdict.exit_code,
        "signal": verdict.signal,
        "reason": None if stopped else about.reason,
        "message": f"Slurm job {verdict.slurm_id}: {about.text} ({verdict.state})",
    }
    if verdict.exit_code == NOTHING_TO_DO:
        # Slurm started it a second time, under the same id, and the claim stopped that one (F121)
        fields["exit_code"] = None
        fields["reason"] = Reason.NODE_FAILED
        fields["message"] = f"Slurm job {verdict.slurm_id} was killed without a record and started again"
    elif verdict.state == "COMPLETED" or (about.reason is None and verdict.exit_code == 0):
        # its exit code is not the command's: a copy that found the claim taken ends well too
        fields["exit_code"] = None
        fields["reason"] = Reason.AGENT_LOST
        fields["message"] += ", and it left no exit record: its last writes may have failed"
    elif about.reason is not None:
        fields["exit_code"] = fields["signal"] = None
    return fields
