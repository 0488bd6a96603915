"""Contact sheets: layout, size of pictures, labels."""

from __future__ import annotations

import pytest
from PIL import Image

from ml_experiments.tasks.text_to_image.pictures.contact_sheet import MAX_COUNT, ContactSheet


def sheet_of(
    count: int, size: tuple[int, int], row_length: int = 1, label: str = "x"
) -> ContactSheet:
    sheet = ContactSheet("title", row_length)
    for index in range(count):
        sheet.add(index, Image.new("RGB", size, "#ff0000"), label)
    return sheet


def red_columns_and_rows(sheet: Image.Image) -> tuple[int, int]:
    """Count the pictures side by side and below each other."""

    def runs(line: list[bool]) -> int:
        return sum(now and not before for before, now in zip([False, *line], line, strict=False))

    def is_red(x: int, y: int) -> bool:
        return sheet.getpixel((x, y)) == (255, 0, 0)

    middle = next(y for y in range(sheet.height) if is_red(20, y)) + 10
    across = runs([is_red(x, middle) for x in range(sheet.width)])
    return across, runs([is_red(20, y) for y in range(sheet.height)])


def test_pictures_of_a_prompt_stand_in_a_row() -> None:
    assert red_columns_and_rows(sheet_of(15, (32, 32), row_length=5).render()) == (5, 3)


@pytest.mark.parametrize(("count", "layout"), [(1, (1, 1)), (8, (4, 2)), (100, (8, 13))])
def test_pictures_of_one_prompt_fill_a_square_four_to_eight_wide(
    count: int, layout: tuple[int, int]
) -> None:
    assert red_columns_and_rows(sheet_of(count, (32, 32), row_length=count).render()) == layout


@pytest.mark.parametrize(
    ("size", "shown"),
    [
        ((32, 32), (128, 128)),
        ((1024, 512), (256, 128)),
        ((200, 200), (200, 200)),
        ((8, 64), (16, 128)),
    ],
)
def test_small_pictures_are_enlarged_and_large_ones_reduced(
    size: tuple[int, int], shown: tuple[int, int]
) -> None:
    image = sheet_of(1, size).render()
    red = [
        (x, y)
        for x in range(image.width)
        for y in range(image.height)
        if image.getpixel((x, y)) == (255, 0, 0)
    ]
    across, down = {x for x, _ in red}, {y for _, y in red}
    assert (len(across), len(down)) == shown


def test_more_pictures_than_a_sheet_holds_are_counted() -> None:
    sheet = sheet_of(MAX_COUNT + 50, (8, 8))
    assert sheet.left_out == 50
    assert sheet.render().height < 6000


def test_any_label_can_be_drawn() -> None:
    for label in ("", "word " * 500, "x" * 5000, "赤い ☃ \n\t"):
        sheet_of(2, (16, 16), label=label).render()


def test_an_empty_sheet_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one"):
        ContactSheet("title", 1).render()
