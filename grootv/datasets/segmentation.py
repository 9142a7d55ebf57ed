"""Images and label maps of equal names. Importing this module needs mmseg."""

import os
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

import mmengine
import mmseg.datasets
import numpy as np
from mmengine import fileio
from PIL import Image

from grootv.datasets.images import IMAGE_SUFFIXES
from grootv.datasets.summary import Summary, others_below, spread
from grootv.datasets.transforms import CheckSegLabels, LoadSegAnnotations
from grootv.errors import UserError, first
from grootv.registry import DATASETS

KEYS = ('img_path', 'seg_map_path')


@DATASETS.register_module()
class SegDataset(mmseg.datasets.BaseSegDataset):
    """mmseg's data set for images and label maps of any format that Pillow reads.

    Args:
        img_suffix: End of the images' names that the label maps do not share; None stands for the suffix of
            any format.
        seg_map_suffix: Likewise for the label maps.
        **kwargs: As for :class:`mmseg.datasets.BaseSegDataset`.

    Raises:
        UserError: If an image has no label map, or two files have the same name without the suffix.
    """

    def __init__(self, img_suffix: str | None = None, seg_map_suffix: str | None = None, **kwargs):
        ends: dict[str, Any] = dict(img_suffix=img_suffix, seg_map_suffix=seg_map_suffix)
        super().__init__(**ends, **kwargs)

    def load_data_list(self) -> list[dict]:
        if isinstance(self._metainfo.get('classes'), str):
            raise UserError(
                f'metainfo.classes must be a tuple of names, got the text {self._metainfo["classes"]!r}'
            )
        images = self._files('img_path', self.img_suffix) or {}
        maps = self._files('seg_map_path', self.seg_map_suffix)
        names: list[str] = sorted(images)
        if self.ann_file:
            lines = [line.strip() for line in mmengine.list_from_file(self.ann_file) if line.strip()]
            root = os.path.join(self.data_prefix['img_path'], '')
            ends = {path.removeprefix(root): name for name, path in images.items()}
            names = [str(ends.get(line, line)) for line in lines]  # the end of the image's name may be listed
        for kind, files in (('image', images), ('label map', maps)):
            lacking = [name for name in names if files is not None and name not in files]
            if lacking:
                folder = self.data_prefix['img_path' if kind == 'image' else 'seg_map_path']
                raise UserError(
                    f'data folder {folder} has no {kind} for {first(lacking)}: add the files, or set '
                    f'{"img_suffix" if kind == "image" else "seg_map_suffix"} to the end of their names'
                )
        if not names:
            raise UserError(
                f'data folder {self.data_prefix["img_path"]} has no image: check data_root, data_prefix and '
                'img_suffix'
            )
        known = [files[name] for files in (images, maps or {}) for name in names if files]
        self.left_out = {}
        for folder in set() if self.ann_file else {self.data_prefix.get(key) or '' for key in KEYS}:
            self.left_out |= others_below(folder, known)
        common = dict(label_map=self.label_map, reduce_zero_label=self.reduce_zero_label)
        return [
            dict(img_path=images[name], **({} if maps is None else dict(seg_map_path=maps[name])), **common)
            | dict(seg_fields=[])
            for name in names
        ]

    def _files(self, kind: str, suffix: str | None) -> dict[str, str] | None:
        """Paths of a folder's images or label maps by their names without suffix; None without a folder."""
        folder = self.data_prefix.get(kind)
        if folder is None:
            return None
        suffixes = IMAGE_SUFFIXES if suffix is None else (suffix,)
        found: dict[str, str] = {}
        for file in sorted(
            fileio.list_dir_or_file(folder, list_dir=False, recursive=True, backend_args=self.backend_args)
        ):
            end = next((end for end in suffixes if file.lower().endswith(end.lower())), None)
            if end is None:
                continue
            name, path = file[: -len(end)], os.path.join(folder, file)
            if name in found:
                raise UserError(
                    f'data folder {folder} has two files for {name}, {Path(found[name]).name} and '
                    f'{Path(path).name}: remove one, or set img_suffix and seg_map_suffix'
                )
            found[name] = path
        return found

    def summary(self) -> Summary:
        """Pixels by class, and files that are no image or no label map of one.

        Of many label maps a thousand are read, evenly spread.
        """
        items = [self.get_data_info(index) for index in spread(len(self))]
        maps = [item for item in items if 'seg_map_path' in item]
        classes = self.metainfo.get('classes') or ()
        if not maps or not classes:
            return Summary('pixels', {}, self.left_out)
        loader, check = LoadSegAnnotations(), CheckSegLabels(256)
        pixels = np.zeros(256, dtype=np.int64)
        for item in maps:
            found = loader.transform(dict(item, seg_fields=[]))
            check.check_channels(found)
            pixels += np.bincount(found['gt_seg_map'].ravel(), minlength=256)
        counts = dict(zip(classes, pixels.tolist(), strict=False))
        text = ''
        if not all(counts.values()):
            none, lowest = ('0 and 255 count', 1) if self.reduce_zero_label else ('255 counts', 0)
            text = (
                f'the label maps hold {numbers(item["seg_map_path"] for item in maps)}, {none} as none, and '
                f'the first class is {lowest}'
            )
        facts = {'label maps that are counted': len(maps)}
        return Summary('pixels', counts, self.left_out, text, total=int(pixels.sum()), facts=facts)


def numbers(paths: Iterable[str]) -> str:
    """The numbers in the first label maps, as the files hold them."""
    found: set[int] = set()
    for path in islice(paths, 100):
        with Image.open(path) as image:
            found.update(np.unique(np.asarray(image)).tolist())
    ordered = sorted(found)
    return 'the numbers ' + ', '.join(
        map(str, ordered if len(ordered) < 9 else [*ordered[:6], '...', ordered[-1]])
    )


@DATASETS.register_module()
class ADE20KDataset(SegDataset):
    """ADE20K's 150 classes, where 0 in a label map is none.

    Args:
        reduce_zero_label: Whether 0 is none and the first class is 1.
        **kwargs: As for :class:`SegDataset`.
    """

    METAINFO = mmseg.datasets.ADE20KDataset.METAINFO

    def __init__(self, reduce_zero_label: bool = True, **kwargs):
        super().__init__(reduce_zero_label=reduce_zero_label, **kwargs)
