"""A command that runs in a container beside what the container is there for."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import signal
import struct
import termios
from collections.abc import AsyncIterator, Mapping, Sequence

from modal_emulator.rpc.notifier import Notifier

_READ_BYTES = 1 << 16
# how much waits for its reader before the command has to wait, and how much a reader whose
# connection broke can read again
_MAX_WAITING_BYTES = _KEPT_BYTES = 1 << 20
# a process in the background may write for ever
_MAX_LAST_READS = 1000
# also of a terminal that says 0
_ROWS, _COLUMNS = 24, 80


class Output:
    """What a command writes to one stream, readable from any recent place."""

    def __init__(self, descriptor: int | None) -> None:
        """Read from a file descriptor, which this closes; None is a stream without anything."""
        self._descriptor = descriptor
        self._data = bytearray()
        # the place of the first byte that is kept, and of the first that nobody has read
        self._first = self._unread = 0
        self._changed = Notifier()
        if descriptor is not None:
            os.set_blocking(descriptor, False)
            self._resume()

    @property
    def size(self) -> int:
        """How many bytes were written."""
        return self._first + len(self._data)

    def _resume(self) -> None:
        if self._descriptor is not None and self.size - self._unread < _MAX_WAITING_BYTES:
            asyncio.get_running_loop().add_reader(self._descriptor, self._read)

    def _read(self) -> bool:
        """Read what is there; return whether there may be more."""
        if self._descriptor is None:
            return False
        try:
            data = os.read(self._descriptor, _READ_BYTES)
        except BlockingIOError:
            return False
        except OSError:  # EIO: the last process at the other end of the terminal has ended
            data = b""
        if not data:
            asyncio.get_running_loop().remove_reader(self._descriptor)
            return False
        self._data += data
        if self.size - self._unread >= _MAX_WAITING_BYTES:
            asyncio.get_running_loop().remove_reader(self._descriptor)
        self._changed.notify()
        return True

    def finish(self, at_least: bytes = b"") -> None:
        """Read the rest and end the stream, even if processes in the background keep it open.

        `at_least` is what a reader gets if nothing was written.
        """
        for _ in range(_MAX_LAST_READS):
            if not self._read():
                break
        if not self.size:
            self._data += at_least
        if self._descriptor is not None:
            asyncio.get_running_loop().remove_reader(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = None
            self._changed.notify()

    async def read(self, place: int) -> AsyncIterator[bytes]:
        """Yield what was written from a place on, until the command ends."""
        place = max(place, self._first)
        while True:
            start = place - self._first
            if chunk := self._data[start : start + _READ_BYTES]:
                yield bytes(chunk)
                place += len(chunk)
                self._unread = max(self._unread, place)
                self._forget()
                self._resume()
            elif self._descriptor is None:
                return
            else:
                await self._changed.wait(None)

    def _forget(self) -> None:
        excess = self._unread - _KEPT_BYTES - self._first
        if excess > 0:
            del self._data[:excess]
            self._first += excess


class Execution:
    """A command in a container: its streams and its end.

    Attributes:
        ended: Set at its end.
        exit_code: Negative if a signal ended it; valid once it has ended.
    """

    def __init__(self, *, terminal: tuple[int, int] | None) -> None:
        """Make the streams; `terminal` has the rows and columns of one, None stands for pipes."""
        self.ended = asyncio.Event()
        self.exit_code = 0
        self.stdin_size = 0
        self._has_terminal = terminal is not None
        self._process: asyncio.subprocess.Process | None = None
        self._stdin_lock = asyncio.Lock()
        if terminal is not None:
            leader, follower = os.openpty()
            rows, columns = terminal[0] or _ROWS, terminal[1] or _COLUMNS
            size = struct.pack("HHHH", rows, columns, 0, 0)
            fcntl.ioctl(follower, termios.TIOCSWINSZ, size)
            self._own = (follower,) * 3
            self._stdin: int | None = os.dup(leader)
            self.stdout, self.stderr = Output(leader), Output(None)
        else:
            (stdin, self._stdin), (out, stdout), (err, stderr) = (os.pipe() for _ in range(3))
            self._own = (stdin, stdout, stderr)
            self.stdout, self.stderr = Output(out), Output(err)
        os.set_blocking(self._stdin, False)

    async def start(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        """Start the command."""
        stdin, stdout, stderr = self._own
        try:
            self._process = await asyncio.create_subprocess_exec(
                *command,
                env=dict(environment),
                cwd="/",
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
                # so that its child processes can be killed with it
                start_new_session=True,
            )
        finally:
            for descriptor in set(self._own):
                os.close(descriptor)

    async def wait(self) -> None:
        """Wait until the command has ended; its streams go on until `finish`."""
        assert self._process is not None
        self.exit_code = await self._process.wait()

    async def finish(self) -> None:
        """End the streams of a command that has ended, or was not started."""
        # a client with a terminal waits for the first output, even of a command without any
        self.stdout.finish(at_least=b"\r" if self._has_terminal else b"")
        self.stderr.finish()
        self.ended.set()
        async with self._stdin_lock:
            self._close_stdin()

    def kill(self) -> None:
        """Kill it and its process group."""
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    async def write(self, place: int, data: bytes, *, eof: bool) -> None:
        """Write to the command's input what was not written before.

        Args:
            place: Where the data begins; a client repeats what it could not see arrive.
            data: The data.
            eof: Whether the input ends here.
        """
        async with self._stdin_lock:
            await self._write(data[max(0, self.stdin_size - place) :])
            self.stdin_size = max(self.stdin_size, place + len(data))
            if eof and self._has_terminal:
                # Ctrl-D
                await self._write(b"\x04")
            elif eof:
                self._close_stdin()

    async def _write(self, data: bytes) -> None:
        while data and self._stdin is not None and not self.ended.is_set():
            try:
                data = data[os.write(self._stdin, data) :]
            except BlockingIOError:
                await self._until_writable(self._stdin)
            except OSError:
                # the command doesn't read any more
                return

    async def _until_writable(self, descriptor: int) -> None:
        loop, writable = asyncio.get_running_loop(), asyncio.Event()
        loop.add_writer(descriptor, writable.set)
        waiting = [asyncio.ensure_future(each.wait()) for each in (writable, self.ended)]
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        for each in waiting:
            each.cancel()
        loop.remove_writer(descriptor)

    def _close_stdin(self) -> None:
        if self._stdin is not None:
            os.close(self._stdin)
            self._stdin = None
