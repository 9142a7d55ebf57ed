"""Images in a folder a class, or listed with their classes. Importing this module needs mmpretrain."""

import mmpretrain.datasets
import numpy as np

from grootv.datasets.images import IMAGE_SUFFIXES
from grootv.datasets.summary import Summary, numbered, others_below
from grootv.errors import UserError, first
from grootv.registry import DATASETS


@DATASETS.register_module()
class ImageNet(mmpretrain.datasets.ImageNet):
    """mmpretrain's data set of ImageNet-1K or, with other ``metainfo.classes``, of any folder of images.

    It reads every image that Pillow reads, and refuses names of classes that are not in the order of the
    folders, which would exchange them.

    Args:
        *args: As for :class:`mmpretrain.datasets.ImageNet`.
        **kwargs: Likewise.

    Raises:
        UserError: If ``metainfo.classes`` names folders in another order, or a listed class has no name.
    """

    IMG_EXTENSIONS = IMAGE_SUFFIXES

    def load_data_list(self) -> list[dict]:
        items = super().load_data_list()
        folders = sorted(getattr(self, 'folder_to_idx', {}))
        classes = list(self.CLASSES or ())
        names = [plain(name) for name in classes]
        for number, folder in enumerate(folders):
            if plain(folder) in names and names[number] != plain(folder):
                raise UserError(
                    f'data folder {self.img_prefix} and metainfo.classes differ from class {number} on: the '
                    f'folders are {first(folders[number:])}, the names {first(classes[number:])}: give '
                    'the names in the order of the folders'
                )
        labels = [item['gt_label'] for item in items] if self.with_label else []
        if names and labels and not 0 <= min(labels) <= max(labels) < len(names):
            wrong = next(item for item in items if not 0 <= item['gt_label'] < len(names))
            raise UserError(
                f'annotation file {self.ann_file} gives {wrong["img_path"]} the class {wrong["gt_label"]}, '
                f'and {numbered(len(names))}: fix the file, or metainfo.classes'
            )
        return items

    def summary(self) -> Summary:
        """Images by class, and files of the folder that are none of them."""
        items = [self.get_data_info(index) for index in range(len(self))]
        counts = {}
        if self.with_label and self.CLASSES:
            numbers = np.bincount([item['gt_label'] for item in items], minlength=len(self.CLASSES))
            counts = dict(zip(self.CLASSES, numbers.tolist(), strict=True))
        paths = (item['img_path'] for item in items)
        left_out = {} if self.ann_file else others_below(self.img_prefix, paths)
        return Summary('images', counts, left_out)


def plain(name: str) -> str:
    """A name without the differences between a folder and how people write it."""
    return name.casefold().replace('_', ' ').replace('-', ' ').strip()
