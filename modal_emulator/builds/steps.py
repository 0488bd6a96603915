"""The steps of an image, such as `RUN pip install tqdm`, applied to a layer's folder."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import string
import subprocess
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from modal_emulator.objects.dockerfile import Step
from modal_emulator.objects.image_records import apt_packages_of, is_uv
from modal_emulator.objects.layers import Layer

_SHELL = re.compile(r"[|&;<>`$\n]")
_POSIX_SHELLS = {"sh", "bash", "dash", "ash", "zsh"}
_MAX_LINKS = 40
# for ADD
_ELSEWHERE = re.compile(r"[a-z]+://|git@")
_PIP_INSTALL = re.compile(r"(?:python3? -m pip|pip3?|(?:\S*/)?uv pip) install (?P<arguments>.*)")
_UV_SYNC = re.compile(r"\S*/uv sync (?P<arguments>.*)")
# what the client writes: the interpreter is the layer's in any case
_OWN_PYTHON = "--python $(command -v python)"
_APT = re.compile(r"apt-get ")
_ONLY_OF_PIP = {"--no-cache-dir", "--root-user-action=ignore", "--prefer-binary"}
_INSTALLER_VARIABLES = ("PIP_", "UV_")

Log = Callable[[str], None]
# run a command in a sandbox with the layer: arguments, environment, working folder
RunInSandbox = Callable[[list[str], Mapping[str, str], str], int]


class StepError(Exception):
    """Raised when a step of an image fails."""


@dataclass
class LayerBuild:
    """A layer's folder while steps are applied to it."""

    layer: Layer
    uv: str
    log: Log
    run_in_sandbox: RunInSandbox
    # what COPY copies from
    context: Path
    # what `COPY --from` copies from, by the names and the numbers of the stages
    stages: Mapping[str, LayerBuild]
    secrets: Mapping[str, str]
    # what is not there, of all stages
    warnings: list[str]
    workdir: str = "/"

    @property
    def files(self) -> Path:
        """The files of the layer."""
        return self.layer.files

    def inside(self, path: str) -> Path:
        """Return where a path of the image is on this machine; its links lead into the image."""
        return _resolve(self.files, os.path.join(self.workdir, path))  # noqa: PTH118

    def run(self, step: Step) -> None:
        """Apply `RUN command`.

        Raises:
            StepError: If it exits with another code than 0, or needs what is not here.
        """
        command = shlex.join(step.words) if step.words else step.script
        self.log(f"=> RUN {command}\n")
        _refuse_flags(step, _is_flag_of_run)
        if step.documents and command.startswith("#!"):
            raise StepError(f"{step.instruction}: the emulator runs no script with a #! line.")
        self._warn_of_missing(apt_packages_of(command))
        code = self._run_installer(command, step)
        if code is None:
            argv = list(step.words) or [*step.settings.shell, command]
            code = self.run_in_sandbox(argv, {**step.variables, **self.secrets}, self.workdir)
        if code:
            raise StepError(f"{command} exited with code {code}.")

    def _run_installer(self, command: str, step: Step) -> int | None:
        """Run what uv does here; None for any other command."""
        plain = command.replace(_OWN_PYTHON, "")
        if "'" not in plain:
            plain = string.Template(plain).safe_substitute(step.variables)
        if _SHELL.search(re.sub(r"'[^']*'|\"[^\"$`]*\"", "", plain)):
            return None
        if not step.words and Path(step.settings.shell[0]).name not in _POSIX_SHELLS:
            return None
        if _APT.match(plain):
            return 0  # recorded
        install, sync = _PIP_INSTALL.fullmatch(plain), _UV_SYNC.fullmatch(plain)
        try:
            arguments = shlex.split((install or sync or {"arguments": ""})["arguments"])
        except ValueError:  # an open quote, of which the shell says more
            return None
        if install:
            return self._install(arguments)
        return self._sync(arguments) if sync else None

    def _install(self, arguments: list[str]) -> int:
        local = [str(self.inside(each)) if self._is_file(each) else each for each in arguments]
        known = [each for each in local if each not in _ONLY_OF_PIP]
        return self._run_uv(["pip", "install", "--python", str(self.layer.python), *known])

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
        environment = str(self.layer.env)
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

    def copy(self, step: Step) -> None:
        """Apply `COPY source… target` or ADD: files that were sent along, or those of a stage.

        Raises:
            StepError: If there is no such file, or it has to come from elsewhere.
        """
        if is_uv(step):
            return  # this machine has its own
        self.log(f"=> {step.instruction}\n")
        _refuse_flags(step, _is_flag_of_copy)
        *sources, target = step.words
        several = len(sources) + len(step.documents) > 1
        found = [each for source in sources for each in self._sources(step, source)]
        into = target.endswith("/") or several or len(found) > 1
        for document, content in zip(step.instruction.documents, step.documents, strict=True):
            destination = self._destination(target, document.name, into=into)
            destination.write_text(content)
            _change_mode(destination, step)
        for source in found:
            if step.keyword == "ADD" and source.is_file() and tarfile.is_tarfile(source):
                self._extract(source, self.inside(target))
            elif source.is_dir():
                destination = self.inside(target)
                shutil.copytree(source, destination, symlinks=True, dirs_exist_ok=True)
                _change_mode(destination, step)
            else:
                destination = self._destination(target, source.name, into=into)
                shutil.copy2(source, destination)
                _change_mode(destination, step)

    def _sources(self, step: Step, source: str) -> list[Path]:
        if step.keyword == "ADD" and _ELSEWHERE.match(source):
            raise StepError(
                f"{step.instruction}: the emulator downloads nothing for ADD; use a RUN that does."
            )
        stage = step.instruction.flag("from")
        origin = self.stages.get(stage.lower())
        if stage and (origin is None or origin is self):
            raise StepError(
                f"{step.instruction}: the emulator has the files of earlier stages of this "
                f"Dockerfile, and not those of the image {stage}."
            )
        root = origin.files if origin else self.context
        name = os.path.normpath(f"/{source}").lstrip("/")
        single = _resolve(root, name)
        matching = [single] if single.exists() else sorted(root.glob(name))
        found = [_resolve(root, str(each.relative_to(root))) for each in matching]
        if found and all(each.exists() for each in found):
            return found
        if stage:
            hint = f"is not among the files that the stage {stage} has written."
        else:
            hint = "was not sent along; the client sends what COPY names, in its context_dir."
        raise StepError(f"{step.instruction}: {source} {hint}")

    def _destination(self, target: str, name: str, *, into: bool) -> Path:
        destination = self.inside(target)
        if into or destination.is_dir():
            destination = self.inside(f"{target}/{name}")
        destination.parent.mkdir(parents=True, exist_ok=True)
        return destination

    def _extract(self, archive: Path, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with tarfile.open(archive) as opened:
                opened.extractall(folder, filter="data")
        except tarfile.TarError as e:
            raise StepError(f"ADD {archive.name}: {e}") from e


def _resolve(root: Path, path: str) -> Path:
    """Return where a path is below a root folder, which a link can't lead out of."""
    waiting = [part for part in reversed(path.split("/")) if part not in ("", ".")]
    found, links = root, 0
    while waiting:
        part = waiting.pop()
        if part == "..":
            found = found if found == root else found.parent
        elif (found / part).is_symlink() and links < _MAX_LINKS:
            links += 1
            target = str((found / part).readlink())
            found = root if target.startswith("/") else found
            waiting += [part for part in reversed(target.split("/")) if part not in ("", ".")]
        else:
            found = found / part
    return found


def _is_flag_of_run(name: str, value: str) -> bool:
    """Return whether a RUN has the same result here with a flag as without it."""
    if name == "mount":
        return "type=cache" in value.split(",")
    return (name, value) in {("network", "default"), ("security", "sandbox")}


def _is_flag_of_copy(name: str, _value: str) -> bool:
    return name in {"chmod", "chown", "from", "link"}


def _refuse_flags(step: Step, known: Callable[[str, str], bool]) -> None:
    for name, value in step.instruction.flags:
        if not known(name, value):
            raise StepError(f"{step.instruction}: the emulator has no --{name}={value}.")


def _change_mode(path: Path, step: Step) -> None:
    mode = step.instruction.flag("chmod")
    if not mode:
        return
    if not re.fullmatch("[0-7]{3,4}", mode):
        raise StepError(f"{step.instruction}: --chmod needs a number such as 755, not {mode}.")
    for each in [path, *path.rglob("*")]:
        if not each.is_symlink():
            each.chmod(int(mode, 8))


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
