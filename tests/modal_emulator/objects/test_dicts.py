"""modal.Dict, shared by this process and containers."""

from __future__ import annotations

import itertools
import sys

import modal
import pytest
from modal._vendor.cloudpickle import register_pickle_by_value
from modal.exception import AlreadyExistsError, NotFoundError

pytestmark = pytest.mark.usefixtures("modal_emulator")


register_pickle_by_value(sys.modules[__name__])


_numbers = itertools.count()


def new_name(kind: str) -> str:
    return f"{kind}-{next(_numbers)}"


def test_a_dict_behaves_like_a_dict() -> None:
    with modal.Dict.ephemeral() as shared:
        shared["a"] = 1
        shared["b"] = {"nested": [1.5, None]}
        shared[("tuple", 2)] = b"\0\xff"
        shared.update({"a": 2}, c=3)

        assert dict(shared.items()) == {
            "a": 2,
            "b": {"nested": [1.5, None]},
            ("tuple", 2): b"\0\xff",
            "c": 3,
        }
        assert list(shared.keys()) == ["a", "b", ("tuple", 2), "c"]
        assert list(shared.values()) == [2, {"nested": [1.5, None]}, b"\0\xff", 3]
        assert shared.len() == 4
        assert "a" in shared
        assert "z" not in shared
        assert shared.get("z", "default") == "default"
        with pytest.raises(KeyError):
            shared["z"]

        assert shared.pop("a") == 2
        del shared["b"]
        assert shared.pop("a", "gone") == "gone"
        with pytest.raises(KeyError):
            shared.pop("a")
        shared.clear()
        assert shared.len() == 0


def test_a_dict_puts_only_what_is_missing_when_asked() -> None:
    with modal.Dict.ephemeral() as shared:
        assert shared.put("key", 1, skip_if_exists=True)
        assert not shared.put("key", 2, skip_if_exists=True)
        assert shared["key"] == 1
        assert shared.put("key", 3)
        assert shared["key"] == 3


def test_a_large_value_fits_a_dict() -> None:
    with modal.Dict.ephemeral() as shared:
        shared["large"] = b"x" * 10_000_000
        assert len(shared["large"]) == 10_000_000


def test_named_dicts_are_found_listed_and_deleted() -> None:
    name = new_name("dict")
    with pytest.raises(NotFoundError, match=name):
        modal.Dict.from_name(name).hydrate()
    modal.Dict.objects.create(name)
    with pytest.raises(AlreadyExistsError, match=name):
        modal.Dict.objects.create(name)

    shared = modal.Dict.from_name(name)
    shared["key"] = "value"
    assert modal.Dict.from_id(shared.object_id)["key"] == "value"
    assert name in [each.name for each in modal.Dict.objects.list()]

    modal.Dict.objects.delete(name)
    with pytest.raises(NotFoundError):
        shared["key"]
    recreated = modal.Dict.from_name(name, create_if_missing=True)
    assert recreated.len() == 0
