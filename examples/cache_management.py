"""See what the Hugging Face cache volume holds, and clear it.

python examples/cache_management.py                             list
python examples/cache_management.py --clear "stabilityai/*"     show what would go
python examples/cache_management.py --clear "stabilityai/*" --force     delete it
modal run examples/cache_management.py --clear "stabilityai/*"
"""

import argparse
import contextlib
import sys
from collections.abc import Iterator

from ml_experiments.backends.modal_errors import platform_errors
from ml_experiments.core.modal_runner import app, clear_cache, list_cached_models
from ml_experiments.errors import Error


@app.local_entrypoint()
def main(clear: str = "", force: bool = False) -> None:
    with messages():
        names = list_cached_models.remote()
        print(f"{len(names)} models: {', '.join(names) or 'none'}")
        if clear:
            stats = clear_cache.remote(pattern=clear, force=force)
            verb = "would free" if stats["dry_run"] else "freed"
            print(f"{verb} {stats['freed_mb']:.2f} MB in {stats['deleted']} models")
            if stats["dry_run"]:
                print("nothing was deleted: add --force")


@contextlib.contextmanager
def messages() -> Iterator[None]:
    """Say what is wrong, such as a missing token, without a traceback."""
    try:
        with platform_errors("use the cache"):
            yield
    except Error as e:
        print(f"error: {e}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clear", default="", metavar="PATTERN", help="models to delete, a glob")
    parser.add_argument("--force", action="store_true", help="delete, not only show")
    arguments = parser.parse_args()
    with messages(), app.run():
        main(**vars(arguments))
