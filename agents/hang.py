"""Files that do not answer: noticed, said, and not waited for a second time (F038).

A read of a file system whose server is gone returns when that is back, if ever, and meanwhile nothing else
happens in the network side: no heartbeat, no cancel. So a thread watches how long it has been in one look at
files. When that is too long, the process ends, and its launcher starts another one, which finds written here
what did not answer: it reads no files until that does.
"""

import mmap
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Final

from sirepo_jobs.run_tree import Refused, RunFiles

#: Looks at those who are at files; who is there at so many of them in a row hangs. Counted, because a process
#: that was stopped or had no cpu looks at nothing either.
LOOK_SECS: Final = 1.0
LOOKS: Final = 10
#: What the network side ends with.
HANGS: Final = 75
_PAGE_BYTES: Final = 4096
#: Of the launcher and all its network sides, one after the other: the path that did not answer, or nothing.
PAGE: Final = mmap.mmap(-1, _PAGE_BYTES)


class Patience:
    """How long files are waited for, in one process."""

    def __init__(self, page: mmap.mmap = PAGE, end: Callable[[int], None] = os._exit) -> None:
        self._page = page
        self._end = end
        self._at: dict[object, str] = {}
        self._somebody = threading.Event()
        self._watch: threading.Thread | None = None
        #: What did not answer when it was tried last; "" for nothing.
        self.hanging = bytes(page).rstrip(b"\0").decode(errors="surrogateescape")
        if self.hanging:
            threading.Thread(target=self._try_again, name="files", daemon=True).start()

    @contextmanager
    def busy(self, path: str) -> Iterator[None]:
        """Whoever is inside looks at files below this path."""
        token = object()
        self._at[token] = path
        if not self._somebody.is_set():
            self._somebody.set()
            if self._watch is None:
                self._watch = threading.Thread(target=self._look, name="patience", daemon=True)
                self._watch.start()
        try:
            yield
        finally:
            del self._at[token]

    def _look(self) -> None:
        seen: dict[object, int] = {}
        while True:
            self._somebody.wait()
            time.sleep(LOOK_SECS)
            seen = {token: seen.get(token, 0) + 1 for token in list(self._at)}
            if not seen:
                self._somebody.clear()
                if self._at:  # somebody came just now, and saw us awake
                    self._somebody.set()
            elif max(seen.values()) > LOOKS:
                path = self._at.get(max(seen, key=seen.__getitem__))
                if path is not None:
                    self._give_up(path)

    def _give_up(self, path: str) -> None:
        told = os.fsencode(path)[:_PAGE_BYTES]
        self._page[:] = told.ljust(_PAGE_BYTES, b"\0")
        at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        text = f"{at} agent: {path} has not answered for {LOOKS * LOOK_SECS:g} s, so no files are read\n"
        # The log may lie where nothing answers either.
        threading.Thread(target=sys.stderr.write, args=(text,), daemon=True).start()
        time.sleep(0.1)
        self._end(HANGS)

    def _try_again(self) -> None:
        with suppress(OSError), os.scandir(self.hanging) as entries:  # an error is an answer
            for entry in entries:
                entry.stat(follow_symlinks=False)
        self._page[:] = bytes(_PAGE_BYTES)
        self.hanging = ""


class WatchedFiles(RunFiles):
    """Files of run dirs, none of which is waited for twice."""

    def __init__(self, run_root: str) -> None:
        super().__init__(run_root)
        self._run_root = run_root
        self._patience = Patience()

    def busy(self, run_dir: str) -> AbstractContextManager[None]:
        """Whoever hangs inside is noticed."""
        return self._patience.busy(f"{self._run_root}/{run_dir}")

    def run_dir(self, run_dir: str) -> int:
        """As everywhere, but `Refused` while something does not answer."""
        if self._patience.hanging:
            raise Refused(f"{self._patience.hanging} does not answer, so no files are read now", "trouble")
        return super().run_dir(run_dir)
