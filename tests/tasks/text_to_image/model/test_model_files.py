"""TextToImageExperiment with models from a Hub: a loopback server, the real download code."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
from safetensors.numpy import load_file, save_file

from ml_experiments import LocalBackend
from ml_experiments.tasks.tiny_digits import model_dir
from tests.support.hub_server import HubRepo, HubServer
from tests.support.pictures import LimitedDownload, difference, draw, make_lora, pixels, refusals

pytestmark = pytest.mark.slow

UNET = "unet/diffusion_pytorch_model.safetensors"
VARIANTS = {
    "unet/diffusion_pytorch_model": "unet/diffusion_pytorch_model.ema",
    "vae/diffusion_pytorch_model": "vae/diffusion_pytorch_model.ema",
    "text_encoder/model": "text_encoder/model.ema",
}
TOKEN = "hf_allowedtoken"


@pytest.fixture(scope="module")
def hub() -> Iterator[HubServer]:
    with HubServer() as server:
        yield server


@pytest.fixture(scope="module")
def changed_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that draws something else, and draws as tiny-digits does in its variant `ema`."""
    folder = tmp_path_factory.mktemp("models") / "changed"
    shutil.copytree(model_dir(), folder)
    for name, variant in VARIANTS.items():
        shutil.copy(folder / f"{name}.safetensors", folder / f"{variant}.safetensors")
    weights = load_file(folder / UNET)
    save_file({name: w * np.float16(0.9) for name, w in weights.items()}, folder / UNET)
    return folder


@pytest.fixture(scope="module")
def model(hub: HubServer, changed_model: Path) -> HubRepo:
    return hub.add_repo("org/digits", model_dir(), revisions={"changed": changed_model})


def settings(hub: HubServer, home: Path) -> dict[str, str]:
    return {
        **hub.environment(),
        "HF_HOME": str(home),
        "OMP_WAIT_POLICY": "PASSIVE",
    }


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def hub_backend(hub: HubServer, home: Path) -> Iterator[LocalBackend]:
    """Workers for which the Hub is the loopback server, with a cache of their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("HF_TOKEN", raising=False)
        for name, value in settings(hub, home).items():
            patch.setenv(name, value)
        with LocalBackend() as backend:
            yield backend


def test_model_is_downloaded_by_name_and_its_commit_recorded(
    hub_backend: LocalBackend, warm_backend: LocalBackend, hub: HubServer, model: HubRepo
) -> None:
    result = draw(hub_backend, model_name="org/digits", guidance_scale=3.0)
    packaged = draw(warm_backend, guidance_scale=3.0)
    assert difference(pixels(result), pixels(packaged)) == 0
    assert result.results["model_revision"] == model.commit
    downloads = [r for r in hub.requests if r.method == "GET" and r.path.endswith(UNET)]
    draw(hub_backend, model_name="org/digits", dtype="bfloat16").raise_for_error()
    again = [r for r in hub.requests if r.method == "GET" and r.path.endswith(UNET)]
    assert again == downloads


def test_revision_and_variant_choose_what_is_downloaded(
    hub_backend: LocalBackend, model: HubRepo
) -> None:
    def run(**config: str) -> tuple[str, np.ndarray]:  # type: ignore[type-arg]
        result = draw(hub_backend, model_name="org/digits", guidance_scale=3.0, **config)
        return result.raise_for_error().results["model_revision"], pixels(result)

    main, changed, variant = (
        run(),
        run(revision="changed"),
        run(revision="changed", variant="ema"),
    )
    assert (main[0], changed[0]) == (model.commit, model.refs["changed"])
    assert difference(main[1], changed[1]) > 5
    assert difference(main[1], variant[1]) == 0
    by_commit = run(revision=model.refs["changed"])
    assert difference(by_commit[1], changed[1]) == 0


def test_pipelines_own_defaults_hold_where_none_are_recommended(
    hub_backend: LocalBackend, model: HubRepo
) -> None:
    result = draw(hub_backend, model_name="org/digits", num_inference_steps=None)
    assert result.raise_for_error().results["num_inference_steps"] == 50
    assert result.results["guidance_scale"] == 7.5


def test_lora_is_downloaded_by_name(hub_backend: LocalBackend, hub: HubServer) -> None:
    file = make_lora(hub_backend)
    content = file.read_bytes()
    hub.add_repo("org/lora", {"README.md": b"", "pytorch_lora_weights.safetensors": content})
    hub.add_repo("org/loras", {"a.safetensors": content, "b.safetensors": content})
    local = pixels(draw(hub_backend, lora=str(file)))
    assert difference(local, pixels(draw(hub_backend, lora="org/lora"))) == 0
    assert difference(local, pixels(draw(hub_backend, lora="org/loras/b.safetensors"))) == 0
    answers = refusals(
        hub_backend,
        {"lora": "org/loras"},
        {"lora": "org/loras/c.safetensors"},
        {"lora": "org/absent"},
    )
    assert "it has a.safetensors, b.safetensors: name one" in answers[0]
    assert "has no file 'c.safetensors'" in answers[1]
    assert "the Hub has no such repository" in answers[2]
    assert all(answer.startswith("setup: ConfigError: lora=") for answer in answers)


def test_what_the_hub_does_not_have_is_named(
    hub_backend: LocalBackend, hub: HubServer, model: HubRepo
) -> None:
    hub.add_repo("org/text", {"config.json": b"{}"})
    hub.add_repo("org/newer", {"model_index.json": b'{"_class_name": "FuturePipeline"}'})
    hub.add_repo("org/private", model_dir(), private=True)
    expected = {
        ("org/absent", None, None): "the Hub has no such repository; check the spelling",
        ("org/private", None, None): "set HF_TOKEN if it is private",
        ("org/digits", "v9", None): "revision='v9': org/digits on the Hub has no such branch",
        ("org/digits", None, "fp16"): "variant='fp16': org/digits on the Hub has no weights",
        ("org/text", None, None): "has no model_index.json",
        ("org/newer", None, None): "upgrade diffusers",
        ("not a name", None, None): "is neither a path nor a name on the Hub",
        ("org/name/file", None, None): "nothing is there on this machine",
    }
    answers = refusals(
        hub_backend,
        *(
            {"model_name": name, "revision": revision, "variant": variant}
            for name, revision, variant in expected
        ),
    )
    for answer, text in zip(answers, expected.values(), strict=True):
        assert answer.startswith("setup: ConfigError: "), answer
        assert text in answer


def test_gated_model_needs_a_token_that_may_read_it(
    hub_backend: LocalBackend, hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add_repo("org/gated", model_dir(), gated=True, allowed_tokens=frozenset({TOKEN}))
    hub.add_token("hf_othertoken")
    refused = draw(hub_backend, model_name="org/gated")
    assert refused.error is not None
    assert (refused.error.kind, refused.error.type) == ("auth", "AuthError")
    assert "accept its terms on http://127.0.0.1" in refused.error.message
    assert "HF_TOKEN" in refused.error.message
    for token, outcome in {
        "hf_othertoken": "setup: AuthError: org/gated is gated",
        "hf_unknowntoken": "setup: AuthError: the Hub does not let the token in use",
        TOKEN: "accepted",  # from then on, it is in the cache
    }.items():
        monkeypatch.setenv("HF_TOKEN", token)
        (answer,) = refusals(hub_backend, {"model_name": "org/gated"})
        assert answer.startswith(outcome), answer


def test_broken_connection_and_full_disk_say_what_to_do(
    hub_backend: LocalBackend, hub: HubServer
) -> None:
    hub.add_repo("org/large", model_dir())
    full = draw(hub_backend, LimitedDownload, model_name="org/large", max_bytes=100_000)
    assert full.error is not None
    assert (full.error.kind, full.error.type) == ("infrastructure", "CacheError")
    assert "the disk is full" in full.error.message
    assert "HF_HOME" in full.error.message
    hub.break_after(UNET, 100_000, times=1000)
    broken = draw(hub_backend, model_name="org/large")
    hub.break_after(UNET, 100_000)
    assert broken.error is not None
    assert (broken.error.kind, broken.error.type) == ("infrastructure", "CacheError")
    assert "downloading it failed" in broken.error.message
    # the second attempt, once the connection holds, goes on from there
    draw(hub_backend, model_name="org/large").raise_for_error()


def test_without_a_network_the_cache_is_enough_and_a_miss_is_explained(
    hub_backend: LocalBackend,
    hub: HubServer,
    model: HubRepo,
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    draw(hub_backend, model_name="org/digits").raise_for_error()
    for name, value in settings(hub, home).items():
        monkeypatch.setenv(name, value)
    cached, missing = {"model_name": "org/digits"}, {"model_name": "org/other"}
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with LocalBackend() as backend:
        answers = refusals(backend, cached, missing)
        assert answers[0] == f"accepted: {model.commit}"
        assert answers[1].startswith("setup: CacheError: org/other is not in the cache")
        assert "check the network connection" in answers[1]
        assert "tiny-digits, which needs no network" in answers[1]
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with LocalBackend() as backend:
        answers = refusals(backend, cached, missing)
        assert answers[0] == f"accepted: {model.commit}"
        assert "unset HF_HUB_OFFLINE" in answers[1]
