"""The standard library's doors to the kernel, as the code of agents uses them, opening on a simulated host.

Each object stands for a module (`os`, `socket`, `signal`, `select`, `process`) inside the rooms of `agents/`.
Whatever is not modelled raises, so that nothing of a simulation ever touches the real machine.
"""

import errno
import os as real_os
import posixpath
import select as real_select
import signal as real_signal
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

from sirepo_jobs.agents import process as real_process
from tests.sim.files import Inode
from tests.sim.host import Host, Proc
from tests.sim.program import PROGRAM, Program, plan_of
from tests.sim.world import World

_RUSAGE = SimpleNamespace(ru_utime=0.5, ru_stime=0.25, ru_maxrss=1000, ru_inblock=0, ru_oublock=0)
_SOCKET_BYTES = 212_992


class Sock:
    """One end of a stream between two processes of one host."""

    __slots__ = ("fd", "inbox", "is_closed", "on_news", "on_room", "owner", "peer", "world")

    def __init__(self, world: World, owner: Proc) -> None:
        self.world = world
        self.owner = owner
        self.inbox = bytearray()
        self.peer: Sock
        self.is_closed = False
        self.on_news: Callable[[], None] | None = None
        self.on_room: Callable[[], None] | None = None
        world.next_fd += 1
        self.fd = world.next_fd
        owner.world_sockets[self.fd] = self

    def give_to(self, owner: Proc) -> None:
        """As a fork does: it is the child's now."""
        del self.owner.world_sockets[self.fd]
        self.owner = owner
        owner.world_sockets[self.fd] = self

    @property
    def is_readable(self) -> bool:
        return bool(self.inbox) or self.peer.is_closed

    def news(self) -> None:
        if self.on_news is not None:
            self.on_news()
        elif self.owner.actor is not None:
            self.owner.actor.wake()

    # -- as `socket.socket`

    def fileno(self) -> int:
        return -1 if self.is_closed else self.fd

    def setblocking(self, _flag: bool) -> None:
        """They never block."""

    def send(self, data: Any, _flags: int = 0) -> int:
        peer = self.peer
        if peer.is_closed or self.is_closed:
            raise BrokenPipeError(errno.EPIPE, "Broken pipe")
        room = _SOCKET_BYTES - len(peer.inbox)
        if room <= 0:
            raise BlockingIOError(errno.EAGAIN, "full")
        peer.inbox += data[:room]
        peer.news()
        return min(room, len(data))

    def recv(self, count: int) -> bytes:
        if not self.inbox:
            if self.peer.is_closed:
                return b""
            raise BlockingIOError(errno.EAGAIN, "nothing there")
        data = bytes(self.inbox[:count])
        del self.inbox[:count]
        if self.peer.on_room is not None:
            self.peer.on_room()
        elif self.peer.owner.actor is not None and len(data) > 100_000:
            self.peer.owner.actor.wake()
        return data

    def close(self) -> None:
        if not self.is_closed:
            self.is_closed = True
            self.owner.world_sockets.pop(self.fd, None)
            if not self.peer.is_closed:
                self.peer.news()


def pair(world: World, owner: Proc) -> tuple[Sock, Sock]:
    """Two connected ends, both with one owner at first."""
    ours, theirs = Sock(world, owner), Sock(world, owner)
    ours.peer, theirs.peer = theirs, ours
    return ours, theirs


class Poll:
    """`select.poll`: looks at the sockets of its process."""

    def __init__(self, world: World) -> None:
        self._proc: Proc = world.current
        self._masks: dict[int, int] = {}

    def register(self, fd: int, mask: int) -> None:
        self._masks[fd] = mask

    modify = register

    def unregister(self, fd: int) -> None:
        del self._masks[fd]

    def ready(self) -> list[tuple[int, int]]:
        """What poll would say now."""
        found = []
        sockets = self._proc.world_sockets
        for fd, mask in self._masks.items():
            sock = sockets.get(fd)
            if sock is None:
                continue
            event = 0
            if sock.is_readable:
                event |= real_select.POLLIN
            if sock.peer.is_closed:
                event |= real_select.POLLHUP
            elif mask & real_select.POLLOUT and len(sock.peer.inbox) < _SOCKET_BYTES:
                event |= real_select.POLLOUT
            if event & (mask | real_select.POLLHUP):
                found.append((fd, event))
        return found


class Os:
    """`os`."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.path = SimpleNamespace(
            dirname=posixpath.dirname,
            isabs=posixpath.isabs,
            samestat=posixpath.samestat,
            lexists=lambda path: self._files.exists(path),
            exists=lambda path: self._files.exists(path) or path == PROGRAM,
            isdir=lambda path: path in self._files.dirs,
        )
        self.environ = {"PATH": "/bin", "HOME": "/root"}
        self.devnull = "/dev/null"

    def __getattr__(self, name: str) -> Any:
        if name.isupper():
            return getattr(real_os, name)
        raise NotImplementedError(f"os.{name} is not modelled")

    strerror = staticmethod(real_os.strerror)
    waitstatus_to_exitcode = staticmethod(real_os.waitstatus_to_exitcode)
    fsencode = staticmethod(real_os.fsencode)

    @property
    def _proc(self) -> Proc:
        return self._world.current

    @property
    def _host(self) -> Host:
        return self._world.current.host

    @property
    def _files(self) -> Any:
        return self._world.current.host.files

    # -- files

    def _full_path(self, path: str) -> str:
        return path if path.startswith("/") else f"{self._proc.cwd}/{path}"

    def open(self, path: str, flags: int, _mode: int = 0o777, **_: Any) -> int:
        path = self._full_path(path)
        files = self._files
        what: Any
        if path == self.devnull:
            what = None
        elif path.startswith("/proc/"):
            raise FileNotFoundError(errno.ENOENT, "no such file", path)
        elif flags & real_os.O_DIRECTORY:
            if path not in files.dirs:
                raise FileNotFoundError(errno.ENOENT, "no such directory", path)
            what = path
        elif path in files.files:
            if flags & real_os.O_EXCL and flags & real_os.O_CREAT:
                raise FileExistsError(errno.EEXIST, "File exists", path)
            what = files.files[path]
        elif flags & real_os.O_CREAT:
            what = files.make(path, self._world.now)
        else:
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", path)
        self._world.next_fd += 1
        fd = self._world.next_fd
        self._world.open_files[fd] = [what, 0]
        self._proc.fds.append(fd)
        return fd

    def _inode(self, fd: int) -> Inode:
        try:
            return self._world.open_files[fd][0]
        except KeyError:
            raise OSError(errno.EBADF, "Bad file descriptor") from None

    def close(self, fd: int) -> None:
        if self._world.open_files.pop(fd, None) is None:
            raise OSError(errno.EBADF, "Bad file descriptor")

    def read(self, fd: int, count: int) -> bytes:
        entry = self._world.open_files[fd]
        data = bytes(entry[0].data[entry[1] : entry[1] + count])
        entry[1] += len(data)
        return data

    def pread(self, fd: int, count: int, offset: int) -> bytes:
        return bytes(self._inode(fd).data[offset : offset + count])

    def write(self, fd: int, data: Any) -> int:
        if fd == 2:
            self._world.log(self._proc, bytes(data))
            return len(data)
        return self._files.write(self._inode(fd), bytes(data), self._world.now)

    def pwrite(self, fd: int, data: Any, offset: int) -> int:
        return self._files.overwrite(self._inode(fd), bytes(data), offset, self._world.now)

    def fstatvfs(self, _fd: int) -> Any:
        free = self._files.free
        return SimpleNamespace(f_blocks=1 << 30, f_bfree=free, f_bavail=free)

    def posix_fallocate(self, fd: int, _offset: int, count: int) -> None:
        self._files.allocate(self._inode(fd), count)

    def fsync(self, fd: int) -> None:
        what = self._inode(fd)
        if isinstance(what, str):
            self._files.sync_dir(what)
        else:
            self._files.sync(what)

    fdatasync = fsync

    def ftruncate(self, fd: int, size: int) -> None:
        self._files.cut(self._inode(fd), size, self._world.now)

    def fstat(self, fd: int) -> Any:
        if fd == 2:
            return SimpleNamespace(st_size=0)
        inode = self._inode(fd)
        return SimpleNamespace(st_size=len(inode.data), st_ino=inode.number, st_dev=1, st_nlink=1)

    def stat(self, path: str) -> Any:
        return self._files.stat(self._full_path(path))

    lstat = stat

    def unlink(self, path: str) -> None:
        self._files.unlink(self._full_path(path))

    def rename(self, old: str, new: str) -> None:
        self._files.rename(self._full_path(old), self._full_path(new), self._world.now)

    def mkdir(self, path: str, _mode: int = 0o777) -> None:
        self._files.mkdir(self._full_path(path), self._world.now)

    def makedirs(self, path: str, _mode: int = 0o777, exist_ok: bool = False) -> None:
        self._files.makedirs(self._full_path(path), self._world.now)

    def rmdir(self, path: str) -> None:
        self._files.rmdir(self._full_path(path))

    def chdir(self, path: str) -> None:
        if path not in self._files.dirs:
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", path)
        self._proc.cwd = path

    def access(self, path: str, _mode: int) -> bool:
        return path == PROGRAM

    # -- processes

    def getpid(self) -> int:
        return self._proc.pid

    def uname(self) -> Any:
        return SimpleNamespace(nodename=self._host.name)

    def posix_spawn(
        self, program: str, command: list[str], env: dict[str, str], *, file_actions: Any, **_: Any
    ) -> int:
        if program != PROGRAM:
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", program)
        host, parent = self._host, self._proc
        if host.has_no_pids:
            raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
        out = self._inode(file_actions[1][1])
        child = Proc(host, "job", parent)
        child.mark = parent.mark
        jid, attempt = env["SIREPO_JOBS_JID"], int(env["SIREPO_JOBS_ATTEMPT"])
        plan = plan_of(command)
        child.program = Program(host, child, plan, jid, attempt, int(env["SIREPO_JOBS_CPUS"]), out)
        return child.pid

    def kill(self, pid: int, number: int) -> None:
        proc = self._host.procs.get(pid)
        if proc is None:
            raise ProcessLookupError(errno.ESRCH, "No such process")
        self._host.kill(proc, number)

    def killpg(self, pgid: int, number: int) -> None:
        if not self._host.kill_group(pgid, number):
            raise ProcessLookupError(errno.ESRCH, "No such process")

    def getpgid(self, pid: int) -> int:
        proc = self._host.procs.get(pid)
        if proc is None:
            raise ProcessLookupError(errno.ESRCH, "No such process")
        return proc.pgid

    def waitid(self, _kind: int, pid: int, _options: int) -> Any:
        for child in self._proc.children:
            if child.pid == pid:
                return child if child.state == "Z" else None
        raise ChildProcessError(errno.ECHILD, "No child processes")

    def wait4(self, _pid: int, _options: int) -> tuple[int, int, Any]:
        children = self._proc.children
        if not children:
            raise ChildProcessError(errno.ECHILD, "No child processes")
        for child in children:
            if child.state == "Z":
                self._host.reap(child)
                return child.pid, child.status, _RUSAGE
        return 0, 0, None

    def pidfd_open(self, pid: int) -> int:
        proc = self._host.procs.get(pid)
        if proc is None:
            raise ProcessLookupError(errno.ESRCH, "No such process")
        self._world.next_fd += 1
        self._world.open_files[self._world.next_fd] = [proc, 0]
        return self._world.next_fd


class Signal:
    """`signal`."""

    def __init__(self, world: World) -> None:
        self._world = world

    def __getattr__(self, name: str) -> Any:
        if name.isupper() or name == "Signals":
            return getattr(real_signal, name)
        raise NotImplementedError(f"signal.{name} is not modelled")

    def signal(self, number: int, handler: Any) -> None:
        self._world.current.handlers[number] = handler

    def set_wakeup_fd(self, fd: int, **_: Any) -> None:
        proc = self._world.current
        proc.wakeup = proc.world_sockets.get(fd)

    def pidfd_send_signal(self, fd: int, number: int) -> None:
        proc = self._world.open_files[fd][0]
        if proc.state == "X":
            raise ProcessLookupError(errno.ESRCH, "No such process")
        proc.host.kill(proc, number)


class Process:
    """`sirepo_jobs.agents.process`: what /proc says."""

    MARK_BASE = real_process.MARK_BASE

    def __init__(self, world: World) -> None:
        self._world = world

    def __getattr__(self, name: str) -> Any:
        raise NotImplementedError(f"process.{name} is not modelled")

    @property
    def _host(self) -> Host:
        return self._world.current.host

    def stat_of(self, pid: int) -> Any:
        proc = self._host.procs.get(pid)
        if proc is None:
            return None
        return real_process.Stat(proc.state, proc.parent.pid if proc.parent else 1, proc.session, proc.start)

    def alive(self, pid: int, start: int) -> bool:
        proc = self._host.procs.get(pid)
        return proc is not None and proc.start == start and proc.alive

    def is_child(self, pid: int) -> bool:
        return any(child.pid == pid for child in self._world.current.children)

    def started_mono(self, pid: int) -> float:
        proc = self._host.procs.get(pid)
        return self._world.now if proc is None else (proc.start // 1000) / 100

    def boot_secs(self) -> float:
        return self._world.now

    def boot_id(self) -> str:
        return self._host.boot_id

    def new_mark(self) -> int:
        return real_process.MARK_BASE + int.from_bytes(self._world.random_bytes(6))

    def mark_of(self, pid: int) -> int | None:
        proc = self._host.procs.get(pid)
        return proc.mark if proc is not None and proc.alive else None

    def env_marks_of(self, _pid: int) -> list[int]:
        return []

    def every_pid(self) -> Iterator[int]:
        return iter(list(self._host.procs))

    def marked_with(self, marks: set[int]) -> dict[int, int]:
        me = self._world.current
        return {
            proc.pid: proc.mark
            for proc in self._host.procs.values()
            if proc is not me and proc.alive and proc.mark is not None and proc.mark in marks
        }

    def set_mark(self, mark: int | None) -> None:
        """As `birth` uses it, around a spawn."""
        self._world.current.mark = mark
