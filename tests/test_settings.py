"""What the environment holds that no record may."""

from __future__ import annotations

from pathlib import Path

import pytest

from ml_experiments import ConfigError, LocalBackend, run_experiment, settings
from ml_experiments.redaction.environment import secret_values
from tests.support.experiments import Plain

VALUE = "v4lue-of-a-secret"


@pytest.mark.parametrize(
    "name",
    [
        "PRIVATE_KEY",
        "PASSPHRASE",
        "DB_CREDENTIALS",
        "DB_PASS",
        "OPENAI_KEY",
        "HF_TOKEN",
        "PGPASSWORD",
    ],
)
def test_variables_with_the_names_of_secrets_are_secret(name: str) -> None:
    assert secret_values({name: VALUE}) == (VALUE,)


@pytest.mark.parametrize("name", ["PASSENGER", "MONKEY", "KEYBOARD", "COMPASS", "PWD", "SORT_KEY"])
def test_variables_that_only_look_alike_are_not(name: str) -> None:
    assert secret_values({name: VALUE}) == ()


@pytest.mark.parametrize(
    ("url", "secrets"),
    [
        (f"postgres://user:{VALUE}@host/db", [VALUE]),
        (f"redis://:{VALUE}@host:6379/0", [VALUE]),
        (f"http://u:{VALUE}@proxy:8080/a?mail=me@example.com", [VALUE]),
        (f"a=http://u:{VALUE}@one http://u:second{VALUE}@two", [f"second{VALUE}", VALUE]),
        ("postgres://user:p%40ssw0rd-long@host/db", ["p%40ssw0rd-long", "p@ssw0rd-long"]),
        ("postgres://user:long/p4ssword@host/db", ["long/p4ssword"]),
        ("postgres://user:p@ssw0rd-long@host/db", ["p@ssw0rd-long"]),
        ("postgres://user:short@host/db", []),
        ("http://localhost:8080/someone@example.com", []),
        ("ssh://git@github.com/someone/something", []),
    ],
)
def test_the_password_in_a_url_is_secret(url: str, secrets: list[str]) -> None:
    assert secret_values({"DATABASE_URL": url}) == tuple(secrets)


def test_a_secret_that_is_a_url_holds_a_second_one() -> None:
    url = f"postgres://user:{VALUE}@host/db"
    assert secret_values({"DB_CREDENTIALS": url}) == (url, VALUE)


def test_short_values_are_left_out() -> None:
    assert secret_values({"DB_PASSWORD": "1234567"}) == ()


def test_no_record_of_a_run_holds_a_password_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", f"postgres://user:{VALUE}@host/db")
    monkeypatch.setenv("DB_PASS", "an0ther-secret")
    with LocalBackend() as backend:
        result = run_experiment(
            Plain,
            {},
            backend=backend,
            runs_dir=tmp_path,
            name=f"with {VALUE}",
            tags={"db": "an0ther-secret"},
        )
    assert result.run_dir is not None
    records = b"".join(f.read_bytes() for f in result.run_dir.rglob("*") if f.is_file())
    assert b"with <redacted>" in records
    assert VALUE.encode() not in records
    assert b"an0ther-secret" not in records


@pytest.mark.parametrize("key", ["max_cost_per_day", "ask_above"])
def test_an_amount_is_read_from_the_project_and_the_environment_wins(
    key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = getattr(settings, key)
    monkeypatch.chdir(tmp_path)
    assert read() is None
    (tmp_path / "pyproject.toml").write_text(f"[tool.ml-experiments]\n{key} = 20\n")
    assert read() == 20
    monkeypatch.setenv(f"ML_EXPERIMENTS_{key.upper()}", "2.50")
    assert read() == 2.5


@pytest.mark.parametrize("given", ["-1", "0", "nan", "inf", "1e30", "much", "true"])
def test_an_amount_that_is_none_is_an_error(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ML_EXPERIMENTS_MAX_COST_PER_DAY", given)
    with pytest.raises(ConfigError, match=r"ML_EXPERIMENTS_MAX_COST_PER_DAY is .* above 0"):
        settings.max_cost_per_day()


def test_an_amount_of_the_project_that_is_none_names_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pyproject.toml").write_text("[tool.ml-experiments]\nask_above = true\n")
    with pytest.raises(ConfigError, match=r"ask_above in .*pyproject\.toml is True; it must be"):
        settings.ask_above()


def test_the_ledger_is_in_the_users_state_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ML_EXPERIMENTS_STATE_DIR")
    monkeypatch.setenv("XDG_STATE_HOME", "/somewhere")
    assert settings.state_dir() == Path("/somewhere/ml-experiments")
    monkeypatch.delenv("XDG_STATE_HOME")
    assert settings.state_dir() == Path.home() / ".local/state/ml-experiments"
