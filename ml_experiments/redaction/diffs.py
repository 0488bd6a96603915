"""Takes secrets out of a diff, where only the names beside them show that they are secrets."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

from ml_experiments.redaction.redactor import Redactor
from ml_experiments.redaction.secret_names import is_secret_name, url_passwords

# in these languages a value without quotes is an expression, and no secret
_CODE_SUFFIXES = frozenset(
    (
        *(".c", ".cc", ".cpp", ".cs", ".go", ".h", ".hpp", ".ipynb", ".java", ".jl", ".js", ".jsx"),
        *(".kt", ".lua", ".php", ".pl", ".py", ".pyi", ".r", ".rb", ".rs", ".scala", ".swift"),
        *(".ts", ".tsx"),
    )
)
_HEADERS = {"authorization", "proxy-authorization", "cookie", "set-cookie"}
# NAME=value, "name": "value", name: str = "value", environ["NAME"] = "value", get("NAME", "value")
_NAME = re.compile(
    r"(?<![\w.])(?<!\w-)(?P<name>[A-Za-z_][\w.-]*+)\\?[\"']?\]?"
    r"\s*(?::\s*[\w.\[\]| ]+=|:=|=>|!?={1,3}|:|(?<=[\"']),)\s*"
)
_QUOTED = re.compile(r"[bfruBFRU]{0,2}(?P<quote>\\?(?:\"\"\"|'''|[\"']))(?P<value>.*?)(?P=quote)")
_OPEN_QUOTE = re.compile(r"[bfruBFRU]{0,2}(?P<quote>\"\"\"|''')")
_IN_STRING = re.compile(r"[^\s\"'\\,;&]+")
_TO_END = re.compile(r".*?(?=\s+#|\s*$)")
_NO_SECRET = re.compile(r"[$%<{]|(?:null|none|true|false|~)?(?:[,;}\])]|$)", re.IGNORECASE)
_YAML_BLOCK = re.compile(r"[|>][+-]?\d?\s*$")
_PRIVATE_KEY = re.compile(r"(-----BEGIN [A-Z ]*PRIVATE KEY-----)(.*?)(-----END|$)")
_KNOWN_TOKEN = re.compile(
    r"\b(?:hf_\w{20,}|sk-[\w-]{20,}|gh[oprsu]_\w{20,}|github_pat_\w{20,}|glpat-[\w-]{20,}"
    r"|xox[abeprs]-[\w-]{10,}|AKIA[0-9A-Z]{16}|eyJ[\w-]{10,}\.eyJ[\w-]+\.[\w-]+)"
)


def redact_diff(diff: str) -> str:
    """Return the output of `git diff` without the values that look like secrets.

    Those are the values of names such as `AWS_SECRET_ACCESS_KEY` or `api_key`, passwords in
    URLs, private keys, and tokens of well-known services. Its lines stay the same otherwise.
    """
    lines = _Lines()
    return "\n".join(map(lines.redact, diff.split("\n")))


class _Lines:
    """Redacts one line of a diff after the other.

    Attributes:
        is_header: Whether the next line is still one about a file, not of it.
        is_code: Whether the file is program code.
        end: What ends a secret of several lines that the last line began: a string.
        indent: The same in YAML: a line that is indented by no more.
    """

    def __init__(self) -> None:
        self.is_header = False
        self.is_code = False
        self.end: str | None = None
        self.indent: int | None = None

    def redact(self, line: str) -> str:
        """Return the next line without secrets."""
        if line.startswith("diff --git "):
            self.is_header = True
        elif line.startswith("@@"):
            self.is_header, self.end, self.indent = False, None, None
        elif self.is_header and line.startswith(("--- ", "+++ ")) and line[4:] != "/dev/null":
            self.is_code = PurePosixPath(line.rstrip('"\t')).suffix.lower() in _CODE_SUFFIXES
        return line if self.is_header else line[:1] + self._redact_content(line[1:])

    def _redact_content(self, content: str) -> str:
        indent = len(content) - len(content.lstrip())
        if self.end is not None:
            secret, end, rest = content.partition(self.end)
            if end:
                self.end = None
            return f"{content[:indent]}{Redactor.MARK if secret.strip() else ''}{end}{rest}"
        if self.indent is not None:
            if indent > self.indent or not content.strip():
                return content[:indent] + (Redactor.MARK if content.strip() else "")
            self.indent = None
        content = _KNOWN_TOKEN.sub(Redactor.MARK, content)
        for password in url_passwords(content):
            if not _NO_SECRET.match(password):
                content = content.replace(f":{password}@", f":{Redactor.MARK}@")
        if "PRIVATE KEY-----" in content:
            return self._redact_key(content)
        return self._redact_values(content, indent)

    def _redact_key(self, content: str) -> str:
        redacted = _PRIVATE_KEY.sub(rf"\1{Redactor.MARK}\3", content)
        begin = _PRIVATE_KEY.search(content)
        if begin and not begin[3]:
            self.end = "-----END"
            return content[: begin.end(1)]
        return redacted

    def _redact_values(self, content: str, indent: int) -> str:
        parts, done, start = [], 0, 0
        while (name := _NAME.search(content, start)) is not None:
            start = name.end()
            if not (is_secret_name(name["name"]) or name["name"].lower() in _HEADERS):
                continue
            begin, end = self._find_value(content, start, indent)
            if begin < end:
                parts += [content[done:begin], Redactor.MARK]
                done = start = end
        return "".join([*parts, content[done:]])

    def _find_value(self, content: str, start: int, indent: int) -> tuple[int, int]:
        """Return where the value begins and ends that stands after the name of a secret."""
        opened = _OPEN_QUOTE.match(content, start)
        if opened and opened["quote"] not in content[opened.end() :]:
            self.end = opened["quote"]
            return opened.end(), len(content)
        quoted = _QUOTED.match(content, start)
        if quoted:
            return quoted.span("value")
        before = content[:start]
        is_in_string = before.count('"') % 2 == 1 or before.count("'") % 2 == 1
        if self.is_code and not is_in_string:
            return start, start
        if not is_in_string and _YAML_BLOCK.match(content, start):
            self.indent = indent
            return start, start
        if _NO_SECRET.match(content, start):
            return start, start
        bare = (_IN_STRING if is_in_string else _TO_END).match(content, start)
        return bare.span() if bare else (start, start)
