"""Files that are shipped to a container."""

from __future__ import annotations

import sys
from pathlib import Path

import modal
from modal._vendor.cloudpickle import register_pickle_by_value

from modal_emulator import Emulator

register_pickle_by_value(sys.modules[__name__])


def shipped(path: str) -> tuple[str, int, bool]:
    """In a container: return content, mode and kind of a shipped file."""
    file = Path(path)
    return file.read_text(), file.stat().st_mode & 0o777, file.is_symlink()


def test_shipped_files_are_frozen_copies(modal_emulator: Emulator, tmp_path: Path) -> None:
    (tmp_path / "data" / "deep").mkdir(parents=True)
    file = tmp_path / "data" / "deep" / "file.txt"
    file.write_text("as sent")
    script = tmp_path / "script.sh"
    script.write_text("large" * 1_000_000)
    script.chmod(0o755)
    image = (
        modal.Image.debian_slim()
        .add_local_dir(tmp_path / "data", "/root/data")
        .add_local_dir(tmp_path / "data", "/usr/share/of-the-test")
        .add_local_file(script, "/opt/of-the-test/script.sh")
    )
    app = modal.App("ships", image=image)
    function = app.function(serialized=True)(shipped)
    with app.run():
        file.write_text("changed after it was sent")
        for path in ("/root/data/deep/file.txt", "/usr/share/of-the-test/deep/file.txt"):
            content, _, is_link = function.remote(path)
            assert (content, is_link) == ("as sent", False)
        content, mode, _ = function.remote("/opt/of-the-test/script.sh")
        assert (content, mode) == ("large" * 1_000_000, 0o755)
    assert not Path("/opt/of-the-test").exists()
    assert not Path("/usr/share/of-the-test").exists()
