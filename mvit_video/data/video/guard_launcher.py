"""The program that starts decoding processes. It has no thread, no GPU, no torch: a fork of it is safe, and takes a millisecond.

A process starts one with its first guarded reader, and shares it with the processes that are forked from it. Whoever wants
a decoding process sends one end of a socket pair over the control socket. When the other end is gone the process is
killed; when it dies, the other end is told how. When nobody holds the control socket any more, all of them end.
"""

import gc
import os
import select
import signal
import socket
from contextlib import suppress

from mvit_video.data.video.guard_channel import Channel
from mvit_video.data.video.guard_child import be_the_child

# What asks a program to stop is the program's to handle, whose end is ours. What its shell ignores (nohup) stays ignored.
IGNORED = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2", "SIGHUP", "SIGPIPE", "SIGXFSZ")


def main(control: int) -> None:
    for name in IGNORED:
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    os.chdir("/")
    gc.collect()
    gc.freeze()
    Launcher(socket.socket(fileno=control)).run()
    os._exit(0)


class Launcher:
    """Starts, kills and buries children until the control socket ends."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._ends: dict[int, socket.socket] = {}  # by child: what it talks over
        self._children: dict[int, int] = {}  # by the number of that file
        self._pipe = self._woken, wake = os.pipe()
        for end in self._pipe:
            os.set_blocking(end, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        self._poll = select.poll()
        self._poll.register(control, select.POLLIN)
        self._poll.register(self._woken, select.POLLIN)

    def run(self) -> None:
        going_on = True
        while going_on:
            for file, _ in self._poll.poll():
                if file == self._woken:
                    os.read(self._woken, 1024)
                elif file == self._control.fileno():
                    going_on = self._start()
                elif file in self._children:
                    self._kill(self._children[file])
            self._bury()
        for child in list(self._ends):
            self._kill(child)

    def _start(self) -> bool:
        """A child for the end that has come; False where none will come any more."""
        try:
            mark, files, _, _ = socket.recv_fds(self._control, 1, 1)
        except ConnectionError:
            return False
        if not files:
            return bool(mark)
        end = socket.socket(fileno=files[0])
        try:
            child = os.fork()
        except OSError as reason:
            with suppress(OSError):
                Channel(end).send({"failed": reason.strerror}, timeout=1.0)
            end.close()
            return True
        if child == 0:
            self._let_go()
            be_the_child(end)
        self._ends[child], self._children[end.fileno()] = end, child
        self._poll.register(end, 0)  # tells only that the other end is gone
        return True

    def _let_go(self) -> None:
        """In a child: what belongs to the launcher and to other children."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for end in (self._control, *self._ends.values()):
            end.close()
        for number in self._pipe:
            os.close(number)

    def _kill(self, child: int) -> None:
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        self._forget(child)

    def _forget(self, child: int) -> None:
        end = self._ends.pop(child)
        self._poll.unregister(end)
        del self._children[end.fileno()]
        end.close()

    def _bury(self) -> None:
        """Take the status of children that have died, and tell it to those who wait for an answer."""
        with suppress(ChildProcessError):
            while (found := os.waitpid(-1, os.WNOHANG))[0]:
                child, status = found
                if child in self._ends:
                    with suppress(OSError):
                        Channel(self._ends[child]).send({"died": status}, timeout=0.0)
                    self._forget(child)
