"""Takes secrets out of a diff, where only the names beside them show that they are secrets."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from pathlib import PurePosixPath

from ml_experiments.redaction.redactor import Redactor
from ml_experiments.redaction.secret_names import URL_PASSWORDS, is_secret_name

# in these languages a value without quotes is an expression, and no secret
_CODE_SUFFIXES = frozenset(
    (
        *(".c", ".cc", ".cpp", ".cs", ".go", ".h", ".hpp", ".ipynb", ".java", ".jl", ".js", ".jsx"),
        *(".kt", ".lua", ".php", ".pl", ".py", ".pyi", ".r", ".rb", ".rs", ".scala", ".swift"),
        *(".ts", ".tsx"),
    )
)
_PROSE_SUFFIXES = frozenset((".md", ".rst", ".txt"))
_YAML_SUFFIXES = frozenset((".yaml", ".yml"))
# a value may stand in the line after its name
_CONTINUED_SUFFIXES = _YAML_SUFFIXES | {".json"}
_SECTION_SUFFIXES = frozenset((".cfg", ".conf", ".ini", ".toml", ""))
_SECTION = re.compile(r"\s*\[+([\w.\"' -]++)\s*\]+\s*$")
# a name or host before the last colon, a secret after it
_PASSWORD_FILES = frozenset((".htpasswd", ".pgpass"))
_KEY_FILE = re.compile(r"(id_\w+|.*\.(key|p8|pem))")
_HEADERS = {"authorization", "proxy-authorization", "cookie", "set-cookie", "_auth"}
# NAME=value, "name": "value", name: str = "value", environ["NAME"] = "value", get("NAME", "value")
_NAME = re.compile(
    r"(?<![\w.])(?<!\w-)(?:\$env:)?(?P<name>[A-Za-z_][\w.-]*+)\\?[\"']?[\])]?"
    r"(?: (?:string|\[\]byte))?"
    r"\s*(?::\s*[\w.\[\]|&<][\w.\[\]|&<>?' ]*(?: =|=(?=[bfru]{0,2}[\"']))|:=|=>|!?={1,3}|:"
    r"|(?:\?\?|\|\||\bor\b)(?=\s*[bfru]{0,2}[\"'`])"
    r"|(?<=[\"']),(?!\s*\"[^\"]{0,100}\"\s*:))\s*",
    re.IGNORECASE,
)
# --name value, ENV NAME value, set -x NAME value, and configs that put only a space between
_SPACED_NAME = re.compile(
    r"(?:^\s*(?:(?:ENV|ARG|set|setenv|setx|-\w+)\s+)*|(?<!\S)--|\blogin\s+\S+\s+)"
    r"(?P<name>(?!sshpass\b)[A-Za-z_][\w.-]*+)\s+(?=[^\s=:#])"
)
_LONG_OPTION = re.compile(r"(?<![^\s\"'`!(])--(?P<name>[A-Za-z_][\w.-]*+)\s+(?=[^\s=:#])")
# - name: NAME / value: value; add_argument("--name", default="value"); variable "name" { default =
_DECLARED_NAME = re.compile(
    r"(?:\b(?:name|key)[\"']?\s*[:=]\s*|\bvariable\s+|\badd_argument\(\s*)"
    r"[\"']?-{0,2}(?P<name>[A-Za-z_][\w.-]*)"
)
_DECLARED_VALUES = {"value", "default"}
_DECLARATION_LINES = 6
_QUOTED = re.compile(
    r"[bfru]{0,2}(?:(?P<quote>\"\"\"|'''|[\"'`])(?P<value>(?:\\.|[^\\])*?)(?P=quote)"
    r"|(?P<escaped>\\[\"'])(?P<inner>.*?)(?P=escaped))",
    re.IGNORECASE,
)
_OPEN_QUOTE = re.compile(r"[bfru]{0,2}(?P<quote>\"\"\"|'''|[\"'`])", re.IGNORECASE)
_IN_STRING = re.compile(r"[^\s\"'\\,;&]+")
_IN_HEADER = re.compile(r"[^\"'\\]+")
_TO_END = re.compile(r"(?:\S++|\s++(?!#|$))*+")
_NO_SECRET = re.compile(r"[$%<{]|(?:null|none|true|false|~)?(?:[,;}\])]|$)", re.IGNORECASE)
_YAML_BLOCK = re.compile(r"(?:[!&][\w!:/-]*\s+)*[|>][+-]?\d?\s*$")
_YAML_FIELD = re.compile(r"\s*(?:-\s|[\w.\"'-]+\s*:(?:\s|$))")
_EMPTY = re.compile(r"\s*(#|$)")
_CONTINUED = re.compile(r"[(\\]?\s*$")
_KEY_LINE = re.compile(r"[A-Za-z0-9+/=]{40,}\s*$")
_PRIVATE_KEY = re.compile(r"(-----BEGIN [A-Z ]*PRIVATE KEY(?: BLOCK)?-----)(.*?)(-----END|$)")
_ELEMENT = re.compile(
    r"(?P<head><(?:(?P<name>[\w.-]+)|\w[^<>]{0,99}\s(?:name|key|id)=\"(?P<named>[\w.-]+)\")>)[^<]+(?=</)"
)
_KNOWN_TOKEN = re.compile(
    r"\b(?:hf_\w{20,}|sk-[\w-]{20,}|gh[oprsu]_\w{20,}|github_pat_\w{20,}|gl(?:pat|sa)[-_][\w-]{20,}"
    r"|xox[abeprs]-[\w-]{10,}|xapp-[\w-]{20,}|A[KS]IA[0-9A-Z]{16}|eyJ[\w-]{10,2000}\.eyJ[\w-]+\.[\w-]+"
    # Google, Modal, npm, PyPI, Docker, Stripe, SendGrid, Telegram, Twilio, Mailgun, Databricks
    r"|AIza[\w-]{35}|ya29\.[\w-]{20,}|a[ks]-[A-Za-z0-9]{22}\b|npm_\w{30,}|pypi-AgE[\w-]{20,}"
    r"|dckr_pat_[\w-]{20,}|[rs]k_(?:live|test)_\w{16,}|SG\.[\w-]{16,}\.[\w-]{16,}"
    r"|\d{8,10}:AA[\w-]{33}|SK[0-9a-f]{32}\b|key-[0-9a-f]{32}\b|dapi[0-9a-f]{32}"
    r"|AGE-SECRET-KEY-1\w{20,}|hvs\.[\w-]{20,}|tskey-[\w-]{20,}|ATATT3[\w=-]{20,}|sq0[a-z]{3}-[\w-]{22}"
    r"|(?:pplx|xai|tvly|nvapi)-[\w-]{20,}|lsv2_(?:pt|sk)_\w{20,}|r8_\w{30,}|dop_v1_\w{20,}"
    r"|(?:api_org|cfut|figd|fw|gsk|jina|lin_api|nfp|pcsk|phc|rpa|sbp|shp(?:at|ss)|wandb_v1)_[\w-]{20,})"
)
# arguments of commands, SQL, and a token instead of name and password in a URL
_AFTER = re.compile(
    r"(?P<head>\b(?:curl|https?)(?=\s).{0,200}?\s(?:-u|--user|-a|--auth)[\s=]+[\"']?[^\s:\"']+:|\bmysql\w*\b.{0,200}?\s-p"
    r"|(?:^\s*|--)requirepass\s+|\blogin\b.{0,200}?\s-p[\s=]+|\bsshpass\s+-p\s*|\bredis-cli\b.{0,200}?\s-a\s+"
    r"|\bwandb\s+login\s+(?!-)|\baws\s+configure\s+set\s+\S{0,99}(?:secret|token)\S{0,99}\s+"
    r"|\becho\s+[\"']?(?=[^\s|]{1,999}\s*\|[^|]{0,200}--password-stdin)"
    # parameters of signed URLs, webhooks, and what only its place shows to be a secret
    r"|[?&](?:sig|signature|key|x-(?:amz|goog)-signature)=(?=[^\s&]{8})"
    r"|\bhooks\.slack\.com/\w+/|\bdiscord(?:app)?\.com/api/webhooks/\d+/"
    r"|\blogin\([^)]{0,200}?\bkey\s*=\s*[\"']|\bauth[\"']?\s*[:=]\s*\([\"'][^\"']{0,99}[\"'],\s*[\"']"
    r"|\bHTTP\w{0,10}Auth\(\s*[\"'][^\"']{0,99}[\"'],\s*[\"']|;\s*pwd\s*=\s*|\bSET\s+PASSWORD\b[^=]{0,99}=\s*'"
    r"|\b(?:api|access|secret|private)\s+key\s*[:=]\s*"  # in prose
    r"|\"auth\"\s*:\s*\"|\"username\"\s*:\s*\"[^\"]{0,99}\"\s*,\s*\"key\"\s*:\s*\""
    r"|\b(?:IDENTIFIED\s+BY|WITH\s+PASSWORD)\s+'|://(?=[^\s:/?#@]{20,200}@))[^\s\"'@]+",
    re.IGNORECASE,
)
_COLLECTION = re.compile(
    r".*(keys|secrets|tokens|passwords|passwds|credentials|creds)", re.IGNORECASE
)
_OPEN_COLLECTION = re.compile(r"(?:\w[\w.]{0,50}\()?[\[{(]")
_KUBERNETES_SECRET = re.compile(r"\s*kind:\s*Secret\s*$")
# what only wraps a string
_WRAPPER = re.compile(r"(?:[\w.]{0,50}Secret\w{0,20}|String::from|str|bytes)\(\s*")
_SECRET_CALL = re.compile(r"\bSecret\.from_dict\(\s*(?=\{)")
# what stands in a collection: a string, or in YAML a bare word; but no key
_ELEMENT_OF_CODE = re.compile(
    r"(?<=[\[{(,:=\s])(?<!\w\()[bfru]{0,2}(?P<quote>[\"'])(?P<value>(?:\\.|(?!(?P=quote))[^\\])+)(?P=quote)(?!\s*:)",
    re.IGNORECASE,
)
_ELEMENT_OF_YAML = re.compile(r"(?<=[\[,:\s])(?P<value>[^\s\"'{}\[\],:#$&*!]+)(?=\s*[,\]}])")
_YAML_ITEM = re.compile(rf"\s*(?:-\s+)*(?:[\w.\"'/-]+\s*:(?:\s+|$))?(?P<value>{_TO_END.pattern})")
# a value that is used where the environment has none
_FALLBACK = re.compile(
    r"(?:\bor|\belse|\?\?|\|\||\b(?:getenv|get|pop)\(\s*[\"'][^\"']{0,99}[\"']\s*,)\s*[bfru]{0,2}"
    r"(?P<quote>[\"'])(?P<value>[^\"']+)(?P=quote)",
    re.IGNORECASE,
)


@functools.lru_cache(maxsize=4)  # each run of a process records the diff, mostly the same one
def redact_diff(diff: str) -> str:
    """Return the output of `git diff` without the values that look like secrets.

    Those are the values of names such as `AWS_SECRET_ACCESS_KEY` or `api_key`, passwords in
    URLs, private keys, and tokens of well-known services. Its lines stay the same otherwise.
    """
    lines = _Lines()
    return "\n".join(map(lines.redact, diff.split("\n")))


class _Quotes:
    """Counts the quotes of a line from its start to its end, once."""

    def __init__(self, content: str) -> None:
        self._content = content
        self._position = self._single = self._double = 0

    def are_open_at(self, position: int) -> bool:
        """Return whether a string is open at a position, which is not before the last one."""
        self._single += self._content.count("'", self._position, position)
        self._double += self._content.count('"', self._position, position)
        self._position = position
        return self._single % 2 == 1 or self._double % 2 == 1


class _Lines:
    """Redacts one line of a diff after the other.

    Attributes:
        is_header: Whether the next line is still one about a file, not of it.
        file: The file.
        end: What ends a secret of several lines that the last line began: a string.
        indent: The same in YAML: a line that is indented by no more.
        collection: The indent of the line that began a collection of secrets in YAML.
        depth: How many brackets are open of a collection of secrets.
        section: The heading, in TOML and the like, below which the line stands.
        is_open: Whether the last line ended where the value of a secret belongs.
        collections: The names of collections of secrets in this part of a file.
        declared_lines: For how many more lines `value` and `default` are those of a secret.
    """

    def __init__(self) -> None:
        self.is_header = False
        self.file = PurePosixPath()
        self._forget()

    @property
    def suffix(self) -> str:
        """The suffix of the file's name."""
        return self.file.suffix.lower()

    def _forget(self) -> None:
        self.end: str | None = None
        self.indent: int | None = None
        self.collection: int | None = None
        self.depth = 0
        self.section = ""
        self.is_open = False
        self.collections = {"stringData"}
        self.declared_lines = 0

    def redact(self, line: str) -> str:
        """Return the next line without secrets."""
        if line.startswith("diff --git "):
            self.is_header = True
        elif line.startswith("@@"):
            self.is_header = False
            self._forget()
        elif self.is_header and line.startswith(("--- ", "+++ ")) and line[4:] != "/dev/null":
            self.file = PurePosixPath(line.rstrip('"\t'))
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
        if self.collection is not None:
            is_item = indent == self.collection and content.lstrip().startswith("- ")
            if indent > self.collection or is_item or not content.strip():
                return _redact_spans(content, filter(None, [_YAML_ITEM.match(content)]))
            self.collection = None
        if _KEY_FILE.fullmatch(self.file.name) and _KEY_LINE.match(content):
            return Redactor.MARK
        if self.file.name in _PASSWORD_FILES and ":" in content:
            return f"{content.rpartition(':')[0]}:{Redactor.MARK}"
        if self.suffix in _SECTION_SUFFIXES and (section := _SECTION.match(content)):
            self.section = section[1].replace(".", "_")
        if _KUBERNETES_SECRET.match(content):
            self.collections = {"data", "stringData"}
        content = _KNOWN_TOKEN.sub(Redactor.MARK, content)
        for pattern in URL_PASSWORDS if "://" in content else ():
            content = pattern.sub(_redact_url, content)
        if "PRIVATE KEY" in content and (key := _PRIVATE_KEY.search(content)):
            if not key[3]:
                self.end = "-----END"
                return content[: key.end(1)]
            content = _PRIVATE_KEY.sub(rf"\1{Redactor.MARK}\3", content)
        content = _AFTER.sub(rf"\g<head>{Redactor.MARK}", content)
        content = _ELEMENT.sub(_redact_element, content)
        if self.depth > 0:
            return self._redact_collection(content, 0)
        content = self._redact_values(content, indent)
        call = _SECRET_CALL.search(content)  # from there on, the line is redacted to its end
        return content if call is None else self._redact_collection(content, call.end())

    def _redact_collection(self, content: str, start: int) -> str:
        """Redact the elements of a collection of secrets that begins here or is open."""
        rest = content[start:]
        self.depth += sum(map(rest.count, "[{(")) - sum(map(rest.count, ")}]"))
        if self.suffix in _YAML_SUFFIXES:
            content = content[:start] + _redact_spans(rest, _ELEMENT_OF_YAML.finditer(rest))
            rest = content[start:]
        return content[:start] + _redact_spans(rest, _ELEMENT_OF_CODE.finditer(rest))

    def _redact_values(self, content: str, indent: int) -> str:
        declared = _DECLARED_NAME.search(content)
        if declared is not None:
            is_secret = is_secret_name(declared["name"])
            self.declared_lines = _DECLARATION_LINES if is_secret else 0
        self.declared_lines = max(0, self.declared_lines - 1)
        parts, done, quotes = [], 0, _Quotes(content)
        is_code = self.is_code(content)
        if self.is_open and self._takes_open_value(content, indent):
            for begin, end in self._find_values(content, None, indent, is_code, quotes):
                parts += [content[done:begin], Redactor.MARK]
                done = end
        else:
            self.is_open = False
        for name in self._names(content):
            if name.start() < done or not self._is_secret(name["name"]):
                continue
            if name["name"] in self.collections or _COLLECTION.fullmatch(name["name"]):
                if _OPEN_COLLECTION.match(content, name.end()):
                    return "".join([*parts, self._redact_collection(content, name.end())[done:]])
                is_yaml = self.suffix in _YAML_SUFFIXES
                if is_yaml and _EMPTY.match(content, name.end()):
                    self.collection = indent
                    break
            for begin, end in self._find_values(content, name, indent, is_code, quotes):
                if begin < end:
                    parts += [content[done:begin], Redactor.MARK]
                    done = end
        return "".join([*parts, content[done:]])

    def _names(self, content: str) -> list[re.Match[str]]:
        names = list(_NAME.finditer(content))
        if not self.is_code(content) and self.suffix not in _PROSE_SUFFIXES:
            names += _SPACED_NAME.finditer(content)
        else:
            names += _LONG_OPTION.finditer(content)
        return sorted(names, key=lambda name: name.start("name"))

    def _is_secret(self, name: str) -> bool:
        is_declared = self.declared_lines > 0 and name.lower() in _DECLARED_VALUES
        is_in_section = self.section and (
            is_secret_name(self.section) or is_secret_name(f"{self.section}_{name}")
        )
        words = {name, name.rpartition(".")[2]}  # self.token holds a token
        return bool(
            is_declared
            or is_in_section
            or any(map(is_secret_name, words))
            or name.lower() in _HEADERS
            or name in self.collections
        )

    def is_code(self, content: str) -> bool:
        """Return whether a line is program code, and no comment in it."""
        return self.suffix in _CODE_SUFFIXES and not content.lstrip().startswith(("#", "//"))

    def _takes_open_value(self, content: str, indent: int) -> bool:
        if self.is_code(content):
            return _OPEN_QUOTE.match(content, indent) is not None
        return indent > 0 and _YAML_FIELD.match(content) is None

    def _find_values(
        self,
        content: str,
        name: re.Match[str] | None,
        indent: int,
        is_code: bool,
        quotes: _Quotes,
    ) -> list[tuple[int, int]]:
        """Return where the values begin and end that stand after the name of a secret.

        Args:
            content: The line.
            name: The name of the secret; None if it stands in a line before.
            indent: How far the line is indented.
            is_code: Whether the line is program code.
            quotes: Those in the line.
        """
        start = indent if name is None else name.end()
        if is_code and (wrapper := _WRAPPER.match(content, start)):
            start = wrapper.end()
        opened = _OPEN_QUOTE.match(content, start)
        quoted = _QUOTED.match(content, start)
        is_cut = opened and content.find(opened["quote"], opened.end()) < 0
        if opened and is_cut and (len(opened["quote"]) == 3 or not is_code):
            self.end = opened["quote"]
            return [(opened.end(), len(content))]
        spans = []
        while quoted:  # strings that stand side by side are one
            spans.append(quoted.span("value" if quoted["quote"] else "inner"))
            space = re.compile(r"\s*").match(content, quoted.end())
            quoted = _QUOTED.match(content, space.end() if space else quoted.end())
        if spans:
            comma = content.find(",", spans[-1][1])
            others = _FALLBACK.finditer(content, spans[-1][1], comma if comma >= 0 else start + 200)
            return [*spans, *(other.span("value") for other in others if is_code)]
        is_in_string = quotes.are_open_at(start)
        if not is_in_string and _CONTINUED.match(content, start):
            self.is_open = is_code or self.suffix in _CONTINUED_SUFFIXES
            return []
        if is_code and not is_in_string:
            return [
                found.span("value") for found in _FALLBACK.finditer(content, start, start + 200)
            ]
        if not is_in_string and _YAML_BLOCK.match(content, start):
            self.indent = indent
            return []
        if _NO_SECRET.match(content, start):
            return []
        pattern = _IN_STRING if is_in_string else _TO_END
        if name is not None and name.re in (_SPACED_NAME, _LONG_OPTION):
            pattern = _IN_STRING
        elif name is not None and is_in_string and name["name"].lower() in _HEADERS:
            pattern = _IN_HEADER
        bare = pattern.match(content, start)
        return [bare.span()] if bare else []


def _redact_spans(content: str, found: Iterable[re.Match[str]]) -> str:
    parts, done = [], 0
    for match in found:
        begin, end = match.span("value")
        if begin < end and not _NO_SECRET.match(content, begin):
            parts += [content[done:begin], Redactor.MARK]
            done = end
    return "".join([*parts, content[done:]])


def _redact_element(element: re.Match[str]) -> str:
    is_secret = is_secret_name(element["name"] or element["named"])
    return f"{element['head']}{Redactor.MARK}" if is_secret else element[0]


def _redact_url(url: re.Match[str]) -> str:
    if _NO_SECRET.match(url[1]):
        return url[0]
    return f"{url.string[url.start() : url.start(1)]}{Redactor.MARK}@"
