"""The disk of a simulated host: names, bytes, and what of them survives a power failure.

What was synced survives, and so does what is older than `FLUSH_SECS`. Of the rest each name may be lost, and
each file keeps a prefix of what was appended. Of what was written over, each sector is one of those that it
has been since the last sync, whatever became of the others; and a cut may not have happened at all.
"""

import errno
import os
import random
import stat

FLUSH_SECS = 5.0
#: A disk writes so many bytes whole or not at all.
SECTOR = 512


class Inode:
    """A regular file."""

    __slots__ = ("allocated", "cut_from", "data", "mode", "number", "older", "synced", "touched_at")

    def __init__(self, number: int, now: float) -> None:
        self.number = number
        self.data = bytearray()
        #: Space that is set aside for it.
        self.allocated = 0
        #: So many bytes are on the disk, or may have been written over since then.
        self.synced = 0
        #: What sectors that were written over or cut off have been since the last sync, by number.
        self.older: dict[int, list[bytes]] = {}
        #: So long it was on the disk before it was cut; 0 = it was not cut since the last sync.
        self.cut_from = 0
        self.touched_at = now

    def remember(self, first: int, end: int) -> None:
        """What these bytes are now may still come to be after a power failure."""
        for sector in range(first // SECTOR, -(-end // SECTOR)):
            self.older.setdefault(sector, []).append(
                bytes(self.data[sector * SECTOR : (sector + 1) * SECTOR])
            )

    def lose_power(self, dice: random.Random) -> None:
        """Keep what the disk may have got of what was not synced."""
        if self.cut_from and dice.random() < 0.5:
            size = self.cut_from
        elif len(self.data) > self.synced:
            size = dice.randint(self.synced, len(self.data))
        else:
            size = len(self.data)
        for sector, were in sorted(self.older.items()):
            at = sector * SECTOR
            if len(self.data) < at + SECTOR:
                self.data += bytes(at + SECTOR - len(self.data))
            found = dice.choice([*were, bytes(self.data[at : at + SECTOR])])
            self.data[at : at + SECTOR] = found.ljust(SECTOR, b"\0")
        del self.data[size:]
        self.settle()

    def settle(self) -> None:
        """Everything is on the disk."""
        self.synced = len(self.data)
        self.older.clear()
        self.cut_from = 0


class Stat:
    """The little of `os.stat_result` that is looked at."""

    __slots__ = ("st_dev", "st_ino", "st_mode", "st_mtime_ns", "st_nlink", "st_size", "st_uid")

    def __init__(self, inode: int, size: int, mode: int) -> None:
        self.st_ino, self.st_size, self.st_mode = inode, size, mode
        self.st_dev = self.st_nlink = 1
        self.st_uid = 0
        self.st_mtime_ns = 0


class Files:
    """One file system. Paths are absolute and plain."""

    def __init__(self) -> None:
        self.files: dict[str, Inode] = {}
        #: Directories, with the time when each was made.
        self.dirs: dict[str, float] = {"/": -1e9}
        #: Names that were made lately: path -> when. Synced ones are taken out.
        self._young: dict[str, float] = {}
        self._last = 1
        self.full = False
        self.broken = False
        #: Bytes that were given back since the disk is full.
        self._spare = 0

    @property
    def free(self) -> int:
        """What is left, as far as that matters."""
        return self._spare if self.full else 1 << 30

    def _room(self, count: int = 1) -> None:
        if not self.full:
            self._spare = 0
        elif self._spare >= count:
            self._spare -= count
        else:
            raise OSError(errno.ENOSPC, "No space left on device")

    def make(self, path: str, now: float) -> Inode:
        self._room()
        if path.rpartition("/")[0] not in self.dirs:
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", path)
        self._last += 1
        inode = self.files[path] = Inode(self._last, now)
        self._young[path] = now
        return inode

    def write(self, inode: Inode, data: bytes, now: float) -> int:
        self._room(len(data))
        inode.data += data
        inode.touched_at = now
        return len(data)

    def overwrite(self, inode: Inode, data: bytes, offset: int, now: float) -> int:
        """Write at a place within the file or at its end; only what is appended takes space."""
        end = len(inode.data)
        assert offset <= end, "holes are not modelled"
        self._room(max(0, offset + len(data) - end))
        inode.remember(offset, min(end, offset + len(data)))
        inode.data[offset : offset + len(data)] = data
        inode.touched_at = now
        return len(data)

    def cut(self, inode: Inode, size: int, now: float) -> None:
        """Make it shorter."""
        inode.remember(size, len(inode.data))
        inode.cut_from = max(inode.cut_from, inode.synced)
        del inode.data[size:]
        inode.synced = min(inode.synced, size)
        inode.touched_at = now

    def sync(self, inode: Inode) -> None:
        if self.broken:
            raise OSError(errno.EIO, "Input/output error")
        inode.settle()
        for path in [path for path in self._young if self.files.get(path) is inode]:
            # file systems with a journal bring the way to a synced file to the disk, too
            del self._young[path]
            while path := path.rpartition("/")[0]:
                self._young.pop(path, None)

    def sync_dir(self, path: str) -> None:
        if self.broken:
            raise OSError(errno.EIO, "Input/output error")
        for name in [name for name in self._young if name.rpartition("/")[0] == path]:
            del self._young[name]
        while path:
            self._young.pop(path, None)
            path = path.rpartition("/")[0]

    def mkdir(self, path: str, now: float) -> None:
        if path in self.dirs or path in self.files:
            raise FileExistsError(errno.EEXIST, "File exists", path)
        if path.rpartition("/")[0] not in self.dirs and path.rpartition("/")[0] != "":
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", path)
        self._room()
        self.dirs[path] = self._young[path] = now

    def makedirs(self, path: str, now: float) -> None:
        at = ""
        for part in path.strip("/").split("/"):
            at += "/" + part
            if at not in self.dirs:
                self.mkdir(at, now)

    def rename(self, old: str, new: str, now: float) -> None:
        if old not in self.files:
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", old)
        self.files[new] = self.files.pop(old)
        self._young.pop(old, None)
        self._young[new] = now

    def unlink(self, path: str) -> None:
        if path not in self.files:
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", path)
        self._spare += self.files.pop(path).allocated
        self._young.pop(path, None)

    def allocate(self, inode: Inode, count: int) -> None:
        """Set space aside."""
        self._room(count)
        inode.allocated = count

    def rmdir(self, path: str) -> None:
        if path not in self.dirs:
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", path)
        if any(name.startswith(path + "/") for name in [*self.files, *self.dirs]):
            raise OSError(errno.ENOTEMPTY, "Directory not empty", path)
        del self.dirs[path]
        self._young.pop(path, None)

    def stat(self, path: str) -> Stat:
        if path in self.files:
            inode = self.files[path]
            return Stat(inode.number, len(inode.data), stat.S_IFREG)
        if path in self.dirs:
            return Stat(0, 0, stat.S_IFDIR)
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)

    def exists(self, path: str) -> bool:
        return path in self.files or path in self.dirs

    def wipe(self, top: str) -> None:
        """Somebody removes a whole tree."""
        for table in (self.files, self.dirs, self._young):
            for name in [name for name in table if name == top or name.startswith(top + "/")]:
                del table[name]  # type: ignore[attr-defined]

    def lose_power(self, now: float, dice: random.Random) -> None:
        """Only what is on the disk is left."""
        for name, when in list(self._young.items()):
            if now - when < FLUSH_SECS and name in self._young and dice.random() < 0.5:
                self.wipe(name)
        for inode in self.files.values():
            if now - inode.touched_at < FLUSH_SECS:
                inode.lose_power(dice)
            else:
                inode.settle()
        self._young.clear()
        self.full = self.broken = False
