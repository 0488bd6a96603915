"""The steps of an image, such as `RUN pip install tqdm`, applied to a layer's folder."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from modal_emulator.objects.images import apt_packages_of

_SHELL = re.compile(r"[|&;<>`]|\$\(")
_PIP_INSTALL = re.compile(r"(?:python3? -m pip|pip3?|(?:\S*/)?uv pip) install (?P<arguments>.*)")
_UV_SYNC = re.compile(r"\S*/uv sync (?P<arguments>.*)")
# what the client writes: the interpreter is the layer's in any case
_OWN_PYTHON = "--python $(command -v python)"
_APT = re.compile(r"apt-get ")
_ONLY_OF_PIP = {"--no-cache-dir", "--root-user-action=ignore", "--prefer-binary"}
_INSTALLER_VARIABLES = ("PIP_", "UV_")

Log = Callable[[str], None]
# run a shell command in a sandbox with the layer: command, environment, working folder
RunInSandbox = Callable[[str, Mapping[str, str], str], int]


class StepError(Exception):
    """Raised when a step of an image fails."""


@dataclass
class LayerBuild:
    """A layer's folder while steps are applied to it."""

    folder: Path
    uv: str
    log: Log
    run_in_sandbox: RunInSandbox
    # what COPY copies from
    context: Path
    env: dict[str, str]
    secrets: Mapping[str, str]
    workdir: str = "/"
    warnings: list[str] = field(default_factory=list)

    @property
    def python(self) -> Path:
        """The interpreter of the layer."""
        return self.folder / "env" / "bin" / "python"

    @property
    def files(self) -> Path:
        """The files of the layer."""
        return self.folder / "files"

    def inside(self, path: str) -> Path:
        """Return where a path of the image is on this machine."""
        return self.files / os.path.normpath(os.path.join(self.workdir, path)).lstrip("/")  # noqa: PTH118

    def run(self, command: str) -> None:
        """Apply `RUN command`.

        Raises:
            StepError: If it exits with another code than 0.
        """
        self.log(f"=> RUN {command}\n")
        self._warn_of_missing(apt_packages_of(command))
        plain = command.replace(_OWN_PYTHON, "")
        simple = not _SHELL.search(re.sub(r"'[^']*'|\"[^\"]*\"", "", plain))
        if simple and (found := _PIP_INSTALL.fullmatch(plain)):
            code = self._install(shlex.split(found["arguments"]))
        elif simple and (found := _UV_SYNC.fullmatch(plain)):
            code = self._sync(shlex.split(found["arguments"]))
        elif simple and _APT.match(plain):
            code = 0  # recorded
        else:
            code = self.run_in_sandbox(command, {**self.env, **self.secrets}, self.workdir)
        if code:
            raise StepError(f"{plain} exited with code {code}.")

    def _install(self, arguments: list[str]) -> int:
        local = [str(self.inside(each)) if self._is_file(each) else each for each in arguments]
        known = [each for each in local if each not in _ONLY_OF_PIP]
        return self._run_uv(["pip", "install", "--python", str(self.python), *known])

    def _is_file(self, argument: str) -> bool:
        return argument.startswith(("/", ".")) and self.inside(argument).exists()

    def _sync(self, arguments: list[str]) -> int:
        project = [
            f"--project={self.inside(each.removeprefix('--project='))}"
            if each.startswith("--project=")
            else each
            for each in arguments
        ]
        # --inexact: the environment has pip and wheel, too, which no lock names
        environment = str(self.folder / "env")
        return self._run_uv(["sync", "--inexact", *project], UV_PROJECT_ENVIRONMENT=environment)

    def _run_uv(self, arguments: list[str], **variables: str) -> int:
        known = {name: value for name, value in os.environ.items() if name != "VIRTUAL_ENV"}
        process = subprocess.Popen(
            [self.uv, *arguments],
            cwd=self.files,
            env={**known, **self.secrets, **variables, "NO_COLOR": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert process.stdout is not None
        with process:
            for line in process.stdout:
                self.log(line)
        return process.returncode

    def _warn_of_missing(self, wanted: list[str]) -> None:
        missing = [each for each in wanted if not _is_installed(each)]
        if missing:
            self.warnings.append(f"apt packages that this machine lacks: {', '.join(missing)}")

    def copy(self, arguments: str) -> None:
        """Apply `COPY source… target`, from the files that the client has sent.

        Raises:
            StepError: If there is no such file.
        """
        words = [each for each in shlex.split(arguments) if not each.startswith("--chown")]
        if any(each.startswith("--from=") for each in words):
            return  # uv or Python, of which this machine has its own
        *sources, target = words
        for source in sources:
            found = self.context / source.lstrip("/")
            if not found.exists():
                raise StepError(f"COPY {arguments}: {source} was not sent along.")
            self._copy(found, source, target, several=len(sources) > 1)

    def _copy(self, found: Path, source: str, target: str, *, several: bool) -> None:
        destination = self.inside(target)
        if found.is_dir():
            shutil.copytree(found, destination, symlinks=True, dirs_exist_ok=True)
            return
        if target.endswith("/") or several or destination.is_dir():
            destination = destination / Path(source).name
        destination.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(found, destination)


def _is_installed(package: str) -> bool:
    """Return whether this machine has a package of Debian, or a program of that name."""
    if shutil.which(package):
        return True
    if shutil.which("dpkg-query") is None:
        return False
    name = package.partition("=")[0]
    done = subprocess.run(["dpkg-query", "-W", name], capture_output=True, check=False)
    return done.returncode == 0


def installer_variables() -> dict[str, str]:
    """Return this machine's settings of pip and uv, such as an index."""
    names = (name for name in os.environ if name.startswith(_INSTALLER_VARIABLES))
    return {name: os.environ[name] for name in names}


def instructions(commands: list[str]) -> Iterator[tuple[str, str]]:
    """Yield each instruction of a Dockerfile's lines: its keyword, and the rest."""
    lines = "\n".join(commands).replace("\\ \n", "\\\n").replace("\\\n", " ").splitlines()
    for line in lines:
        keyword, _, rest = line.strip().partition(" ")
        if keyword and not keyword.startswith("#"):
            yield keyword.upper(), rest.strip()
