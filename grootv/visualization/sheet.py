"""Pictures row by row on one sheet, each under its name."""

from collections.abc import Sequence

from matplotlib import font_manager
from PIL import Image, ImageDraw, ImageFont

GAP = 6
LINE = 16  # height of a line of text
_FONT = ImageFont.truetype(font_manager.findfont('DejaVu Sans'), 11)


def sheet(
    title: str, pictures: Sequence[tuple[str, Image.Image]], columns: int, header: Sequence[str] = ()
) -> Image.Image:
    """Put pictures on white, each centred in a cell of the largest one's size.

    Args:
        title: Text above all.
        pictures: Lines above a picture, and the picture.
        columns: Pictures in a row.
        header: Texts above equal parts of every column, such as what the halves of its pictures show.

    Returns:
        An RGB image.
    """
    columns = min(columns, len(pictures))
    lines = max(text.count('\n') + 1 for text, _ in pictures)
    width, height = (max(image.size[side] for _, image in pictures) for side in (0, 1))
    top = GAP + LINE * (2 if header else 1)
    cell = width + GAP, lines * LINE + height + GAP
    page = Image.new('RGB', (cell[0] * columns + GAP, cell[1] * -(-len(pictures) // columns) + top), 'white')
    draw = ImageDraw.Draw(page)
    draw.text((GAP, GAP), fitting(title, page.width - 2 * GAP), 'black', _FONT)
    for column in range(columns):
        for place, text in enumerate(header):
            part = width / len(header)
            middle = GAP + column * cell[0] + (place + 0.5) * part
            draw.text((middle, GAP + LINE), fitting(text, part), 'black', _FONT, anchor='ma')
    for index, (text, image) in enumerate(pictures):
        row, column = divmod(index, columns)
        x, y = GAP + column * cell[0], top + row * cell[1]
        for number, line in enumerate(text.split('\n')):
            draw.text((x, y + number * LINE), fitting(line, width), 'black', _FONT)
        y += lines * LINE
        page.paste(image, (x + (width - image.width) // 2, y + (height - image.height) // 2))
    return page


def fitting(text: str, width: float) -> str:
    """A text of one line, without its middle where it is longer than so many pixels."""
    kept, whole = len(text), text
    while _FONT.getlength(text) > width and kept > 1:
        kept -= 1
        text = f'{whole[: kept // 2]}…{whole[len(whole) - (kept + 1) // 2 :]}'
    return text
