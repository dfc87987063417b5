"""The process that watches the others: light, single-threaded, and without any foreign code in it."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from msgspec import Struct

from edgeship.build import output
from edgeship.build.stages import said
from edgeship.build.survival import journal
from edgeship.build.survival.journal import Death, Journal, Story
from edgeship_agent.contract.errors import ConversionError

Work = Callable[[], int]
#: What the user, or whoever started this, says to it.
_HEARD: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_LOOK_S: Final = 0.25
#: Of a journal, where its last words are.
_TAIL_BYTES: Final = 2048
#: How long work that was told to stop may take for it, in the middle of native code too.
_STOP_S: Final = 15.0
#: A model that kills more processes than this is not worth another.
_MOST_DEATHS: Final = 40
#: Source: Linux, prctl(2).
_PR_SET_PDEATHSIG: Final = 1
_PR_SET_CHILD_SUBREAPER: Final = 36
#: Signal information's code of what the terminal sends to every process of its group. Source: Linux, sigaction(2).
_SI_KERNEL: Final = 0x80


class Terms(Struct, frozen=True, kw_only=True):
    """What work may do.

    Attributes:
        silence_s: a step that says nothing for so long is ended.
        memory_bytes: address space of each process; 0 for no limit of ours.
        may_copy: whether this process belongs to the work alone, so that copies of it may do the work. Where a program
            calls a command in its own process, a copy would return into that program and go on with it.
    """

    silence_s: float = 900.0
    memory_bytes: int = 0
    may_copy: bool = True


def memory_limit_bytes() -> int:
    """Three quarters of this machine's memory, at least 8 GiB: runtimes reserve more addresses than they use."""
    return max(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") * 3 // 4, 8 * 1024**3)


class Stopped(BaseException):
    """Somebody told us to end; everything that was started has ended.

    Attributes:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class _Process:
    """Work in a process of its own, and its journal."""

    def __init__(self, index: int, pid: int, file: int) -> None:
        self.index = index
        self.pid = pid
        self.late = False
        self._file = file
        self._length = 0
        self._heard_s = 0.0

    def is_silent(self, passed_s: float, limit_s: float) -> bool:
        """Whether it has said nothing for too long; time in which this process was stopped does not count."""
        length = os.fstat(self._file).st_size
        self._heard_s = 0.0 if length != self._length else self._heard_s + min(passed_s, 2 * _LOOK_S)
        self._length = length
        return self._heard_s > limit_s

    def story(self) -> Story:
        """What it wrote."""
        return journal.read(os.pread(self._file, os.fstat(self._file).st_size, 0).decode(errors="replace"))

    def last_sign(self) -> str:
        """How far it is, in words; from the end of the journal alone, which may be long."""
        begin = max(os.fstat(self._file).st_size - _TAIL_BYTES, 0)
        return journal.read(os.pread(self._file, _TAIL_BYTES, begin).decode(errors="replace")).alive

    def close(self) -> None:
        """Drop the journal."""
        os.close(self._file)


class Supervisor:
    """Runs work in processes of its own, and again without the step that killed one.

    Args:
        tell: told in a sentence of a step that killed its process.
        terms: what the work may do.
        show: told how far each of several pieces of work is, as often as somebody may look.
    """

    def __init__(
        self, tell: Callable[[str], None], terms: Terms, show: Callable[[Sequence[str]], None] = lambda _: None
    ) -> None:
        self._tell = tell
        self._terms = terms
        self._show = show
        self._began_s = time.monotonic()
        self._made: set[str] = set()
        self._deaths: dict[str, Death] = {}
        self._told: Counter[str] = Counter()

    def run(self, work: Work) -> int:
        """Its exit code; it returns in the process that did the work, too, where errors are the work's own.

        Raises:
            ConversionError: it died outside of every step, or again and again.
            Stopped: somebody told us to end.
        """
        return self._all([work], 1, last=True)[0] if self._may_copy() else work()

    def prepare(self, works: Sequence[Work], at_once: int) -> list[int]:
        """Several pieces of work whose results lie in the cache, so many at once; their errors are told later.

        Raises:
            Stopped: somebody told us to end.
        """
        return self._all(works, at_once, last=False) if self._may_copy() else [0] * len(works)

    def _may_copy(self) -> bool:
        return self._terms.may_copy and threading.active_count() == 1  # locks of threads are never opened in a copy

    def _all(self, works: Sequence[Work], at_once: int, *, last: bool) -> list[int]:
        codes = [1] * len(works)
        mine = self._watch(codes, at_once, last=last)
        return codes if mine is None else [self._work(works[mine], last=last)]

    def _watch(self, codes: list[int], at_once: int, *, last: bool) -> int | None:
        """Run everything and fill in the exit codes; in a new process, the index of what it has to do."""
        waiting = deque(range(len(codes)))
        self._running: dict[int, _Process] = {}
        _prctl(_PR_SET_CHILD_SUBREAPER, 1)
        former = signal.pthread_sigmask(signal.SIG_BLOCK, (*_HEARD, signal.SIGCHLD))
        try:
            while waiting or self._running:
                while waiting and len(self._running) < at_once:
                    index = waiting.popleft()
                    process = self._start(index)
                    if process is None:
                        return index
                    self._running[process.pid] = process
                self._hear()
                if not last:
                    self._show([each.last_sign() for each in self._running.values()])
                for process, status in _ended(self._running):
                    code = self._outcome(process, status, last=last)
                    if code is None:
                        waiting.append(process.index)
                    else:
                        codes[process.index] = code
        finally:
            _end(self._running)
            signal.pthread_sigmask(signal.SIG_SETMASK, former)
        return None

    def _start(self, index: int) -> _Process | None:
        """The new process; None in the new one itself."""
        sys.stdout.flush()
        sys.stderr.flush()
        file, parent = os.memfd_create("edgeship-journal"), os.getpid()
        pid = os.fork()
        if pid:
            return _Process(index, pid, file)
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)
        if self._terms.memory_bytes:
            _limit_memory(self._terms.memory_bytes)
        journal.keep(Journal(file, self._deaths, self._told, self._made, self._began_s))
        self._journal, self._running = file, {}
        return None

    def _work(self, work: Work, *, last: bool) -> int:
        """In the new process; work that only prepares ends here."""
        code = 1
        try:
            code = work()
        except KeyboardInterrupt:
            code = 130
            if last:
                raise
        except Exception:
            if last:
                raise  # the last one will say so
        finally:
            os.write(self._journal, f'["finished", {code}]\n'.encode())
            if not last:
                sys.stderr.flush()
                os._exit(code)
        return code

    def _hear(self) -> None:
        """Wait for a signal or a while; end what is silent, and everything where we are told to end."""
        before = time.monotonic()
        heard = signal.sigtimedwait((*_HEARD, signal.SIGCHLD), _LOOK_S)
        if heard is not None and heard.si_signo != signal.SIGCHLD:
            _stop(self._running, heard.si_signo, by_terminal=heard.si_code == _SI_KERNEL)
            raise Stopped(heard.si_signo)
        passed_s = time.monotonic() - before
        for process in self._running.values():
            if process.is_silent(passed_s, self._terms.silence_s):
                process.late = True
                os.kill(process.pid, signal.SIGKILL)

    def _outcome(self, process: _Process, status: int, *, last: bool) -> int | None:
        """The exit code of finished work; None where it shall begin again."""
        story = process.story()
        process.close()
        self._told.update(story.told)
        self._made.update(story.made)
        _end_orphans(self._running)
        if story.outcome is not None:
            if story.outcome:
                _clear(story)
            return story.outcome if os.WIFSIGNALED(status) else os.waitstatus_to_exitcode(status)
        _clear(story)
        death = _death(story, status, self._terms.silence_s if process.late else 0.0)
        if not story.key or story.key in self._deaths or len(self._deaths) >= _MOST_DEATHS:
            if not last:
                return 1
            raise ConversionError(said(death.stage, f"it cannot go on: {death.how}"),
                                  next_step="edgeship bisect finds the smallest part that does so")  # fmt: skip
        self._deaths[story.key] = death
        self._tell(f"{said(death.stage, death.how)}; going on without this step")
        return None


def _death(story: Story, status: int, silence_s: float) -> Death:
    if silence_s:
        return Death(stage=story.stage, how=f"it said nothing for {silence_s:g} s", passing=True)
    code = os.waitstatus_to_exitcode(status)
    if code == -signal.SIGKILL:
        how = "its process was killed (signal 9), as the system does where memory runs out"
        return Death(stage=story.stage, how=how, passing=True)
    how = f"it kills its process (signal {-code})" if code < 0 else f"it ends its process (exit code {code})"
    return Death(stage=story.stage, how=how, passing=False)


def _clear(story: Story) -> None:
    """Take away what a process left that can no longer do so itself."""
    for draft, final in story.places:
        output.give_up(Path(draft), Path(final))


def _ended(running: dict[int, _Process]) -> list[tuple[_Process, int]]:
    found = []
    for pid in list(running):
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            found.append((running.pop(pid), status))
    return found


def _stop(running: Mapping[int, _Process], number: int, *, by_terminal: bool) -> None:
    """Let everything stop in its own way for a while, then end it."""
    if not by_terminal:  # the terminal told them, too
        for pid in running:
            os.kill(pid, number)
    left, until_s = dict(running), time.monotonic() + _STOP_S
    while left and time.monotonic() < until_s:
        signal.sigtimedwait((signal.SIGCHLD,), _LOOK_S)
        for process, _ in _ended(left):
            _clear(process.story())  # what is in its place already stays there
    _end(left)
    _end_orphans({})


def _end(running: Mapping[int, _Process]) -> None:
    for pid, process in running.items():
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            _clear(process.story())
    if running:
        _end_orphans({})


def _end_orphans(running: Mapping[int, _Process]) -> None:
    """Processes of ended ones, which are ours now: nothing that was started here outlives its purpose."""
    own = Path(f"/proc/self/task/{os.getpid()}/children")
    with contextlib.suppress(FileNotFoundError):
        while left := [int(each) for each in own.read_text().split() if int(each) not in running]:
            for child in left:
                with contextlib.suppress(ProcessLookupError, ChildProcessError):
                    os.kill(child, signal.SIGKILL)
                    os.waitpid(child, 0)


def _limit_memory(limit_bytes: int) -> None:
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    known = limit_bytes if most == resource.RLIM_INFINITY else min(limit_bytes, most)
    resource.setrlimit(resource.RLIMIT_AS, (known, most))


def _prctl(option: int, value: int) -> None:
    ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)
