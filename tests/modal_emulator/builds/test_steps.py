"""Each instruction of a Dockerfile has its effect on the image that is built, or is refused."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import built_app
import modal
import pytest
from modal.exception import RemoteError, ServerWarning

from modal_emulator import Emulator
from modal_emulator.builds.builder import ImageBuilder
from modal_emulator.builds.pythons import HOST_VERSION
from modal_emulator.pytest_plugin import connected
from tests.support.image_builds import needs_uv, own_layer_cache

pytestmark = needs_uv

DOCKERFILE = f"""\
# a comment
ARG VERSION=3.0
FROM registry.example/python:$VERSION AS tools
WORKDIR /opt/tools
RUN echo made > made && mkdir -p sub && echo of-$PWD > sub/where
FROM python:{HOST_VERSION} AS other
RUN echo never > /opt/never
FROM registry.example/python:$VERSION
ARG GREETING=hello
ENV WORDS="$GREETING ${{NAME:-world}}"
WORKDIR /root/out
RUN echo $GREETING, $WORDS > arg
SHELL ["/bin/bash", "-c"]
RUN [[ -n $BASH_VERSION ]] && echo {{1..3}} > shell
SHELL ["python", "-c"]
RUN open("python", "w").write("of python")
SHELL ["/bin/sh", "-c"]
RUN ["python", "-c", "open('exec', 'w').write('$GREETING')"]
RUN <<EOF
echo first $GREETING > script
echo second >> script
EOF
RUN cat > document <<-'EOF' && echo more >> document
\tkept $GREETING
\tEOF
COPY <<EOF <<'RAW' texts/
value $GREETING
EOF
value $GREETING
RAW
COPY *.txt many/
ADD --chmod=750 ["a.txt", "two words"]
RUN stat -c %a "two words" > mode
COPY archive.tar archive.tar
ADD archive.tar unpacked
ADD a.txt b.txt added/
COPY --from=tools /opt/tools/made ./
COPY --from=0 /opt/tools/sub sub
RUN --mount=type=cache,target=/root/.cache \\
    # why
    echo cached \\
    > cached
USER nobody
"""


@pytest.fixture(scope="module", autouse=True)
def _builder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with (
        own_layer_cache(tmp_path_factory.mktemp("cache")),
        Emulator(images="build") as emulator,
        connected(emulator),
    ):
        yield


@pytest.fixture
def context(tmp_path: Path) -> Path:
    for name in ("a.txt", "b.txt", "c.md"):
        (tmp_path / name).write_text(name)
    with tarfile.open(tmp_path / "archive.tar", "w") as archive:
        archive.add(tmp_path / "c.md", "deep/c.md")
    (tmp_path / "Dockerfile").write_text(DOCKERFILE)
    return tmp_path


def test_every_instruction_has_its_effect(context: Path) -> None:
    build_args = {"VERSION": HOST_VERSION}
    path = context / "Dockerfile"
    image = modal.Image.from_dockerfile(path, context_dir=context, build_args=build_args)
    app = modal.App("dockerfile")
    function = app.function(image=image)(built_app.read_files)
    with pytest.warns(ServerWarning) as warned, app.run():
        found = function.remote()
    assert found == {
        "arg": "hello, hello world\n",
        "shell": "1 2 3\n",
        "python": "of python",
        "exec": "$GREETING",
        "script": "first hello\nsecond\n",
        "document": "kept $GREETING\nmore\n",
        "texts/EOF": "value hello\n",
        "texts/RAW": "value $GREETING\n",
        "many/a.txt": "a.txt",
        "many/b.txt": "b.txt",
        "two words": "a.txt",
        "mode": "750\n",
        "unpacked/deep/c.md": "c.md",
        "added/a.txt": "a.txt",
        "added/b.txt": "b.txt",
        "made": "made\n",
        "sub/where": "of-/opt/tools\n",
        "cached": "cached\n",
    }
    said = " ".join(str(each.message) for each in warned)
    assert "--mount of `RUN" in said
    assert "`USER nobody`" in said


def test_a_link_in_an_image_leads_nowhere_else_on_this_machine(
    context: Path, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret.txt").write_text("of this machine")
    with tarfile.open(tmp_path / "links.tar", "w") as archive:
        link = tarfile.TarInfo("away")
        link.type, link.linkname = tarfile.SYMTYPE, str(outside)
        archive.addfile(link)
    lines = (
        f"RUN ln -s {outside} /root/link && ln -s ../../../../..{outside} /root/up",
        "COPY a.txt b.txt /root/link/",
        "COPY a.txt b.txt /root/up/",
        f"RUN cat {outside}/a.txt",  # the image's own folder of that name
        f"FROM python:{HOST_VERSION} AS last",
        "COPY --from=0 /root/link/secret.txt /root/",
    )
    (context / "Dockerfile").write_text("\n".join([f"FROM python:{HOST_VERSION}", *lines]))
    with pytest.raises(RemoteError, match=r"link/secret\.txt is not among the files"):
        load(modal.Image.from_dockerfile(context / "Dockerfile", context_dir=context))
    (context / "Dockerfile").write_text(f"FROM python:{HOST_VERSION}\nADD links.tar /root/")
    with pytest.raises(RemoteError, match=r"ADD links\.tar"):
        load(modal.Image.from_dockerfile(context / "Dockerfile", context_dir=context))
    assert [each.name for each in outside.iterdir()] == ["secret.txt"]


def test_the_shell_of_an_image_is_that_of_the_images_on_it() -> None:
    image = modal.Image.debian_slim().shell(["/bin/bash", "-c"]).run_commands("[[ 1 == 1 ]]")
    load(image)


def load(image: modal.Image) -> None:
    app = modal.App("dockerfile", image=image)
    app.function()(built_app.version)
    with app.run():
        pass


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("COPY --from=registry.example/tool:1 /x /x", "not those of the image registry.example"),
        ("ADD --checksum=sha256:0 a.txt /x", "ADD --checksum.* /x: the emulator has no --checksum"),
        ("COPY --from=0 / /x", "files of earlier stages"),
        ("RUN pip install 'six", "pip install 'six exited with code"),
        ("COPY --chmod=u+x c.md /root/", "--chmod needs a number such as 755, not u[+]x"),
        ("ADD https://registry.example/x /x", "downloads nothing for ADD; use a RUN"),
        ("ADD missing.txt /x", "ADD missing.txt /x: missing.txt was not sent along; the client"),
        ("RUN --mount=type=secret,id=x true", "has no --mount=type=secret,id=x"),
        ("RUN <<EOF\n#!/usr/bin/env python\nEOF", "the emulator runs no script with a #! line"),
        ('SHELL ["/bin/none"]\nRUN true', "/bin/none: not found\ntrue exited with code 127"),
    ],
)
def test_what_can_not_be_followed_is_a_build_error(context: Path, line: str, message: str) -> None:
    image = modal.Image.debian_slim().dockerfile_commands(*line.split("\n"), context_dir=context)
    with pytest.raises(RemoteError, match=f"(?s)failed with the exception.*{message}"):
        load(image)


def test_an_error_of_the_server_is_a_build_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise ZeroDivisionError("in a step")

    monkeypatch.setattr(ImageBuilder, "_apply_one", fail)
    image = modal.Image.debian_slim().run_commands("echo of an error")
    with pytest.raises(RemoteError, match="ZeroDivisionError: in a step"):
        load(image)
