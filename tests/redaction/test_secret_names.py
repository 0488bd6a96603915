"""Which names are those of secrets."""

from __future__ import annotations

import pytest

from ml_experiments.redaction.secret_names import is_secret_name


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
