"""Slurm itself on this machine, with GPUs that are none: started in seconds, on loopback only."""

from __future__ import annotations

import getpass
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel", "scontrol", "sinfo")
_START_LIMIT_S = 20.0
_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
_CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
SlurmctldPort={controller_port}
SlurmdPort={node_port}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SchedulerType=sched/builtin
SchedulerParameters=batch_sched_delay=0,sched_interval=1
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
GresTypes=gpu
AccountingStorageType=accounting_storage/none
SlurmdParameters=config_overrides
ReturnToService=2
MpiDefault=none
SwitchType=switch/none
KillWait=5
MinJobAge=300
JobRequeue=1
InactiveLimit=0
NodeName={host} NodeAddr=127.0.0.1 CPUs=8 RealMemory=2000 Gres=gpu:fake:4 State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


class ClusterNotStartedError(Exception):
    """Slurm could not be started here; the message says why."""


@contextmanager
def slurm_cluster(folder: Path) -> Iterator[dict[str, str]]:
    """Start Slurm, and end it afterwards; yields the variables with which its commands find it.

    Raises:
        ClusterNotStartedError: If it could not be started.
    """
    missing = [name for name in PROGRAMS if shutil.which(name, path=_PATH) is None]
    if missing:
        raise ClusterNotStartedError(
            f"no {', '.join(missing)}; apt-get install slurmctld slurmd munge slurm-client"
        )
    host, environment = _configure(folder)
    try:
        _start(folder, host, environment)
        yield environment
    finally:
        _end(folder, environment)


def _configure(folder: Path) -> tuple[str, dict[str, str]]:
    host = socket.gethostname().partition(".")[0]
    folder.chmod(0o755)
    munge = folder / "munge"
    munge.mkdir(mode=0o700)
    (munge / "key").write_bytes(os.urandom(128))
    (munge / "key").chmod(0o600)
    for name in ("state", "spool"):
        (folder / name).mkdir()
    ports = _free_ports(2)
    (folder / "gres.conf").write_text("Name=gpu Type=fake File=/dev/tty[0-3]\n")
    file = folder / "slurm.conf"
    file.write_text(
        _CONFIGURATION.format(
            host=host,
            user=getpass.getuser(),
            folder=folder,
            controller_port=ports[0],
            node_port=ports[1],
        ).lstrip()
    )
    return host, {"SLURM_CONF": str(file), "PATH": _PATH}


def _start(folder: Path, host: str, environment: dict[str, str]) -> None:
    munge = folder / "munge"
    _call(
        environment,
        "munged",
        f"--key-file={munge / 'key'}",
        f"--socket={folder / 'munge.socket'}",
        f"--pid-file={munge / 'munged.pid'}",
        f"--log-file={munge / 'munged.log'}",
        f"--seed-file={munge / 'seed'}",
        "--num-threads=1",
        "--force",
    )
    _call(environment, "slurmctld", "-c", "-f", environment["SLURM_CONF"])
    _call(environment, "slurmd", "-c", "-f", environment["SLURM_CONF"], "-N", host)
    ends_at = time.monotonic() + _START_LIMIT_S
    while time.monotonic() < ends_at:
        state = _call(environment, "sinfo", "--noheader", "--format=%T").strip()
        if state == "idle":
            return
        time.sleep(0.05)
    lines = [log.read_text().splitlines()[-1:] for log in sorted(folder.glob("slurm*.log"))]
    raise ClusterNotStartedError(f"the node is {state or 'unknown'}; the logs end with {lines}")


def _end(folder: Path, environment: dict[str, str]) -> None:
    pids = []
    for file in ("slurmctld.pid", "slurmd.pid", "munge/munged.pid"):  # now: they remove these
        with suppress(OSError, ValueError):
            pids.append(int((folder / file).read_text()))
    with suppress(ClusterNotStartedError):
        _call(environment, "scancel", "--user", getpass.getuser())
        ends_at = time.monotonic() + _START_LIMIT_S
        # a node waits for its jobs, and so would outlive this
        while time.monotonic() < ends_at and _call(environment, "squeue", "--noheader").strip():
            time.sleep(0.05)
        _call(environment, "scontrol", "shutdown")
    for signum, limit_s in ((signal.SIGTERM, 5.0), (signal.SIGKILL, 5.0)):
        for pid in filter(_is_alive, pids):
            with suppress(ProcessLookupError):
                os.kill(pid, signum)
        ends_at = time.monotonic() + limit_s
        while time.monotonic() < ends_at and any(map(_is_alive, pids)):
            time.sleep(0.05)


def _is_alive(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def _call(environment: dict[str, str], program: str, *arguments: str) -> str:
    path = shutil.which(program, path=_PATH)
    assert path is not None
    try:
        done = subprocess.run(
            [path, *arguments],
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=_START_LIMIT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as e:
        raise ClusterNotStartedError(f"{program}: {e}") from e
    if done.returncode != 0 and program != "sinfo":
        message = " ".join((done.stderr or done.stdout).split())
        raise ClusterNotStartedError(f"{program} ended with code {done.returncode}: {message}")
    return done.stdout


def _free_ports(count: int) -> list[int]:
    opened = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(server.getsockname()[1]) for server in opened]
    for server in opened:
        server.close()
    return ports
