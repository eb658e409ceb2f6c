"""How a program gets decoding processes: from its launcher, started once and shared with the processes forked later."""

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.util import Finalize

from mvit_video.data.video.guard_channel import Channel
from mvit_video.errors import ConfigError

CAN_GUARD = hasattr(os, "fork") and hasattr(socket, "send_fds") and bool(sys.executable) and not hasattr(sys, "frozen")
END_SECONDS = 2.0
MODULE = "mvit_video.data.video.guard_launcher"
PROGRAM = f"import sys; sys.path[:] = sys.argv[2:]; from {MODULE} import main; main(int(sys.argv[1]))"


class Launcher:
    """Client of the program guard_launcher.py. Shared by threads and forked processes.

    `start_seconds` is the time allowed for a new process to reply, on a busy machine.
    """

    def __init__(self, start_seconds: float = 60.0) -> None:
        self.start_seconds = start_seconds
        self._lock = threading.Lock()
        self._control: socket.socket | None = None
        self._program: subprocess.Popen | None = None

    def start(self) -> socket.socket:
        """Start the launcher unless it runs. Call it before forking workers, or each starts its own."""
        with self._lock:
            if self._control is None:
                self._control, theirs = socket.socketpair()
                with theirs:
                    self._program = subprocess.Popen(
                        [
                            sys.executable,
                            "-X",
                            f"utf8={sys.flags.utf8_mode}",
                            "-c",
                            PROGRAM,
                            str(theirs.fileno()),
                            *_module_path(),
                        ],
                        stdin=subprocess.DEVNULL,
                        stdout=subprocess.DEVNULL,
                        pass_fds=[theirs.fileno()],
                        start_new_session=True,  # no Ctrl-C or hang-up: it ends with the program
                    )
                self._control.settimeout(self.start_seconds)
                Finalize(self, _shut_down, (self._control, self._program), exitpriority=5)
            return self._control

    def start_early(self) -> None:
        """`start`, so that its imports run while this program imports torch. A failure is left to `connect` to report."""
        if CAN_GUARD:
            with suppress(OSError):
                self.start()

    def connect(self, memory: int, imports: Sequence[str]) -> tuple[Channel, int, int]:
        """A new decoding process: its channel, id and shared memory.

        A launcher that was killed or stopped is replaced. ConfigError if the system cannot start a process.
        """
        hello = {"memory": memory, "imports": list(imports), "environment": dict(os.environ)}
        for last in (False, True):
            control: socket.socket | None = None
            try:
                control = self.start()
                return _handshake(control, hello, self.start_seconds)
            except (EOFError, OSError) as reason:
                if last:
                    raise ConfigError(
                        f"no process for decoding can be started ({str(reason) or 'it ends at once'}): free memory, or raise "
                        "the limit on processes (ulimit -u)"
                    ) from None
                self._discard(control)
        raise AssertionError

    def _discard(self, control: socket.socket | None) -> None:
        """Drop a launcher that does not reply, unless another thread has replaced it already."""
        with self._lock:
            if control is not None and control is self._control:
                self._control = None
                control.close()
                if self._program is not None:
                    self._program.kill()
                    with suppress(subprocess.TimeoutExpired):
                        self._program.wait(END_SECONDS)

    def renew_lock(self) -> None:
        """After a fork the lock's holder may be gone. Only the process that started the launcher may kill it."""
        self._lock, self._program = threading.Lock(), None


def _handshake(control: socket.socket, hello: dict, timeout: float) -> tuple[Channel, int, int]:
    ours, theirs = socket.socketpair()
    channel = Channel(ours)
    try:
        with theirs:
            socket.send_fds(control, [b"\1"], [theirs.fileno()])
        channel.send(hello, timeout=timeout)
        reply, files = channel.receive(timeout)
        if "failure" in reply:
            raise RuntimeError(f"in the decoder's process:\n{reply['failure']}")
        if "child" not in reply:
            raise OSError(reply.get("failed", ""))
        return channel, reply["child"], files[0]
    except BaseException:
        channel.close()
        raise


def _module_path() -> list[str]:
    """sys.path with absolute entries, valid after a change of the working directory."""
    return [os.path.abspath(entry) for entry in sys.path if isinstance(entry, str)]


def _shut_down(control: socket.socket, program: subprocess.Popen) -> None:
    with suppress(OSError):
        control.shutdown(socket.SHUT_RDWR)
    try:
        program.wait(END_SECONDS)
    except subprocess.TimeoutExpired:
        program.kill()


launcher = Launcher()
if CAN_GUARD:
    os.register_at_fork(after_in_child=launcher.renew_lock)
