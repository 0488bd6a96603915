"""Secrets are replaced wherever they show up, and nothing else is."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from urllib.parse import quote, quote_plus

import pytest

from ml_experiments.redaction.redactor import Redactor
from ml_experiments.redaction.streams import StreamRedactor

SECRET = 's3cr3t/tok+en=="q" \\ ü'


MARK = Redactor.MARK


@pytest.mark.parametrize(
    "written",
    [
        SECRET,
        json.dumps(SECRET),
        json.dumps(SECRET, ensure_ascii=False),
        repr(SECRET),
        quote(SECRET),
        quote(SECRET, safe=""),
        quote_plus(SECRET),
    ],
)
def test_a_secret_is_replaced_in_each_way_of_writing_it(written: str) -> None:
    clean = Redactor([SECRET]).redact_text(f"url?key={written}&next=1")
    assert MARK in clean
    assert clean.startswith("url?key=")
    assert clean.endswith("&next=1")
    assert "s3cr3t" not in clean


@pytest.mark.parametrize("before", ["", "u", "us", "use", "user:"])
@pytest.mark.parametrize("after", ["", "x", "xy", "xyz"])
@pytest.mark.parametrize("encode", [base64.b64encode, base64.urlsafe_b64encode])
def test_a_secret_inside_base64_is_replaced(
    before: str, after: str, encode: Callable[[bytes], bytes]
) -> None:
    header = encode(f"{before}{SECRET}{after}".encode()).decode()
    clean = Redactor([SECRET]).redact_text(f"Authorization: Basic {header}")
    assert MARK in clean
    left = clean.removeprefix("Authorization: Basic ").replace(MARK, "").rstrip("=")
    # what stands before and after the secret, and the two letters that it shares with them
    assert len(left) <= (len(before) + len(after)) * 4 / 3 + 3


def test_json_is_redacted_in_keys_and_values() -> None:
    redactor = Redactor(["first-secret", "second-secret", "pin"])
    data = {
        "argv": ["--key", "first-secret", ("a", "xsecond-secretx")],
        "first-secret": 1,
        "second-secret": {"deep": [{"v": "first-secret first-secret"}]},
        "short": "pin",
        "pinned": "a spinning top",
        "number": 1.5,
        "nothing": None,
    }
    clean = redactor.redact_json(data)
    assert clean == {
        "argv": ["--key", MARK, ["a", f"x{MARK}x"]],
        MARK: 1,
        f"{MARK} (2)": {"deep": [{"v": f"{MARK} {MARK}"}]},
        "short": MARK,
        "pinned": "a spinning top",
        "number": 1.5,
        "nothing": None,
    }
    assert data["first-secret"] == 1


def test_without_secrets_nothing_changes() -> None:
    for values in ([], [""]):
        redactor = Redactor(values)
        data = {"a": ["text"]}
        assert redactor.redact_json(data) == data
        assert redactor.redact_text("text") == "text"
        assert redactor.redact_bytes(b"text") == b"text"
        stream = StreamRedactor(redactor)
        assert stream.feed(b"text") + stream.flush() == b"text"


def test_the_longer_of_two_secrets_is_replaced_whole() -> None:
    assert Redactor(["abcdefgh", "abcdefghijkl"]).redact_text("<abcdefghijkl>") == f"<{MARK}>"


def test_secrets_are_literal_text_not_patterns() -> None:
    redactor = Redactor(["a.c[d]*(e"])
    assert redactor.redact_text("abc a.c[d]*(e") == f"abc {MARK}"


def test_the_lines_of_a_secret_are_redacted_one_by_one() -> None:
    key = "-----BEGIN KEY-----\nMIIEowIBAAKCAQEA7c1f\nq83hTtY0pLm2Vd9w\n-----END KEY-----"
    redactor = Redactor([key])
    for line in key.splitlines():
        assert redactor.redact_text(f"export {line} now") == "export <redacted> now"
    assert redactor.redact_text(key) == "<redacted>"
    assert redactor.redact_text("short\nlines") == "short\nlines"
