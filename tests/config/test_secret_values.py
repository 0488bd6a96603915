"""The secrets of a config are found."""

from __future__ import annotations

import pydantic

from ml_experiments.config.secret_values import secret_config_values
from ml_experiments.config.validation import validate_config
from tests.support.configs import Crop, Train


def test_secrets_of_a_config_are_found() -> None:
    config, _ = validate_config(Train, {"model_name": "m", "key": "typed"})
    assert secret_config_values(config) == ("typed",)
    plain = {
        "api_key": "one",
        "nested": [{"hf_token": "two", "password": "three"}],
        "pad_token": "<pad>",
        "tokenizer": "gpt2",
        "max_tokens": 5,
        "token": "",
        "secret": {"value": "no string, though its name is that of a secret"},
        "both": pydantic.SecretBytes(b"four"),
        "crop": Crop(1),
    }
    assert secret_config_values(plain) == ("four", "one", "three", "two")

    def train(a: int, **rest: str) -> None: ...

    config, _ = validate_config(train, {"a": 1, "wandb_api_key": "five"})
    assert secret_config_values(config) == ("five",)


def test_the_password_of_a_url_in_a_config_is_a_secret() -> None:
    config = {
        "data": "postgres://me:from-the-string@db:5432/digits",
        "typed": pydantic.PostgresDsn("postgres://me:from-the-type@db/digits"),
        "page": "https://example.org:8080/@me",
        "prompt": "a seven: red @ noon",
    }
    assert secret_config_values(config) == ("from-the-string", "from-the-type")
