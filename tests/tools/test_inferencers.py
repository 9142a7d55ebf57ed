"""The inferencers of the three libraries find what tools/test.py finds, on a machine that has no data."""

import re

import mmcv
import numpy as np
import pytest
from mmdet.apis import DetInferencer
from mmengine.config import Config
from mmpretrain import ImageClassificationInferencer
from mmseg.apis import MMSegInferencer
from pycocotools import mask as coco_mask

from grootv.checkpoint import install_safe_loader
from tests.tools.tiny_run import ROOT

KINDS = dict(
    classification=ImageClassificationInferencer, detection=DetInferencer, segmentation=MMSegInferencer
)


@pytest.fixture(scope='module')
def inferencers(tiny_run) -> dict:
    """All three in one process, built before the first is used."""
    install_safe_loader()
    built = {}
    for task, kind in KINDS.items():
        config = Config.fromfile(tiny_run(task).config)
        for side in ('train', 'val', 'test'):
            config[f'{side}_dataloader'].dataset.data_root = 'nowhere/'
        if task == 'segmentation':
            config.test_dataloader.dataset.pipeline[0].type = 'LoadImageFromFile'
        built[task] = kind(config, str(tiny_run(task).checkpoint))
    return built


@pytest.mark.parametrize('task', KINDS)
def test_file_and_array_get_the_predictions_of_a_test(inferencers, predictions, tiny_run, tmp_path, task):
    expected, run, infer = predictions(task)[0], tiny_run(task), inferencers[task]
    path = str(expected.get('img_path', run.config.parent / 'images/val/0/00.png'))
    images = [path, mmcv.imread(path)]
    if task == 'classification':
        for result in infer(images, show_dir=str(tmp_path)):
            np.testing.assert_allclose(result['pred_scores'], expected['pred_score'], rtol=1e-5)
            assert result['pred_class'] == str(result['pred_label']) == str(expected['pred_label'].item())
    elif task == 'detection':
        expected = expected['pred_instances']
        for result in infer(images, out_dir=str(tmp_path))['predictions']:
            assert result['labels'] == expected['labels'].tolist()
            np.testing.assert_allclose(result['scores'], expected['scores'], rtol=1e-5)
            np.testing.assert_allclose(result['bboxes'], expected['bboxes'], rtol=1e-5, atol=1e-3)
            masks = coco_mask.decode(result['masks'])
            assert (masks == coco_mask.decode(expected['masks'])).mean() > 0.999
    else:
        for labels in infer(images, out_dir=str(tmp_path))['predictions']:
            assert (labels == expected['pred_sem_seg']['data'][0].numpy()).mean() > 0.999
        metainfo, kept = infer.cfg.test_dataloader.dataset.metainfo, infer.model.dataset_meta
        assert tuple(kept['classes']) == metainfo.classes and kept['palette'] == metainfo.palette
    assert len([path for path in tmp_path.rglob('*') if path.suffix in ('.png', '.jpg')]) >= 2  # drawn


def test_measurement_of_the_page_runs(capsys):
    code = re.findall(r'```python\n(.*?)```', (ROOT / 'docs/inference.md').read_text(), re.DOTALL)[-1]
    code = code.replace('(800, 1333)', '(32, 53)').replace("'configs/", f"'{ROOT}/configs/")
    exec(compile(code, 'docs/inference.md', 'exec'), {})
    assert re.search(r'\d+\.\d s, \d+\.\d\d GiB\n$', capsys.readouterr().out)
