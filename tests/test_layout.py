"""The import rule: imports point downward only, and heavy ones stand in a few places."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import ml_experiments
import modal_emulator

PACKAGE = Path(ml_experiments.__file__).parent

# each layer may import from itself and from those below it
LAYERS: tuple[tuple[str, ...], ...] = (
    ("cli", "__main__"),
    ("core",),
    ("runner",),
    ("backends",),
    ("execution",),
    ("runs", "config"),
    ("cache", "redaction"),
    ("serialization", "experiment"),
    ("settings",),
    ("errors",),
)


def modules() -> Iterator[tuple[str, Path]]:
    for file in sorted(PACKAGE.rglob("*.py")):
        parts = file.relative_to(PACKAGE).with_suffix("").parts
        yield ".".join(parts).removesuffix(".__init__"), file


def imports(file: Path, *, top_level_only: bool = False) -> Iterator[str]:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    type_checking = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    for node in tree.body if top_level_only else ast.walk(tree):
        if id(node) in type_checking:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            yield str(node.module)
            if node.module == "ml_experiments":
                yield from (f"ml_experiments.{alias.name}" for alias in node.names)


def layer_of(module: str) -> int | None:
    top = module.partition(".")[0]
    return next((i for i, layer in enumerate(LAYERS) if top in layer), None)


def test_imports_point_downward() -> None:
    upward = []
    for module, file in modules():
        here = layer_of(module)
        if here is None:
            continue
        for name in imports(file):
            if not name.startswith("ml_experiments."):
                continue
            there = layer_of(name.removeprefix("ml_experiments."))
            if there is not None and there < here:
                upward.append(f"{module} imports {name}")
    assert upward == []


def test_every_module_has_a_layer() -> None:
    outside = {"", "__init__", "tasks"}
    tops = {module.partition(".")[0] for module, _ in modules()}
    assert tops - outside == {name for layer in LAYERS for name in layer}


def test_modal_is_imported_only_where_runs_are_sent_there() -> None:
    allowed = ("backends.modal", "core")
    found = [
        module
        for module, file in modules()
        if any(name.partition(".")[0] in ("modal", "modal_proto") for name in imports(file))
    ]
    assert [module for module in found if not module.startswith(allowed)] == []


def test_the_emulator_depends_on_nothing_else_of_the_package() -> None:
    foreign = [
        f"{file.name} imports {name}"
        for file in sorted(Path(modal_emulator.__file__).parent.rglob("*.py"))
        for name in imports(file)
        if name.partition(".")[0] == "ml_experiments"
    ]
    assert foreign == []


def test_tasks_are_imported_by_nothing_above_them() -> None:
    found = [
        f"{module} imports {name}"
        for module, file in modules()
        if not module.startswith("tasks")
        for name in imports(file)
        if name.startswith("ml_experiments.tasks")
    ]
    assert found == []


def test_heavy_packages_are_never_imported_at_the_top() -> None:
    heavy = {"torch", "diffusers", "transformers", "sklearn", "pandas", "numpy", "modal"}
    # these are themselves imported only once they are needed
    late = ("serialization.table", "tasks.text_to_image.", "tasks.tiny_digits.")
    allowed = ("backends.modal", "core", *late)
    found = [
        f"{module} imports {name}"
        for module, file in modules()
        if not module.startswith(allowed)
        for name in imports(file, top_level_only=True)
        if name.partition(".")[0] in heavy
    ]
    assert found == []


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = (
        "import sys, ml_experiments\n"
        "print(sorted({'modal', 'torch', 'pydantic', 'click', 'rich'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(
    ("path", "config"),
    [
        ("ml_experiments.tasks.text_to_image:TextToImageExperiment", {"prompt": "a seven"}),
        ("ml_experiments.tasks.tiny_digits:TrainTinyDigits", {}),
    ],
)
def test_a_config_is_validated_without_importing_torch(path: str, config: object) -> None:
    code = (
        "import sys\n"
        "from ml_experiments.experiment.importing import load_experiment\n"
        "from ml_experiments.config.validation import validate_config\n"
        f"validate_config(load_experiment({path!r}), {config!r})\n"
        "print(sorted({'torch', 'diffusers', 'transformers', 'sklearn'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("name", ml_experiments.__all__)
def test_every_public_name_is_there_and_documented(name: str) -> None:
    value = getattr(ml_experiments, name)
    assert value.__doc__
    assert name in dir(ml_experiments)


def test_an_unknown_public_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = ml_experiments.no_such_name  # type: ignore[attr-defined]


def test_only_settings_reads_the_environment() -> None:
    readers = [
        module
        for module, file in modules()
        if not module.startswith("tasks")
        and any(word in file.read_text(encoding="utf-8") for word in ("os.environ", "os.getenv"))
    ]
    assert readers == ["settings"]


def test_importing_the_package_imports_no_modal() -> None:
    code = (
        "import sys, ml_experiments, ml_experiments.runner.run; assert 'modal' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=dict(os.environ), timeout=60)
