"""Everything that an experiment imports, in the layouts that people use."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import time
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest

from ml_experiments.backends.modal.preflight.import_graph import ImportGraph, walk_imports
from ml_experiments.errors import PreflightError


def write(root: Path, files: dict[str, str]) -> Path:
    """Write source files below a folder."""
    for name, source in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(source), encoding="utf-8")
    return root


def names(closure: ImportGraph) -> set[str]:
    """Return the names of the user's own modules."""
    return {module.name for module in closure.modules}


def external(closure: ImportGraph) -> set[str]:
    """Return the top-level names of all other packages."""
    return {found.module.partition(".")[0] for found in closure.external}


def test_a_package_with_submodules_and_relative_imports(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "proj/__init__.py": "",
            "proj/train.py": "from . import data\nfrom .nets import unet as u\nimport json, torch",
            "proj/data.py": "from .nets.vae import VAE",
            "proj/nets/__init__.py": "from ..constants import SIZE",
            "proj/nets/unet.py": "",
            "proj/nets/vae.py": "class VAE: ...",
            "proj/constants.py": "SIZE = 1",
            "proj/unrelated.py": "import tensorflow",
        },
    )
    closure = walk_imports("proj.train", [tmp_path])
    assert names(closure) == {
        *("proj", "proj.train", "proj.data", "proj.nets", "proj.nets.unet", "proj.nets.vae"),
        "proj.constants",
    }
    assert external(closure) == {"torch"}
    assert closure.problems == ()
    assert all(module.root == tmp_path for module in closure.modules)


def test_neighbours_of_a_script_are_found_and_followed(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "script.py": "def f():\n    import near\nif __name__ == '__main__':\n    import fire",
            "near.py": "import importlib\nm = importlib.import_module('deeper')\nimport numpy",
            "deeper.py": "import script",
        },
    )
    closure = walk_imports("script", [tmp_path])
    assert names(closure) == {"script", "near", "deeper"}
    assert external(closure) == {"numpy"}


def test_a_namespace_package_across_two_folders(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    write(one, {"space/a.py": "import space.b"})
    write(two, {"space/b.py": "import yaml"})
    closure = walk_imports("space.a", [one, two])
    assert names(closure) == {"space", "space.a", "space.b"}
    roots = {module.name: module.root for module in closure.modules}
    assert roots["space.a"] == one
    assert roots["space.b"] == two
    assert external(closure) == {"yaml"}


@pytest.mark.slow
def test_a_src_layout_and_an_editable_install_of_either_kind(tmp_path: Path) -> None:
    # a fresh interpreter with the project on its path as pip's editable installs put it there
    write(
        tmp_path,
        {
            "src/lib/__init__.py": "from lib.core import f",
            "src/lib/core.py": "import einops\nf = 1",
            "app/run_it.py": "import lib",
            "finder/finder.py": f"""
                import importlib.util, sys
                class Finder:
                    @classmethod
                    def find_spec(cls, name, path=None, target=None):
                        if name == "lib":
                            base = {str(tmp_path / "src" / "lib")!r}
                            return importlib.util.spec_from_file_location(
                                name, base + "/__init__.py", submodule_search_locations=[base])
                sys.meta_path.append(Finder)
            """,
        },
    )
    walk = textwrap.dedent(
        f"""
        import sys
        from pathlib import Path
        from ml_experiments.backends.modal.preflight.import_graph import walk_imports
        closure = walk_imports("run_it", [Path({str(tmp_path / "app")!r})])
        print(sorted(m.name for m in closure.modules), [f.module for f in closure.external])
        assert "lib" not in sys.modules
        """
    )
    ways = (
        f"import sys; sys.path.append({str(tmp_path / 'src')!r})",
        f"import sys; sys.path.append({str(tmp_path / 'finder')!r}); import finder",
    )
    for way in ways:
        done = subprocess.run(
            [sys.executable, "-c", f"{way}\n{walk}"], capture_output=True, text=True, check=False
        )
        assert done.stdout == "['lib', 'lib.core', 'run_it'] ['einops']\n", done.stderr


def test_a_module_that_is_missing_from_an_own_package_is_a_problem(tmp_path: Path) -> None:
    write(tmp_path, {"proj/__init__.py": "", "proj/train.py": "\nimport proj.modell"})
    [problem] = walk_imports("proj.train", [tmp_path]).problems
    assert f"{tmp_path}/proj/train.py:2 imports proj.modell, which is not in" in problem


def test_an_optional_own_module_may_be_missing(tmp_path: Path) -> None:
    source = "try:\n    from . import fast\n    import proj.faster\nexcept ImportError:\n    pass"
    write(tmp_path, {"proj/__init__.py": "", "proj/train.py": source})
    assert walk_imports("proj.train", [tmp_path]).problems == ()


def test_a_required_import_anywhere_outweighs_an_optional_one(tmp_path: Path) -> None:
    source = "try:\n    import einops\nexcept ImportError:\n    pass\nimport b"
    write(tmp_path, {"a.py": source, "b.py": "import einops.layers"})
    found = walk_imports("a", [tmp_path]).external
    assert {f.module: f.optional for f in found} == {"einops": True, "einops.layers": False}
    write(tmp_path, {"b.py": "import einops"})
    [found] = walk_imports("a", [tmp_path]).external
    assert not found.optional
    assert found.file.name == "b.py"


def test_every_import_from_a_namespace_is_kept(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "a.py": "import google.protobuf\nfrom google.cloud import storage\nimport b",
            "b.py": "from google.cloud import bigquery, storage\nimport google.protobuf",
        },
    )
    found = {(f.module, f.names) for f in walk_imports("a", [tmp_path]).external}
    assert found == {
        ("google.protobuf", ()),
        ("google.cloud", ("storage",)),
        ("google.cloud", ("bigquery", "storage")),
    }


def test_a_namespace_that_the_user_shares_with_an_installed_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packages = write(tmp_path / "site-packages", {"shared_ns/core/__init__.py": ""})
    monkeypatch.syspath_prepend(packages)
    source = "import shared_ns.core\nfrom shared_ns import core, near\nfrom shared_ns import gone"
    write(tmp_path / "own", {"shared_ns/mine.py": source, "shared_ns/near.py": ""})
    closure = walk_imports("shared_ns.mine", [tmp_path / "own"])
    assert names(closure) == {"shared_ns", "shared_ns.mine", "shared_ns.near"}
    assert {found.module for found in closure.external} == {"shared_ns.core"}
    [problem] = closure.problems
    assert "mine.py:3 imports shared_ns.gone, which is not in" in problem


def test_a_compiled_own_module_says_that_it_cannot_travel(tmp_path: Path) -> None:
    suffix = EXTENSION_SUFFIXES[0]
    write(tmp_path, {"a.py": "import fastops", f"fastops{suffix}": ""})
    [problem] = walk_imports("a", [tmp_path]).problems
    assert "fastops is compiled for this machine" in problem
    assert "--pip" in problem


def test_a_file_with_a_syntax_error_is_a_problem(tmp_path: Path) -> None:
    write(tmp_path, {"a.py": "import b", "b.py": "def"})
    [problem] = walk_imports("a", [tmp_path]).problems
    assert f"{tmp_path / 'b.py'} cannot be read as Python" in problem


def test_a_source_encoding_other_than_utf8_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_bytes(
        "# -*- coding: latin-1 -*-\nx = 'é'\nimport b\n".encode("latin-1")
    )
    (tmp_path / "b.py").write_text("")
    assert names(walk_imports("a", [tmp_path])) == {"a", "b"}


def test_a_module_that_is_nowhere_says_where_it_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(PreflightError, match=f"'nowhere_mod'.*{tmp_path}"):
        walk_imports("nowhere_mod", [tmp_path])


def test_an_own_file_named_like_a_standard_module_is_shipped(tmp_path: Path) -> None:
    write(tmp_path, {"a.py": "import queue, json", "queue.py": "import einops"})
    closure = walk_imports("a", [tmp_path])
    assert names(closure) == {"a", "queue"}
    assert external(closure) == {"einops"}


def test_a_folder_without_code_does_not_hide_an_installed_package(tmp_path: Path) -> None:
    write(tmp_path, {"a.py": "import numpy", "numpy/notes.txt": ""})
    closure = walk_imports("a", [tmp_path])
    assert names(closure) == {"a"}
    assert external(closure) == {"numpy"}


def test_import_cycles_end(tmp_path: Path) -> None:
    write(tmp_path, {"a.py": "import b", "b.py": "import c", "c.py": "import a, b, c"})
    assert names(walk_imports("a", [tmp_path])) == {"a", "b", "c"}


def test_this_package_is_followed_like_the_users_own() -> None:
    closure = walk_imports("ml_experiments.runs.result")
    assert {"ml_experiments", "ml_experiments.errors"} <= names(closure)


@pytest.mark.slow
def test_walking_a_project_of_300_modules_imports_nothing_and_takes_about_a_second(
    tmp_path: Path,
) -> None:
    count = 300
    body = "\n".join(f"def f{i}(x):\n    return x + {i}" for i in range(60))
    files = {
        f"big/m{i}.py": f"from . import m{(i + 1) % count}\nimport torch\n{body}"
        for i in range(count)
    }
    write(tmp_path, {"big/__init__.py": "", **files})
    before = set(sys.modules)
    started = time.perf_counter()
    closure = walk_imports("big.m0", [tmp_path])
    took = time.perf_counter() - started
    assert len(closure.modules) == count + 1
    assert not {m for m in set(sys.modules) - before if m.partition(".")[0] in ("big", "torch")}
    assert took < 10  # 0.6 s on an idle machine


def test_a_walk_is_made_again_once_anything_that_it_has_seen_is_another(tmp_path: Path) -> None:
    write(tmp_path, {"train.py": "import helper, not_yet_there", "helper.py": "import pkg.deep"})
    write(tmp_path, {"pkg/__init__.py": "", "pkg/deep.py": ""})
    first = walk_imports("train", [tmp_path])
    assert walk_imports("train", [tmp_path]) is first
    assert external(first) == {"not_yet_there"}
    for change, more in (
        ({"not_yet_there.py": ""}, {"not_yet_there"}),
        ({"pkg/deep.py": "from pkg import wide"}, set()),
        ({"pkg/wide.py": "import numpy"}, {"pkg.wide"}),
    ):
        before = names(walk_imports("train", [tmp_path]))
        write(tmp_path, change)
        after = walk_imports("train", [tmp_path])
        assert names(after) == before | more
    assert external(after) == {"numpy"}
