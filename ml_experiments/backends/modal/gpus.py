"""The GPU types that can be asked for, and what each text such as `h100:8` means to Modal.

A request is a GPU type (`a10g`), a number of them (`h100:8`), one that Modal must not upgrade
(`h100!`), or several in order of preference (`h100,a100-80gb`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from ml_experiments.errors import GpuTypeError, suggest

DEFAULT_GPU_TYPE = "a10g"


@dataclass(frozen=True)
class GpuType:
    """One row of the catalogue.

    Attributes:
        key: The name that users write, in lower case.
        modal: The name that Modal takes.
        memory_gb: Memory of one GPU.
        purpose: What it is good for, in a few words.
        max_count: The most that one container can have.
        aliases: Other accepted names.
        can_be_exact: Whether Modal may give a better one, and takes `!` to forbid it.
    """

    key: str
    modal: str
    memory_gb: int
    purpose: str
    max_count: int = 8
    aliases: tuple[str, ...] = ()
    can_be_exact: bool = False


# in order of size: by memory, then by speed
CATALOGUE = (
    GpuType("t4", "T4", 16, "budget: small models, tests"),
    GpuType("l4", "L4", 24, "inference, low price"),
    GpuType("a10g", "A10", 24, "good balance; the default", max_count=4, aliases=("a10",)),
    GpuType("a100", "A100-40GB", 40, "high performance", aliases=("a100-40gb",)),
    GpuType("l40s", "L40S", 48, "inference and fine-tuning of mid-size models"),
    GpuType("a100-80gb", "A100-80GB", 80, "very large models"),
    GpuType("h100", "H100", 80, "fast training; may be upgraded to H200", can_be_exact=True),
    GpuType("rtx-pro-6000", "RTX-PRO-6000", 96, "large models for inference, Blackwell"),
    GpuType("h200", "H200", 141, "the largest models, fast memory"),
    GpuType("b200", "B200", 180, "the fastest: Blackwell"),
)

_BY_NAME = {name: gpu for gpu in CATALOGUE for name in (gpu.key, *gpu.aliases)}

# the document's table: GPU type -> what Modal is sent
GPU_CONFIGS: dict[str, str] = {name: gpu.modal for name, gpu in _BY_NAME.items()}

# how a count is written elsewhere: a100x8, 8xa100, a100-8, a100*8
_COUNTED = re.compile(
    r"(?:(?P<before>\d)\s*[x*]\s*)?(?P<name>[a-z][\w-]*?)(?:\s*[x*-]\s*(?P<after>\d))?"
)
_CHOICE = re.compile(r"(?P<name>[a-z0-9-]+)(?P<exact>!?)(:(?P<count>\d+))?")


@dataclass(frozen=True)
class GpuChoice:
    """A GPU type and how many of it."""

    gpu: GpuType
    count: int = 1
    exact: bool = False

    @property
    def modal(self) -> str:
        """The text that Modal takes, such as `H100!:8`."""
        count = f":{self.count}" if self.count > 1 else ""
        return f"{self.gpu.modal}{'!' if self.exact else ''}{count}"

    @property
    def memory_gb(self) -> int:
        """Memory of all GPUs together."""
        return self.gpu.memory_gb * self.count

    def __str__(self) -> str:
        count = f":{self.count}" if self.count > 1 else ""
        return f"{self.gpu.key}{'!' if self.exact else ''}{count}"


@dataclass(frozen=True)
class GpuRequest:
    """What is asked for: one choice, or several in order of preference."""

    choices: tuple[GpuChoice, ...]

    @property
    def modal(self) -> str | list[str]:
        """What Modal's `gpu=` takes: a text, or a ranked list of them."""
        texts = [choice.modal for choice in self.choices]
        return texts[0] if len(texts) == 1 else texts

    def __str__(self) -> str:
        return ",".join(str(choice) for choice in self.choices)


def parse_gpu(text: str) -> GpuRequest:
    """Return the request that a text such as `h100:8` or `h100!,a100-80gb` stands for.

    Raises:
        GpuTypeError: If a name, a count or the form is not valid.
    """
    if not isinstance(text, str):
        raise GpuTypeError(f"a GPU type is a text such as 'a10g', not {text!r}. {_known()}")
    choices = tuple(_parse_choice(part.strip(), text) for part in text.split(","))
    doubled = sorted({str(c) for c in choices if choices.count(c) > 1})
    if doubled:
        raise GpuTypeError(f"{text!r} names {doubled[0]} twice; name each choice once")
    return GpuRequest(choices)


def next_larger(choice: GpuChoice) -> GpuChoice | None:
    """Return as many of the next larger GPU type by memory, or None when there is none."""
    for gpu in CATALOGUE:
        if gpu.memory_gb > choice.gpu.memory_gb and choice.count <= gpu.max_count:
            return GpuChoice(gpu, choice.count)
    return None


def _parse_choice(part: str, text: str) -> GpuChoice:
    if not part:
        raise GpuTypeError(f"{text!r} has an empty GPU type. {_known()}")
    match = _CHOICE.fullmatch(part.lower())
    gpu = _BY_NAME.get(match["name"]) if match else None
    if match is None or gpu is None:
        raise GpuTypeError(f"{part!r} is not a GPU type{_meant(part.lower())}. {_known()}")
    count = int(match["count"]) if match["count"] else 1
    if not 1 <= count <= gpu.max_count:
        raise GpuTypeError(
            f"{part!r} asks for {count} GPUs; one container has 1 to {gpu.max_count} {gpu.key}"
        )
    exact = bool(match["exact"])
    if exact and not gpu.can_be_exact:
        exacts = ", ".join(f"{g.key}!" for g in CATALOGUE if g.can_be_exact)
        raise GpuTypeError(
            f"{part!r}: Modal takes '!' (no upgrade) only as {exacts}; write {gpu.key!r}"
        )
    return GpuChoice(gpu, count, exact)


def _meant(part: str) -> str:
    """Return a suggestion such as ` (did you mean 'a100:8'?)`, or an empty string."""
    written = _COUNTED.fullmatch(part)
    if written and written["name"] in _BY_NAME:
        return f" (did you mean '{written['name']}:{written['after'] or written['before']}'?)"
    if part.replace(":", "-") in _BY_NAME:
        return f" (did you mean {part.replace(':', '-')!r}?)"
    name = part.partition(":")[0].rstrip("!")
    # another first letter is another GPU, as v100 is not h100
    return suggest(name, [known for known in _BY_NAME if known[0] == name[:1]])


def _known() -> str:
    return (
        f"Known: {', '.join(_BY_NAME)}; several of one as in h100:8, "
        "alternatives as in h100,a100-80gb"
    )
