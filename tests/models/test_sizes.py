"""Detectors and segmenters on images of any size, alone and in batches of unequal ones."""

import pytest
import torch
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import InstanceData, PixelData
from mmseg.structures import SegDataSample

from tests.tools.tiny_run import write_detection, write_segmentation

# Height, width: one pixel over a multiple of 32, one over a multiple of 4, and a last stage of 1 x 1.
RAGGED = [(65, 33), (37, 97), (32, 20)]
ALONE = [(65, 33), (37, 97), (32, 32), (5, 3), (1, 1)]


@pytest.fixture(scope='module')
def build(tmp_path_factory):
    """Builds the tiny network of a task, with options of its preprocessor."""
    folder = tmp_path_factory.mktemp('sizes')
    writers = dict(mmdet=write_detection, mmseg=write_segmentation)
    files = {scope: write(folder / scope, folder) for scope, write in writers.items()}

    def build(scope, **preprocessor):
        init_default_scope(scope)
        torch.manual_seed(0)
        config = Config.fromfile(files[scope]).model
        config.data_preprocessor.update(preprocessor)
        model = MODELS.build(config)
        model.init_weights()
        return model.eval()

    return build


def batch(scope: str, sizes: list[tuple[int, int]]) -> dict:
    """Noise, labelled: an object that fills most of each image, or a class at each pixel."""
    samples = [(scene if scope == 'mmdet' else label_map)(*size) for size in sizes]
    for sample, (height, width) in zip(samples, sizes, strict=True):  # twice as large as the network sees
        shapes = dict(img_shape=(height, width), ori_shape=(2 * height, 2 * width))
        sample.set_metainfo(dict(shapes, scale_factor=(0.5, 0.5), flip=False))
    images = [torch.randint(0, 256, (3, *size), dtype=torch.uint8) for size in sizes]
    return dict(inputs=images, data_samples=samples)


def scene(height: int, width: int) -> DetDataSample:
    mask = torch.zeros(1, height, width, dtype=torch.uint8)
    mask[:, height // 4 :, width // 4 :] = 1
    masks = BitmapMasks(mask.numpy(), height, width)
    boxes, labels = torch.tensor([[width // 4, height // 4, width, height]]).float(), torch.tensor([3])
    sample = DetDataSample(gt_instances=InstanceData(bboxes=boxes, labels=labels, masks=masks))
    sample.ignored_instances = InstanceData(bboxes=boxes[:0], labels=labels[:0])
    return sample


def label_map(*size: int) -> SegDataSample:
    return SegDataSample(gt_sem_seg=PixelData(data=torch.randint(0, 11, (1, *size))))


def check(sample: DetDataSample | SegDataSample) -> None:
    """All that is found lies in the original image, which is larger than what the network saw."""
    height, width = sample.ori_shape
    if isinstance(sample, SegDataSample):
        labels = sample.pred_sem_seg.data
        assert labels.shape == (1, height, width) and ((labels >= 0) & (labels < 11)).all()
        assert sample.seg_logits.data.isfinite().all()
        return
    objects = sample.pred_instances
    assert objects.masks.shape == (len(objects.labels), height, width) and len(objects.labels) > 0
    assert (objects.bboxes >= 0).all()
    assert (objects.bboxes <= torch.tensor([width, height, width, height]) + 1e-3).all()


@pytest.mark.parametrize(
    ('scope', 'preprocessor'),
    [('mmdet', dict(pad_size_divisor=32)), ('mmdet', dict(pad_size_divisor=1)), ('mmseg', {})],
)
@pytest.mark.parametrize('size', ALONE)
def test_an_image_of_any_size(build, scope, preprocessor, size):
    with torch.no_grad():
        (sample,) = build(scope, **preprocessor).test_step(batch(scope, [size]))
    check(sample)


@pytest.mark.parametrize(('divisor', 'height', 'width'), [(32, 96, 128), (1, 65, 97)])
def test_objects_of_a_ragged_batch(build, divisor, height, width):
    model = build('mmdet', pad_size_divisor=divisor)
    seen = []
    model.backbone.register_forward_hook(lambda _, images, maps: seen.append((images[0].shape, maps)))
    with torch.no_grad():
        found = model.test_step(batch('mmdet', RAGGED))
    (shape, maps), *_ = seen
    assert shape == (3, 3, height, width)
    assert [tuple(m.shape[2:]) for m in maps] == [(-(-height // s), -(-width // s)) for s in (4, 8, 16, 32)]
    for sample, size in zip(found, RAGGED, strict=True):
        assert sample.ori_shape == (2 * size[0], 2 * size[1])
        check(sample)


@pytest.mark.parametrize('padding', [None, dict(size_divisor=32)])
def test_labels_of_a_batch_are_those_of_each_image_alone(build, padding):
    data = batch('mmseg', [(65, 33)] * 2)
    model = build('mmseg', test_cfg=padding)
    with torch.no_grad():
        found = model.test_step(data)
        (alone,) = model.test_step({name: values[1:] for name, values in data.items()})
    for sample in found:
        check(sample)
    torch.testing.assert_close(found[1].seg_logits.data, alone.seg_logits.data, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize('scope', ['mmdet', 'mmseg'])
def test_learns_from_a_ragged_batch(build, scope):
    model = build(scope).train()
    data = model.data_preprocessor(batch(scope, RAGGED), training=True)
    if scope == 'mmseg':  # padded to the training size, with pixels that count for nothing
        assert data['inputs'].shape == (3, 3, 128, 128)
        for sample, size in zip(data['data_samples'], RAGGED, strict=True):
            assert (sample.gt_sem_seg.data != 255).sum() == size[0] * size[1]
    loss, parts = model.parse_losses(model(**data, mode='loss'))
    loss.backward()
    assert all(torch.isfinite(part).all() for part in parts.values())
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
