import numpy as np
import pytest
from mmengine.registry import TRANSFORMS
from PIL import Image

from grootv.datasets import LoadImageFromFile
from grootv.errors import UserError


@pytest.fixture
def image(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)
    path = tmp_path / 'image.jpg'
    Image.fromarray(pixels).save(path, quality=95)
    return path


def load(path, **options) -> dict:
    return LoadImageFromFile(**options)(dict(img_path=str(path)))


def test_every_scope_finds_it_and_it_loads_like_mmcv(image):
    loader = TRANSFORMS.build(dict(type='grootv.LoadImageFromFile'))
    result = loader(dict(img_path=str(image)))
    assert result['img_shape'] == (40, 30)
    np.testing.assert_array_equal(result['img'][:, :, ::-1], np.asarray(Image.open(image)))


def test_other_decoders_remain_possible(image):
    assert load(image, imdecode_backend='cv2')['img'].shape == (40, 30, 3)


def test_an_image_that_is_there_already_stays():
    there = dict(img=np.zeros((4, 3, 3), np.uint8))
    assert LoadImageFromFile()(there) is there


def test_a_truncated_image_is_named_and_not_filled_with_grey(image):
    image.write_bytes(image.read_bytes()[:-500])
    with pytest.raises(UserError, match=f'image {image} cannot be read .*truncated'):
        load(image)


@pytest.mark.parametrize('content', [b'', b'hello', b'\xff\xd8\xff\xe0'])
@pytest.mark.parametrize('decoder', ['pillow', 'cv2'])
def test_what_is_no_image_is_named(tmp_path, content, decoder):
    path = tmp_path / 'bad.png'
    path.write_bytes(content)
    with pytest.raises(UserError, match=f'image {path} cannot be read') as error:
        load(path, imdecode_backend=decoder)
    assert len(str(error.value).splitlines()) == 1


def test_a_missing_image_is_named(tmp_path):
    with pytest.raises(UserError, match=r'none\.png cannot be read \(it does not exist\)'):
        load(tmp_path / 'none.png')


def test_mmcvs_own_switch_still_skips(tmp_path):
    assert load(tmp_path / 'none.png', ignore_empty=True) is None
