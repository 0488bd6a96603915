"""Checks on Modal itself what the local server is tested against: `make contract-modal`.

Everything that it makes there has one prefix in its name, and is removed at the end. It writes one
report: behaviour, what Modal documents, the local server, the real service, agree or not.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import uuid
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path

import modal

PROJECT = Path(__file__).parents[1]
sys.path.insert(0, str(PROJECT))

from tests.contract.limits import MAX_RUN_S, max_cost_usd  # noqa: E402

HOLDS, DIFFERS, NOT_CHECKED = "holds", "does not hold", "not checked"


@dataclass(frozen=True)
class Outcome:
    """What a server does about one documented behaviour."""

    page: str
    says: str
    state: str
    message: str = ""


def main() -> int:
    """Ask, check, report, remove; the exit code is 1 if the two servers don't agree."""
    options = _options()
    gpu = os.environ.get("GPU") == "1"
    try:
        modal.Client.from_env().hello()
    except modal.exception.Error as e:
        print(f"Modal can't be reached: {e}", file=sys.stderr)
        return 2
    prefix = f"contract-{uuid.uuid4().hex[:8]}"
    print(
        f"This runs on the Modal workspace of your token, on {'a T4 and ' * gpu}CPUs. "
        f"It costs at most ${max_cost_usd(gpu=gpu):.2f} and takes at most "
        f"{MAX_RUN_S // 60} minutes. All that it makes is named {prefix}-…, and removed afterwards."
    )
    print("" if options.yes else "Go on? [y/N] ", end="", flush=True)
    # no terminal, no answer: that is a no
    if not options.yes and sys.stdin.readline().strip().lower() != "y":
        print("Nothing was run.")
        return 2
    try:
        real = check("modal", prefix, options.pytest_arguments)
    finally:
        remove(prefix)
    local = check("local", prefix, options.pytest_arguments)
    options.report.write_text(report(local, real), encoding="utf-8")
    apart = [name for name in real if agree(local.get(name), real[name]) == "**no**"]
    print(f"{len(real)} behaviours checked, {len(apart)} on which they differ: {options.report}")
    return 1 if apart or not real else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--yes", action="store_true", help="don't ask")
    parser.add_argument("--report", type=Path, default=Path("contract-report.md"))
    parser.add_argument("pytest_arguments", nargs="*", help="such as -- -k timeout")
    return parser.parse_args()


def check(service: str, prefix: str, pytest_arguments: list[str]) -> dict[str, Outcome]:
    """Run the contract's tests on one server, and return what they found, by behaviour."""
    environment = {**os.environ, "CONTRACT_SERVICE": service, "CONTRACT_PREFIX": prefix}
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder, "found.xml")
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:xdist",
            "-o",
            "junit_family=xunit1",
        ]
        try:
            subprocess.run(
                [*command, f"--junitxml={found}", "tests/contract", *pytest_arguments],
                cwd=PROJECT,
                env=environment,
                timeout=MAX_RUN_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            print(f"The contract was stopped after {MAX_RUN_S} s.", file=sys.stderr)
        return outcomes(found.read_text(encoding="utf-8")) if found.exists() else {}


def outcomes(junit_xml: str) -> dict[str, Outcome]:
    """Return the outcomes that a report of pytest holds, by the names of the behaviours."""
    found = {}
    for case in ElementTree.fromstring(junit_xml).iter("testcase"):
        properties = {each.get("name"): each.get("value", "") for each in case.iter("property")}
        if "page" not in properties:
            continue
        name = case.get("name", "").removeprefix("test_").replace("_", " ")
        state, message = HOLDS, ""
        for tag in ("failure", "error"):
            element = case.find(tag)
            if element is not None:
                state, message = DIFFERS, element.get("message", "").partition("\n")[0]
        found[name] = Outcome(properties["page"] or "", properties["says"] or "", state, message)
    return found


def agree(local: Outcome | None, real: Outcome | None) -> str:
    """Return whether two servers agree, as it stands in the report."""
    if local is None or real is None:
        return "—"
    return "yes" if local.state == real.state else "**no**"


def report(local: dict[str, Outcome], real: dict[str, Outcome]) -> str:
    """Return the report as a table in Markdown."""
    lines = [
        "| behaviour | documented | local server | real service | agree |",
        "|---|---|---|---|---|",
    ]
    for name in dict.fromkeys([*real, *local]):
        here, there = local.get(name), real.get(name)
        known = there or here
        assert known is not None
        documented = f"[{known.says}]({known.page})"
        cells = [name, documented, _cell(here), _cell(there), agree(here, there)]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _cell(outcome: Outcome | None) -> str:
    if outcome is None:
        return NOT_CHECKED
    return f"{outcome.state}: {outcome.message}" if outcome.message else outcome.state


def remove(prefix: str) -> None:
    """Stop the apps, and delete the volumes, dicts, queues and secrets, whose names begin so."""
    listing = [sys.executable, "-m", "modal", "app", "list", "--json"]
    apps = subprocess.run(listing, capture_output=True, text=True, check=False).stdout
    for app_id in app_ids(apps, prefix):
        stop = [sys.executable, "-m", "modal", "app", "stop", "--yes", app_id]
        subprocess.run(stop, capture_output=True, check=False)
    for kind in (modal.Volume, modal.Dict, modal.Queue, modal.Secret):
        for each in kind.objects.list():
            if each.name and each.name.startswith(f"{prefix}-"):
                kind.objects.delete(each.name)
                print(f"deleted the {kind.__name__.lower()} {each.name}")


def app_ids(listing: str, prefix: str) -> list[str]:
    """Return the ids of the apps of a listing that run and whose names begin so."""
    rows = [
        {key.lower(): value for key, value in row.items()} for row in json.loads(listing or "[]")
    ]
    return [
        row.get("app id") or row["app_id"]
        for row in rows
        if str(row.get("description") or row.get("name", "")).startswith(f"{prefix}-")
        and "stopped" not in str(row["state"])
    ]


if __name__ == "__main__":
    sys.exit(main())
