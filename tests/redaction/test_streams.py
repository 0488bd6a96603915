"""Streams and files are redacted like the whole."""

from __future__ import annotations

import itertools
from pathlib import Path

from hypothesis import example, given
from hypothesis import strategies as st

from ml_experiments.redaction.redactor import Redactor
from ml_experiments.redaction.streams import StreamRedactor, redact_file

MARK = Redactor.MARK


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
