"""Workers as copies of the supervisor, which has imported all that they run.

circus starts each as a new Python, where importing BentoML and the service takes seconds and memory that the others
have spent, too. A copy shares both. It forgets what was the supervisor's: its signals, its loop, what it does at its
end.
"""

import asyncio
import atexit
import ctypes
import os
import signal
import sys
import time
import traceback
from typing import Any, NoReturn

import psutil
from _bentoml_impl.worker import service
from circus.process import Process

from vision import metrics

PR_SET_PDEATHSIG, PR_SET_NAME = 1, 15
"""Of prctl(2): which signal this process gets when its parent ends; what `ps` and `top` call it, in 15 characters."""

LIBC = ctypes.CDLL(None, use_errno=True)

MODULE = ["-m", service.__name__]
"""What follows Python in the command that BentoML would start a worker with."""


class Child(psutil.Process):
    """A process that this one forked, as circus asks about it."""

    stdout = stderr = None
    returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None:
            try:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
            except ChildProcessError:  # circus itself was faster
                self.returncode = 0
            else:
                self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode


class Forked(Process):
    """A worker of circus's. For Linux: elsewhere a copy of a process that has threads may not run."""

    def spawn(self) -> None:
        self.started = time.time()
        _, *arguments = self.format_args(sockets_fds=self._get_sockets_fds())
        if arguments[:2] != MODULE:
            raise RuntimeError(f"What vision/bento relies on has moved: a worker is started by {arguments[:2]}.")
        sys.stdout.flush()
        sys.stderr.flush()
        supervisor = os.getpid()
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # none may find our handlers there
        try:
            if (pid := os.fork()) == 0:
                self._run(supervisor, arguments[2:], mask)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        self._worker = Child(pid)

    def _run(self, supervisor: int, arguments: list[str], mask: set[int]) -> NoReturn:
        """Be the worker, in the copy. Whatever happens, nothing of the supervisor's goes on here."""
        code: Any = 1
        try:
            _forget_the_supervisor()
            _end_with(supervisor)
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            os.setsid()
            if self.close_child_stdin:
                self._null_streams([sys.stdin])
            os.environ.clear()
            os.environ.update(self.env)
            os.chdir(self.working_dir)
            metrics.use_files()
            name = arguments[arguments.index("--service-name") + 1]
            LIBC.prctl(PR_SET_NAME, name.encode())
            sys.argv = [service.__name__, *arguments]
            code = service.main.main(arguments, standalone_mode=False)
        except SystemExit as end:
            code = end.code
        except BaseException:
            traceback.print_exc()
        finally:
            try:
                atexit._run_exitfuncs()
                sys.stdout.flush()
                sys.stderr.flush()
            finally:
                os._exit(code if isinstance(code, int) else bool(code))


def _end_with(supervisor: int) -> None:
    """End when the supervisor does, however it does."""
    if LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
        raise OSError(ctypes.get_errno(), "prctl failed")
    if os.getppid() != supervisor:
        os._exit(1)


def _end(number: int, _: object) -> NoReturn:
    """End as after an error, so that what was to run at the end does run."""
    raise SystemExit(128 + number)


def _forget_the_supervisor() -> None:
    signal.set_wakeup_fd(-1)
    for number in signal.valid_signals():
        if callable(signal.getsignal(number)):
            signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, _end)  # uvicorn, when it has stopped, raises the signal that stopped it anew
    atexit._clear()
    asyncio.set_event_loop(None)
    asyncio._set_running_loop(None)
