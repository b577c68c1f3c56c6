"""What a user wants to be another way about a job that exists: `PATCH /jobs` (merge patch, RFC 7396)."""

import msgspec
from msgspec import Struct

from .errors import BadInput, TooLarge
from .spec import JID, JobSpec, Limits, check, limits_of
from .wording import check_keys, check_part, decode, explained, kind_of

#: In one request.
MAX_CHANGES = 1000


class Changes(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What is to be another way about a job: what is left out stays, null takes away (RFC 7396)."""

    jid: str = ""
    name: str | None = None
    priority: int | None = None
    tags: dict[str, str | None] = {}
    limits: dict[str, float | None] = {}

    @property
    def what(self) -> list[str]:
        """The fields that are spoken of."""
        said = {"name": self.name is not None, "priority": self.priority is not None}
        said |= {"tags": bool(self.tags), "limits": bool(self.limits)}
        return [name for name, is_said in said.items() if is_said]


def parse_change(body: bytes) -> Changes:
    """A `PATCH /jobs/{jid}` body. Raises `BadInput`."""
    raw = decode(body)
    if isinstance(raw, dict) and "jid" in raw:
        raise BadInput("the jid stands in the path; leave it out here", pointer="/jid")
    return _change(raw, "")


def parse_changes(body: bytes) -> list[Changes]:
    """A `PATCH /jobs` body: a list of changes, or `{"updates": [...]}`, where `_id` may stand for `jid`."""
    raw = decode(body)
    pointer = ""
    if isinstance(raw, dict) and list(raw) == ["updates"]:
        raw, pointer = raw["updates"], "/updates"
    if not isinstance(raw, list):
        raise BadInput('send a list: [{"jid": "...", "priority": 7}, ...]', pointer=pointer)
    if not 0 < len(raw) <= MAX_CHANGES:
        raise TooLarge(
            f"there are {len(raw)} changes; send 1 to {MAX_CHANGES} in one request", pointer=pointer
        )
    changes = []
    for place, item in enumerate(raw):
        if isinstance(item, dict) and "_id" in item and "jid" not in item:
            item = {"jid": item["_id"], **{k: v for k, v in item.items() if k != "_id"}}
        change = _change(item, f"{pointer}/{place}")
        if not JID.fullmatch(change.jid):
            raise BadInput("each change names its job: jid", pointer=f"{pointer}/{place}/jid")
        changes.append(change)
    if len({change.jid for change in changes}) < len(changes):
        raise BadInput("the same jid stands twice", pointer=pointer)
    return changes


def _change(raw: object, pointer: str) -> Changes:
    if not isinstance(raw, dict):
        raise BadInput(f"a change is a JSON object, not {kind_of(raw)}", pointer=pointer)
    check_keys(raw, Changes, pointer)
    words = dict(raw)
    check_part(words.get("limits"), Limits, f"{pointer}/limits")
    if isinstance(limits := words.get("limits"), dict):
        # null takes a limit away, so it is kept
        gone = {name: None for name, value in limits.items() if value is None}
        words["limits"] = limits_of(limits, f"{pointer}/limits") | gone
    try:
        changes = msgspec.convert({k: v for k, v in words.items() if v is not None}, Changes)
    except msgspec.ValidationError as exc:
        message, place = explained(str(exc), pointer)
        raise BadInput(message, pointer=place) from None
    if not changes.what:
        raise BadInput("nothing is to be changed; name, priority, tags and limits can be", pointer=pointer)
    alone = msgspec.structs.replace(changes, limits={})
    changed(JobSpec(command=["true"]), alone, pointer)  # what is wrong in itself is refused at once
    return changes


def changed(spec: JobSpec, changes: Changes, pointer: str = "") -> JobSpec:
    """The spec with the changes in it. Raises `BadInput` when it could not have been accepted so."""
    limits = msgspec.to_builtins(spec.limits) | changes.limits
    tags = spec.tags | changes.tags
    new = msgspec.structs.replace(
        spec,
        name=spec.name if changes.name is None else changes.name,
        priority=spec.priority if changes.priority is None else changes.priority,
        tags={name: value for name, value in tags.items() if value is not None},
        limits=msgspec.convert({name: secs for name, secs in limits.items() if secs is not None}, Limits),
    )
    check(new, pointer)
    return new
