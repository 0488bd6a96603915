"""An image with a step of every kind, and a function that looks at it."""

import os
import sys
from pathlib import Path

import modal


def store_weights(name: str) -> None:
    import six

    Path("/root/weights").mkdir()
    Path("/root/weights/name").write_text(f"{name} {six.__name__}")
    print("weights are stored")


def make_image(folder: Path, python: str) -> modal.Image:
    """Return the image; `folder` has a requirements.txt and a project with a lock."""
    return (
        modal.Image.debian_slim(python_version=python)
        .pip_install("wrapt")
        .uv_pip_install("tomli-w", requirements=[str(folder / "requirements.txt")])
        .uv_sync(str(folder / "project"))
        .env({"GREETING": "hello $NAME", "NAME": "Ada"})
        .add_local_file(folder / "requirements.txt", "/root/copied.txt", copy=True)
        .workdir("/opt")
        .workdir("work")
        .run_commands(
            "cat /root/copied.txt > /root/seen && pwd >> /root/seen",
            "python -c 'import six, sys; print(sys.version_info[:2])' >> /root/seen",
            "python -m pip --version | cut -c1-3 >> /root/seen",
        )
        .run_function(store_weights, args=("tiny",))
        .run_commands(
            "mkdir /opt/own && printf '#!/bin/sh\\necho a tool\\n' > /usr/local/bin/own-tool",
            "chmod +x /usr/local/bin/own-tool && own-tool > /opt/own/printed",
        )
        .run_commands("mkdir /root/empty && ln -s seen /root/link && rm /root/copied.txt")
        .apt_install("no-such-package")
        .run_commands("apt-get update && apt-get install -y missing-too")
        .add_local_file(folder / "requirements.txt", "/root/added.txt")
    )


app = modal.App("built-app")


def look() -> dict[str, object]:
    import importlib.metadata

    names = sorted(
        {each.name.lower().replace("_", "-") for each in importlib.metadata.distributions()}
    )
    return {
        "python": list(sys.version_info[:2]),
        "own": [name for name in names if name in ("wrapt", "six", "tomli-w", "iniconfig")],
        "foreign": [name for name in names if name in ("pytest", "torch", "ml-experiments")],
        "folder": str(Path.cwd()),
        "greeting": os.environ["GREETING"],
        "seen": Path("/root/seen").read_text().splitlines(),
        "weights": Path("/root/weights/name").read_text(),
        "copied": Path("/root/copied.txt").exists(),
        "tool": os.popen("own-tool; cat /opt/own/printed").read(),
        "link": str(Path("/root/link").readlink()),
        "empty": sorted(each.name for each in Path("/root/empty").iterdir()),
        "added": Path("/root/added.txt").exists(),
        "interpreter": os.popen("python -c 'import wrapt; print(wrapt.__name__)'").read(),
    }


def version() -> str:
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def read_files() -> dict[str, str]:
    """Return the files of the working folder, except for archives."""
    return {
        str(path): path.read_text()
        for path in Path().rglob("*")
        if path.is_file() and path.suffix != ".tar"
    }
