"""Data sets that are folders: which files they read, and what they tell before a run."""

from pathlib import Path

import numpy as np
import pytest
from mmengine.registry import DATASETS, init_default_scope
from PIL import Image, features

from grootv.datasets import LoadImageFromFile
from grootv.datasets.images import IMAGE_SUFFIXES, upright_size
from grootv.datasets.summary import files_below
from grootv.errors import UserError


def write(*paths: Path, value: int = 0) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((4, 6), value, np.uint8)).save(path)


def images(root: Path, **options):
    init_default_scope('mmpretrain')
    defaults = dict(data_root=str(root), split='train', pipeline=[], metainfo=dict(classes=('cat', 'dog')))
    return DATASETS.build(dict(type='grootv.ImageNet', **defaults | options))


def scenes(root: Path, **options):
    init_default_scope('mmseg')
    places = dict(data_root=str(root), data_prefix=dict(img_path='images', seg_map_path='labels'))
    defaults = dict(places, pipeline=[], metainfo=dict(classes=('sky', 'field'), palette=[[0] * 3] * 2))
    return DATASETS.build(dict(type='grootv.SegDataset', **defaults | options))


def test_images_of_every_format_of_pillow_are_read_and_other_files_counted(tmp_path):
    formats = ['jpg', 'png', 'webp', 'tif', 'tiff', 'gif', 'bmp', 'pgm', 'JPEG']
    formats += [name for name, feature in (('avif', 'avif'), ('jp2', 'jpg_2000')) if features.check(feature)]
    assert {f'.{name}'.lower() for name in formats} <= set(IMAGE_SUFFIXES)
    write(
        *(tmp_path / f'train/cat/{i}.{name}' for i, name in enumerate(formats)), tmp_path / 'train/dog/0.png'
    )
    for name in ('notes.txt', 'cat/list', 'cat/.hidden', 'dog/Thumbs.db'):
        (tmp_path / 'train' / name).write_text('')
    summary = images(tmp_path).summary()
    assert summary.counts == dict(cat=len(formats), dog=1)
    left_out = {suffix: [Path(file).name for file in files] for suffix, files in summary.left_out.items()}
    assert left_out == {'.txt': ['notes.txt'], 'no suffix': ['list'], '.db': ['Thumbs.db']}


@pytest.mark.parametrize('names', [('dog', 'cat'), ('Dog', 'Cat')])
def test_names_in_another_order_than_the_folders_are_refused(tmp_path, names):
    write(tmp_path / 'train/cat/0.png', tmp_path / 'train/dog/0.png')
    fault = rf'differ from class 0 on: the folders are cat, dog, the names {", ".join(names)}: give'
    with pytest.raises(UserError, match=fault):
        images(tmp_path, metainfo=dict(classes=names))
    assert images(tmp_path, metainfo=dict(classes=('house cat', 'wolf'))).CLASSES == ('house cat', 'wolf')


@pytest.mark.parametrize('label', [2, -1])
def test_a_listed_class_without_a_name_is_refused(tmp_path, label):
    write(tmp_path / 'train/a.png')
    (tmp_path / 'list.txt').write_text(f'\na.png {label}\n')
    fault = rf'list\.txt, line 2 gives a\.png the class {label}, and 2 classes are numbered 0 to 1'
    with pytest.raises(UserError, match=fault):
        images(tmp_path, ann_file='list.txt')


def test_listed_images_that_do_not_exist_are_reported_before_a_run(tmp_path):
    write(tmp_path / 'train/a.png', tmp_path / 'train/deep/b.png')
    (tmp_path / 'list.txt').write_text('a.png 0\ndeep/b.png 1\n')
    assert images(tmp_path, ann_file='list.txt').summary().counts == dict(cat=1, dog=1)
    (tmp_path / 'list.txt').write_text('a.png 0\nb.png 1\nc.png 1\n')
    fault = r'list\.txt lists 2 images that do not exist \(.*b\.png, .*c\.png\): fix the file, or data_prefix'
    with pytest.raises(UserError, match=fault):
        images(tmp_path, ann_file='list.txt').summary()


def test_images_and_label_maps_of_any_format_are_paired_by_name(tmp_path):
    write(tmp_path / 'images/a.jpg', tmp_path / 'images/deep/b.webp', tmp_path / 'labels/deep/b.tif')
    write(tmp_path / 'labels/a.png', tmp_path / 'labels/c.png', value=1)
    (tmp_path / 'images/readme.md').write_text('')
    dataset = scenes(tmp_path)
    found = [
        [Path(dataset.get_data_info(i)[key]).name for key in ('img_path', 'seg_map_path')] for i in (0, 1)
    ]
    assert found == [['a.jpg', 'a.png'], ['b.webp', 'b.tif']]
    summary = dataset.summary()
    assert summary.counts == dict(sky=24, field=24) and summary.found == ''
    assert summary.facts == {'label maps that are counted': 2}
    assert {suffix: len(files) for suffix, files in summary.left_out.items()} == {'.md': 1, '.png': 1}
    (tmp_path / 'list.txt').write_text('deep/b.webp\n\n')
    assert len(scenes(tmp_path, ann_file='list.txt')) == 1


def test_ends_of_names_that_the_label_maps_do_not_share_are_options(tmp_path):
    write(tmp_path / 'images/a_photo.png', tmp_path / 'images/a_depth.png', tmp_path / 'labels/a_ids.png')
    dataset = scenes(tmp_path, img_suffix='_photo.png', seg_map_suffix='_ids.png')
    assert [Path(path).name for path in dataset.get_data_info(0).values() if isinstance(path, str)] == [
        'a_photo.png',
        'a_ids.png',
    ]


@pytest.mark.parametrize(
    'files, fault',
    [
        (['images/a.jpg', 'images/b.jpg', 'labels/a.png'], r'labels has no label map for b: add the files'),
        (['images/a.jpg', 'images/a.png', 'labels/a.png'], r'images has two files for a, a\.jpg and a\.png'),
        (['labels/a.png'], r'images has no image: check data_root, data_prefix and img_suffix'),
    ],
)
def test_images_without_a_label_map_of_their_own_are_refused(tmp_path, files, fault):
    (tmp_path / 'images').mkdir()
    write(*(tmp_path / file for file in files))
    with pytest.raises(UserError, match=fault):
        scenes(tmp_path)


@pytest.mark.parametrize(
    'values, reduce_zero_label, counts, found',
    [
        (
            (0, 255),
            False,
            dict(sky=24, field=0),
            'hold the numbers 0, 255, 255 counts as none, and the first',
        ),
        (
            (0, 1),
            True,
            dict(sky=24, field=0),
            'hold the numbers 0, 1, 0 and 255 count as none, and the first',
        ),
        (
            (1, 2),
            False,
            dict(sky=0, field=24),
            'hold the numbers 1, 2, 255 counts as none, and the first class is 0',
        ),
        ((1, 2), True, dict(sky=24, field=24), ''),
        ((255, 255), False, dict(sky=0, field=0), 'hold the numbers 255, 255 counts as none'),
    ],
)
def test_classes_without_a_pixel_are_told_with_the_numbers_in_the_maps(
    tmp_path, values, reduce_zero_label, counts, found
):
    for index, value in enumerate(values):
        write(tmp_path / f'images/{index}.png')
        write(tmp_path / f'labels/{index}.png', value=value)
    summary = scenes(tmp_path, reduce_zero_label=reduce_zero_label).summary()
    assert summary.counts == counts and found in summary.found and summary.total == 48


@pytest.mark.parametrize('line', ['a.png', 'a.png cat', 'a.png,0', '0'])
def test_a_line_that_names_no_image_and_class_is_shown(tmp_path, line):
    write(tmp_path / 'train/a.png')
    (tmp_path / 'list.txt').write_text(f'a.png 0\n{line}\n')
    with pytest.raises(UserError, match=rf"line 2: a path, a blank and .* are needed, got '{line}'"):
        images(tmp_path, ann_file='list.txt')


def test_a_folder_too_many_or_too_few_is_named(tmp_path):
    write(tmp_path / 'train/cat/0.png', tmp_path / 'train/dog/0.png', tmp_path / 'train/owl/0.png')
    fault = r'differ: 3 folders, 2 names \(look at owl\): each class'
    with pytest.raises(UserError, match=fault):
        images(tmp_path)


@pytest.mark.parametrize('build', [images, scenes])
def test_names_of_classes_as_one_text_are_refused(tmp_path, build):
    write(tmp_path / 'train/cat/0.png', tmp_path / 'images/a.png', tmp_path / 'labels/a.png')
    with pytest.raises(UserError, match=r"metainfo.classes must be a tuple of names, got the text 'cat'"):
        build(tmp_path, metainfo=dict(classes='cat', palette=[[0] * 3] * 3))


def test_maps_of_colours_are_refused_before_they_are_counted(tmp_path):
    write(tmp_path / 'images/a.png')
    (tmp_path / 'labels').mkdir()
    Image.new('RGB', (6, 4)).save(tmp_path / 'labels/a.png')
    with pytest.raises(UserError, match=r'a\.png has 3 channels, and one is needed'):
        scenes(tmp_path).summary()


def test_links_that_lead_back_end(tmp_path):
    write(tmp_path / 'a/0.png')
    (tmp_path / 'a/again').symlink_to(tmp_path)
    assert len(files_below(str(tmp_path))) <= 2


@pytest.mark.parametrize('suffix', ['jpg', 'png', 'tif', 'webp'])
def test_upright_size_is_that_of_the_loaded_image(suffix, tmp_path):
    path, exif = tmp_path / f'turned.{suffix}', Image.Exif()
    exif[0x0112] = 6  # lies on its side
    Image.new('RGB', (20, 10)).save(path, exif=exif)
    loaded = LoadImageFromFile().transform(dict(img_path=str(path)))
    with Image.open(path) as image:
        assert upright_size(image) == loaded['img'].shape[1::-1] == (10, 20)
