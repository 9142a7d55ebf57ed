"""Which files are images, and how pixels of more than eight bits are read."""

import numpy as np
from PIL import ExifTags, Image, ImageOps
from PIL.TiffImagePlugin import TiffImageFile

from grootv.errors import UserError

_FORMATS = {'AVIF', 'BMP', 'GIF', 'JPEG', 'JPEG2000', 'PNG', 'PPM', 'TIFF', 'WEBP'}
IMAGE_SUFFIXES = tuple(
    sorted(suffix for suffix, kind in Image.registered_extensions().items() if kind in _FORMATS)
)


def has_deep_pixels(image: Image.Image) -> bool:
    """Whether an opened image is grey with more than eight bits, which Pillow's conversion to RGB clips."""
    return image.mode.startswith(('I', 'F'))


def eight_bits(image: Image.Image) -> Image.Image:
    """Scale a grey image of 12 or 16 bits by the range of its type, as OpenCV does.

    Args:
        image: As opened, of any mode.

    Returns:
        The highest eight bits of every pixel, upright; or the image itself if it has no more.

    Raises:
        ValueError: If the pixels are 32-bit integers or floats, whose range nobody knows.
    """
    if not has_deep_pixels(image):
        return image
    if image.mode == 'F' or (image.mode == 'I' and image.format not in ('PNG', 'PPM')):
        kind = 'floats' if image.mode == 'F' else 'integers'
        raise ValueError(f'its pixels are 32-bit {kind} of unknown range, scale them to 8 or 16 bits')
    bits = getattr(image, 'tag_v2', {}).get(258, (16,))[0]  # BitsPerSample of a TIFF
    upright = np.asarray(ImageOps.exif_transpose(image))
    return Image.fromarray((upright >> (bits - 8)).astype(np.uint8))


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Width and height of an opened image after the turn by its EXIF data, without decoding its pixels."""
    width, height = image.size
    if isinstance(image, TiffImageFile):  # some versions of Pillow swap the sides of a turned one themselves
        width, height = image.tag_v2[256], image.tag_v2[257]
    known = image.format != 'PNG' or 'exif' in image.info  # to look further Pillow decodes a PNG
    turned = known and image.getexif().get(ExifTags.Base.Orientation, 1) > 4
    return (height, width) if turned else (width, height)


def check_size(path: str, size: tuple[int, int], annotated: tuple[int | None, int | None]) -> None:
    """Compare (height, width) of an upright image with those of its annotations, which may be None."""
    if None not in annotated and size != annotated:
        raise UserError(
            f'image {path} is {size[1]} x {size[0]} pixels upright, and the annotation file gives it '
            f'{annotated[1]} x {annotated[0]}: fix width and height, and the boxes if they were drawn on '
            'an image of that size'
        )


def unreadable(path: str, error: Exception) -> UserError:
    """The sentence for an image that a decoder failed on."""
    return UserError(
        f'image {path} cannot be read ({reason(error, path)}): replace the file, or remove it from the data'
    )


def reason(error: Exception, path: str) -> str:
    """Why a file cannot be read, in one line without its name."""
    missing = isinstance(error, FileNotFoundError)
    return 'it does not exist' if missing else ' '.join(str(error).split()).replace(path, 'it')
