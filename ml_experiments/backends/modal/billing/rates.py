"""The prices of the user's own Modal workspace, read once a day and cached in a file."""

from __future__ import annotations

import datetime
import functools
import logging
import math
import threading
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ml_experiments.errors import RunFolderError
from ml_experiments.runs.records import read_json_object
from ml_experiments.serialization.files import write_json_atomically
from ml_experiments.settings import index_dir, modal_account

FILE_NAME = "modal-rates.json"
_KEPT = datetime.timedelta(days=1)
_RETRY_AFTER = datetime.timedelta(hours=1)  # where they could not be read
_ANSWER_LIMIT_S = 5.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Rates:
    """What a workspace pays.

    Attributes:
        usd: By the names that Modal gives them, such as `gpu_hour_cost_h100`.
        date: When they were read, in ISO 8601.
    """

    usd: Mapping[str, float]
    date: str


def cached_rates() -> Rates | None:
    """Return the rates of the current token's workspace; None if they were not read today."""
    account = modal_account()
    return None if account is None else _read_cache(account)[0]


def refresh_rates() -> None:
    """Read the rates of the current token's workspace, if that was not done in the last day.

    Where there is no token, no network, or no access to the rates, nothing happens: the prices in
    this package count.
    """
    account = modal_account()
    if account is None or _read_cache(account)[1]:
        return
    usd: dict[str, float] | None = None
    try:
        usd = _checked(_ask_modal())
    except Exception as e:  # noqa: BLE001 - no price is worth a run that does not start
        logger.info("the workspace's rates can't be read: %s: %s", type(e).__name__, e)
    read_at = datetime.datetime.now(datetime.UTC).isoformat()
    record = {"account": account, "read_at": read_at, "usd": usd}
    try:
        index_dir().mkdir(parents=True, exist_ok=True)
        write_json_atomically(index_dir() / FILE_NAME, record)
    except OSError as e:
        logger.info("the workspace's rates can't be cached: %s", e)


def _ask_modal() -> dict[str, float]:
    answer: Future[dict[str, float]] = Future()

    def ask() -> None:
        try:
            import modal  # only here: a list of GPU types has no need for it

            rates = modal.Workspace.from_context().billing.rates()
            answer.set_result({name: float(usd) for name, usd in rates.items()})
        except Exception as e:  # noqa: BLE001 - raised again where it is waited for
            answer.set_exception(e)

    # the client itself would try for a minute; it can't be told not to
    threading.Thread(target=ask, daemon=True, name="modal-rates").start()
    return answer.result(_ANSWER_LIMIT_S)


def _read_cache(account: str) -> tuple[Rates | None, bool]:
    """Return the rates in the file, and whether it is too early to ask again."""
    file = index_dir() / FILE_NAME
    try:
        status = file.stat()
    except OSError:
        return None, False
    cached = _parse(file, (status.st_mtime_ns, status.st_size, status.st_ino))
    if cached is None or cached.account != account:
        return None, False
    age = datetime.datetime.now(datetime.UTC) - cached.read_at
    is_fresh = datetime.timedelta(0) <= age < (_RETRY_AFTER if cached.usd is None else _KEPT)
    if cached.usd is None or not is_fresh:
        return None, is_fresh
    return Rates(cached.usd, cached.read_at.date().isoformat()), True


@dataclass(frozen=True)
class _Cached:
    account: str
    read_at: datetime.datetime
    usd: Mapping[str, float] | None


@functools.lru_cache(maxsize=4)
def _parse(file: Path, _stamp: tuple[int, ...]) -> _Cached | None:
    """Return what a file holds; None if it is damaged."""
    try:
        record = read_json_object(file)
        read_at = datetime.datetime.fromisoformat(record["read_at"]).astimezone(datetime.UTC)
        return _Cached(str(record["account"]), read_at, _checked(record["usd"]))
    except (RunFolderError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _checked(usd: Any) -> dict[str, float] | None:
    if usd is None:
        return None
    rates = {str(name): float(rate) for name, rate in usd.items()}
    return {name: rate for name, rate in rates.items() if math.isfinite(rate) and rate > 0}
