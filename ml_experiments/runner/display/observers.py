"""Shows what runs print and how far they are, where their caller has given no observer."""

from __future__ import annotations

import atexit
import json
import math
import sys
import threading
from collections.abc import Callable
from urllib.parse import urlsplit

from typing_extensions import override

from ml_experiments.errors import ConfigError
from ml_experiments.execution.observer import GuardedObserver, Observer
from ml_experiments.redaction.environment import secret_values
from ml_experiments.redaction.redactor import Redactor
from ml_experiments.runner.display.plain_screen import PlainScreen, Screen, ShownRun, is_terminal
from ml_experiments.runner.display.printable import printable, printable_lines
from ml_experiments.runner.display.terminal_rows import TerminalRows
from ml_experiments.runs.folder import SPEC_USER_DATA, redact_result
from ml_experiments.runs.result import RunResult
from ml_experiments.runs.spec import RunSpec
from ml_experiments.settings import has_dumb_terminal, wants_colours

_POST_ATTEMPTS = 3
_POST_WAIT_S = 1.0
_POST_LIMIT_S = 5.0


class Display(Observer):
    """Shows runs on the terminal or, without one, on the standard streams.

    Lines have a prefix once several runs are live; a run that has one keeps it to its end.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._runs: dict[str, ShownRun] = {}
        self._screen: Screen | None = None

    @override
    def started(self, spec: RunSpec) -> None:
        with self._lock:
            self._open(spec)

    @override
    def notice(self, spec: RunSpec, text: str) -> None:
        with self._lock:
            screen = self._screen or PlainScreen(sys.stdout, sys.stderr)
            screen.notice(printable_lines(text))

    @override
    def log(self, spec: RunSpec, data: bytes) -> None:
        if not data:
            return
        with self._lock:
            run, screen = self._open(spec)
            lines = run.rows.feed(data.decode("utf-8", "backslashreplace"))
            growing = "" if run.prefix else run.rows.growing
            screen.show(run, [run.prefix + line for line in lines], growing)

    @override
    def progress(self, spec: RunSpec, done: float, total: float | None, text: str) -> None:
        with self._lock:
            run, screen = self._open(spec)
            run.done, run.text = done, printable(text)
            run.total = total if total and math.isfinite(total) and math.isfinite(done) else None
            screen.progress(run)

    @override
    def finished(self, spec: RunSpec, result: RunResult) -> None:
        self.forget(spec.run_id)

    def forget(self, run_id: str) -> None:
        """Show a run no longer; nothing happens if it isn't shown."""
        with self._lock:
            run = self._runs.pop(run_id, None)
            if run is None or self._screen is None:
                return
            self._screen.show(run, [run.prefix + line for line in run.rows.end()], "")
            if not self._runs:
                self._close()

    def _open(self, spec: RunSpec) -> tuple[ShownRun, Screen]:
        run = self._runs.get(spec.run_id)
        if run is None:
            colours = wants_colours() and not (is_terminal(sys.stdout) and has_dumb_terminal())
            name = Redactor(secret_values()).redact_text(spec.name) if spec.name else spec.run_id
            is_debugged = spec.backend == "debug"
            run = ShownRun(printable(name), TerminalRows(colours=colours), is_debugged)
            self._runs[spec.run_id] = run
            if is_debugged:
                self._close()
            if len(self._runs) > 1:
                for each in self._runs.values():
                    each.prefix = f"[{each.name}] "
        if self._screen is None:
            self._screen = self._new_screen()
        return run, self._screen

    def _new_screen(self) -> Screen:
        terminals = [stream for stream in (sys.stdout, sys.stderr) if is_terminal(stream)]
        is_debugged = any(run.is_debugged for run in self._runs.values())
        if not terminals or has_dumb_terminal() or is_debugged:
            return PlainScreen(sys.stdout, sys.stderr)
        # not needed in a pipe, and slow to import
        from ml_experiments.runner.display.live import LiveScreen

        return LiveScreen(terminals[0], self._runs, self._lock)

    def _close(self) -> None:
        with self._lock:
            screen, self._screen = self._screen, None
            if screen is not None:
                screen.close()


class Notices(Observer):
    """Prints notices on stderr, and passes on what runs print if somebody wants it.

    Args:
        show: Receives the output.
    """

    def __init__(self, show: Callable[[bytes], object] | None = None) -> None:
        self._show = show

    @override
    def notice(self, spec: RunSpec, text: str) -> None:
        sys.stderr.write(printable_lines(text) + "\n")
        sys.stderr.flush()

    @override
    def log(self, spec: RunSpec, data: bytes) -> None:
        if self._show is not None:
            self._show(data)


DISPLAY = Display()  # one for all runs of this process, so that it knows how many are live
atexit.register(DISPLAY._close)  # so that the terminal is left as it was


def guarded(observer: Observer | None) -> Observer:
    """Return what receives the events of one run: the given observer, or the display; guarded.

    Raises:
        ConfigError: If it is no observer.
    """
    if observer is not None and not isinstance(observer, Observer):
        raise ConfigError(
            f"observer is {observer!r}; pass an instance of a subclass of ml_experiments.Observer"
        )
    return GuardedObserver(observer or DISPLAY)


class Notifier(GuardedObserver):
    """Passes on what happens in a run, and posts its end to a URL, as one JSON object.

    It holds what the records of the run hold, without the secrets. A post is tried three times.
    That it fails is only told, and by the host's name, as the rest of the URL may be a secret.

    Args:
        observer: Receives the events.
        url: Where to post.
        redactor: Takes the secrets out.

    Raises:
        ConfigError: If it isn't an http or https URL.
    """

    def __init__(self, observer: Observer, url: str, redactor: Redactor) -> None:
        super().__init__(observer)
        check_url(url)
        self._url = url
        self._redactor = redactor

    @override
    def finished(self, spec: RunSpec, result: RunResult) -> None:
        super().finished(spec, result)
        import tenacity  # not needed by most runs

        retrying = tenacity.Retrying(
            stop=tenacity.stop_after_attempt(_POST_ATTEMPTS),
            wait=tenacity.wait_exponential(_POST_WAIT_S),
            reraise=True,
        )
        named = {"name": spec.name, "tags": spec.tags}
        body = json.dumps(
            {
                **redact_result(result, self._redactor).to_dict(),
                **self._redactor.redact_record(named, SPEC_USER_DATA),
            }
        )
        try:
            retrying(_post, self._url, body.encode())
        except Exception as e:  # noqa: BLE001 - whatever it is, the run has ended as it has
            host = urlsplit(self._url).hostname
            super().notice(spec, f"the end of run {spec.run_id} was not posted to {host}: {e}")


def check_url(url: str) -> None:
    """Refuse what no end of a run can be posted to.

    Raises:
        ConfigError: If it isn't an http or https URL.
    """
    try:
        parts = urlsplit(url)
        is_valid = parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError:
        is_valid = False
    if not is_valid:
        raise ConfigError("notify takes a URL that begins with https:// or http://")


def _post(url: str, body: bytes) -> None:
    from urllib.request import Request, urlopen  # slow to import

    request = Request(url, body, {"Content-Type": "application/json"})
    with urlopen(request, timeout=_POST_LIMIT_S):
        pass
