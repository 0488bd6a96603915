"""Reads Dockerfiles as Docker does: continued lines, here-documents, flags, variables, stages."""

from __future__ import annotations

import json
import platform
import posixpath
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches

# keyword -> its flags
KEYWORDS: dict[str, set[str]] = {
    "ADD": {"chmod", "checksum", "chown", "exclude", "keep-git-dir", "link", "unpack"},
    "ARG": set(),
    "CMD": set(),
    "COPY": {"chmod", "chown", "exclude", "from", "link", "parents"},
    "ENTRYPOINT": set(),
    "ENV": set(),
    "EXPOSE": set(),
    "FROM": {"platform"},
    "HEALTHCHECK": {"interval", "retries", "start-interval", "start-period", "timeout"},
    "LABEL": set(),
    "MAINTAINER": set(),
    "ONBUILD": set(),
    "RUN": {"mount", "network", "security"},
    "SHELL": set(),
    "STOPSIGNAL": set(),
    "USER": set(),
    "VOLUME": set(),
    "WORKDIR": set(),
}
DEFAULT_SHELL = ("/bin/sh", "-c")

_CONTINUED = re.compile(r"(?<!\\)\\[ \t]*$")
_OTHER_ESCAPE = re.compile(r"#\s*escape\s*=\s*[^\\\s]", re.IGNORECASE)
_FLAG = re.compile(r"--(?P<name>[a-z-]+)(?:=(?P<value>\S*))?(?:\s+|$)")
# a mark of a here-document; what is in quotes is none
_MARK = re.compile(
    r"""'[^']*'|"(?:[^"\\]|\\.)*"|\\.|"""
    r"""(?:(?<=\s)|^)\d*<<(?P<dash>-?)(?P<quote>['"]?)(?P<name>[\w.-]+)(?P=quote)(?=\s|$)"""
)
_VARIABLE = (
    r"\$(?:(?P<name>[A-Za-z_]\w*)|"
    r"\{(?P<braced>[A-Za-z_]\w*)(?:(?P<operator>:?[-+?])(?P<other>(?:[^{}]|\$\{[^{}]*\})*))?\}|"
    r"(?P<bad>\{))"
)
_PART = re.compile(
    rf"""'(?P<literal>[^']*)'|(?P<quote>["'])|\\(?P<escaped>.)|{_VARIABLE}|(?P<space>\s+)|.""",
    re.DOTALL,
)
_CLOSED_QUOTES = re.compile(r"""(?:[^'"\\]|\\.|'[^']*'|"(?:[^"\\]|\\.)*")*""", re.DOTALL)
_IN_DOCUMENT = re.compile(rf"\\(?P<escaped>\$)|{_VARIABLE}")
_MACHINES = {"x86_64": "amd64", "amd64": "amd64", "aarch64": "arm64", "arm64": "arm64"}


class DockerfileError(Exception):
    """Raised when a Dockerfile is wrong; the message is that of Docker."""


@dataclass(frozen=True)
class HereDocument:
    """The lines that follow `RUN <<EOF` or `COPY <<EOF target`."""

    name: str
    content: str
    # not in `<<'EOF'`
    expands: bool


@dataclass(frozen=True)
class Instruction:
    """An instruction as it is written, in one line."""

    line: int
    keyword: str
    flags: tuple[tuple[str, str], ...]
    rest: str
    documents: tuple[HereDocument, ...] = ()

    def __str__(self) -> str:
        flags = (f"--{name}={value}" if value else f"--{name}" for name, value in self.flags)
        return " ".join(filter(None, [self.keyword, *flags, self.rest]))

    def flag(self, name: str) -> str:
        """Return the value of a flag, or an empty string."""
        return dict(self.flags).get(name, "")

    def as_list(self) -> list[str] | None:
        """Return the arguments of the form `KEYWORD ["one", "two"]`; None for the other form."""
        try:
            found = json.loads(self.rest) if self.rest.startswith("[") else None
        except ValueError:
            return None
        return found if found is not None and all(isinstance(each, str) for each in found) else None


@dataclass(frozen=True)
class Settings:
    """What the instructions of a stage have set for those that follow, and for its containers."""

    env: Mapping[str, str] = field(default_factory=dict)
    workdir: str | None = None
    shell: tuple[str, ...] = DEFAULT_SHELL


@dataclass(frozen=True)
class Step:
    """An instruction with the values of its variables, and the settings after it."""

    instruction: Instruction
    words: tuple[str, ...]
    settings: Settings
    args: Mapping[str, str]
    # the contents of here-documents
    documents: tuple[str, ...] = ()

    @property
    def keyword(self) -> str:
        """The keyword in capitals."""
        return self.instruction.keyword

    @property
    def variables(self) -> dict[str, str]:
        """The variables of a command: those of ENV win over those of ARG."""
        return {**self.args, **self.settings.env}

    @property
    def script(self) -> str:
        """What the shell of a RUN gets: the line and its here-documents, or one of them alone."""
        rest = self.instruction.rest
        if self.documents and not _MARK.sub(_without_mark, rest).strip():
            return self.documents[0]
        ends = (document.name for document in self.instruction.documents)
        bodies = (f"\n{text}{end}" for text, end in zip(self.documents, ends, strict=True))
        return rest + "".join(bodies)


def parse(commands: Sequence[str]) -> list[Instruction]:
    """Return the instructions of a Dockerfile's lines.

    Raises:
        DockerfileError: If Docker would refuse it.
    """
    found: list[Instruction] = []
    lines = "\n".join(commands).replace("\r\n", "\n").split("\n")
    numbered = iter(enumerate(lines, 1))
    for number, line in numbered:
        text = line.strip()
        if not text or text.startswith("#"):
            if not found and _OTHER_ESCAPE.match(text):
                raise _error(number, f"the emulator knows no other escape than \\: {text}")
            continue
        while continued := _CONTINUED.search(text):
            following = (each for _, each in numbered if each.strip() and not _is_comment(each))
            text = text[: continued.start()] + next(following, "")
        found.append(_instruction(number, text.strip(), numbered))
    if not found:
        raise DockerfileError("dockerfile parse error: file with no instructions")
    first = next((each for each in found if each.keyword != "ARG"), None)
    if first is None or first.keyword != "FROM":
        line_number = first.line if first else found[-1].line
        raise _error(line_number, f"no build stage in current context: {first or found[-1]}")
    return found


def _is_comment(line: str) -> bool:
    return line.lstrip().startswith("#")


def _error(line: int, message: str) -> DockerfileError:
    return DockerfileError(f"dockerfile parse error on line {line}: {message}")


def _instruction(line: int, text: str, following: Iterator[tuple[int, str]]) -> Instruction:
    keyword, rest = [*text.split(maxsplit=1), "", ""][:2]  # nothing follows a lone backslash
    name = keyword.upper()
    if name not in KEYWORDS:
        near = get_close_matches(name, KEYWORDS, n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise _error(line, f"unknown instruction: {keyword}{hint}")
    flags = []
    while KEYWORDS[name] and (found := _FLAG.match(rest)):
        if found["name"] not in KEYWORDS[name]:
            raise _error(line, f"unknown flag: --{found['name']} of {name}")
        flags.append((found["name"], found["value"] or ""))
        rest = rest[found.end() :]
    if not rest:
        raise _error(line, f"{name} requires at least one argument")
    documents = []
    if name in {"RUN", "COPY", "ADD"}:
        marks = [found for found in _MARK.finditer(rest) if found["name"]]
        documents = [_read_document(line, found, following) for found in marks]
    read = Instruction(line, name, tuple(flags), rest, tuple(documents))
    if name == "ENV" and not _CLOSED_QUOTES.fullmatch(rest):
        # the value of `Image.env` may have several lines, which an instruction can't have
        raise _error(line, f"unexpected end of statement while looking for matching quote: {rest}")
    if name == "SHELL" and not read.as_list():
        raise _error(line, "SHELL requires the arguments to be in JSON form")
    return read


def _read_document(
    line: int, mark: re.Match[str], following: Iterator[tuple[int, str]]
) -> HereDocument:
    lines: list[str] = []
    for _, each in following:
        text = each.lstrip("\t") if mark["dash"] else each
        if text == mark["name"]:
            return HereDocument(mark["name"], "".join(lines), expands=not mark["quote"])
        lines.append(f"{text}\n")
    raise _error(line, f"unterminated heredoc {mark['name']}")


def _value(found: re.Match[str], variables: Mapping[str, str]) -> str:
    """Return the value of `$NAME` or `${NAME}`, which may have a `:-`, `:+` or `:?` with a text."""
    if found["bad"]:
        raise DockerfileError(f"unsupported modifier in substitution: {found.string}")
    name, operator, other = found["name"] or found["braced"], found["operator"], found["other"]
    value = variables.get(name)
    given = bool(value) if operator and operator.startswith(":") else value is not None
    if operator and operator.endswith("?") and not given:
        raise DockerfileError(f"{name}: {other or 'parameter not set'}: {found.string}")
    if operator and operator.endswith("+" if given else "-"):
        return expand(other, variables)
    return value or ""


def expand(text: str, variables: Mapping[str, str]) -> str:
    """Return a text without its quotes and with the values of its variables."""
    return " ".join(split(text, variables, at_spaces=False))


def split(text: str, variables: Mapping[str, str], *, at_spaces: bool = True) -> list[str]:
    """Split at the spaces outside of quotes, and put in the values of variables.

    A variable without a value is empty. Single quotes keep `$NAME` as it is.

    Raises:
        DockerfileError: If a quote is not closed, or a `${…}` has a form that is not known.
    """
    words: list[str] = []
    word: str | None = None
    quoted, at = False, 0
    while at < len(text):
        if quoted and text[at] == "'":
            word, at = f"{word}'", at + 1
            continue
        found = _PART.match(text, at)
        assert found is not None
        at = found.end()
        if found["space"] and at_spaces and not quoted:
            words += [] if word is None else [word]
            word = None
        elif found["quote"] == "'":
            raise _unclosed("single", text)
        elif found["quote"]:
            quoted, word = not quoted, word or ""
        elif found["name"] or found["braced"] or found["bad"]:
            value = _value(found, variables)
            word = f"{word or ''}{value}" if value or word is not None else None
        elif found["escaped"]:
            kept = "\\" if quoted and found["escaped"] not in '"$\\' else ""
            word = f"{word or ''}{kept}{found['escaped']}"
        else:
            literal = found["literal"]
            word = (word or "") + (found[0] if literal is None else literal)
    if quoted:
        raise _unclosed("double", text)
    return words if word is None else [*words, word]


def _unclosed(quote: str, text: str) -> DockerfileError:
    message = f"unexpected end of statement while looking for matching {quote}-quote"
    return DockerfileError(f"{message}: {text}")


def evaluate(
    instructions: Sequence[Instruction], base: Settings, build_args: Mapping[str, str]
) -> list[Step]:
    """Return the instructions with the values of their variables and the settings after each.

    `FROM base` begins with the settings of the base image.

    Raises:
        DockerfileError: If an instruction is wrong.
    """
    machine = _MACHINES.get(platform.machine(), platform.machine())
    common = {"TARGETPLATFORM": f"linux/{machine}", "TARGETOS": "linux", "TARGETARCH": machine}
    common |= {name.replace("TARGET", "BUILD"): value for name, value in common.items()}
    # the settings at the end of each stage, by its name and by its number
    stages = {"base": base}
    names: list[str] = []
    settings, args, steps, number = Settings(), dict(common), [], 0
    for each in instructions:
        # the PATH of the base image is known only in a container
        variables = {**args, "PATH": "$PATH", **settings.env} if names else args
        try:
            words = _words(each, common if each.keyword == "FROM" else variables)
            documents = tuple(_content(document, each, variables) for document in each.documents)
        except DockerfileError as e:
            raise DockerfileError(f"{each}: {e}") from e
        if each.keyword == "FROM":
            settings = stages.get(words[0].lower(), Settings())
            names, args = [str(number), *(alias.lower() for alias in words[2:])], {}
            number += 1
        elif each.keyword == "ARG":
            args |= _declared(words, build_args, common if names else {})
            common |= {} if names else args
        else:
            settings = _changed(settings, each, words)
        stages |= dict.fromkeys(names, settings)
        steps.append(Step(each, tuple(words), settings, dict(args), documents))
    return steps


def _words(each: Instruction, variables: Mapping[str, str]) -> list[str]:
    """Return the arguments of an instruction whose variables Docker replaces."""
    if each.keyword in {"COPY", "ADD"}:
        listed = each.as_list()
        if listed is not None:
            words = [expand(word, variables) for word in listed]
        else:
            words = split(_MARK.sub(_without_mark, each.rest), variables)
        if not words or len(words) + len(each.documents) < 2:
            raise DockerfileError("at least two arguments are required")
        return words
    if each.keyword == "ENV":
        name, *values = each.rest.split(maxsplit=1)
        if "=" not in name:
            if not values:
                raise DockerfileError("ENV must have two arguments")
            value = values[0]
            return [f"{name}={expand(value, variables)}"]
    if each.keyword in {"ENV", "ARG", "FROM"}:
        words = split(each.rest, variables)
        if each.keyword == "FROM" and not (
            len(words) == 1 or (len(words) == 3 and words[1].upper() == "AS")
        ):
            raise DockerfileError("FROM requires either one or three arguments")
        if each.keyword == "ENV" and (wrong := [word for word in words if "=" not in word]):
            raise DockerfileError(f"can't find = in {wrong[0]}")
        return words
    if each.keyword in {"WORKDIR", "USER"}:
        return [expand(each.rest, variables)]
    return each.as_list() or []


def _content(document: HereDocument, each: Instruction, variables: Mapping[str, str]) -> str:
    if each.keyword == "RUN" or not document.expands:
        return document.content  # the shell puts in the values
    return _IN_DOCUMENT.sub(
        lambda found: found["escaped"] or _value(found, variables), document.content
    )


def _without_mark(found: re.Match[str]) -> str:
    return "" if found["name"] else found[0]


def _declared(
    words: Sequence[str], build_args: Mapping[str, str], common: Mapping[str, str]
) -> dict[str, str]:
    """Return the values of `ARG NAME[=default]`; one without any has no value."""
    values = {}
    for word in words:
        name, equals, default = word.partition("=")
        if name in build_args:
            values[name] = build_args[name]
        elif equals:
            values[name] = default
        elif name in common:
            values[name] = common[name]
    return values


def _changed(settings: Settings, each: Instruction, words: Sequence[str]) -> Settings:
    if each.keyword == "ENV":
        pairs = (word.partition("=") for word in words)
        return replace(settings, env={**settings.env, **{name: value for name, _, value in pairs}})
    if each.keyword == "WORKDIR":
        return replace(settings, workdir=posixpath.join(settings.workdir or "/", words[0]))
    if each.keyword == "SHELL":
        return replace(settings, shell=tuple(words))
    return settings
