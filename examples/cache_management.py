"""See what the Hugging Face cache volume holds, check it, and clear it.

python examples/cache_management.py                             list
python examples/cache_management.py --verify                    compare contents with hashes
python examples/cache_management.py --clear "stabilityai/*"     show what would go
python examples/cache_management.py --clear "stabilityai/*" --force     delete it
modal run examples/cache_management.py --clear "stabilityai/*"

The command `ml-experiments cache` has more: sizes, single revisions, age, downloads before a run.
"""

import argparse
import contextlib
import sys
from collections.abc import Iterator

from ml_experiments import Error
from ml_experiments.core.modal_runner import (
    app,
    cache_operation,
    clear_cache,
    list_cached_models,
    platform_errors,
)


@app.local_entrypoint()
def main(clear: str = "", force: bool = False, verify: bool = False) -> None:
    with messages():
        names = list_cached_models.remote()
        print(f"{len(names)} models: {', '.join(names) or 'none'}")
        if verify:
            found = cache_operation.remote("verify", {})
            print(f"{found['checked']} files checked, {len(found['problems'])} wrong")
        if clear:
            stats = clear_cache.remote(pattern=clear, force=force)
            for name in stats["names"]:
                print(f"  {name}")
            for kept in [*stats["kept"], *stats["failed"]]:
                print(f"  kept: {kept['name']} {kept['why']}")
            verb = "would free" if stats["dry_run"] else "freed"
            print(f"{verb} {stats['freed_mb']:.2f} MB in {stats['deleted']} models")
            if stats["dry_run"]:
                print("nothing was deleted: add --force")


@contextlib.contextmanager
def messages() -> Iterator[None]:
    """Print what is wrong, such as a missing token, without a traceback."""
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
    parser.add_argument("--verify", action="store_true", help="compare contents with hashes")
    parser.add_argument("--force", action="store_true", help="delete, not only show")
    arguments = parser.parse_args()
    with messages(), app.run():
        main(**vars(arguments))
