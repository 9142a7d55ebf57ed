import json

import numpy as np
import pytest
import stamp_scenes
import stamps
from PIL import Image
from pycocotools import mask as mask_util

from grootv.errors import UserError


def test_stamps_are_cropped_and_drawings_left_out(few_stamps):
    found = stamps.stamps()
    assert len(found['train']) == 4 and len(found['test']) == 2
    assert found['test'][0].picture.shape == (80, 90, 4) and found['test'][0].kind == 'animals'


def test_missing_stamps_say_where_to_get_them(tmp_path, monkeypatch):
    monkeypatch.setattr(stamps, 'FOLDERS', (tmp_path / 'stamps',))
    stamps.stamps.cache_clear()
    with pytest.raises(UserError, match='apt-get download tuxpaint-stamps-default'):
        stamps.stamps()


def test_a_series_of_stamps_is_on_one_side(few_stamps):
    folder = stamps.FOLDERS[0] / stamps.INSIDE / 'animals'
    for name in ('a_mirror', 'a12', 'a12b'):
        (folder / f'{name}.png').write_bytes((folder / 'a.png').read_bytes())
    found = stamps.stamps()
    assert len(found['test']) == 4 + 1 and len(found['train']) == 4


def test_boxes_masks_and_label_maps_of_scenes_agree(few_stamps, tmp_path):
    animals = stamps.FOLDERS[0] / stamps.INSIDE / 'animals'
    (animals.parent / 'food').mkdir()
    for name in 'bdf':
        (animals / f'{name}.png').rename(animals.parent / f'food/{name}.png')
    out = tmp_path / 'scenes'
    stamp_scenes.main([str(out), '--training', '4', '--validation', '2'])
    content = json.loads((out / 'annotations/training.json').read_text())
    assert [category['name'] for category in content['categories']] == ['animal', 'thing']
    found = [np.zeros((128, 128), bool) for _ in range(4)]
    for one in content['annotations']:
        mask = mask_util.decode(one['segmentation']).astype(bool)
        labels = np.array(Image.open(out / f'annotations/training/{one["image_id"]:05d}.png'))
        assert set(labels[mask]) == {one['category_id'] + 1} and mask.sum() == one['area']
        ys, xs = mask.nonzero()
        box = [xs.min(), ys.min(), xs.max() - xs.min() + 1, ys.max() - ys.min() + 1]
        assert one['bbox'] == box
        found[one['image_id'] - 1] |= mask
    for number, seen in enumerate(found, 1):
        labels = np.array(Image.open(out / f'annotations/training/{number:05d}.png'))
        assert (labels[~seen] > 1).sum() < 5 * stamp_scenes.LEAST_PIXELS and labels.min() == 1
    assert {one['category_id'] for one in content['annotations']} == {1, 2}
    with pytest.raises(UserError, match='exists: remove it'):
        stamp_scenes.main([str(out)])
