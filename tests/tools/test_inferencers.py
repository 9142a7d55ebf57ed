"""The inferencers of the three libraries agree with tools/test.py."""

import json
import re
from pathlib import Path

import mmcv
import numpy as np
import pytest
from mmengine.config import Config
from PIL import Image
from pycocotools import mask as coco_mask

from grootv.checkpoint import install_safe_loader
from tests.tools.tiny_run import ROOT


@pytest.fixture(scope='module')
def inferencers(tiny_run) -> dict:
    """All three in one process, built before the first is used, on a machine that has no data."""
    from mmdet.apis import DetInferencer
    from mmpretrain import ImageClassificationInferencer
    from mmseg.apis import MMSegInferencer

    install_safe_loader()
    built = {}
    for task, kind, options in (
        ('classification', ImageClassificationInferencer, {}),
        ('detection', DetInferencer, dict(show_progress=False)),
        ('segmentation', MMSegInferencer, dict(show_progress=False)),
    ):
        run = tiny_run(task)
        config = Config.fromfile(run.config)
        for side in ('train', 'val', 'test'):
            config[f'{side}_dataloader'].dataset.data_root = 'nowhere/'
        if task == 'segmentation':
            config.test_dataloader.dataset.pipeline[0].type = 'LoadImageFromFile'
        built[task] = kind(config, str(run.checkpoint), **options)
    return built


@pytest.fixture
def tested(tiny_run, predictions):
    """What tools/test.py predicts for the first image of a task, and the image as a file and an array."""

    def test(task: str) -> tuple[dict, list]:
        first = predictions(task)[0]
        path = str(first.get('img_path', tiny_run(task).config.parent / 'images/val/0/00.png'))
        return first, [path, mmcv.imread(path)]

    return test


def pictures(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob('*') if path.suffix in ('.png', '.jpg'))


def test_classes(inferencers, tested, tmp_path):
    expected, images = tested('classification')
    for result in inferencers['classification'](images, show_dir=str(tmp_path)):
        np.testing.assert_allclose(result['pred_scores'], expected['pred_score'], rtol=1e-5)
        assert result['pred_label'] == expected['pred_label'].item()
        assert result['pred_class'] == str(result['pred_label'])
    assert pictures(tmp_path) == ['00.png', '1.png']


def test_objects(inferencers, tested, tmp_path):
    expected, (file, array) = tested('detection')
    expected = expected['pred_instances']
    detect = inferencers['detection']
    (written,) = detect(file, out_dir=str(tmp_path), no_save_pred=False)['predictions']
    (drawn,) = detect(array, out_dir=str(tmp_path))['predictions']
    for result in (written, drawn):
        assert result['labels'] == expected['labels'].tolist()
        np.testing.assert_allclose(result['scores'], expected['scores'], rtol=1e-5)
        np.testing.assert_allclose(result['bboxes'], expected['bboxes'], rtol=1e-5, atol=1e-3)
        masks = coco_mask.decode(result['masks'])
        assert masks.shape == (128, 128, len(expected['masks']))
        assert (masks == coco_mask.decode(expected['masks'])).mean() > 0.999
    assert pictures(tmp_path) == ['00000001.jpg', Path(file).name]
    assert json.loads((tmp_path / f'preds/{Path(file).stem}.json').read_text()) == written
    with pytest.raises(TypeError):  # an array has no name for the file of its predictions
        detect(array, out_dir=str(tmp_path), no_save_pred=False)


def test_label_maps_and_their_colours(inferencers, tested, tiny_run, tmp_path):
    expected, images = tested('segmentation')
    segment = inferencers['segmentation']
    found = segment(images, out_dir=str(tmp_path))
    expected = expected['pred_sem_seg']['data'][0].numpy()
    for number, labels in enumerate(found['predictions']):
        assert (labels == expected).mean() > 0.999
        assert np.array_equal(Image.open(tmp_path / f'pred/{number:08d}_pred.png'), labels)
    assert pictures(tmp_path / 'vis') == ['00000001_vis.jpg', Path(images[0]).name]
    metainfo = Config.fromfile(tiny_run('segmentation').config).test_dataloader.dataset.metainfo
    kept = segment.model.dataset_meta
    assert tuple(kept['classes']) == metainfo.classes and kept['palette'] == metainfo.palette


def test_measurement_of_the_page_runs(capsys):
    code = re.findall(r'```python\n(.*?)```', (ROOT / 'docs/inference.md').read_text(), re.DOTALL)[-1]
    code = code.replace('(800, 1333)', '(32, 53)')
    exec(compile(code.replace("'configs/", f"'{ROOT}/configs/"), 'docs/inference.md', 'exec'), {})
    assert re.search(r'\d+\.\d s, \d+\.\d\d GiB\n$', capsys.readouterr().out)
