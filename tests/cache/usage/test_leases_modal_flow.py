"""What a run in one container uses, a deletion in another one keeps: real containers."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import modal
import pytest

from ml_experiments.backends.base import RunHandle
from ml_experiments.backends.modal.backend import ModalBackend
from ml_experiments.backends.modal.cache import call_cache_operation
from ml_experiments.backends.modal.container.run_remote import run_remote
from ml_experiments.backends.modal.image import package_image, with_this_package
from ml_experiments.backends.modal.mounts import (
    CACHE_MOUNT,
    CACHE_VOLUME,
    RUNS_MOUNT,
    cache_volume,
    runs_volume,
)
from ml_experiments.backends.modal.preflight.own_package import RUN_ROOTS
from ml_experiments.backends.modal.request import make_request
from ml_experiments.core import modal_runner
from ml_experiments.runner.run import submit_experiment
from ml_experiments.runs.manifest import Manifest
from ml_experiments.runs.result import RunStatus
from ml_experiments.runs.spec import RunSpec, new_run_id
from modal_emulator import Emulator
from tests.support import leased_experiments
from tests.support.hub_server import HubServer
from tests.support.leased_experiments import Holds
from tests.support.modal_runs import containers_of
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow
MODELS = ("held/declared", "held/in-run", "held/in-setup")
LEASES = "/huggingface/.ml-experiments/leases"


@pytest.fixture
def hub(modal_emulator: Emulator) -> Iterator[HubServer]:
    with HubServer() as server:
        for name in (*MODELS, "held/unused"):
            server.add_repo(name, {"config.json": b"{}", "model.bin": name.encode() * 1000})
        server.add_repo("org/gates", {"gate": b"open", "second": b"open"})
        modal.Secret.objects.create("huggingface-secret", server.environment())
        yield server
        modal.Secret.objects.delete("huggingface-secret", allow_missing=True)
        clear()


@pytest.fixture
def backend(hub: HubServer) -> Iterator[ModalBackend]:
    with ModalBackend() as opened:
        yield opened
        hub.let_go()  # else it waits for the run of a test that failed


def pull(*names: str) -> None:
    for name in names:
        call_cache_operation("pull", {"name": name})


def clear() -> dict[str, Any]:
    """Call the documented function, in a container of its own."""
    with modal_runner.app.run():
        outcome: dict[str, Any] = modal_runner.clear_cache.remote("held/*", force=True)
    return outcome


def kept(outcome: dict[str, Any]) -> dict[str, str]:
    return {entry["name"]: entry["why"] for entry in outcome["kept"]}


def leases() -> list[str]:
    try:
        found = modal.Volume.from_name(CACHE_VOLUME).listdir(LEASES)
    except modal.exception.NotFoundError:
        return []
    return [entry.path.rpartition("/")[2] for entry in found]


def start(backend: ModalBackend, hub: HubServer, **config: Any) -> RunHandle:
    """Start a run, and return once it has read its models and waits."""
    waiting = count_waiting(hub)
    handle = submit_experiment(Holds, {"gate": "gate", **config}, backend=backend, gpu="t4")
    wait_until(lambda: count_waiting(hub) > waiting, "the run reading its models")
    return handle


def busy_container(emulator: Emulator, run: RunHandle) -> str:
    found = containers_of(emulator, run.folder)
    [container] = [each for each in found if each.running_input_ids]
    return container.task_id


def count_waiting(hub: HubServer) -> int:
    return sum("/gates/" in request.path for request in hub.requests)


def test_models_of_a_run_elsewhere_are_kept_and_it_is_named_until_it_ends(
    hub: HubServer, backend: ModalBackend
) -> None:
    pull(*MODELS, "held/unused")
    gate = hub.stall_after("gate", 0)
    models = {
        "declared": "held/declared",
        "in_setup": "held/in-setup",
        "in_run": "held/in-run",
    }
    run = start(backend, hub, **models)
    outcome = clear()
    assert outcome["names"] == ["held/unused"]
    assert kept(outcome) == dict.fromkeys(MODELS, f"is in use by run {run.run_id}")

    gate.set()
    assert run.result().status is RunStatus.SUCCESS
    outcome = clear()
    assert (outcome["names"], outcome["kept"]) == (list(MODELS), [])
    assert leases() == []


def test_a_run_that_is_kept_set_up_holds_what_its_setup_loaded(
    hub: HubServer, backend: ModalBackend
) -> None:
    pull("held/in-setup")
    first = start(backend, hub, in_setup="held/in-setup", declared="broken")
    assert first.result().status is RunStatus.SUCCESS, "a hook that fails costs no run"
    gate = hub.stall_after("second", 0)
    warm = start(backend, hub, in_setup="held/in-setup", gate="second")
    assert kept(clear()) == {"held/in-setup": f"is in use by run {warm.run_id}"}
    gate.set()
    assert warm.result().timings["setup_s"] < 0.1


def test_what_a_killed_container_held_can_be_deleted(
    modal_emulator: Emulator, hub: HubServer, backend: ModalBackend
) -> None:
    pull("held/in-setup")
    first = hub.stall_after("gate", 0)
    run = start(backend, hub, in_setup="held/in-setup")
    assert clear()["names"] == []
    second, waiting = hub.stall_after("gate", 0), count_waiting(hub)
    modal_emulator.kill(busy_container(modal_emulator, run))
    wait_until(lambda: count_waiting(hub) > waiting, "the second attempt")
    assert clear()["names"] == []
    run.cancel(at_once=True)  # its container is killed, too, and nothing comes after it
    assert run.result().status is RunStatus.CANCELLED
    for gate in (first, second):
        gate.set()
    assert len(leases()) == 1
    modal_emulator.fail_rpc("FunctionCallFromId", status="PERMISSION_DENIED")
    assert len(kept(clear())) == 1, "whether the run goes on is not known"
    assert clear()["names"] == ["held/in-setup"]
    assert leases() == []


def test_a_lease_older_than_any_run_can_be_holds_nothing(
    modal_emulator: Emulator, hub: HubServer
) -> None:
    pull("held/declared")
    lease = {"run_id": "old", "holder": "fc-old", "folders": ["models--held--declared"]}
    for age_s, names in ((23 * 3600, []), (26 * 3600, ["held/declared"])):
        content = json.dumps({**lease, "since": time.time() - age_s}).encode()
        with modal.Volume.from_name(CACHE_VOLUME).batch_upload(force=True) as batch:
            batch.put_file(io.BytesIO(content), f"{LEASES}/old.json")
        modal_emulator.fail_rpc("FunctionCallFromId", status="PERMISSION_DENIED")
        assert clear()["names"] == names


def test_a_preempted_run_holds_its_model_until_its_second_attempt_has_ended(
    modal_emulator: Emulator, hub: HubServer, backend: ModalBackend
) -> None:
    pull("held/in-setup")
    first = hub.stall_after("gate", 0)
    run = start(backend, hub, in_setup="held/in-setup")
    second = hub.stall_after("gate", 0)
    waiting = count_waiting(hub)
    modal_emulator.preempt(busy_container(modal_emulator, run), grace_s=1)
    assert kept(clear()) == {"held/in-setup": f"is in use by run {run.run_id}"}
    wait_until(lambda: count_waiting(hub) > waiting, "the second attempt")
    time.sleep(2)  # until the first container is gone, and has committed what it left
    assert kept(clear()) == {"held/in-setup": f"is in use by run {run.run_id}"}
    for gate in (first, second):
        gate.set()
    assert run.result().status is RunStatus.SUCCESS
    assert clear()["names"] == ["held/in-setup"]
    assert leases() == []


def test_one_run_of_a_map_holds_its_model_when_the_first_has_ended(hub: HubServer) -> None:
    pull("held/in-setup")
    gate = hub.stall_after("second", 0)
    app = modal.App("mapped")
    file = Path(leased_experiments.__file__)
    function = app.function(
        image=with_this_package(package_image(), *RUN_ROOTS).add_local_file(
            file, f"/root/{file.name}"
        ),
        secrets=[modal.Secret.from_dict(hub.environment())],
        volumes={CACHE_MOUNT: cache_volume(), RUNS_MOUNT: runs_volume()},
        max_containers=1,
    )(run_remote)
    configs = ({"gate": "gate"}, {"gate": "second", "in_setup": "held/in-setup"})
    requests = [request(f"{file.stem}:Holds", config) for config in configs]
    with app.run(), ThreadPoolExecutor(1) as thread:
        results = thread.submit(lambda: list(function.map(requests)))
        try:
            wait_until(lambda: count_waiting(hub) == 2, "the second run reading its model")
            outcome = clear()
        finally:
            gate.set()
        second = requests[1]["spec"]["run_id"]
        assert kept(outcome) == {"held/in-setup": f"is in use by run {second}"}
        assert [result["status"] for result in results.result()] == ["success", "success"]
    assert clear()["names"] == ["held/in-setup"]


def request(experiment: str, config: dict[str, Any]) -> dict[str, Any]:
    spec = RunSpec(
        run_id=new_run_id(),
        experiment=experiment,
        config=config,
        seed=0,
        created_at="",
        backend="modal",
    )
    return make_request(spec, Manifest(run_id=spec.run_id), (), None).to_dict()
