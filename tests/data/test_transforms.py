"""Loading of images and label maps: what is read, and the sentence about a file that cannot be."""

import struct
from pathlib import Path

import cv2
import mmcv
import numpy as np
import pytest
from mmengine.dataset import Compose
from mmengine.registry import DATASETS, TRANSFORMS, init_default_scope
from PIL import Image

from grootv import cli
from grootv.datasets import CheckSegLabels, LoadImageFromFile, LoadSegAnnotations
from grootv.errors import UserError

IGNORED = 255


@pytest.fixture
def image(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)
    path = tmp_path / 'image.jpg'
    Image.fromarray(pixels).save(path, quality=95)
    return path


def load(path, **options) -> dict:
    return LoadImageFromFile(**options)(dict(img_path=str(path)))


def test_every_scope_finds_the_loader_and_it_loads_like_mmcv(image):
    loader = TRANSFORMS.build(dict(type='grootv.LoadImageFromFile'))
    result = loader(dict(img_path=str(image)))
    assert result['img_shape'] == (40, 30)
    np.testing.assert_array_equal(result['img'][:, :, ::-1], np.asarray(Image.open(image)))
    assert load(image, imdecode_backend='cv2')['img'].shape == (40, 30, 3)
    loaded = dict(img=np.zeros((4, 3, 3), np.uint8))
    assert LoadImageFromFile()(loaded) is loaded


GREY = np.linspace(0, 65535, 24).astype(np.uint16).reshape(4, 6)


@pytest.mark.parametrize(
    'pixels, suffix',
    [(GREY, 'png'), (GREY, 'tif'), (GREY.astype('>u2'), 'tif'), (GREY, 'pgm'), (GREY >> 8, 'jp2')],
)
@pytest.mark.parametrize('backend', ['pillow', 'cv2'])
def test_sixteen_bits_are_scaled_by_their_range_whatever_reads_them(tmp_path, pixels, suffix, backend):
    path = tmp_path / f'deep.{suffix}'
    Image.fromarray(pixels).save(path)
    found = load(path, imdecode_backend=backend)['img']
    assert found.dtype == np.uint8 and (found == found[..., :1]).all()
    np.testing.assert_allclose(found[..., 0], pixels.astype(np.float64) / 257, atol=1)


def test_twelve_bits_of_a_tiff_are_scaled_by_their_range(tmp_path):
    rows = (GREY >> 4).astype(np.uint16)
    packed = bytearray()
    for first, second in rows.reshape(-1, 2).tolist():
        packed += bytes([first >> 4, (first & 15) << 4 | second >> 8, second & 255])
    tags = [(256, 6), (257, 4), (258, 12), (259, 1), (262, 1), (273, 8 + 2 + 9 * 12 + 4), (277, 1), (278, 4)]
    tags.append((279, len(packed)))
    entries = b''.join(struct.pack('<HHII', tag, 4, 1, value) for tag, value in tags)
    path = tmp_path / 'twelve.tif'
    path.write_bytes(b'II*\0' + struct.pack('<IH', 8, len(tags)) + entries + bytes(4) + bytes(packed))
    np.testing.assert_array_equal(load(path)['img'][..., 1], rows >> 4)


DECODERS = [load, lambda path: mmcv.imread(str(path)), lambda path: load(path, imdecode_backend='cv2')]


@pytest.mark.parametrize('read', DECODERS)
def test_every_decoder_scales_by_the_range_that_the_file_states_and_refuses_the_rest(tmp_path, read):
    (tmp_path / 'twelve.pgm').write_bytes(b'P5 2 1 4095 ' + bytes([0, 0, 15, 255]))
    found = read(tmp_path / 'twelve.pgm')
    assert (found['img'] if isinstance(found, dict) else found)[0, :, 0].tolist() == [0, 255]
    cv2.imwrite(str(tmp_path / 'float.tif'), np.ones((2, 2, 3), np.float32))
    with pytest.raises((UserError, ValueError), match='no image in a format that Pillow reads'):
        read(tmp_path / 'float.tif')


@pytest.mark.parametrize('kind', [np.float32, np.int32])
def test_pixels_of_unknown_range_are_refused(tmp_path, kind):
    path = tmp_path / 'deep.tif'
    Image.fromarray(GREY.astype(kind)).save(path)
    fault = rf'image {path} cannot be read \(its pixels are 32-bit (floats|integers) of unknown range, scale'
    with pytest.raises(UserError, match=fault):
        load(path)


def test_an_image_of_another_size_than_its_annotations_is_refused(image):
    right = dict(img_path=str(image), height=40, width=30)
    assert LoadImageFromFile()(right)['img_shape'] == (40, 30)
    with pytest.raises(
        UserError, match='is 30 x 40 pixels upright, and the annotation file gives it 40 x 30:'
    ):
        LoadImageFromFile()(right | dict(height=30, width=40))


def test_an_image_that_cannot_be_read_is_named_and_not_filled_with_grey(image):
    whole = image.read_bytes()
    for content, options in (
        (whole[:-500], {}),
        (b'', {}),
        (b'hello', dict(imdecode_backend='cv2')),
        (b'\xff\xd8\xff\xe0', dict(imdecode_backend='cv2')),
    ):
        image.write_bytes(content)
        with pytest.raises(UserError, match=f'image {image} cannot be read') as error:
            load(image, **options)
        assert len(str(error.value).splitlines()) == 1
    image.unlink()
    with pytest.raises(UserError, match=r'image\.jpg cannot be read \(it does not exist\)'):
        load(image)
    assert load(image, ignore_empty=True) is None  # mmcv's own switch


# Label maps --------------------------------------------------------------------------------------


@pytest.fixture
def sample(tmp_path):
    """Write an image and its label map; what mmseg's data set says about them."""

    def write(labels: np.ndarray, reduce_zero_label: bool = False, label_map: dict | None = None) -> dict:
        image, path = (str(tmp_path / f'{name}.png') for name in ('image', 'labels'))
        Image.new('RGB', (6, 4)).save(image)
        Image.fromarray(labels).save(path)
        facts = dict(reduce_zero_label=reduce_zero_label, label_map=label_map, seg_fields=[])
        return dict(facts, img_path=image, seg_map_path=path)

    return write


def labels(*values: int, dtype=np.uint8, shape=(4, 6)) -> np.ndarray:
    """A map that holds these values, the last one everywhere else."""
    result = np.full(shape, values[-1], dtype)
    result.flat[: len(values)] = values
    return result


LOADERS = ['LoadAnnotations', 'grootv.LoadSegAnnotations']
CHOSEN = {old: IGNORED for old in range(148)} | {148: 0, 149: 1}  # two of 150 stored classes


def check(sample: dict, loader: str = LOADERS[1], num_classes: int = 3) -> np.ndarray:
    init_default_scope('mmseg')
    check = dict(type='grootv.CheckSegLabels', num_classes=num_classes)
    steps = [dict(type='grootv.LoadImageFromFile'), dict(type=loader), check]
    return Compose([TRANSFORMS.build(step) for step in steps])(sample)['gt_seg_map']


@pytest.mark.parametrize('loader', LOADERS)
@pytest.mark.parametrize(
    'stored, options, expected',
    [
        (labels(0, 1, 2, IGNORED), {}, labels(0, 1, 2, IGNORED)),
        (labels(0, 1, 3, IGNORED), dict(reduce_zero_label=True), labels(IGNORED, 0, 2, IGNORED)),
        (labels(0, 2, dtype=np.uint16), {}, labels(0, 2)),
        (labels(0, 147, 148, 149), dict(label_map=CHOSEN), labels(IGNORED, IGNORED, 0, 1)),
    ],
)
def test_labels_in_range_pass(sample, loader, stored, options, expected):
    np.testing.assert_array_equal(check(sample(stored, **options), loader), expected)


@pytest.mark.parametrize('loader', LOADERS)
@pytest.mark.parametrize(
    'stored, reduce_zero_label, fault',
    [
        (labels(0, 3, 7), False, 'holds the label 3, and 3 classes are numbered 0 to 2 (255 for none)'),
        (labels(0, 3, 4), True, 'holds the label 4, and 3 classes are numbered 1 to 3 (0 or 255 for none)'),
        (labels(1, 254), True, 'holds the label 254,'),
        (labels(0, 300, dtype=np.uint16), False, 'holds the label 300,'),  # its lowest eight bits are 44
        (labels(0, 257, dtype=np.uint16), False, 'holds the label 257,'),  # and here they are a class
        (labels(0, 3), None, 'holds the label 3, and the one class has the number 0 (255 for none)'),
        (labels(0, shape=(4, 5)), False, 'is 5 x 4 pixels and its image {image} 6 x 4: both must have'),
        (labels(0, shape=(4, 6, 3)), False, 'has 3 channels, and one is needed'),
    ],
)
def test_a_map_that_does_not_fit_is_named_with_the_label_as_stored(
    sample, loader, stored, reduce_zero_label, fault
):
    facts = sample(stored, bool(reduce_zero_label))
    with pytest.raises(UserError) as error:
        check(facts, loader, num_classes=1 if reduce_zero_label is None else 3)
    fault = fault.format(image=facts['img_path'])
    assert f'label map {facts["seg_map_path"]} {fault}' in str(error.value)


def test_a_truncated_or_missing_map_is_named_with_its_image(sample):
    facts = sample(labels(0))
    path = Path(facts['seg_map_path'])
    path.write_bytes(path.read_bytes()[:-30])
    fault = f'label map {path} of image {facts["img_path"]} cannot be read'
    with pytest.raises(UserError, match=fault):
        check(facts)
    path.unlink()
    with pytest.raises(UserError, match=rf'{fault} \(it does not exist\)'):
        check(facts)


def test_a_data_set_without_an_image_is_a_sentence(tmp_path):
    prefix = dict(img_path='', seg_map_path='')
    with pytest.raises(ValueError) as empty:
        DATASETS.build(dict(type='mmseg.BaseSegDataset', data_root=str(tmp_path), data_prefix=prefix))
    assert cli.explain(empty.value).startswith('a data set of the config has no image: check its data_root')


def test_an_image_without_a_map_passes_and_options_reach_mmsegs_loader():
    facts = dict(img_path='a.jpg')
    assert CheckSegLabels(num_classes=3)(facts) is facts
    assert LoadSegAnnotations(imdecode_backend='cv2').loader.imdecode_backend == 'cv2'
