"""What is said on a login node, and how the answers are read: constant POSIX scripts, whatever the login
shell is and whatever its start files print (F139, S59).

A script goes to `/bin/sh` on its standard input, so nothing of it stands in an argv. What it says is framed
by a mark that is new each time; everything outside the frame is noise. The only texts that are put into a
script are paths and words that `plain` let through.
"""

import re
import secrets
from typing import Final, NamedTuple

from sirepo_jobs.errors import LaunchError

#: Takes a script on its standard input in every shell there is.
SHELL: Final = "exec /bin/sh"
_PLAIN: Final = re.compile(r"[A-Za-z0-9_./+@=-]{1,400}")
#: Longest path that a unix socket may have, with some room.
MAX_SOCKET_CHARS: Final = 100

_FRAME: Final = """LC_ALL=C; export LC_ALL; umask 077
M={mark}; say() {{ echo "$M $*"; }}
say begin
( {script}
) 2>&1 </dev/null
say end $?
"""

_PROBE: Final = """say user $(id -un); say uid $(id -u); say node $(uname -n); say machine $(uname -m)
say boot $(cat /proc/sys/kernel/random/boot_id); say home "$HOME"
root={root}; case $root in '~/'*) root=$HOME/${{root#'~/'}};; esac
say root "$root"
mkdir -p "$root/bundles" "$root/agents" "$root/jobs" || exit 11
[ -O "$root" ] || {{ say foreign; exit 12; }}
chmod 700 "$root" || exit 13
dd if=/dev/zero of="$root/.room.$$" bs=65536 count=16 || {{ rm -f "$root/.room.$$"; exit 14; }}
rm -f "$root/.room.$$"
for tool in tar gzip sha256sum setsid; do command -v $tool >/dev/null || say lacks $tool; done
for tool in sbatch squeue scancel sacct; do
  if [ -x {bin}/$tool ]; then say has $tool {bin}/$tool
  else found=$(command -v $tool) && say has $tool "$found"; fi
done
if [ -f "$root/bundles/{version}/bin/agent" ]; then say bundle; fi
say bundles $(ls "$root/bundles" | wc -l)
say free $(df -Pk "$root" | tail -n 1)
exit 0"""

_UNPACK: Final = """root={root}; cd "$root/bundles" || exit 11
trap 'rm -rf ".{version}.{mark}"; rm -f "{file}"' EXIT
sum=$(sha256sum "{file}") || exit 12
[ "${{sum%% *}}" = {sha256} ] || {{ echo "the upload is damaged: $sum"; exit 12; }}
mkdir ".{version}.{mark}" && tar -xzf "{file}" -C ".{version}.{mark}" || exit 13
[ -f "{version}/bin/agent" ] || mv -T ".{version}.{mark}" "{version}"
[ -f "{version}/bin/agent" ] || exit 14
exit 0"""

_LOOK: Final = """say node $(uname -n); say boot $(cat /proc/sys/kernel/random/boot_id)
say stat $(cat /proc/{pid}/stat)
exit 0"""

_CLEAR: Final = """d=$(dirname {socket}); mkdir -p "$d" && chmod 700 "$d" && [ -O "$d" ] || exit 11
rm -f {socket} || exit 12
exit 0"""

_LOG: Final = """tail -n 20 {home}/launcher.log; exit 0"""


class Script(NamedTuple):
    """Something to be run, and the mark of its answer."""

    command: str
    stdin: bytes
    mark: str


class Said(NamedTuple):
    """The framed part of an answer."""

    #: First words to the rest of their lines; the last line counts.
    words: dict[str, str]
    #: Lines by first word, all of them.
    lines: list[tuple[str, str]]
    #: What else came within the frame: complaints of tools.
    rest: str
    status: int


class NotRun(Exception):
    """The script did not run: the account does something else. The message says what came instead."""


def plain(text: str, what: str) -> str:
    """`text` if it can stand in a script as it is. Raises `LaunchError`."""
    # SECURITY: S59
    if not _PLAIN.fullmatch(text.removeprefix("~/")):
        raise LaunchError(
            f"{what} {text[:100]!r} has characters that we do not put into commands", retry=False
        )
    return f"'{text}'"


def _script(template: str, **values: str) -> Script:
    mark = f"@@{secrets.token_hex(8)}"
    script = template.format(mark=mark.lstrip("@"), **values)
    return Script(SHELL, _FRAME.format(mark=mark, script=script).encode(), mark)


def probe(root: str, version: str, bin_dir: str) -> Script:
    """Who and where we are, whether there is room, and what is there already."""
    return _script(
        _PROBE,
        root=plain(root, "the root"),
        version=plain(version, "the bundle's version").strip("'"),
        bin=plain(bin_dir or "/nonexistent", "slurm.bin_dir"),
    )


def unpack(root: str, version: str, file: str, sha256: str) -> Script:
    """Verify what was uploaded as `file` (a name in bundles/) and put it in place whole."""
    values = {"version": version, "file": file, "sha256": sha256}
    checked = {name: plain(value, name).strip("'") for name, value in values.items()}
    return _script(_UNPACK, root=plain(root, "the root"), **checked)


def look(pid: int) -> Script:
    """Facts about a process there."""
    return _script(_LOOK, pid=str(int(pid)))


def clear_socket(socket: str) -> Script:
    """Make room for a forwarded socket: sshd does not replace one that an old connection left (F143)."""
    return _script(_CLEAR, socket=plain(socket, "the socket"))


def log_tail(home: str) -> Script:
    """The end of the agent's log (SIR-44)."""
    return _script(_LOG, home=plain(home, "the agent's home"))


def agent(root: str, version: str, verb: str, stdin: bytes) -> Script:
    """The agent's own command; `stdin` (an AgentSpec, with its token) goes through the connection only."""
    mark = f"@@{secrets.token_hex(8)}"
    path = plain(f"{root}/bundles/{version}/bin/agent", "the bundle's path").strip("'")
    word = plain(verb, "the verb").strip("'")
    # no quote, no exclamation mark and no newline inside: csh reads it like sh
    command = f"exec /bin/sh -c 'umask 077; cd /; echo {mark} begin; {path} {word}; echo {mark} end $?'"
    return Script(command, stdin, mark)


def read(script: Script, out: bytes) -> Said:
    """The framed part of what came. Raises `NotRun` when there is none."""
    text = out.decode(errors="replace")
    begin = re.search(rf"^.*?{re.escape(script.mark)} begin\r?$", text, re.MULTILINE)
    end = re.search(rf"^{re.escape(script.mark)} end (\d+)\r?$", text, re.MULTILINE)
    if begin is None or end is None:
        raise NotRun(text.replace(script.mark, "").strip()[-300:])
    lines: list[tuple[str, str]] = []
    rest: list[str] = []
    for line in text[begin.end() : end.start()].splitlines():
        if line.startswith(f"{script.mark} "):
            word, _, more = line.removeprefix(f"{script.mark} ").partition(" ")
            lines.append((word, more.strip()))
        elif line.strip():
            rest.append(line.strip())
    return Said(dict(lines), lines, "\n".join(rest)[-2000:], int(end[1]))


class Place(NamedTuple):
    """What `probe` found."""

    user: str
    node: str
    machine: str
    boot_id: str
    root: str
    has_bundle: bool
    #: Versions that lie there.
    bundles: int
    lacks: list[str]
    #: Slurm's commands by name, with their paths.
    slurm: dict[str, str]
    free_kib: int | None


#: What `probe` could not do, by its exit status.
TROUBLES: Final = {
    11: ("cannot be made", "make it, or set ssh.root to a directory that the user may write"),
    12: ("belongs to somebody else", "set ssh.root to a directory of the user's own"),
    13: ("cannot be closed to others", "set ssh.root to a directory of the user's own"),
    14: ("has no room", "free some space, or set ssh.root to another file system"),
}


def place(said: Said) -> Place:
    """The answer of `probe`; only for status 0."""
    words = said.words
    free = words.get("free", "").split()
    slurm = [rest.split(" ", 1) for word, rest in said.lines if word == "has"]
    return Place(
        user=words.get("user", ""),
        node=words.get("node", ""),
        machine=words.get("machine", ""),
        boot_id=words.get("boot", ""),
        root=words.get("root", ""),
        has_bundle="bundle" in words,
        bundles=int(words.get("bundles", "0")),
        lacks=[rest for word, rest in said.lines if word == "lacks"],
        slurm={pair[0]: pair[1] for pair in slurm if len(pair) == 2},
        free_kib=int(free[3]) if len(free) > 3 and free[3].isdecimal() else None,
    )


def process_start(stat: str) -> int | None:
    """When a process began, in ticks since boot, of /proc/PID/stat; None when none lives."""
    _, mark, rest = stat.rpartition(")")
    fields = rest.split()
    if not mark or len(fields) < 20 or fields[0] in "ZX":
        return None
    return int(fields[19])
