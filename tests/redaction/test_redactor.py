"""Secrets are replaced wherever they show up, and nothing else is."""

from __future__ import annotations

import base64
import datetime
import json
import math
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote, quote_plus

import numpy as np
import pandas as pd
import pytest

from ml_experiments.redaction.redactor import Redactor
from ml_experiments.redaction.streams import StreamRedactor
from ml_experiments.serialization.writing import encode

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


def test_only_what_users_gave_is_searched_in_a_record() -> None:
    words = ["experiment", "artifacts", "success", "message", "password", "results", "first-secret"]
    record = {
        "experiment": "experiment:Train",
        "status": "success",
        "config": {
            "password": "first-secret",
            "experiment": ["password"],
            "nested": {"password": 1, "first-secret": 2},
        },
        "tags": {"first-secret": "password"},
        "error": {"type": "experiment", "message": "no first-secret", "hint": ""},
        "artifacts": [{"path": "artifacts/first-secret.txt"}],
        "results": {"success": 1},
        "name": None,
    }
    clean = Redactor(words).redact_record(
        record, ("config.*", "tags", "error.message", "name", "results", "not there", "status.text")
    )
    assert clean == {
        **record,
        "config": {"password": MARK, "experiment": [MARK], "nested": {"password": 1, MARK: 2}},
        "tags": {MARK: MARK},
        "error": {"type": "experiment", "message": f"no {MARK}", "hint": ""},
        "results": {MARK: 1},
    }
    unchanged = Redactor([]).redact_record(record, ("config.*", "error.message"))
    assert unchanged == record


WORDS = ["$type", "path", "value", "items", "columns", "dtype", "float64", "ndarray", "float", "x"]


@pytest.mark.parametrize(
    "value",
    [
        {1: np.ones(3), "first": math.inf},
        {datetime.date(2026, 1, 2), 2**70},
        b"bytes" * 2000,
        pd.DataFrame({"a": [1.5, None], "b": ["p", "q"]}, index=pd.Index([1, 2], name="at")),
        pd.Series(pd.Categorical(["p", "q", "p"]), name="n"),
        np.datetime64("2026-01-02T03:04:05.000000001"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_encoded_value_can_be_decoded_though_a_secret_is_a_word_of_the_encoding(
    value: object, tmp_path: Path
) -> None:
    encoded, problems = encode({"v": value}, tmp_path / "artifacts", "results")
    assert problems == ()
    assert Redactor(WORDS).redact_json(encoded) == encoded


def test_secrets_in_encoded_values_are_redacted(tmp_path: Path) -> None:
    secret = "first-secret"
    table = pd.DataFrame({secret: [1], "b": [2]})
    table.attrs = {secret: 1}
    value = {
        "bytes": secret.encode(),
        "path": Path("/data") / secret,
        "dict": {1: secret, (secret, 2): 3},
        "set": {secret},
        "table": table,
    }
    encoded, _ = encode(value, tmp_path / "artifacts", "results")
    clean = Redactor([secret]).redact_json(encoded)
    assert secret not in json.dumps(clean)
    assert clean["bytes"] == clean["path"] == MARK
    assert (clean["table"]["$type"], clean["table"]["path"]) == (
        "dataframe",
        "artifacts/results/table.csv",
    )


def test_the_path_of_an_artifact_is_redacted_but_not_what_the_value_is(tmp_path: Path) -> None:
    file = tmp_path / "artifacts" / "first-secret.txt"
    file.parent.mkdir()
    file.write_text("content")
    encoded, _ = encode({"file": file, "folder": file.parent}, file.parent, "results")
    redactor = Redactor(["artifacts", "first-secret", "a", "file"])
    clean = redactor.redact_json(encoded)["<redacted>"]
    assert clean == {**encoded["file"], "path": "artifacts/redacted-4.txt"}
    assert redactor.redact_path("artifacts/a/file/an artifacts") == (
        "artifacts/redacted-1/redacted-3/an redacted-2"
    )
    assert redactor.redact_path("artifacts") == "artifacts"
