"""Read an image, or name the file that cannot be read."""

import mmcv.transforms

from grootv.errors import UserError
from grootv.registry import TRANSFORMS


@TRANSFORMS.register_module()
class LoadImageFromFile(mmcv.transforms.LoadImageFromFile):
    """MMCV's loader with the file's name in every failure, inside a data-loading process too.

    An image that is there already stays: mmpretrain's inferencer reads it itself.

    Args:
        imdecode_backend: Decoder. Pillow is the default because it refuses a truncated file, where
            OpenCV fills the missing part with grey and goes on.
        **kwargs: As for :class:`mmcv.transforms.LoadImageFromFile`.

    Raises:
        UserError: If the file is missing, truncated or not an image.
    """

    def __init__(self, *, imdecode_backend: str = 'pillow', **kwargs):
        super().__init__(imdecode_backend=imdecode_backend, **kwargs)

    def transform(self, results: dict) -> dict | None:
        if 'img' in results and 'img_path' not in results:
            return results
        try:
            return super().transform(results)
        except FileNotFoundError:
            reason = 'it does not exist'
        except Exception as error:  # each decoder has its own exceptions
            reason = ' '.join(str(error).split()).replace(results['img_path'], 'it')
        raise UserError(
            f'image {results["img_path"]} cannot be read ({reason}): '
            'replace the file, or remove it from the data'
        )
