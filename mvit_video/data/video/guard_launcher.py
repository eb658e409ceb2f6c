"""The program that starts decoding processes. It has no threads, GPU or torch: forking it is safe and takes a millisecond.

A process starts one with its first guarded reader and shares it with the processes forked from it. To get a decoding
process, a program sends one end of a socket pair over the control socket. The process is killed when the other end is
closed; if it dies, the launcher reports how over that socket. When all copies of the control socket are closed, the
launcher ends with all its children.
"""

import gc
import os
import select
import signal
import socket
from contextlib import suppress

from mvit_video.data.video.guard_channel import Channel
from mvit_video.data.video.guard_child import run_child

# Requests to stop are handled by the program, and the launcher ends with it. What its shell ignores (nohup) stays ignored.
IGNORED_SIGNALS = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2", "SIGHUP", "SIGPIPE", "SIGXFSZ")


def main(control: int) -> None:
    for name in IGNORED_SIGNALS:
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    os.chdir("/")
    gc.collect()
    gc.freeze()
    Launcher(socket.socket(fileno=control)).run()
    os._exit(0)


class Launcher:
    """Starts, kills and reaps children until the control socket closes."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._sockets: dict[int, socket.socket] = {}  # by child: its socket
        self._children: dict[int, int] = {}  # by that socket's descriptor
        self._pipe = self._wakeup, wake = os.pipe()
        for end in self._pipe:
            os.set_blocking(end, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        self._poll = select.poll()
        self._poll.register(control, select.POLLIN)
        self._poll.register(self._wakeup, select.POLLIN)

    def run(self) -> None:
        running = True
        while running:
            for file, _ in self._poll.poll():
                if file == self._wakeup:
                    os.read(self._wakeup, 1024)
                elif file == self._control.fileno():
                    running = self._start()
                elif file in self._children:
                    self._kill(self._children[file])
            self._reap()
        for child in list(self._sockets):
            self._kill(child)

    def _start(self) -> bool:
        """Fork a child for a received socket; False if the control socket was closed."""
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
            self._close_inherited()
            run_child(end)
        self._sockets[child], self._children[end.fileno()] = end, child
        self._poll.register(end, 0)  # reports only a hang-up of the peer
        return True

    def _close_inherited(self) -> None:
        """In a child: close what belongs to the launcher and other children."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for end in (self._control, *self._sockets.values()):
            end.close()
        for number in self._pipe:
            os.close(number)

    def _kill(self, child: int) -> None:
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        self._forget(child)

    def _forget(self, child: int) -> None:
        end = self._sockets.pop(child)
        self._poll.unregister(end)
        del self._children[end.fileno()]
        end.close()

    def _reap(self) -> None:
        """Reap children that have exited, and report their status to waiting peers."""
        with suppress(ChildProcessError):
            while (result := os.waitpid(-1, os.WNOHANG))[0]:
                child, status = result
                if child in self._sockets:
                    with suppress(OSError):
                        Channel(self._sockets[child]).send({"died": status}, timeout=0.0)
                    self._forget(child)
