"""Values of classes and libraries, one layer at a time, as plain Python values.

A library counts only if it is imported already: otherwise no value of it can exist.
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import sys
from collections.abc import (
    Collection,
    ItemsView,
    Iterable,
    Iterator,
    KeysView,
    Mapping,
    Sequence,
    Set,
    ValuesView,
)
from typing import Any

from ml_experiments.serialization.typed_json import (
    MAX_DEPTH,
    TYPE_KEY,
    Descriptor,
    Unportable,
)

MAX_VALUES = 10_000_000
# Python refuses to write longer integers in digits
MAX_SHOWN_BITS = 10_000
# a list of lists costs more than as many numbers
MAX_CONTAINERS = 2_000_000


def to_plain(value: Any) -> Any:
    """Return a dict, list, set or leaf for what is made of them; other values as they are.

    Only the outermost layer is converted; members stay what they are.

    Raises:
        Unportable: If the value can't be read, or reading it would consume it.
    """
    if type(value) in (dict, list, tuple, Descriptor):
        _check_length(value)
        return list(value) if type(value) in (list, tuple) else dict(value)
    if isinstance(value, enum.Enum):
        return to_plain(value.value)
    for library, convert in _LIBRARIES.items():
        module = sys.modules.get(library)
        converted = value if module is None else convert(module, value)
        if isinstance(converted, Descriptor):
            return converted
        if converted is not value:
            return to_plain(converted)
    return _container_to_plain(value)


def to_python_scalar(value: Any) -> Any:
    """Return a number, bool or string of numpy or torch as Python's own; others as they are."""
    if type(value) in (bool, int, float, str, dict, list, tuple):
        return value
    for library in ("torch", "numpy"):
        module = sys.modules.get(library)
        if module is not None:
            with contextlib.suppress(Unportable):  # such as a longdouble, or no value on "meta"
                converted = _LIBRARIES[library](module, value)
                if type(converted) in (bool, int, float, complex, str):
                    return converted
    return value


def _container_to_plain(value: Any) -> Any:
    if isinstance(value, str | bytes | bytearray | memoryview):
        return value
    # an array is none of these: it may be longer
    if isinstance(value, Mapping | Sequence | KeysView | ItemsView | ValuesView | Set):
        _check_length(value)
    if isinstance(value, Mapping):
        return dict(_members(value.items(), len(value)))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return dict(zip(value._fields, value, strict=True))
    if isinstance(value, Sequence | KeysView | ItemsView | ValuesView):
        return list(_members(value, len(value)))
    if isinstance(value, Set):
        return set(_members(value, len(value)))
    if isinstance(value, Iterator):
        raise Unportable("an iterator can be read only once; return list(...) of it")
    return value


def _members(values: Iterable[Any], length: int) -> Iterator[Any]:
    """Yield the members of a container, which may yield more than it says, even without end."""
    for number, member in enumerate(values):
        if number == length:
            raise Unportable(f"it says that it has {length:,} values, and yields more")
        yield member


def count_values(value: Any, seen: dict[int, tuple[Any, int]], depth: int = 0) -> int:
    """Return about how many values a value stands for, or a number above MAX_VALUES.

    What stands in several places counts as often, but is looked at once: lists that hold each
    other may stand for more values than any memory holds.

    Args:
        value: Any value; what libraries made counts as one.
        seen: The containers that were counted, by id, and their numbers of values.
        depth: How deep it is in the whole; what is too deep is refused later.
    """
    if type(value) in (list, tuple, set, frozenset):
        members: Iterable[Any] = value
    elif type(value) is dict:
        members = (part for item in value.items() for part in item)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        members = getattr(value, "__dict__", {}).values()
    else:
        return 1
    if depth > MAX_DEPTH:
        return 1
    if id(value) in seen:
        return seen[id(value)][1]
    count = 1
    seen[id(value)] = value, count  # where it holds itself
    for member in members:
        count += 1 if type(member) in _LEAVES else count_values(member, seen, depth + 1)
        if count > MAX_VALUES:
            break
    seen[id(value)] = value, count
    return count


def _check_length(value: Collection[Any]) -> None:
    """Count the members of a container that may make them on demand, such as `range(10**12)`."""
    try:
        length = len(value)
    except OverflowError:
        length = sys.maxsize
    if length > MAX_VALUES:
        raise Unportable(
            f"it has {length:,} values, more than the {MAX_VALUES:,} that results may hold; "
            "return an array, or write a file in output_dir"
        )


def _from_pydantic(pydantic: Any, value: Any) -> Any:
    if isinstance(value, pydantic.SecretStr | pydantic.SecretBytes):
        raise Unportable("a secret is not recorded; leave it out")
    if isinstance(value, pydantic.RootModel):
        return value.root
    if isinstance(value, pydantic.BaseModel):
        computed = type(value).model_computed_fields
        return {**dict(value), **{name: getattr(value, name) for name in computed}}
    return value


def _from_numpy(np: Any, value: Any) -> Any:
    if isinstance(value, np.ndarray) and value.ndim == 0 and not np.ma.isMaskedArray(value):
        value = value[()]
    if not isinstance(value, np.generic):
        return value
    if isinstance(value, np.datetime64 | np.timedelta64):
        return _from_numpy_time(np, value)
    if isinstance(value, np.void) and value.dtype.names:
        return {name: value[name] for name in value.dtype.names}
    if isinstance(value, np.longdouble | np.clongdouble):
        narrow = complex(value) if isinstance(value, np.clongdouble) else float(value)
        if narrow != value and value == value:
            raise Unportable(f"{value.dtype} is wider than 64-bit floats; round it to one")
        return narrow
    return value.item()


def _from_numpy_time(np: Any, value: Any) -> Any:
    kind = "datetime64" if isinstance(value, np.datetime64) else "timedelta64"
    micro = value.astype(f"{kind}[us]")
    # numpy counts in finer units than Python's own types, and in months, which have no length
    unit = np.datetime_data(value.dtype)
    exact = not np.isnat(value) and micro.astype(value.dtype) == value
    exact = exact and not (kind == "timedelta64" and unit[0] in ("Y", "M", "generic"))
    item = value.item()
    if isinstance(item, int) and exact:
        item = micro.item()
    if item is None or isinstance(item, int):
        written = str(value) if kind == "datetime64" else str(value.astype("int64"))
        return Descriptor({TYPE_KEY: kind, "value": written, "unit": list(unit)})
    return item


def _from_torch(torch: Any, value: Any) -> Any:
    tensor = getattr(torch, "Tensor", None)
    if tensor is None or not isinstance(value, tensor) or value.ndim != 0:
        return value
    try:
        return value.item()
    except (RuntimeError, TypeError, ValueError) as e:
        raise Unportable(f"the tensor's value can't be read: {e}") from e


def _from_pandas(pd: Any, value: Any) -> Any:
    if not hasattr(pd, "Timestamp"):  # still being imported, by another thread
        return value
    if value is pd.NaT or value is pd.NA:
        return Descriptor({TYPE_KEY: "missing", "value": str(value)})
    if isinstance(value, pd.Timestamp):
        if value.nanosecond:
            return _from_numpy_time(sys.modules["numpy"], value.to_datetime64())
        return value.to_pydatetime()
    if isinstance(value, pd.Timedelta):
        return _from_numpy_time(sys.modules["numpy"], value.to_timedelta64())
    if isinstance(value, pd.Index):
        _check_length(value)
        return value.tolist()
    if isinstance(value, pd.api.extensions.ExtensionArray):
        return pd.Series(value)
    return value


_LEAVES = frozenset((str, int, float, bool, type(None)))
# in this order: a scalar of pandas is also a datetime, a 0-d array of numpy may hold anything
_LIBRARIES = {
    "pandas": _from_pandas,
    "torch": _from_torch,
    "numpy": _from_numpy,
    "pydantic": _from_pydantic,
}
