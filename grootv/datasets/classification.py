"""Images in a folder a class, or listed with their classes. Importing this module needs mmpretrain."""

import os

import mmpretrain.datasets
import numpy as np
from mmengine import list_from_file
from mmpretrain.datasets.custom import find_folders

from grootv.datasets.images import IMAGE_SUFFIXES
from grootv.datasets.summary import Summary, files_below, numbered, others_below
from grootv.errors import UserError, first
from grootv.registry import DATASETS

_MOST_LISTED = 100_000  # images that are looked for; --meta of ImageNet spares walking through its folders


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
        classes = self._metainfo.get('classes')
        if isinstance(classes, str):
            raise UserError(f'metainfo.classes must be a tuple of names, got the text {classes!r}')
        items = self._listed() if self.ann_file and self.with_label else super().load_data_list()
        self.left_out = {} if self.ann_file else others_below(self.img_prefix, [i['img_path'] for i in items])
        return items

    def _find_samples(self) -> list:
        if self.with_label and self.CLASSES:
            folders, _ = find_folders(self.img_prefix)
            check_folders(self.img_prefix, folders, list(self.CLASSES))
        return super()._find_samples()

    def _listed(self) -> list[dict]:
        """The images that the annotation file lists, each line a path and the number of a class."""
        items, most = [], len(self.CLASSES or ())
        for number, line in enumerate(list_from_file(self.ann_file), 1):
            name, _, label = line.strip().rpartition(' ')
            if not line.strip():
                continue
            place = f'annotation file {self.ann_file}, line {number}'
            if not name or not label.removeprefix('-').isdecimal():
                raise UserError(
                    f'{place}: a path, a blank and the number of a class are needed, got {line!r:.80}'
                )
            if most and not 0 <= int(label) < most:
                raise UserError(
                    f'{place} gives {name} the class {label}, and {numbered(most)}: fix the file, or '
                    'metainfo.classes'
                )
            items.append(dict(img_path=os.path.join(self.img_prefix, name), gt_label=int(label)))
        return items

    def summary(self) -> Summary:
        """Images by class, and files of the folder that are none.

        Raises:
            UserError: If the annotation file lists images that the folder lacks.
        """
        if self.ann_file and '://' not in self.img_prefix and len(self) <= _MOST_LISTED:
            paths = [self.get_data_info(index)['img_path'] for index in range(len(self))]
            present = files_below(self.img_prefix)
            absent = [
                path for path in paths if os.path.normpath(path) not in present and not os.path.exists(path)
            ]
            if absent:
                raise UserError(
                    f'annotation file {self.ann_file} lists {len(absent)} images that do not exist '
                    f'({first(absent)}): fix the file, or data_prefix'
                )
        counts = {}
        if self.with_label and self.CLASSES:
            labels = [self.get_data_info(index)['gt_label'] for index in range(len(self))]
            numbers = np.bincount(labels, minlength=len(self.CLASSES)).tolist()
            counts = dict(zip(self.CLASSES, numbers, strict=True))
        return Summary('images', counts, self.left_out)


def check_folders(place: str, folders: list[str], classes: list[str]) -> None:
    """Compare the folders, which number the classes in the order of their names, with the classes' names."""
    names, found = [plain(name) for name in classes], [plain(folder) for folder in folders]
    if len(names) != len(found):
        others = sorted({*found} ^ {*names}) if {*found} & {*names} else folders
        raise UserError(
            f'data folder {place} and metainfo.classes differ: {len(folders)} folders, {len(classes)} names '
            f'(look at {first(others)}): each class needs a folder in training and validation, if only an '
            'empty one'
        )
    for number, folder in enumerate(found):
        if folder in names and names[number] != folder:
            raise UserError(
                f'data folder {place} and metainfo.classes differ from class {number} on: the folders are '
                f'{first(folders[number:])}, the names {first(classes[number:])}: give the names in the '
                'order of the folders'
            )


def plain(name: str) -> str:
    """A name without the differences between a folder and how people write it."""
    return name.casefold().replace('_', ' ').replace('-', ' ').strip()
