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
ENLARGED = 2  # the images were twice as large as the network sees them


def noise(size: tuple[int, int]) -> torch.Tensor:
    return torch.randint(0, 256, (3, *size), dtype=torch.uint8)


def original(size: tuple[int, int]) -> tuple[int, int]:
    return ENLARGED * size[0], ENLARGED * size[1]


# Mask R-CNN ----------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def detector_config(tmp_path_factory) -> Config:
    folder = tmp_path_factory.mktemp('detector')
    return Config.fromfile(write_detection(folder, folder)).model


def detector(config: Config, divisor: int):
    init_default_scope('mmdet')
    torch.manual_seed(0)
    model = MODELS.build(config)
    model.data_preprocessor.pad_size_divisor = divisor
    model.init_weights()
    return model


def scene(size: tuple[int, int]) -> DetDataSample:
    """An object that fills most of the image."""
    height, width = size
    sample = DetDataSample(
        metainfo=dict(img_shape=size, ori_shape=original(size), scale_factor=(1 / ENLARGED, 1 / ENLARGED))
    )
    mask = torch.zeros(1, height, width, dtype=torch.uint8)
    mask[:, height // 4 :, width // 4 :] = 1
    box = torch.tensor([[width // 4, height // 4, width, height]], dtype=torch.float32)
    sample.gt_instances = InstanceData(
        bboxes=box, labels=torch.tensor([3]), masks=BitmapMasks(mask.numpy(), height, width)
    )
    sample.ignored_instances = InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.long))
    return sample


def check_objects(sample: DetDataSample) -> None:
    """All that is found lies in the original image, which is larger than what the network saw."""
    height, width = sample.ori_shape
    objects = sample.pred_instances
    assert len(objects.labels) > 0
    assert (objects.bboxes >= 0).all()
    assert (objects.bboxes <= torch.tensor([width, height, width, height]) + 1e-3).all()
    assert objects.masks.shape == (len(objects.labels), height, width)


@pytest.mark.parametrize('divisor', [32, 1])
def test_objects_of_a_ragged_batch(detector_config, divisor):
    model = detector(detector_config, divisor).eval()
    batch = dict(inputs=[noise(size) for size in RAGGED], data_samples=[scene(size) for size in RAGGED])
    seen = []
    model.backbone.register_forward_hook(lambda _, images, maps: seen.append((images[0].shape, maps)))
    with torch.no_grad():
        found = model.test_step(batch)
    (shape, maps), *_ = seen
    assert shape == ((3, 3, 96, 128) if divisor == 32 else (3, 3, 65, 97))
    assert [tuple(m.shape[2:]) for m in maps] == [
        tuple(-(-side // stride) for side in shape[2:]) for stride in (4, 8, 16, 32)
    ]
    for sample, size in zip(found, RAGGED, strict=True):
        assert sample.ori_shape == original(size)
        check_objects(sample)


@pytest.mark.parametrize('divisor', [32, 1])
@pytest.mark.parametrize('size', ALONE)
def test_objects_of_an_image_of_any_size(detector_config, size, divisor):
    model = detector(detector_config, divisor).eval()
    with torch.no_grad():
        (sample,) = model.test_step(dict(inputs=[noise(size)], data_samples=[scene(size)]))
    check_objects(sample)


def test_a_detector_learns_from_a_ragged_batch(detector_config):
    model = detector(detector_config, 32).train()
    batch = dict(inputs=[noise(size) for size in RAGGED], data_samples=[scene(size) for size in RAGGED])
    loss, parts = model.parse_losses(model(**model.data_preprocessor(batch, training=True), mode='loss'))
    loss.backward()
    assert all(torch.isfinite(part).all() for part in parts.values())
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


# UPerNet -------------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def segmenter_config(tmp_path_factory) -> Config:
    folder = tmp_path_factory.mktemp('segmenter')
    return Config.fromfile(write_segmentation(folder, folder)).model


def segmenter(config: Config, **preprocessor):
    init_default_scope('mmseg')
    torch.manual_seed(0)
    config = Config(dict(model=config.to_dict())).model
    config.data_preprocessor.update(preprocessor)
    model = MODELS.build(config)
    model.init_weights()
    return model


def label_map(size: tuple[int, int]) -> SegDataSample:
    sample = SegDataSample(metainfo=dict(img_shape=size, ori_shape=original(size), flip=False))
    sample.gt_sem_seg = PixelData(data=torch.randint(0, 11, (1, *size)))
    return sample


def check_labels(sample: SegDataSample) -> None:
    labels = sample.pred_sem_seg.data
    assert labels.shape == (1, *sample.ori_shape)
    assert ((labels >= 0) & (labels < 11)).all()
    assert torch.isfinite(sample.seg_logits.data).all()


@pytest.mark.parametrize('size', ALONE)
def test_labels_of_an_image_of_any_size(segmenter_config, size):
    model = segmenter(segmenter_config).eval()
    with torch.no_grad():
        (sample,) = model.test_step(dict(inputs=[noise(size)], data_samples=[label_map(size)]))
    check_labels(sample)


def test_labels_of_a_batch(segmenter_config):
    """Images of one size, one pixel over a multiple of 32; padded or not, they come back in that size."""
    size = (65, 33)
    images, samples = [noise(size) for _ in range(2)], [label_map(size) for _ in range(2)]
    for padding in (None, dict(size_divisor=32)):
        model = segmenter(segmenter_config, test_cfg=padding).eval()
        with torch.no_grad():
            found = model.test_step(dict(inputs=images, data_samples=samples))
            (alone,) = model.test_step(dict(inputs=images[1:], data_samples=samples[1:]))
        for sample in found:
            check_labels(sample)
        torch.testing.assert_close(found[1].seg_logits.data, alone.seg_logits.data, rtol=1e-3, atol=1e-5)


def test_a_segmenter_learns_from_a_ragged_batch(segmenter_config):
    """Crops smaller than the training size are padded to it, with pixels that count for nothing."""
    model = segmenter(segmenter_config).train()
    batch = dict(inputs=[noise(s) for s in RAGGED], data_samples=[label_map(s) for s in RAGGED])
    data = model.data_preprocessor(batch, training=True)
    assert data['inputs'].shape == (3, 3, 128, 128)
    for sample, size in zip(data['data_samples'], RAGGED, strict=True):
        assert (sample.gt_sem_seg.data != 255).sum() == size[0] * size[1]
    loss, parts = model.parse_losses(model(**data, mode='loss'))
    loss.backward()
    assert all(torch.isfinite(part).all() for part in parts.values())
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
