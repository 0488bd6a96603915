"""Frozen copies of the user's own modules and of this package, as a container imports them."""

from __future__ import annotations

import ast
import contextlib
import hashlib
import itertools
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ml_experiments.backends.modal.preflight.import_graph import (
    OWN_PACKAGE,
    ImportGraph,
    LocalModule,
)
from ml_experiments.backends.modal.preflight.own_package import PACKAGE, files_for_run
from ml_experiments.settings import runs_dir

MAX_DATA_FILE_BYTES = 1 << 20
MAX_DATA_BYTES = 32 << 20
_MAX_DATA_FILES = 10_000
_LEFT_OUT_FOLDERS = {"__pycache__", "node_modules", "site-packages"}


@dataclass(frozen=True)
class StagedSource:
    """The user's modules as they were when a run was submitted.

    Attributes:
        folder: What has to be on `sys.path`.
        digest: A hash of all names and contents, and of the names of `own_files`.
        notes: What was left out, one sentence each.
        own_files: The files of this package that the run needs, relative to it.
    """

    folder: Path
    digest: str
    notes: tuple[str, ...]
    own_files: frozenset[Path]


def stage_source(graph: ImportGraph, folder: Path) -> StagedSource:
    """Copy every package and file of the user's that a graph needs into a new folder.

    A regular package is copied as a whole, so that what it imports by computed names is there
    too, with its small data files.
    """
    folder.mkdir(parents=True)
    notes: list[str] = []
    for module in _units(graph):
        target = folder.joinpath(*module.name.split("."))
        if module.path.name == "__init__.py":
            notes += _copy_package(module.path.parent, target)
        else:
            notes += _copy_file(module.path, target)
    own_files = files_for_run(graph)
    return StagedSource(folder, _digest(folder, own_files), tuple(notes), own_files)


def stage_this_package(folder: Path, files: Iterable[Path]) -> None:
    """Copy files of this package, named relative to it, into a new folder."""
    _copy((PACKAGE / file for file in files), PACKAGE, folder)


def _units(graph: ImportGraph) -> Iterator[LocalModule]:
    """Yield each outermost regular package, and each file that is in none."""
    packages = {m.name for m in graph.modules if m.path.name == "__init__.py"}
    for module in graph.modules:
        parts = module.name.split(".")
        parents = {".".join(parts[:depth]) for depth in range(1, len(parts))}
        inside = not packages.isdisjoint(parents)
        if parts[0] != OWN_PACKAGE and module.path.is_file() and not inside:
            yield module


def _copy_file(source: Path, target: Path) -> list[str]:
    """Copy a module that is in no package, with the small data files beside it that it names."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target.with_name(f"{target.name}.py"))
    data = _data_named_by(source)
    _copy(data.small, source.parent, target.parent)
    return [
        *_too_large(data.large, source.parent, source.name),
        *_not_followed(data.links, source.parent, source.name),
        *(_too_much(folder, source.name) for folder in data.too_much),
    ]


def named_files(source: Path) -> list[Path]:
    """Return the data files below a module's folder whose paths stand in its source as strings.

    Those in a folder that it names as a whole, which may be many, are not among them.
    """
    paths = _named_paths(source)
    return [p for p in paths if p.is_file() and not _is_link_below(p, source.parent)]


@dataclass
class _Data:
    """What a module has besides code: files, links to folders, and folders of too much."""

    small: list[Path] = field(default_factory=list)
    large: list[Path] = field(default_factory=list)
    links: list[Path] = field(default_factory=list)
    too_much: list[Path] = field(default_factory=list)

    @property
    def fits(self) -> bool:
        """Whether the small files are not too large together."""
        return sum(file.stat().st_size for file in self.small) <= MAX_DATA_BYTES


def _data_named_by(source: Path) -> _Data:
    paths, data = _named_paths(source), _Data()
    for path in paths:
        if _is_link_below(path, source.parent):
            data.links.append(path)
        elif path.is_file():
            (data.large if _is_large(path) else data.small).append(path)
        # else its files are named one by one
        elif not any(path in other.parents for other in paths) and not _stays_here(path):
            _add_folder(data, path)
    return data


def _add_folder(data: _Data, folder: Path) -> None:
    """Add the files of a folder that a module names as a whole, such as to list them."""
    paths = list(itertools.islice(_files_below(folder), _MAX_DATA_FILES + 1))
    found = _data_among(paths)
    if len(paths) > _MAX_DATA_FILES or not found.fits:
        data.too_much.append(folder)
        return
    data.links += found.links
    data.large += found.large
    data.small += found.small


def _data_among(paths: Iterable[Path]) -> _Data:
    """Sort what `_files_below` has found; Python's files are code."""
    data = _Data()
    for path in paths:
        if path.is_dir():
            data.links.append(path)
        elif path.suffix != ".py":
            (data.large if _is_large(path) else data.small).append(path)
    return data


def _named_paths(source: Path) -> list[Path]:
    """Return the files and folders below a module's folder that its source names, and links."""
    found: dict[Path, None] = {}
    for name in _names_in(ast.parse(source.read_bytes())):
        parts = Path(name).parts
        # no hidden files, which may hold secrets, and nothing above or elsewhere
        if not parts or any(part.startswith(".") or part == "/" for part in parts):
            continue
        with contextlib.suppress(OSError, ValueError):  # a string that no path can be
            if Path(name).suffix != ".py" and (source.parent / name).exists():
                found[source.parent / name] = None
    return list(found)


def _names_in(tree: ast.AST) -> Iterator[str]:
    """Yield each string, and those that `/` or the arguments of a call put side by side."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
        pieces: list[ast.expr] = []
        if isinstance(node, ast.Call):
            pieces = node.args
        while isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
            pieces, node = [node.right, *pieces], node.left
        joined = ""
        for piece in pieces:
            value = piece.value if isinstance(piece, ast.Constant) else None
            joined = f"{joined}/{value}".lstrip("/") if isinstance(value, str) else ""
            if joined:
                yield joined


def _not_followed(links: Sequence[Path], folder: Path, where: str) -> list[str]:
    """Say which links are not sent along, and what to do."""
    if not links:
        return []
    names = ", ".join(str(path.relative_to(folder)) for path in links[:3])
    return [
        f"links of {where} are not followed: {names}; put copies in their place, or the data on "
        "a volume"
    ]


def _is_link_below(path: Path, folder: Path) -> bool:
    between = [path, *path.parents]
    return any(each.is_symlink() for each in between[: between.index(folder)])


def _too_much(folder: Path, where: str) -> str:
    """Say that a folder is not sent along, and what to do."""
    return (
        f"the files of {folder.name}/, which {where} names, are more than {MAX_DATA_BYTES >> 20} "
        f"MiB or {_MAX_DATA_FILES} and are not sent along; {_to_volume(folder)}"
    )


def _to_volume(path: Path) -> str:
    return (
        f"put them on a volume, as with: modal volume put hf-model-cache {path} /data/, and read "
        "them from /cache/data"
    )


def _is_large(file: Path) -> bool:
    return file.stat().st_size > MAX_DATA_FILE_BYTES


def _too_large(files: Sequence[Path], folder: Path, where: str) -> list[str]:
    """Say which data files are not sent along, and what to do."""
    if not files:
        return []
    names = ", ".join(str(file.relative_to(folder)) for file in files[:3])
    rest = f" and {len(files) - 3} more" if len(files) > 3 else ""
    return [
        f"data files of {where} are larger than {MAX_DATA_FILE_BYTES >> 20} MiB and are not sent "
        f"along: {names}{rest}; {_to_volume(files[0])}"
    ]


def _copy_package(source: Path, target: Path) -> list[str]:
    found = list(_files_below(source))
    data = _data_among(found)
    notes = _not_followed(data.links, source, source.name)
    notes += _too_large(data.large, source, source.name)
    if data.fits:
        _copy(data.small, source, target)
    else:
        notes.append(
            f"the data files of {source.name} are larger than {MAX_DATA_BYTES >> 20} MiB together "
            "and are not sent along; its Python files are"
        )
    _copy((p for p in found if p.suffix == ".py" and not p.is_dir()), source, target)
    return notes


def _copy(files: Iterable[Path], source: Path, target: Path) -> None:
    for file in files:
        copy = target / file.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copy)


def _files_below(folder: Path) -> Iterator[Path]:
    """Yield the files, and the links to folders."""
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path.suffix in (".pyc", ".so", ".egg-info"):
            continue
        if path.is_dir():
            if path.is_symlink() and path != runs_dir():  # may lead anywhere, also back here
                yield path
            elif not _stays_here(path):
                yield from _files_below(path)
        elif path.is_file():
            yield path


def _stays_here(folder: Path) -> bool:
    """Return whether a folder is no part of the source: made by tools, or by runs."""
    return (
        folder.name in _LEFT_OUT_FOLDERS or folder == runs_dir() or (folder / "pyvenv.cfg").exists()
    )


def _digest(folder: Path, own_files: Iterable[Path]) -> str:
    digest = hashlib.sha256("\n".join(sorted(map(str, own_files))).encode())
    for file in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = file.relative_to(folder).as_posix().encode()
        content = file.read_bytes()
        digest.update(b"%d %d\n" % (len(name), len(content)))
        digest.update(name + content)
    return digest.hexdigest()
