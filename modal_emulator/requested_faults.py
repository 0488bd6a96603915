"""Faults as the command line asks for them."""

from __future__ import annotations

from dataclasses import dataclass

from modal_emulator.emulator import Emulator

# Modal's own, between the SIGINT and the SIGKILL of a preemption.
_DEFAULT_GRACE_S = 30.0


@dataclass(frozen=True)
class RequestedFaults:
    """Faults to arm when a server starts.

    `fail_rpc` entries read `NAME[:NTH[:STATUS]]`, `delay_rpc` entries `NAME=SECONDS`,
    `gpu_limits` entries `TYPE=COUNT`, `full_volumes` entries `NAME=BYTES`.
    """

    delay_starts_s: float = 0.0
    fail_rpc: tuple[str, ...] = ()
    delay_rpc: tuple[str, ...] = ()
    gpu_limits: tuple[str, ...] = ()
    full_volumes: tuple[str, ...] = ()
    fail_image_builds: str | None = None
    preempt_input: int | None = None
    kill_input: int | None = None
    after_s: float | None = None
    grace_s: float | None = None

    def arm(self, emulator: Emulator) -> None:
        """Arm them.

        Raises:
            ValueError: for an entry that does not read as above, or has no effect.
        """
        if self.after_s is not None and self.preempt_input is None and self.kill_input is None:
            raise ValueError("--after has an effect with --preempt-input or --kill-input only.")
        if self.grace_s is not None and self.preempt_input is None:
            raise ValueError("--grace has an effect with --preempt-input only.")
        if self.delay_starts_s:
            emulator.delay_starts(self.delay_starts_s)
        for entry in self.fail_rpc:
            name, _, rest = entry.partition(":")
            nth, _, status = rest.partition(":")
            emulator.fail_rpc(
                name, nth=_number(nth or "1", entry), status=status.upper() or "UNAVAILABLE"
            )
        for entry in self.delay_rpc:
            name, seconds = _assignment(entry)
            emulator.delay_rpc(name, seconds)
        for entry in self.gpu_limits:
            name, count = _assignment(entry)
            emulator.limit_gpu(name, count)
        for entry in self.full_volumes:
            name, max_bytes = _assignment(entry)
            emulator.limit_volume(name, max_bytes=max_bytes)
        if self.fail_image_builds is not None:
            emulator.fail_image_builds(self.fail_image_builds)
        if self.preempt_input is not None:
            grace_s = _DEFAULT_GRACE_S if self.grace_s is None else self.grace_s
            emulator.preempt_input(self.preempt_input, after_s=self.after_s or 0.0, grace_s=grace_s)
        if self.kill_input is not None:
            emulator.kill_input(self.kill_input, after_s=self.after_s or 0.0)


def _assignment(entry: str) -> tuple[str, int]:
    name, equals, number = entry.partition("=")
    if not equals:
        raise ValueError(f'"{entry}" is not of the form NAME=NUMBER, such as H100=0.')
    return name, _number(number, entry)


def _number(text: str, entry: str) -> int:
    if not text.isdigit():
        raise ValueError(f'"{text}" in "{entry}" is not a whole number of 0 or more.')
    return int(text)
