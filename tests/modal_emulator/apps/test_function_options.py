"""What a function asks for is what the server receives, checks and gives to the container."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

import emulated_settings as settings
import image_app
import modal
import modal.experimental
import pytest
from modal._vendor.cloudpickle import register_pickle_by_value
from modal.exception import InvalidError, NotFoundError, ServerWarning, UnimplementedError

from modal_emulator import Emulator
from modal_emulator.control.info import FunctionInfo

register_pickle_by_value(sys.modules[__name__])


@pytest.fixture(scope="module", autouse=True)
def _app(modal_emulator_server: Emulator) -> Iterator[None]:
    with settings.app.run():
        yield


def received(emulator: Emulator, name: str) -> FunctionInfo:
    return emulator.functions(name)[-1]


def test_resources_limits_and_retries_are_received(modal_emulator: Emulator) -> None:
    found = received(modal_emulator, "configured")
    assert (found.cpu, found.memory_mb) == ((0.5, 2.0), (256, 512))
    assert (found.timeout_s, found.startup_timeout_s, found.retries) == (123, 45, 3)
    assert (found.max_containers, found.buffer_containers) == (2, 1)
    assert (found.scaledown_window_s, found.ephemeral_disk_mb) == (17, 600_000)
    assert found.regions == ("eu",)
    assert (found.module, found.app_name) == ("emulated_settings", "emulated-settings")


def test_volumes_and_secrets_are_received_by_name_and_keys(modal_emulator: Emulator) -> None:
    found = received(modal_emulator, "configured")
    assert found.volumes["/data"].name == "emulated-settings"
    assert found.volumes["/data"].read_only is False
    assert [secret.keys for secret in found.secrets] == [("API_KEY", "EMPTY")]
    assert "from the secret" not in repr(modal_emulator.functions())


def test_a_container_gets_the_secrets_values() -> None:
    assert settings.configured.remote() == "from the secret"


def test_ranked_gpus_are_received_and_the_first_is_allocated(modal_emulator: Emulator) -> None:
    assert received(modal_emulator, "on_gpu").gpus == ("H100:2", "A100-80GB", "L4")
    assert settings.on_gpu.remote() == ("H100", "2")
    allocated = [(each.gpu, each.gpu_count) for each in modal_emulator.containers()]
    assert ("H100", 2) in allocated


def test_with_options_makes_a_variant_with_its_own_containers(modal_emulator: Emulator) -> None:
    secret = modal.Secret.from_dict({"API_KEY": "another"})
    variant = settings.configured.with_options(
        gpu="L40S:4", timeout=7, memory=1024, cpu=4, secrets=[secret], retries=1
    )
    assert variant.remote() == "another"
    found = received(modal_emulator, "configured")
    assert found.base_function_id == settings.configured.object_id
    assert found.gpus == ("L40S:4",)
    assert (found.timeout_s, found.retries) == (7, 1)
    assert (found.cpu, found.memory_mb) == ((4.0, None), (1024, None))
    # What was not mentioned stays.
    assert found.volumes["/data"].name == "emulated-settings"
    assert settings.configured.remote() == "from the secret"


def test_with_options_replaces_a_ranked_list_by_one_gpu(modal_emulator: Emulator) -> None:
    assert settings.on_gpu.with_options(gpu="a100").remote() == ("A100-40GB", "1")


@pytest.mark.parametrize("limits", [{"timeout": 0}, {"timeout": 90_000}])
def test_timeouts_that_modal_does_not_offer_are_refused(limits: dict[str, int]) -> None:
    app = modal.App("refused")
    app.function(timeout=limits["timeout"], startup_timeout=60)(settings.one)
    with pytest.raises(InvalidError, match="Modal offers 1 to 86400 seconds"), app.run():
        pytest.fail("the app ran")


MOST_CORES = 64
MOST_MIB = 1 << 20
# 8 GPUs of 180 GiB: what the Modal backend allows a container
MIB_BESIDE_GPUS = 8 * 2 * 180 * 1024


@pytest.mark.parametrize(
    ("requested", "message"),
    [
        ({"cpu": 5000}, r"cpu=5000 asks for too much; .* requests of up to 64 cores"),
        ({"cpu": (64.5, 70.0)}, r"cpu=64\.5 asks"),
        ({"memory": 10**9}, r"memory=1000000000 asks .* up to 1048576 MiB \(1 TiB\)"),
        ({"memory": (MOST_MIB + 1, MIB_BESIDE_GPUS)}, "memory=1048577 asks"),
    ],
)
def test_requests_that_no_machine_can_meet_are_refused(
    requested: dict[str, Any], message: str
) -> None:
    app = modal.App("refused")
    app.function(**requested)(settings.one)
    with pytest.raises(InvalidError, match=message), app.run():
        pytest.fail("the app ran")
    with pytest.raises(InvalidError, match=message):
        settings.configured.with_options(**requested).remote()


@pytest.mark.parametrize(
    ("cpu", "memory"),
    [(MOST_CORES, MOST_MIB), ((0.125, MOST_CORES), (128, MIB_BESIDE_GPUS))],
)
def test_the_largest_requests_and_limits_are_accepted(
    cpu: Any, memory: Any, modal_emulator: Emulator
) -> None:
    app = modal.App("accepted")
    app.function(cpu=cpu, memory=memory)(settings.one)
    with app.run():
        found = received(modal_emulator, "one")
    assert found.cpu == (cpu if isinstance(cpu, tuple) else (cpu, None))
    assert found.memory_mb == (memory if isinstance(memory, tuple) else (memory, None))


def test_with_options_refuses_an_unknown_gpu() -> None:
    with pytest.raises(InvalidError, match="did you mean H200"):
        settings.configured.with_options(gpu="H20").remote()


def test_a_missing_secret_is_refused_before_anything_runs() -> None:
    app = modal.App("refused")
    app.function(secrets=[modal.Secret.from_name("no-such-secret")])(settings.one)
    with pytest.raises(NotFoundError, match="no-such-secret"), app.run():
        pytest.fail("the app ran")


def test_a_missing_volume_is_refused_before_anything_runs() -> None:
    app = modal.App("refused")
    app.function(volumes={"/x": modal.Volume.from_name("no-such-volume")})(settings.one)
    with pytest.raises(NotFoundError, match="no-such-volume"), app.run():
        pytest.fail("the app ran")


def test_a_file_with_an_http_server_is_accepted_with_a_warning() -> None:
    class Server:
        pass

    app = modal.App("accepted")
    two = app.function(serialized=True, name="two")(lambda: 2)
    server = modal.experimental.http_server(port=8000, proxy_regions=["us-east"])(Server)
    app.cls(serialized=True)(server)
    warned = pytest.warns(ServerWarning, match=r"Server\.\* uses @modal.http_server")
    with warned, app.run():
        assert two.remote() == 2


@pytest.mark.filterwarnings("ignore::modal.exception.DeprecationError")
@pytest.mark.parametrize(
    ("options", "what"),
    [
        (lambda: {"volumes": {"/bucket": modal.CloudBucketMount("somewhere")}}, "CloudBucketMount"),
        (
            lambda: {"network_file_systems": {"/nfs": modal.NetworkFileSystem.from_name("files")}},
            "NetworkFileSystem",
        ),
        (lambda: {"proxy": modal.Proxy.from_name("fixed-ip")}, "proxy"),
    ],
    ids=["bucket", "network file system", "proxy"],
)
def test_what_is_not_emulated_is_refused_when_it_is_called_and_not_before(
    options: Callable[[], dict[str, Any]], what: str
) -> None:
    app = modal.App("accepted")
    two = app.function(serialized=True, name="two")(lambda: 2)
    reads = app.function(serialized=True, name="reads", min_containers=1, **options())(lambda: 1)
    message = f"reads uses `(modal.)?{what}`, which the emulator does not emulate"
    warned = pytest.warns(ServerWarning, match=message)
    with warned, app.run():
        assert two.remote() == 2
        with pytest.raises(UnimplementedError, match=message):
            reads.remote()


def test_a_network_file_system_can_be_looked_up_but_not_read() -> None:
    with pytest.warns(modal.exception.DeprecationError):
        files = modal.NetworkFileSystem.from_name("files", create_if_missing=True)
    with pytest.raises(UnimplementedError, match="does not implement SharedVolumeListFiles"):
        list(files.iterdir("/"))


def test_a_gpu_function_can_not_be_nonpreemptible() -> None:
    app = modal.App("refused")
    app.function(serialized=True, name="f", gpu="T4", nonpreemptible=True)(lambda: 1)
    with pytest.raises(InvalidError, match="f has nonpreemptible=True and a GPU"), app.run():
        pytest.fail("the app ran")
    app = modal.App("refused-later")
    f = app.function(serialized=True, name="f", nonpreemptible=True)(lambda: 1)
    with app.run(), pytest.raises(InvalidError, match="f has nonpreemptible=True and a GPU"):
        f.with_options(gpu="T4").remote()


def test_a_nonpreemptible_function_is_not_preempted(modal_emulator: Emulator) -> None:
    app = modal.App("nonpreemptible")
    f = app.function(serialized=True, name="f", nonpreemptible=True)(lambda: 1)
    modal_emulator.preempt_input(1)
    with app.run():
        assert f.remote() == 1
        app_id = str(app.app_id)
    assert modal_emulator.calls("f")[-1].inputs[0].starts == 1
    assert "it is nonpreemptible" in "".join(each.text for each in modal_emulator.logs(app_id))


def test_more_disk_than_modal_offers_is_refused() -> None:
    app = modal.App("refused")
    app.function(serialized=True, ephemeral_disk=3_145_729)(lambda: 1)
    with pytest.raises(InvalidError, match="ephemeral_disk=3145729 asks for too much"), app.run():
        pytest.fail("the app ran")


@pytest.mark.parametrize(
    ("cron", "zone", "message"),
    [
        ("0 9 * *", "UTC", "has five fields"),
        ("60 9 * * *", "UTC", "minute 0-59"),
        ("0 9 * * tue-x", "UTC", "not a cron schedule"),
        ("0 9 * * *", "Europe/Nowhere", "is not a time zone"),
    ],
)
def test_a_wrong_schedule_is_refused(cron: str, zone: str, message: str) -> None:
    app = modal.App("refused")
    app.function(serialized=True, schedule=modal.Cron(cron, timezone=zone))(lambda: None)
    with pytest.raises(InvalidError, match=message), app.run():
        pytest.fail("the app ran")


def test_schedules_of_every_kind_are_recorded_with_a_warning(modal_emulator: Emulator) -> None:
    app = modal.App("scheduled")
    for name, schedule in {
        "cron": modal.Cron("*/5 0-6,22 1 jan mon-fri", timezone="Europe/Berlin"),
        "period": modal.Period(hours=5),
    }.items():
        app.function(serialized=True, name=name, schedule=schedule)(lambda: None)
    warned = pytest.warns(ServerWarning, match="schedule")
    with warned, app.run():
        assert "Europe/Berlin" in received(modal_emulator, "cron").schedule
        assert received(modal_emulator, "period").schedule == "period {\n  hours: 5\n}"


def use_a_dict(name: str) -> str:
    try:
        modal.Dict.from_name(name, create_if_missing=True)["key"] = 1
    except modal.exception.PermissionDeniedError as error:
        return str(error)
    return "done"


def test_a_function_without_access_to_modal_can_not_use_its_objects() -> None:
    app = modal.App("restricted")
    free = app.function(serialized=True, name="free")(use_a_dict)
    options: dict[str, Any] = {"name": "restricted", "restrict_modal_access": True}
    restricted = app.function(serialized=True, **options)(use_a_dict)
    with app.run():
        assert free.remote("of-a-function") == "done"
        answer = restricted.remote("of-a-function")
    assert "restricted has restrict_modal_access=True" in answer
    assert "DictGetOrCreate" in answer


def test_the_tags_of_an_app_are_received(modal_emulator: Emulator) -> None:
    found = [each for each in modal_emulator.apps() if each.app_id == settings.app.app_id]
    assert found[0].tags == {"team": "vision"}
    assert found[0].state == "ephemeral"


def test_a_serialized_function_of_another_python_is_a_warning() -> None:
    own = f"{sys.version_info.major}.{sys.version_info.minor}"
    other = "3.12" if own != "3.12" else "3.13"
    slim = modal.Image.debian_slim(python_version=other)
    added = modal.Image.from_registry("registry.example/system:1", add_python=other)
    app = modal.App("serialized")
    app.function(image=slim)(image_app.download_weights)
    for name, image in (("slim", slim), ("added", added), ("same", modal.Image.debian_slim())):
        app.function(serialized=True, name=name, image=image)(lambda: None)
    with pytest.warns(ServerWarning) as warned, app.run():
        pass
    assert sorted(str(each.message) for each in warned) == [
        f"{name} is serialized by Python {own}, and its image has Python {other}: "
        "a serialized function needs the same minor version on both sides."
        for name in ("added", "slim")
    ]
