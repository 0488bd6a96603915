"""Web endpoints: functions of every kind of `modal` answer HTTP on the loopback interface."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import CompletedProcess, Popen
from urllib.parse import urlsplit

import aiohttp
import httpx2 as httpx
import modal
import pytest
import web_app

from modal_emulator import Emulator, containers
from modal_emulator.pytest_plugin import connected
from tests.support.waiting import wait_until

TIMEOUT_S = 60.0


@pytest.fixture(scope="module", autouse=True)
def _app(modal_emulator_server: Emulator) -> Iterator[None]:
    with web_app.app.run():
        yield


def test_a_function_answers_requests_with_json() -> None:
    url = web_app.greet.get_web_url()
    assert urlsplit(url).hostname == "127.0.0.1"
    answer = httpx.post(f"{url}?loud=1", json={"name": "Ada"}, timeout=TIMEOUT_S)
    assert (answer.status_code, answer.json()) == (200, {"greeting": "HELLO ADA"})
    assert httpx.get(url).status_code == 405
    assert httpx.post(url, content=b"{").status_code == 422
    assert "greet" in httpx.get(f"{url}/openapi.json").text


def test_a_container_answers_many_requests(modal_emulator: Emulator) -> None:
    url = web_app.greet.get_web_url()
    for n in range(5):
        answer = httpx.post(url, json={"name": str(n)}, timeout=TIMEOUT_S)
        assert answer.json() == {"greeting": f"hello {n}"}
    used = [each for each in modal_emulator.containers() if each.function_name == "greet"]
    assert len(used) == 1


def test_an_asgi_app_streams_its_response() -> None:
    url = f"{web_app.asgi.get_web_url()}/count/5"
    with httpx.stream("GET", url, timeout=TIMEOUT_S) as answer:
        assert "".join(answer.iter_text()) == "0\n1\n2\n3\n4\n"
        assert answer.headers["Content-Type"].startswith("text/plain")


def test_an_exception_is_an_answer_with_status_500_and_a_line_in_the_logs(
    modal_emulator: Emulator,
) -> None:
    answer = httpx.get(f"{web_app.asgi.get_web_url()}/fail", timeout=TIMEOUT_S)
    assert answer.status_code == 500
    app_id = web_app.app.app_id
    wait_until(
        lambda: any("broken on purpose" in line.text for line in modal_emulator.logs(app_id)),
        "the traceback in the logs",
    )


def test_a_container_that_does_not_start_is_an_answer_with_status_500() -> None:
    answer = httpx.get(web_app.broken.get_web_url(), timeout=TIMEOUT_S)
    assert answer.status_code == 500
    assert "no app today" in answer.text


def test_a_wsgi_app_gets_method_path_and_a_large_body() -> None:
    body = bytes(range(256)) * 20_000
    url = f"{web_app.wsgi.get_web_url()}/a%20b"
    answer = httpx.put(url, content=body, timeout=TIMEOUT_S)
    assert (answer.status_code, answer.headers["X-Method"]) == (201, "PUT")
    assert answer.content == b"/a b " + body[::-1]


def test_a_websocket_sends_receives_and_closes() -> None:
    url = f"{web_app.asgi.get_web_url()}/echo"

    async def talk() -> None:
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(url, protocols=["chat", "other"]) as connection,
        ):
            assert connection.protocol == "chat"
            await connection.send_str("a")
            assert await connection.receive_str() == "echo a"
            await connection.send_str("bye")
            end = await connection.receive()
            assert (end.data, end.extra) == (4001, "as asked")

    asyncio.run(talk())


def test_a_method_of_a_class_is_an_endpoint_that_wants_credentials(
    modal_emulator: Emulator,
) -> None:
    counter = web_app.Counter()
    url = counter.count.get_web_url()
    assert httpx.get(url, timeout=TIMEOUT_S).status_code == 401
    known = modal_emulator.environment
    headers = {"Modal-Key": known["MODAL_TOKEN_ID"], "Modal-Secret": known["MODAL_TOKEN_SECRET"]}
    assert [httpx.get(url, headers=headers, timeout=TIMEOUT_S).json() for _ in "ab"] == [1, 2]
    assert counter.plain.remote() == 2


def test_the_parameters_of_a_class_are_in_the_query() -> None:
    url = web_app.Named(name="any").say.get_web_url()
    assert httpx.get(f"{url}?name=a", timeout=TIMEOUT_S).json() == "aa"
    assert httpx.get(f"{url}?name=a&times=3&loud=true", timeout=TIMEOUT_S).json() == "AAA"
    for query, message in (
        ("", "no name"),
        ("name=a&times=x", "times=x"),
        ("name=a&loud=x", "no bool"),
    ):
        answer = httpx.get(f"{url}?{query}")
        assert (answer.status_code, message in answer.text) == (400, True)


def test_a_web_server_answers_on_its_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    app = modal.App("files")

    def files() -> None:
        import subprocess
        import sys

        subprocess.Popen([sys.executable, "-m", "http.server", str(port)])

    served = app.function(serialized=True, name="files")(modal.web_server(port)(files))
    with app.run():
        answer = httpx.get(f"{served.get_web_url()}/nothing", timeout=TIMEOUT_S)
        assert (answer.status_code, answer.headers["Server"][:4]) == (404, "Simp")


def test_the_entrypoint_connects_to_the_loopback_address_where_there_is_no_eth0() -> None:
    code = "from modal._runtime.asgi import get_ip_address; print(get_ip_address(b'eth0'))"
    site = str(Path(containers.__file__).parent / "container_site")
    environment = {**os.environ, "MODAL_EMULATOR_LOOPBACK": "1", "PYTHONPATH": site}
    command = [sys.executable, "-c", code]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert found.stdout == "127.0.0.1\n"


def test_containers_and_other_clients_know_the_address() -> None:
    assert web_app.address.remote() == web_app.greet.get_web_url()


def modal_command(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "modal", *arguments], check=True, capture_output=True)


def test_a_deployed_endpoint_answers_after_a_restart_and_not_when_it_is_stopped(
    tmp_path: Path,
) -> None:
    with Emulator(tmp_path) as emulator, connected(emulator):
        modal_command("deploy", web_app.__file__, "--name", "kept")
    with Emulator(tmp_path) as emulator, connected(emulator):
        url = modal.Function.from_name("kept", "greet").get_web_url()
        answer = httpx.post(url, json={"name": "Ada"}, timeout=TIMEOUT_S)
        assert answer.json() == {"greeting": "hello Ada"}
        count = modal.Cls.from_name("kept", "Counter")().count
        assert httpx.get(count.get_web_url(), timeout=TIMEOUT_S).status_code == 401
        modal_command("app", "stop", "--yes", "kept")
        assert httpx.post(url, json={"name": "Ada"}, timeout=TIMEOUT_S).status_code == 404


def test_an_address_of_ones_own_has_no_effect_and_says_so(
    run_modal: Callable[..., CompletedProcess[str]],
) -> None:
    done = run_modal("deploy", "web_app.py", "--name", "labelled")
    # a panel with a frame
    warning = " ".join(done.stderr.replace("│", " ").split())
    assert "The emulator records `label` (endpoints are on 127.0.0.1)" in warning
    assert "http://127.0.0.1:" in done.stdout
    run_modal("app", "stop", "--yes", "labelled")


SERVED = """
import modal
app = modal.App("served")

@app.function()
@modal.fastapi_endpoint()
def version():
    return 1
"""


def test_modal_serve_serves_an_edited_file_anew(
    start_modal: Callable[..., Popen[str]], tmp_path: Path
) -> None:
    file = tmp_path / "served.py"
    file.write_text(SERVED)
    serving = start_modal("serve", str(file))
    assert serving.stdout is not None
    url = ""
    for line in serving.stdout:
        if "http://127.0.0.1" in line:
            url = "http://127.0.0.1" + line.partition("http://127.0.0.1")[2].split()[0].rstrip("/")
            break
    assert httpx.get(url, timeout=TIMEOUT_S).json() == 1
    edited_at = float("-inf")

    def is_new() -> bool:
        nonlocal edited_at
        if time.monotonic() > edited_at + 10:  # the first edit may come before it is watched for
            edited_at = time.monotonic()
            file.write_text(SERVED.replace("return 1", "return 2"))
        try:
            return bool(httpx.get(url, timeout=TIMEOUT_S).json() == 2)
        except (httpx.HTTPError, ValueError):  # amid the change of the versions
            return False

    wait_until(is_new, "the edited version")
