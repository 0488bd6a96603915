"""Which names are those of secrets, for config fields and environment variables alike."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from urllib.parse import unquote

# as the last word of a name, also run together with what stands before: PGPASSWORD
_SECRET_WORD = re.compile(
    r".*(passwords?|passwd|passphrase|secrets?|credentials?|creds|(api|access|private|secret)keys?)"
)
# these are secrets only with the word before: hf_token is one, pad_token and cache_key are not
_SECRET_NOUN = re.compile(r"(?P<owner>.*?)(?P<noun>token|key|pass|pwd)(?P<plural>s?)")
_OWNER = re.compile(
    "access|account|admin|anthropic|api|auth|aws|azure|bearer|bot|client|cohere|comet|deploy|discord"
    "|docker|encryption|gcp|gemini|github|gitlab|groq|hf|hub|huggingface|jwt|kaggle|license|mistral"
    "|mlflow|modal|mongo|mysql|neptune|ngc|npm|openai|pg|postgres|private|pypi|redis|refresh|replicate"
    "|root|secret|service|session|signing|slack|smtp|ssh|stripe|subscription|telegram|twilio|wandb"
)
_MORE_OWNERS = {"token": ("id", "user"), "pass": ("db", "database", "user"), "pwd": ("db", "user")}
# in capitals, as the environment writes them, all other owners count too, except for these
_DATA_WORD = re.compile(
    "all|any|backward|band|bos|cache|cls|column|data|end|eos|first|foreign|forward|group|high|image"
    "|index|join|last|low|map|mask|max|min|next|num|pad|partition|placeholder|primary|public|query"
    "|row|sep|single|sort|special|start|stop|text|trigger|unk"
)
# what may follow: which of several it is, or how it's written
_VARIANT = re.compile(
    "b64|backup|base64|current|dev|id|json|live|main|new|old|pem|previous|prod|production|staging"
    "|test|value"
)
_WORD_BORDER = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])|[\W_]+")
# the first reads a URL as RFC 3986 does; clients of databases also take a / inside a password
URL_PASSWORDS = (
    re.compile(r"://[^\s:/?#@]*:([^\s/?#]+)@"),
    re.compile(r"://[^\s:/?#@]*:(?!\d+[/?#])((?:(?!://)[^\s@])+)@"),
)


@functools.lru_cache(maxsize=4096)  # each run checks the whole environment
def is_secret_name(name: str) -> bool:
    """Return whether a config field or an environment variable of this name holds a secret."""
    words = [word.lower() for word in _WORD_BORDER.split(name) if word and not word.isdigit()]
    words = [word if _VARIANT.fullmatch(word) else word.rstrip("0123456789") for word in words]
    is_token_id = words[-2:] == ["token", "id"]
    while words and _VARIANT.fullmatch(words[-1]):
        words.pop()
    if not words:
        return False
    if _SECRET_WORD.fullmatch(words[-1]):
        return True
    match = _SECRET_NOUN.fullmatch(words[-1])
    if match is None:
        return False
    noun, is_apart = match["noun"], not match["owner"]
    owner = "".join(words[-2:-1]) if is_apart else match["owner"]
    if not owner:  # a vocabulary has a token_id; PWD is where the shell stands
        return noun in ("token", "pass") and not match["plural"] and not is_token_id
    if _OWNER.fullmatch(owner) or owner in _MORE_OWNERS.get(noun, ()):
        return True
    is_variable = is_apart and name.isupper() and not match["plural"]
    return is_variable and _DATA_WORD.fullmatch(owner) is None


def url_passwords(value: str) -> Iterator[str]:
    """Yield the passwords of the URLs in a string, as they are written there and decoded."""
    if "://" not in value:
        return
    for pattern in URL_PASSWORDS:
        for password in pattern.findall(value):
            yield password
            yield unquote(password)
