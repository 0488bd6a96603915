"""What an image is made of, read from the message of the client."""

from __future__ import annotations

import re
import shlex
import string
from collections.abc import Sequence
from dataclasses import dataclass, field
from textwrap import shorten
from typing import Any

from modal_emulator.objects.dockerfile import DEFAULT_SHELL, Settings, Step, evaluate, parse
from modal_emulator.rpc.gpus import requested_gpu

# what the client puts into every base layer: the system that this machine has instead
COMMANDS_OF_THE_BASE = {
    "apt-get update",
    "apt-get install -y gcc gfortran build-essential",
    "echo 'debconf debconf/frontend select Noninteractive' | debconf-set-selections",
    "ln -s /usr/local/bin/python3 /usr/local/bin/python",
}
_INSTALL = re.compile(r"(?:pip3?|uv) (?:pip )?install\b")
_OPTIONS_WITH_VALUE = {
    "-i", "--index-url", "--extra-index-url", "-f", "--find-links", "-c", "--constraint",
    "--python", "-p", "--torch-backend", "--index-strategy", "--target", "-t", "--prefix",
}  # fmt: skip
_REQUIREMENTS_OPTIONS = {"-r", "--requirement", "--requirements"}
# a missing package is an ImportError, so its installation needs no warning
_INSTALLS_PACKAGES = re.compile(r"\b(?:pip3? install|uv|apt-get|poetry|micromamba)\b")
_MAX_COMMAND_CHARS = 60
_PYTHON_IMAGE = re.compile(r"(?:.*/)?python:(\d+\.\d+)")
_PYTHON_MOUNT = re.compile(r"\b(3\.\d+)")
_ROOT = {"root", "root:root", "0", "0:0"}
_WITHOUT_EFFECT = {"ENTRYPOINT", "EXPOSE", "HEALTHCHECK", "ONBUILD", "STOPSIGNAL", "USER", "VOLUME"}
_FLAGS_WITHOUT_EFFECT = {"chown", "mount", "platform"}
_UV_IMAGE = re.compile(r"(?:.*/)?uv(?:[:@]|$)")


@dataclass(frozen=True)
class BuildFunction:
    """A function of `Image.run_function`, which Modal runs during the build."""

    function_id: str
    definition: str


@dataclass(frozen=True)
class ImageRecord:
    """An image as the client describes it, including its base images."""

    image_id: str
    commands: tuple[str, ...] = ()
    base: str = ""
    python_version: str | None = None
    env: dict[str, str] = field(default_factory=dict)
    workdir: str | None = None
    shell: tuple[str, ...] = DEFAULT_SHELL
    packages: tuple[str, ...] = ()
    apt_packages: tuple[str, ...] = ()
    context_files: dict[str, str] = field(default_factory=dict)
    copied_mount_ids: tuple[str, ...] = ()
    build_functions: tuple[BuildFunction, ...] = ()
    gpu: str | None = None
    secret_ids: tuple[str, ...] = ()


def _words(command: str) -> list[str]:
    """Split as a shell does, or at the spaces if a quote is not closed."""
    try:
        return shlex.split(command)
    except ValueError:
        return command.split()


def _packages_of(command: str, files: dict[str, str]) -> list[str]:
    """Return the requirements of a `RUN … pip install …`, those in requirements files included.

    Args:
        command: The command.
        files: Path in the image -> content, for each file that was copied into the image.
    """
    packages = []
    # the value of $(…) is known only when an image is built, and is never a package
    for part in re.split(r"&&|;|\n", re.sub(r"\$\([^)]*\)", "$", command)):
        if not _INSTALL.search(part):
            continue
        words = iter(_words(part[part.index("install") + len("install") :]))
        for word in words:
            if word in _OPTIONS_WITH_VALUE:
                next(words, None)
            elif word in _REQUIREMENTS_OPTIONS:
                packages += _requirements_in(files.get(next(words, ""), ""))
            elif not word.startswith("-"):
                packages.append(word)
    return packages


def _requirements_in(content: str) -> list[str]:
    """Return the requirements of a requirements file, without its options and comments."""
    lines = (re.split(r"(?:^|\s)#", line)[0].strip() for line in content.splitlines())
    return [line for line in lines if line and not line.startswith("-")]


def apt_packages_of(command: str) -> list[str]:
    """Return what a `RUN … apt-get install …` installs."""
    packages = []
    for part in re.split(r"&&|;|\n", command):
        words = _words(part)
        if words[:1] == ["apt-get"] and "install" in words:
            after = words[words.index("install") + 1 :]
            packages += [word for word in after if not word.startswith("-")]
    return packages


def has_python(image_name: str) -> bool:
    """Return whether an image has nothing but a Python, as python:3.11-slim."""
    return re.match(r"(?:.*/)?python(?::|$)", image_name) is not None


def python_of(image_name: str) -> str | None:
    """Return the version of an image such as python:3.11-slim; None for other images."""
    found = _PYTHON_IMAGE.match(image_name)
    return found[1] if found else None


def python_of_mount(mount_name: str) -> str | None:
    """Return the version of the Python that `add_python` brings, from the name of its mount."""
    found = _PYTHON_MOUNT.search(mount_name)
    return found[1] if found else None


def steps_of(image: Any, base: ImageRecord) -> list[Step]:
    """Return the steps of an `Image` message on its base image.

    Raises:
        DockerfileError: If an instruction is wrong.
    """
    if not image.dockerfile_commands:  # that of a build function
        return []
    settings = Settings(base.env, base.workdir, base.shell)
    return evaluate(parse(image.dockerfile_commands), settings, image.build_args)


def describe_image(
    image_id: str, request: Any, first: ImageRecord, steps: Sequence[Step], mount_name: str
) -> ImageRecord:
    """Return the record of a request for an image, which its base image `first` is part of."""
    image = request.image
    base, python_version = first.base, first.python_version
    # by the names of stages
    bases = {"base": (base, python_version)}
    packages, apt_packages = list(first.packages), list(first.apt_packages)
    copied = list(first.copied_mount_ids)
    files = {f.filename: f.data.decode(errors="replace") for f in image.context_files}
    files_inside: dict[str, str] = {}
    for step in steps:
        if step.keyword == "FROM":
            name, *alias = step.words[0], *step.words[2:]
            base, python_version = bases.get(name.lower(), (name, python_of(name)))
            bases |= {each.lower(): (base, python_version) for each in alias}
        elif adds_python(step):
            python_version = python_of_mount(mount_name)
        elif _copies_mount(step, image):
            copied.append(image.context_mount_id)
        elif step.keyword == "COPY" and step.words[0] in files:
            files_inside[step.words[-1]] = files[step.words[0]]
        elif step.keyword == "RUN":
            command = string.Template(step.script).safe_substitute(step.variables)
            packages += _packages_of(command, files_inside)
            apt_packages += apt_packages_of(command)
    built = list(first.build_functions)
    if image.HasField("build_function"):
        built.append(BuildFunction(request.build_function_id, image.build_function.definition))
    gpu = requested_gpu(image.gpu_config)
    settings = steps[-1].settings if steps else Settings(first.env, first.workdir, first.shell)
    return ImageRecord(
        image_id=image_id,
        commands=first.commands + tuple(image.dockerfile_commands),
        base=base,
        python_version=python_version,
        env=dict(settings.env),
        workdir=settings.workdir,
        shell=settings.shell,
        packages=tuple(packages),
        apt_packages=tuple(apt_packages),
        context_files={**first.context_files, **files},
        copied_mount_ids=tuple(copied),
        build_functions=tuple(built),
        gpu=str(gpu) if gpu else first.gpu,
        secret_ids=first.secret_ids + tuple(image.secret_ids),
    )


def adds_python(step: Step) -> bool:
    """Return whether a step copies the Python of `add_python`."""
    return step.keyword == "COPY" and step.words[0].startswith("/python/")


def _copies_mount(step: Step, image: Any) -> bool:
    """Return whether a step copies the whole mount that the client has sent along."""
    return step.keyword == "COPY" and bool(image.context_mount_id) and step.words == (".", "/")


def is_uv(step: Step) -> bool:
    """Return whether a step copies uv from its image, as the client does: this machine has it."""
    return _UV_IMAGE.match(step.instruction.flag("from")) is not None


def without_effect(image: Any, steps: Sequence[Step], *, built: bool) -> list[str]:
    """Return what of an image has no effect here; much more where nothing is built."""
    found = []
    if image.HasField("build_function") and not built:
        found.append("`Image.run_function`")
    arguments = [word for step in steps if step.keyword == "ARG" for word in step.words]
    unknown = set(image.build_args) - {word.partition("=")[0] for word in arguments}
    found += [f"the build argument {name}, which no ARG declares," for name in sorted(unknown)]
    for step in steps:
        text = f"`{shorten(str(step.instruction), _MAX_COMMAND_CHARS, placeholder=' …')}`"
        if _has_no_effect(step) or (not built and _is_not_run(step, image)):
            found.append(text)
        else:
            flags = [name for name, _ in step.instruction.flags if name in _FLAGS_WITHOUT_EFFECT]
            found += [f"--{name} of {text}" for name in flags]
    return found


def _has_no_effect(step: Step) -> bool:
    if step.keyword == "USER":
        return step.words[0] not in _ROOT
    # `Image.entrypoint([])` only takes away that of the base image
    return step.keyword in _WITHOUT_EFFECT and step.instruction.rest != "[]"


def _is_not_run(step: Step, image: Any) -> bool:
    """Return whether a step does more than install packages and copy what containers get."""
    if step.keyword == "RUN":
        command = step.script
        return command not in COMMANDS_OF_THE_BASE and not _INSTALLS_PACKAGES.search(command)
    if step.keyword == "COPY":
        sent = {file.filename for file in image.context_files}
        of_client = is_uv(step) or adds_python(step) or step.words[0] in sent
        return not (of_client or _copies_mount(step, image))
    return step.keyword == "ADD"
