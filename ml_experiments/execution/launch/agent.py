"""The launcher process: torch's or accelerate's own launcher, which starts the ranks.

Its arguments are the launcher, the number of processes, the file descriptor for its report, the
`Meeting` with launchers of other machines, and the command of a rank. The report is written if
ranks have failed: the exit code of each, as JSON.
"""

from __future__ import annotations

import json
import logging
import os
import sys

from ml_experiments.execution.launch.nodes import Meeting
from ml_experiments.settings import use_cpu_with_accelerate

# for ranks that ignore that they shall end
_SHUTDOWN_S = 10


def main() -> None:
    """Start the ranks, and wait for them."""
    launcher, count, descriptor, place, *command = sys.argv[1:]
    # what the launchers log of ranks that fail is in the run's result
    logging.disable(logging.ERROR)
    start = _accelerate if launcher == "accelerate" else _torchrun
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    try:
        start(int(count), Meeting(**json.loads(place)), command)
    except SignalException:  # the ranks were ended, because others have failed
        sys.exit(1)
    except ChildFailedError as e:
        codes = {rank: failure.exitcode for rank, failure in e.failures.items()}
        with os.fdopen(int(descriptor), "w") as report:
            json.dump(codes, report)
        sys.exit(1)


def _torchrun(count: int, meeting: Meeting, command: list[str]) -> None:
    from torch.distributed.run import parse_args, run

    # standalone: a free port for each run, so that several on one machine don't meet
    options = ["--standalone"]
    if meeting.nodes > 1:
        options = [f"--nnodes={meeting.nodes}", f"--node-rank={meeting.node}"]
        options += [f"--master-addr={meeting.address}", f"--master-port={meeting.port}"]
    options += [f"--nproc-per-node={count}", f"--shutdown-timeout={_SHUTDOWN_S}"]
    run(parse_args([*options, "--no-python", *command]))


def _accelerate(count: int, meeting: Meeting, command: list[str]) -> None:
    import torch
    from accelerate.commands import launch

    # what `accelerate config` has written for this user is no part of the run
    launch.default_config_file = os.devnull
    in_all = count * meeting.nodes
    options = [f"--num_machines={meeting.nodes}", f"--num_processes={in_all}", "--same_network"]
    options += [f"--machine_rank={meeting.node}", f"--main_process_port={meeting.port}"]
    options += [f"--main_process_ip={meeting.address}"] if meeting.nodes > 1 else []
    options += ["--mixed_precision=no", "--dynamo_backend=no"]
    options += ["--multi_gpu"] if in_all > 1 else []  # it means several processes
    if not torch.cuda.is_available():
        use_cpu_with_accelerate()
    args = launch.launch_command_parser().parse_args([*options, "--no_python", *command])
    args.standalone, args.shutdown_timeout = meeting.nodes == 1, _SHUTDOWN_S
    launch.launch_command(args)
