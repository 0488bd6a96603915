"""Dockerfiles are read as Docker does; what is wrong or has no effect is told at the client."""

from __future__ import annotations

import contextlib
import shlex
import warnings
from pathlib import Path

import image_app
import modal
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from modal.exception import RemoteError, ServerWarning
from modal_proto import api_pb2

from modal_emulator import Emulator
from modal_emulator.objects.dockerfile import (
    KEYWORDS,
    DockerfileError,
    Settings,
    Step,
    evaluate,
    parse,
    split,
)
from modal_emulator.objects.image_records import (
    ImageRecord,
    describe_image,
    steps_of,
    without_effect,
)

LINE = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\r\n"), max_size=20)
BASE = ImageRecord(image_id="")
NAME = st.from_regex(r"[A-Z_]{1,6}", fullmatch=True)
SNIPPET = st.sampled_from(
    [
        *KEYWORDS,
        " ",
        "\n",
        "\\\n",
        "$",
        "${",
        "}",
        ":-",
        "'",
        '"',
        "<<EOF",
        "EOF",
        "=",
        "#",
        '["a"]',
    ]
)


def steps(*lines: str, build_args: dict[str, str] | None = None) -> list[Step]:
    return evaluate(parse(lines), Settings(), build_args or {})


def load(image: modal.Image, emulator: Emulator) -> tuple[ImageRecord, list[str]]:
    """Return what the server has recorded of an image, and its warnings."""
    app = modal.App("dockerfile", image=image)
    app.function()(image_app.download_weights)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ServerWarning)
        with app.run():
            record = emulator.images()[-1]
    return record, [str(each.message) for each in caught if each.category is ServerWarning]


@given(st.lists(LINE | SNIPPET, max_size=12).map("".join), st.dictionaries(NAME, LINE))
@example("ARG A\nFROM $A", {})
@example("FROM a\nCOPY <<A <<B /x\nA\nB", {})
@example("COPY <<A <<B\nA\nB", {})
@example("FROM a\nCOPY [1, 2]", {})
@example("\\\n", {})
def test_any_input_is_read_or_refused(text: str, build_args: dict[str, str]) -> None:
    for lines in ([text], ["FROM base", text]):
        image = api_pb2.Image(dockerfile_commands=lines, build_args=build_args)
        request = api_pb2.ImageGetOrCreateRequest(image=image)
        with contextlib.suppress(DockerfileError):
            read = steps_of(image, BASE)
            assert describe_image("im-1", request, BASE, read, "").image_id
            assert isinstance(without_effect(image, read, built=False), list)


@given(st.lists(LINE, max_size=5))
def test_words_that_a_shell_would_quote_are_kept(words: list[str]) -> None:
    assert split(shlex.join(words), {"A": "never"}) == words


@given(st.dictionaries(NAME, LINE, min_size=1))
def test_variables_as_the_client_writes_them_are_kept(values: dict[str, str]) -> None:
    lines = [f"ENV {name}={shlex.quote(value)}" for name, value in values.items()]
    assert steps("FROM base", *lines)[-1].settings.env == values


@given(st.lists(st.from_regex(r"[\w./-]{1,8}", fullmatch=True), min_size=1, max_size=6), st.data())
def test_a_continued_line_is_the_same_instruction(words: list[str], data: st.DataObject) -> None:
    breaks = st.sampled_from([" ", " \\\n", " \\  \n", " \\\n# why\n\n  "])
    text = words[0] + "".join(data.draw(breaks) + word for word in words[1:])
    found = steps("FROM base", f"RUN {text}")[-1]
    assert found.script.split() == words


@given(st.lists(LINE.filter(lambda line: line.strip() != "EOF"), max_size=5))
def test_a_here_document_is_kept_as_it_is(lines: list[str]) -> None:
    found = steps("FROM base", "RUN <<EOF", *lines, "EOF", "COPY <<'EOF' /x", *lines, "EOF")
    content = "".join(f"{line}\n" for line in lines)
    assert [step.documents for step in found[1:]] == [(content,), (content,)]
    assert found[1].script == content


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("$A", "one"),
        ("${A}two", "onetwo"),
        (r"\$A", "$A"),
        ("'$A'", "$A"),
        ('"$A b"', "one b"),
        ("$NONE", ""),
        ("${NONE:-${A}}", "one"),
        ("${EMPTY:-x}${EMPTY-y}", "x"),
        ("${A:+x}${NONE+y}", "x"),
        ("$PATH:/x", "$PATH:/x"),
        ("$B", "of ENV"),
    ],
)
def test_variables_are_replaced_as_docker_does(text: str, value: str) -> None:
    lines = ["ARG A=one EMPTY= B=of_ARG", "ENV B='of ENV'", f"ENV X={text}"]
    assert steps("FROM base", *lines)[-1].settings.env["X"] == value


def test_stages_have_settings_of_their_own() -> None:
    lines = ["ARG V=1", "FROM x AS One", "ARG V", "ENV A=$V", "FROM y", "ENV B=$V", "FROM one"]
    assert [step.settings.env for step in steps(*lines)[-3:]] == [{}, {"B": ""}, {"A": "1"}]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("RUNN true", r"line 2: unknown instruction: RUNN \(did you mean RUN\?\)"),
        ("RUN python -c '\nimport six'", "line 3: unknown instruction: import"),
        ("RUN", "RUN requires at least one argument"),
        ("RUN --monut=type=cache true", "unknown flag: --monut of RUN"),
        ("RUN <<EOF\ntrue", "unterminated heredoc EOF"),
        ("SHELL /bin/bash -c", "SHELL requires the arguments to be in JSON form"),
        ("COPY app.py", "COPY app.py: at least two arguments"),
        ("ENV A", "ENV A: ENV must have two arguments"),
        ("ENV A=1 B", "ENV A=1 B: can't find = in B"),
        ("ENV A=${B#c}", "ENV A=.*: unsupported modifier in substitution"),
        ("ENV A=${B:?is needed}", "ENV A=.*: B: is needed"),
        ("ENV A='b\nc'", "line 2: .* looking for matching quote: A='b"),
        ("WORKDIR '/b", "WORKDIR '/b: .* looking for matching single-quote"),
        ('WORKDIR "/b', 'WORKDIR "/b: .* looking for matching double-quote'),
        ("FROM a b", "FROM requires either one or three arguments"),
    ],
)
def test_what_docker_refuses_is_a_build_error(
    modal_emulator: Emulator, line: str, message: str
) -> None:
    with pytest.raises(RemoteError, match=f"(?s)failed with the exception.*{message}"):
        load(modal.Image.debian_slim().dockerfile_commands(line), modal_emulator)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("# nothing", "file with no instructions"),
        ("ARG A=1", "no build stage in current context: ARG A=1"),
        ("RUN true\nFROM python:3.11", "line 1: no build stage in current context: RUN true"),
        ("# escape=`\nFROM python:3.11", "knows no other escape"),
    ],
)
def test_a_dockerfile_without_a_beginning_is_a_build_error(
    modal_emulator: Emulator, tmp_path: Path, text: str, message: str
) -> None:
    file = tmp_path / "Dockerfile"
    file.write_text(text)
    with pytest.raises(RemoteError, match=message):
        load(modal.Image.from_dockerfile(file), modal_emulator)


def test_a_dockerfile_that_begins_with_arg_is_recorded(
    modal_emulator: Emulator, tmp_path: Path
) -> None:
    file = tmp_path / "Dockerfile"
    file.write_text("""
ARG VERSION=3.10
ARG VARIANT
FROM registry.example/python:${VERSION}-${VARIANT:-slim} AS First
FROM registry.example/other:1 AS other
FROM first
ARG VERSION GREETING=hello
ENV WORD="$GREETING $VERSION"
WORKDIR /opt/$GREETING
SHELL ["/bin/bash", "-c"]
RUN pip install six==$VERSION
""")
    image = modal.Image.from_dockerfile(file, build_args={"VERSION": "3.12", "MODE": "fast"})
    record, warned = load(image, modal_emulator)
    # that of the stage on which the last one stands
    assert record.base == "registry.example/python:3.12-slim"
    assert record.python_version == "3.12"
    assert record.env["WORD"] == "hello 3.12"
    assert (record.workdir, record.shell) == ("/opt/hello", ("/bin/bash", "-c"))
    assert record.packages == ("six==3.12",)
    assert [text for text in warned if "build argument" in text] == [
        "The emulator records the build argument MODE, which no ARG declares, of an image "
        "but it has no effect here."
    ]


def test_each_instruction_without_an_effect_is_a_warning(
    modal_emulator: Emulator, tmp_path: Path
) -> None:
    (tmp_path / "app.py").touch()
    without_effect = [
        "USER app",
        "VOLUME /data",
        "EXPOSE 80",
        "STOPSIGNAL SIGINT",
        "HEALTHCHECK --interval=5m CMD true",
        "ONBUILD RUN true",
        'ENTRYPOINT ["serve"]',
        "COPY app.py /root/",
        "ADD app.tar /root/",
        "RUN touch /root/x",
        "COPY --from=build /x /x",
    ]
    others = ["USER root", "LABEL a=b", "MAINTAINER me", 'CMD ["serve"]', "ENTRYPOINT []"]
    file = tmp_path / "Dockerfile"
    file.write_text("\n".join(["FROM python:3.11 AS build", *without_effect, *others]))
    image = modal.Image.from_dockerfile(file, context_dir=tmp_path)
    record, warned = load(image, modal_emulator)
    assert [text.split("`")[1] for text in warned] == without_effect
    assert set(others) <= set(record.commands)
