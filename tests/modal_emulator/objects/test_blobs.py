"""Arguments and results that are too large for a gRPC message."""

from __future__ import annotations

import hashlib
import os
import sys
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import modal
import pytest
from modal._vendor.cloudpickle import register_pickle_by_value

from modal_emulator import Emulator

register_pickle_by_value(sys.modules[__name__])


def digest_and_reply(data: bytes, size: int) -> tuple[str, bytes]:
    return hashlib.sha256(data).hexdigest(), b"r" * size


@pytest.mark.parametrize("size", [10, 3 * 1024 * 1024, 12 * 1024 * 1024])
def test_arguments_and_results_of_any_size_arrive(modal_emulator: Emulator, size: int) -> None:
    data = os.urandom(1024) * (size // 1024) + b"end"
    app = modal.App("blobs")
    function = app.function(serialized=True)(digest_and_reply)
    with app.run():
        assert function.remote(data, size) == (hashlib.sha256(data).hexdigest(), b"r" * size)
        call = function.spawn(data, size)
        assert call.get(timeout=60) == (hashlib.sha256(data).hexdigest(), b"r" * size)


def test_only_urls_of_the_server_are_served(modal_emulator: Emulator) -> None:
    http = modal_emulator.environment["MODAL_EMULATOR_CONTROL_URL"].removesuffix("/control")
    for path in ("/blobs/bl-0000000000000000000000", "/volume-files/index.json?start=0&end=9"):
        for method in ("GET", "PUT"):
            with pytest.raises(HTTPError) as error:
                urlopen(Request(http + path, method=method, data=b"" if method == "PUT" else None))
            assert error.value.code in (403, 405)
