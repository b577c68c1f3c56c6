"""Units and resource vectors: pure arithmetic, shared by the supervisor and the agent (SYS-30, SYS-31).

Inside, memory and disk are whole bytes and durations are float seconds. People may write
`"1 GiB"`, `"100GB"`, `"90m"`, `"1h 30m"`, `"01:30:00"` or Slurm's `"1-00:00:00"`.
"""

import math
import re

from msgspec import Struct

from .errors import BadInput

_BYTE_UNITS = {
    "": 1,
    "b": 1,
    **{f"{p}b": 1000**i for i, p in enumerate("kmgtp", 1)},
    **{p: 1000**i for i, p in enumerate("kmgtp", 1)},
    **{f"{p}ib": 1024**i for i, p in enumerate("kmgtp", 1)},
}
_SECOND_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}

_BYTES = re.compile(r"(\d+(?:\.\d+)?)\s*([a-zA-Z]*)")
_PARTS = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)\s*")
_CLOCK = re.compile(r"(?:(\d+)-)?(\d+):(\d{2}):(\d{2})")

#: Nothing real is larger: a guard against typing errors and overflow.
MAX_BYTES = 1 << 60
MAX_SECS = 10 * 365 * 86400.0


class Resources(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What one attempt needs, or what a pool has."""

    cpus: int = 1
    #: Bytes; 0 = no claim made.
    memory: int = 0
    gpus: int = 0
    #: Bytes of run-dir space; 0 = no claim made.
    disk: int = 0
    nodes: int = 1

    def fits(self, free: "Resources") -> bool:
        """Whether this need can be met out of `free` (nodes are the driver's affair)."""
        return (
            self.cpus <= free.cpus
            and self.memory <= free.memory
            and self.gpus <= free.gpus
            and self.disk <= free.disk
        )

    def plus(self, other: "Resources", sign: int = 1) -> "Resources":
        """The sum, or with `sign=-1` the difference, which may go below zero."""
        return Resources(
            cpus=self.cpus + sign * other.cpus,
            memory=self.memory + sign * other.memory,
            gpus=self.gpus + sign * other.gpus,
            disk=self.disk + sign * other.disk,
            nodes=self.nodes,
        )

    def shortage(self, free: "Resources") -> str:
        """One phrase per resource that `free` lacks, with both numbers; "" when it fits."""
        return ", ".join(
            f"{name}: needs {show(need)}, {show(have)} free"
            for name, need, have, show in (
                ("cpus", self.cpus, free.cpus, str),
                ("memory", self.memory, free.memory, format_bytes),
                ("gpus", self.gpus, free.gpus, str),
                ("disk", self.disk, free.disk, format_bytes),
            )
            if need > have
        )


def parse_bytes(value: object) -> int:
    """Whole bytes of `4096`, `"1 GiB"`, `"100GB"` or `"4G"` (decimal without the i)."""
    if isinstance(value, int) and not isinstance(value, bool):
        number, unit = float(value), ""
    elif isinstance(value, str) and (found := _BYTES.fullmatch(value.strip())):
        number, unit = float(found[1]), found[2].lower()
    else:
        raise BadInput(f"{value!r} is not a size; write bytes or a text like '512 MiB' or '4GB'")
    if unit not in _BYTE_UNITS:
        raise BadInput(f"{value!r}: unit {unit!r} is unknown; use B, kB, MB, GB, TB, KiB, MiB, GiB or TiB")
    size = number * _BYTE_UNITS[unit]
    if not 0 <= size <= MAX_BYTES:
        raise BadInput(f"{value!r} is not a possible size; it must lie between 0 and 1024 PiB")
    return int(size + 0.5)


def parse_secs(value: object) -> float:
    """Seconds of `90`, `1.5`, `"90m"`, `"1h 30m"`, `"01:30:00"` or `"1-00:00:00"`."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        secs = float(value)
    elif isinstance(value, str):
        secs = _secs_of_text(value.strip().lower())
    else:
        secs = math.nan
    if not 0 <= secs <= MAX_SECS:  # NaN fails this too
        raise BadInput(
            f"{value!r} is not a duration between 0 and 10 years; "
            "write seconds or a text like '90m', '1h 30m' or '01:30:00'"
        )
    return secs


def _secs_of_text(text: str) -> float:
    if found := _CLOCK.fullmatch(text):
        days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
        return float(((days * 24 + hours) * 60 + minutes) * 60 + seconds)
    if text.replace(".", "", 1).isdecimal() and text.isascii():
        return float(text)
    parts = _PARTS.findall(text)
    if not parts or "".join(_PARTS.split(text)[::3]).strip():
        return math.nan
    return sum(float(number) * _SECOND_UNITS[unit] for number, unit in parts)


def format_bytes(size: int) -> str:
    """`1536` -> `1.5 KiB`: for people."""
    number = float(size)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(number) < 1024:
            return f"{number:.4g} {unit}"
        number /= 1024
    return f"{number:.4g} TiB"


def format_secs(secs: float) -> str:
    """`5400.0` -> `1h 30m`: for people; two units at most."""
    if secs < 60:
        return f"{secs:.3g}s"
    whole = round(secs)
    parts = []
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        count, whole = divmod(whole, size)
        if count:
            parts.append(f"{count}{unit}")
    return " ".join(parts[:2])
