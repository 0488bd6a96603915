"""How the project is laid out: layers, sizes of folders, where a module's tests are."""

from __future__ import annotations

import ast
import fnmatch
import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

import ml_experiments
import modal_emulator
from ml_experiments.backends.modal.preflight.own_package import RUN_ROOTS, package_files

PROJECT = Path(__file__).parents[1]
TESTS = PROJECT / "tests"
PACKAGE = Path(ml_experiments.__file__).parent
EMULATOR = Path(modal_emulator.__file__).parent

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
# beside the layers: ready experiments, which import what an experiment of a user's own may import
TASKS_MAY_IMPORT = {"tasks", "experiment", "serialization", "errors", "cache.hub_errors"}
EMULATOR_LAYERS: tuple[tuple[str, ...], ...] = (
    ("__main__",),
    ("cli", "pytest_plugin"),
    ("emulator",),
    ("server",),
    ("control",),
    ("services",),
    ("scheduling",),
    ("builds",),
    ("containers",),
    ("apps", "volumes"),
    ("objects",),
    ("rpc",),
    ("storage",),
)

MAX_PACKAGES, MAX_MODULES_AT_THE_TOP = 12, 4
MAX_MODULES_IN_A_FOLDER = 12
LARGER_FOLDERS = {
    "ml_experiments/backends/modal": 20,
    "ml_experiments/config": 13,
    "ml_experiments/execution": 13,
}
# prefixes and suffixes that stand for a folder
FOLDERS_IN_DISGUISE = ("local_", "modal_", "worker_", "_cli")

# The tests of a module `a/b/c.py` are in tests/a/b/test_c.py, test_c_….py, or, where modules share
# the beginning of their names, in the test file of that beginning: test_sandbox.py for
# sandbox_mounts.py. For the others, this says where: test file -> modules.
TESTED_ELSEWHERE = {
    "backends/local/test_backend": "backends/base backends/local/options backends/local/run_handle "
    "execution/interruptions execution/resource_usage execution/seeding "
    "execution/worker/*",
    "backends/slurm/test_backend": "backends/slurm/*",
    "backends/modal/preflight/test_packages": "backends/modal/preflight/installed",
    "backends/modal/test_backend": "backends/modal/container/* backends/modal/logs "
    "backends/modal/options backends/modal/request",
    "backends/modal/billing/test_bills": "cli/costs",
    "backends/modal/test_hints": "backends/modal/mounts execution/hints",
    "cache/delete/test_in_use": "cache/open_files",
    "cache/scan/test_scanning": "cache/items",
    "cli/test_bench": "cli/bench/*",
    "cli/test_cache_modal_flow": "backends/modal/cache",
    "cli/test_cache_pull_flow": "cache/pull/progress",
    "cli/test_run": "cli/parameters backends/in_process",
    "cli/runs/test_following": "runner/detached/supervisor runner/following",
    "cli/test_runs": "cli/runs/*",
    "cli/test_sweep": "cli/sweep/*",
    "config/test_validation": "config/building config/fields config/scalars",
    "core/test_create_gpu_function": "backends/modal/gpu_functions",
    "core/test_modal_runner": "backends/modal/image",
    "execution/launch/test_launcher": "execution/launch/*",
    "execution/test_warm_experiment": "execution/process_state",
    "modal_emulator/apps/test_function_options": "modal_emulator/apps/function_checks "
    "modal_emulator/objects/placeholders",
    "modal_emulator/apps/test_functions": "modal_emulator/services/* modal_emulator/scheduling/*",
    "modal_emulator/builds/test_builder": "modal_emulator/builds/* modal_emulator/objects/layers",
    "modal_emulator/containers/test_container": "modal_emulator/containers/launch "
    "modal_emulator/containers/container_site/sitecustomize",
    "modal_emulator/control/test_control_http": "modal_emulator/control/*",
    "modal_emulator/objects/test_images": "modal_emulator/objects/image_records",
    "modal_emulator/objects/test_environments": "modal_emulator/objects/named_objects",
    "modal_emulator/objects/test_blobs": "modal_emulator/rpc/http_endpoint "
    "modal_emulator/rpc/received_file",
    "modal_emulator/rpc/test_rpc": "modal_emulator/rpc/*",
    "modal_emulator/services/test_shells": "modal_emulator/containers/execution",
    "modal_emulator/storage/test_state": "modal_emulator/storage/*",
    "modal_emulator/volumes/test_store": "modal_emulator/volumes/*",
    "redaction/test_secret_names": "redaction/environment",
    "runner/bench/test_bench": "runner/bench/*",
    "runner/detached/test_on_modal": "runner/detached/* backends/modal/detached/*",
    "runner/test_run": "config/options execution/events runner/options runner/prepare",
    "runner/reuse/test_finding": "runner/reuse/describing runs/provenance/fingerprint",
    "runner/test_resume": "runner/attempts runs/lock",
    "runner/sweeps/search_space/test_space": "runner/sweeps/search_space/*",
    "runner/sweeps/test_sweep": "runner/group_folders runner/sweeps/*",
    "runs/index/test_index": "runs/index/database runs/index/journal runs/index/names "
    "runs/index/rows runs/index/tables runs/labels",
    "runs/test_folder": "runs/manifest runs/records runs/result runs/spec",
    "serialization/test_tables": "serialization/table_columns",
    "tasks/text_to_image/model/test_model_files": "tasks/text_to_image/model/download_errors",
    "tasks/text_to_image/test_experiment": "tasks/text_to_image/*",
    "tasks/tiny_digits/test_model": "tasks/tiny_digits/evaluation "
    "tasks/tiny_digits/pipeline_folder",
    "tasks/tiny_digits/test_experiment": "tasks/tiny_digits/*",
}


def modules(package: Path = PACKAGE) -> Iterator[tuple[str, Path]]:
    """Yield each module's name below its package, and its file."""
    for file in sorted(package.rglob("*.py")):
        parts = file.relative_to(package).with_suffix("").parts
        yield ".".join(parts).removesuffix(".__init__"), file


@functools.cache
def imports(file: Path, *, top_level_only: bool = False) -> Sequence[str]:
    """Yield the full names of what a file imports at run time, also inside functions."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    type_checking = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    found: list[str] = []
    for node in tree.body if top_level_only else ast.walk(tree):
        if id(node) in type_checking:
            continue
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            found += [str(node.module), *(f"{node.module}.{each.name}" for each in node.names)]
    return found


def imported_modules(package: Path) -> dict[str, set[str]]:
    """Return the import graph of a package; a package's `__init__` is named like the package."""
    files = dict(modules(package))
    graph = {}
    for module, file in files.items():
        names = {
            name.removeprefix(f"{package.name}.")
            for name in imports(file)
            if name.startswith(f"{package.name}.")
        }
        graph[module] = {name for name in names if name in files} - {module}
    return graph


def upward_imports(package: Path, layers: Sequence[Sequence[str]]) -> list[str]:
    floors = {name: floor for floor, layer in enumerate(layers) for name in layer}
    return [
        f"{module} imports {name}"
        for module, names in imported_modules(package).items()
        for name in sorted(names)
        if floors.get(module.partition(".")[0], 0) > floors.get(name.partition(".")[0], len(floors))
    ]


@pytest.mark.parametrize(("package", "layers"), [(PACKAGE, LAYERS), (EMULATOR, EMULATOR_LAYERS)])
def test_imports_point_downward(package: Path, layers: Sequence[Sequence[str]]) -> None:
    assert upward_imports(package, layers) == []


@pytest.mark.parametrize(
    ("package", "layers", "outside"),
    [(PACKAGE, LAYERS, {"__init__", "tasks"}), (EMULATOR, EMULATOR_LAYERS, {"__init__"})],
)
def test_every_module_has_a_layer(
    package: Path, layers: Sequence[Sequence[str]], outside: set[str]
) -> None:
    tops = {module.partition(".")[0] for module, _ in modules(package)}
    assert tops - outside == {name for layer in layers for name in layer}


@pytest.mark.parametrize("package", [PACKAGE, EMULATOR])
def test_no_modules_import_each_other_in_a_circle(package: Path) -> None:
    graph = imported_modules(package)
    waiting = dict(graph)
    # take away what imports nothing that is left, until nothing changes: the rest is circles
    while free := [module for module, names in waiting.items() if not names & waiting.keys()]:
        for module in free:
            del waiting[module]
    assert waiting == {}


def test_tasks_import_what_an_experiment_may_and_are_imported_by_nothing() -> None:
    wrong = [
        f"{module} imports {name}"
        for module, names in imported_modules(PACKAGE).items()
        for name in names
        if not {name, name.partition(".")[0]} & TASKS_MAY_IMPORT
        if module.partition(".")[0] == "tasks"
    ]
    assert wrong == []
    above = [
        f"{module} imports {name}"
        for module, names in imported_modules(PACKAGE).items()
        for name in names
        if name.partition(".")[0] == "tasks" and module.partition(".")[0] != "tasks"
    ]
    assert above == []


def test_backends_do_not_know_each_other() -> None:
    wrong = [
        f"{module} imports {name}"
        for module, names in imported_modules(PACKAGE).items()
        for name in names
        for one, other in (("local", "modal"), ("modal", "local"))
        if module.startswith(f"backends.{one}") and name.startswith(f"backends.{other}")
    ]
    assert wrong == []
    # what both need is below them
    below = [
        f"{module} imports {name}"
        for module, names in imported_modules(PACKAGE).items()
        if module in ("backends.base", "backends")
        for name in names
        if name.startswith(("backends.local", "backends.modal", "backends.in_process"))
    ]
    assert below == []


def test_only_the_modal_backend_and_core_import_what_runs_in_containers() -> None:
    importers = {
        module
        for module, names in imported_modules(PACKAGE).items()
        if any(name.startswith("backends.modal.container") for name in names)
    }
    assert {
        module for module in importers if not module.startswith(("backends.modal", "core"))
    } == (set())


def test_modal_is_imported_only_where_runs_are_sent_there() -> None:
    found = [
        module
        for module, file in modules()
        if any(name.partition(".")[0] in ("modal", "modal_proto") for name in imports(file))
    ]
    assert [module for module in found if not module.startswith(("backends.modal", "core"))] == []


def test_the_emulator_imports_nothing_else_of_the_project() -> None:
    foreign = [
        f"{module} imports {name}"
        for module, file in modules(EMULATOR)
        for name in imports(file)
        if name.partition(".")[0] in ("ml_experiments", "tests")
    ]
    assert foreign == []


HELLO = """
import modal

app = modal.App("hello")


@app.function()
def greet(name: str) -> str:
    return f"hello {name}"


@app.local_entrypoint()
def main():
    print(greet.remote("world"))
"""


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_the_emulator_runs_an_app_where_only_modal_is_installed(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    constraints = PROJECT / "constraints.txt"
    install = ["-m", "pip", "install", "--quiet", "-c", constraints, "modal"]
    subprocess.run([python, *install], check=True)
    run = [python, "-c", "import site; print(site.getsitepackages()[0])"]
    packages = subprocess.run(run, capture_output=True, text=True, check=True).stdout.strip()
    shutil.copytree(EMULATOR, Path(packages) / EMULATOR.name)
    script = tmp_path / "venv" / "bin" / "modal-emulator"  # as the entry point makes it
    script.write_text(f"#!{python}\nfrom modal_emulator.cli import main\nmain()\n")
    script.chmod(0o755)
    (tmp_path / "app.py").write_text(HELLO)
    kept = ("HOME", "LANG", "TMPDIR")
    done = subprocess.run(
        ["modal-emulator", "run", "--", "modal", "run", "app.py"],
        cwd=tmp_path,
        env={
            "PATH": os.pathsep.join([str(script.parent), os.environ["PATH"]]),
            **{name: os.environ[name] for name in kept if name in os.environ},
        },
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "hello world" in done.stdout


def test_the_top_level_is_a_short_list() -> None:
    packages = [path for path in PACKAGE.iterdir() if (path / "__init__.py").exists()]
    assert len(packages) <= MAX_PACKAGES
    assert len(list(PACKAGE.glob("*.py"))) <= MAX_MODULES_AT_THE_TOP


@pytest.mark.parametrize("package", [PACKAGE, EMULATOR])
def test_no_folder_is_a_drawer(package: Path) -> None:
    too_large = {}
    for init in package.rglob("__init__.py"):
        folder = init.parent
        name = folder.relative_to(PROJECT).as_posix()
        count = len([file for file in folder.glob("*.py") if file != init])
        if count > LARGER_FOLDERS.get(name, MAX_MODULES_IN_A_FOLDER):
            too_large[name] = count
    assert too_large == {}


def test_no_name_is_a_folder_in_disguise() -> None:
    names = [
        module.replace(".", "/")
        for module, _ in modules()
        for part in [module.rpartition(".")[2]]
        if part.startswith(FOLDERS_IN_DISGUISE) or part.endswith(FOLDERS_IN_DISGUISE)
    ]
    assert names == ["core/modal_runner"]  # the documented name


@pytest.mark.slow
def test_a_container_gets_what_runs_there_and_nothing_of_other_places() -> None:
    files = package_files(*RUN_ROOTS)
    graph = imported_modules(PACKAGE)
    reached = {module for module in graph if module.startswith("backends.modal.container.run_")}
    reached |= {module for module in graph if module.startswith(("execution", "experiment"))}
    waiting = list(reached)
    while waiting:
        module = waiting.pop()
        parents = {module.rpartition(".")[0]} & graph.keys()
        for name in (graph[module] | parents) - reached:
            reached.add(name)
            waiting.append(name)
    expected = {dict(modules())[module].relative_to(PACKAGE) for module in reached}
    assert {file for file in files if file.suffix == ".py"} - {Path("__init__.py")} == expected - {
        Path("__init__.py")
    }
    elsewhere = ("cli", "core", "runner", "tasks", "backends.local", "backends.modal.preflight")
    assert [module for module in sorted(reached) if module.startswith(elsewhere)] == []


def test_every_module_has_its_tests() -> None:
    lacking = {
        "/".join(parts)
        for package in (PACKAGE, EMULATOR)
        for module, file in modules(package)
        for parts in [(*(() if package == PACKAGE else (package.name,)), *module.split("."))]
        if file.name not in ("__init__.py", "__main__.py") and not has_own_tests(parts)
    }
    unneeded = []
    for file, patterns in TESTED_ELSEWHERE.items():
        assert (TESTS / f"{file}.py").exists(), file
        for pattern in patterns.split():
            found = set(fnmatch.filter(lacking, pattern))
            if not found:
                unneeded.append(f"{file}: {pattern}")
            lacking -= found
    assert sorted(lacking) == []
    assert unneeded == []


def has_own_tests(parts: Sequence[str]) -> bool:
    folder, stem = TESTS.joinpath(*parts[:-1]), parts[-1]
    words = stem.split("_")
    beginnings = ["_".join(words[:count]) for count in range(1, len(words) + 1)]
    return any((folder / f"test_{name}.py").exists() for name in beginnings) or any(
        folder.glob(f"test_{stem}_*.py")
    )


def test_every_test_file_stands_where_what_it_tests_does() -> None:
    beside = {"contract", "docs", "examples", "gpu", "scripts", "support"}
    wrong = []
    for file in TESTS.rglob("test_*.py"):
        folder = file.parent.relative_to(TESTS)
        top = folder.parts[0] if folder.parts else ""
        package = PROJECT / folder if top == EMULATOR.name else PACKAGE / folder
        if top not in beside and not package.is_dir():
            wrong.append(str(file.relative_to(TESTS)))
    assert wrong == []


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


def test_importing_the_package_imports_no_modal() -> None:
    code = (
        "import sys, ml_experiments, ml_experiments.runner.run; assert 'modal' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=dict(os.environ), timeout=60)


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
