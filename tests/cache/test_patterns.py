from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ml_experiments.cache.patterns import NamePattern, suggest_name
from ml_experiments.errors import CacheError


@pytest.mark.parametrize(
    ("pattern", "name", "expected"),
    [
        ("stabilityai/*", "stabilityai/sdxl-turbo", True),
        ("StabilityAI/*", "stabilityai/SDXL-turbo", True),
        ("*sdxl*", "stabilityai/sdxl-turbo", True),
        ("stabilityai", "stabilityai/sdxl-turbo", False),
        ("gpt?", "gpt2", True),
        ("gpt[!3]", "gpt2", True),
        ("gpt[!3]", "gpt3", False),
        ("*", "anything/at-all", True),
        ("org/Modèle*", "org/modèle-1", True),
        ("org/Mode\u0300le", "org/modèle", True),
        ("org/a.b", "org/axb", False),
    ],
)
def test_a_glob_means_names_as_on_the_hub(pattern: str, name: str, expected: bool) -> None:
    assert NamePattern.parse(pattern).matches(name) is expected


def test_a_revision_is_named_by_the_beginning_of_its_hash_or_by_a_branch() -> None:
    commit = "abc123" + "0" * 34
    assert NamePattern.parse("org/name@abc123").matches_revision(commit, ())
    assert NamePattern.parse("org/name@ABC1").matches_revision(commit, ())
    assert NamePattern.parse("org/name@v1.0").matches_revision(commit, ("v1.0",))
    assert not NamePattern.parse("org/name@abd").matches_revision(commit, ("main",))
    assert NamePattern.parse("org/name").matches_revision(commit, ())


def test_fewer_than_four_digits_name_no_commit() -> None:
    assert not NamePattern.parse("org/name@abc").matches_revision("abc" + "0" * 37, ())


@pytest.mark.parametrize(
    ("pattern", "problem"),
    [
        ("", "empty"),
        ("   ", "empty"),
        ("/etc/passwd", "a path"),
        ("~/models", "a path"),
        ("C:\\models", "a path"),
        ("org\\name", "backslash"),
        ("../hub", "'..'"),
        ("org/../name", "'..'"),
        ("org/name@../../x", "not a commit hash"),
        ("org/name@", "no revision after"),
        ("@abc123", "no name before"),
        ("org/name@a@b", "not a commit hash"),
        ("org/name@ab*", "not a commit hash"),
        ("org/[abc", "never closed"),
        ("org/", "did you mean 'org/*'"),
        ("org/na\0me", "can't be printed"),
        (" org/name", "space"),
        ("x" * 600, "600 characters"),
    ],
)
def test_what_is_no_pattern_is_an_error_that_says_why(pattern: str, problem: str) -> None:
    with pytest.raises(CacheError, match="pattern") as caught:
        NamePattern.parse(pattern)
    assert problem in str(caught.value)
    assert str(caught.value).isprintable()


def test_what_was_given_is_shown_escaped_once() -> None:
    with pytest.raises(CacheError) as caught:
        NamePattern.parse("a\x1bb")
    assert str(caught.value).startswith(r"'a\x1bb' is not a pattern: ")


@given(st.text(max_size=40), st.text(max_size=40))
def test_any_text_is_a_pattern_or_a_cache_error(text: str, name: str) -> None:
    try:
        pattern = NamePattern.parse(text)
    except CacheError:
        return
    assert pattern.matches(name) in (True, False)
    assert ".." not in text.partition("@")[0]
    assert not text.startswith("/")


@given(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,30}(/[A-Za-z0-9_-]{1,30})?", fullmatch=True))
def test_a_name_of_the_hub_matches_itself_in_any_case(name: str) -> None:
    if ".." in name:
        return
    assert NamePattern.parse(name.upper()).matches(name)


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("acme", "'acme/*'"),
        ("acme/bret", "'Acme/BERT'"),
        ("bert", "'Acme/BERT'"),
        ("*bert*", "'Acme/BERT'"),
        ("nothing-like-it", ""),
    ],
)
def test_what_matches_nothing_is_told_what_is_meant(given: str, meant: str) -> None:
    hint = f" (did you mean {meant}?)" if meant else ""
    assert suggest_name(given, ["Acme/BERT", "other/gpt"]) == hint
