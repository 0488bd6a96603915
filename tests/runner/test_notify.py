"""`notify=`: the end of a run is posted to a URL."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from ml_experiments import ConfigError, LocalBackend, run_experiment
from ml_experiments.runner.display import observers
from ml_experiments.runs.result import RunStatus
from tests.support.command import call
from tests.support.experiments import Ends, Plain
from tests.support.modal_runs import Recorder


@dataclass
class Webhook:
    """What was posted; the first so many posts fail."""

    url: str = ""
    failures: int = 0
    posts: list[dict[str, Any]] = field(default_factory=list)


@pytest.fixture
def webhook(monkeypatch: pytest.MonkeyPatch) -> Iterator[Webhook]:
    monkeypatch.setattr(observers, "_POST_WAIT_S", 0.01)
    hook = Webhook()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            hook.failures -= 1
            if hook.failures < 0:
                hook.posts.append(json.loads(body))
            self.send_response(204 if hook.failures < 0 else 503)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        hook.url = f"http://127.0.0.1:{server.server_port}/hook?token=a-secret-of-the-hook"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield hook
        server.shutdown()


def test_the_end_of_a_run_is_posted_once_and_its_url_is_recorded_nowhere(webhook: Webhook) -> None:
    webhook.failures = 2
    recorder = Recorder()
    result = run_experiment(Plain, {"x": 1}, name="mine", observer=recorder, notify=webhook.url)
    [post] = webhook.posts
    assert (post["run_id"], post["status"], post["name"]) == (result.run_id, "success", "mine")
    assert recorder.notices == []
    assert result.run_dir is not None
    for file in result.run_dir.rglob("*"):
        assert file.is_dir() or b"a-secret-of-the-hook" not in file.read_bytes(), file


def test_what_is_posted_holds_no_secret(webhook: Webhook, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STUDY_TOKEN", "value-of-the-environment")
    config = {"how": "value_error", "api_key": "value-of-the-config"}
    run_experiment(
        Ends,
        config,
        name="with value-of-the-environment",
        tags={"key": "value-of-the-config", "kind": "a test"},
        observer=Recorder(),
        notify=webhook.url,
    )
    [post] = webhook.posts
    assert "value-of-the" not in json.dumps(post)
    assert post["name"] == "with <redacted>"
    assert post["tags"] == {"key": "<redacted>", "kind": "a test"}
    assert post["error"]["message"] == "the loss is not a number"


@pytest.mark.parametrize("failures", [100, None], ids=["refused", "nobody listens"])
def test_a_run_does_not_depend_on_who_is_told(webhook: Webhook, failures: int | None) -> None:
    webhook.failures = failures or 0
    url = webhook.url if failures else "http://127.0.0.1:1/hook?token=a-secret-of-the-hook"
    recorder = Recorder()
    with LocalBackend() as backend:
        result = run_experiment(
            Ends, {"how": "value_error"}, backend=backend, observer=recorder, notify=url
        )
    assert result.status is RunStatus.ERROR
    assert webhook.posts == []
    [notice] = recorder.notices
    assert f"the end of run {result.run_id} was not posted to 127.0.0.1" in notice
    assert "a-secret-of-the-hook" not in notice


@pytest.mark.parametrize("url", ["", "ftp://host/x", "hooks.example.com", "https://", "http://[::"])
def test_what_is_no_url_is_refused_before_anything_starts(url: str, runs_dir: Path) -> None:
    with pytest.raises(ConfigError, match="notify takes a URL"):
        run_experiment(Plain, {"x": 1}, notify=url)
    assert not any(runs_dir.iterdir())


@pytest.mark.slow
def test_a_detached_run_posts_its_end_too(webhook: Webhook) -> None:
    plain = ("run", "tests.support.experiments.Plain", "--notify", webhook.url)
    assert call(*plain, "--detach").returncode == 0
    assert call("runs", "wait", "last").returncode == 0
    assert [post["status"] for post in webhook.posts] == ["success"]
