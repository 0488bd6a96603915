"""Secrets are replaced wherever they show up, and nothing else is."""

from __future__ import annotations

import base64
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ml_experiments.redaction.redactor import Redactor
from ml_experiments.redaction.secret_names import is_secret_name
from ml_experiments.redaction.streams import StreamRedactor, redact_file

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


pieces = st.lists(
    st.sampled_from([b"abc", b"d", b"a", b"abcabcd", b"efg", b"x", b"aaaaaaa", b"b", b"\xff\n"])
)


@given(pieces=pieces, cuts=st.lists(st.integers(0, 60), max_size=8))
@example(pieces=[b"abcabcd", b"efg"], cuts=[7])
@example(pieces=[b"aaaaaaa", b"a", b"aaaaaaa", b"b"], cuts=[3, 9])
def test_a_stream_is_redacted_like_the_whole(pieces: list[bytes], cuts: list[int]) -> None:
    redactor = Redactor(["abcabcd", "abcabcdefg", "bcabcdx", "aaaaaaab", "\xff\n\xff\n"])
    whole = b"".join(pieces)
    stream = StreamRedactor(redactor)
    bounds = [0, *sorted(min(cut, len(whole)) for cut in cuts), len(whole)]
    parts = [stream.feed(whole[a:b]) for a, b in itertools.pairwise(bounds)]
    assert b"".join(parts) + stream.flush() == redactor.redact_bytes(whole)


def test_a_stream_holds_back_only_the_beginning_of_a_secret() -> None:
    stream = StreamRedactor(Redactor(["hunter2hunter2"]))
    assert stream.feed(b"the password is hun") == b"the password is "
    assert stream.feed(b"gry\n") == b"hungry\n"
    assert stream.feed(b"hunter2") == b""
    assert stream.feed(b"hunter2!") == f"{MARK}!".encode()
    assert stream.feed(b"hunt") == b""
    assert stream.flush() == b"hunt"
    assert stream.flush() == b""


def test_a_file_is_rewritten_only_when_it_holds_a_secret(tmp_path: Path) -> None:
    redactor = Redactor(["hunter2hunter2"])
    clean, dirty = tmp_path / "clean.txt", tmp_path / "dirty.txt"
    clean.write_bytes(b"nothing \xff here\n")
    before = clean.stat()
    # across the border of two reads
    dirty.write_bytes(b"x" * (1024 * 1024 - 5) + b"hunter2hunter2\xff\nhunter2")
    redact_file(clean, redactor)
    redact_file(dirty, redactor)
    assert (clean.stat().st_ino, clean.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert dirty.read_bytes() == b"x" * (1024 * 1024 - 5) + MARK.encode() + b"\xff\nhunter2"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["clean.txt", "dirty.txt"]


@pytest.mark.parametrize(
    "name",
    [
        *("api_key", "apiKey", "API_KEY", "OPENAI_API_KEY", "openai-api-key", "token", "hf_token"),
        *("access_token", "auth_token", "password", "db_password", "secret", "client_secret"),
        *("aws_access_key_id", "aws_secret_access_key", "private_key", "credentials"),
        *("PRIVATE_KEY", "PASSPHRASE", "DB_CREDENTIALS", "DB_PASS", "OPENAI_KEY", "openai_key"),
        *(
            "PGPASSWORD",
            "SSHPASS",
            "MYSQL_PWD",
            "GITLAB_TOKEN",
            "ACME_TOKEN",
            "ACME_KEY",
            "hfToken",
        ),
        *(
            "MODAL_TOKEN_ID",
            "OPENAI_API_KEY_2",
            "PASSWORD1",
            "JWT_SECRET_OLD",
            "dbPass",
            "openaiKey",
        ),
    ],
)
def test_names_of_secrets_are_known(name: str) -> None:
    assert is_secret_name(name)


@pytest.mark.parametrize(
    "name",
    [
        *("pad_token", "eos_token", "mask_token", "placeholder_token", "tokenizer", "max_tokens"),
        *("tokens", "key", "num_keys", "passwords_file", "secretary", "cache_key", "token_count"),
        *(
            "keys",
            "primary_key",
            "token_dim",
            "token_id",
            "pad_token_id",
            "low_pass",
            "forward_pass",
        ),
        *(
            "PASSENGER",
            "MONKEY",
            "KEYBOARD",
            "COMPASS",
            "BYPASS",
            "PWD",
            "OLDPWD",
            "KEY",
            "MAX_TOKENS",
        ),
        *("HF_TOKEN_PATH", "PAD_TOKEN", "PRIMARY_KEY", "TOKENIZERS_PARALLELISM", "passThrough", ""),
    ],
)
def test_names_that_models_use_are_not_taken_for_secrets(name: str) -> None:
    assert not is_secret_name(name)


def test_the_lines_of_a_secret_are_redacted_one_by_one() -> None:
    key = "-----BEGIN KEY-----\nMIIEowIBAAKCAQEA7c1f\nq83hTtY0pLm2Vd9w\n-----END KEY-----"
    redactor = Redactor([key])
    for line in key.splitlines():
        assert redactor.redact_text(f"export {line} now") == "export <redacted> now"
    assert redactor.redact_text(key) == "<redacted>"
    assert redactor.redact_text("short\nlines") == "short\nlines"
