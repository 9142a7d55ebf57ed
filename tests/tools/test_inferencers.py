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
from tests.tools.tiny_run import ROOT, TinyRun


def without_data(run: TinyRun) -> Config:
    """The run's config on a machine that has no data."""
    config = Config.fromfile(run.config)
    for side in ('train', 'val', 'test'):
        config[f'{side}_dataloader'].dataset.data_root = 'nowhere/'
    return config


def classifier(run: TinyRun):
    from mmpretrain import ImageClassificationInferencer

    return ImageClassificationInferencer(without_data(run), str(run.checkpoint))


def detector(run: TinyRun):
    from mmdet.apis import DetInferencer

    return DetInferencer(without_data(run), str(run.checkpoint), show_progress=False)


def segmenter(run: TinyRun):
    from mmseg.apis import MMSegInferencer

    config = without_data(run)
    config.test_dataloader.dataset.pipeline[0].type = 'LoadImageFromFile'
    return MMSegInferencer(config, str(run.checkpoint), show_progress=False)


BUILDERS = dict(classification=classifier, detection=detector, segmentation=segmenter)


@pytest.fixture(scope='module')
def inferencers(tiny_run) -> dict:
    """All three in one process, built before the first is used."""
    install_safe_loader()
    return {task: build(tiny_run(task)) for task, build in BUILDERS.items()}


@pytest.fixture
def tested(tiny_run, predictions):
    """What tools/test.py predicts for the first image of a task, and the image's path."""

    def test(task: str) -> tuple[dict, str]:
        first = predictions(task)[0]
        return first, str(first.get('img_path', tiny_run(task).config.parent / 'images/val/0/00.png'))

    return test


def images(path: str) -> list:
    """The picture as a file and as an array."""
    return [path, mmcv.imread(path)]


def pictures(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob('*') if path.suffix in ('.png', '.jpg'))


def test_classes(inferencers, tested, tmp_path):
    expected, path = tested('classification')
    found = inferencers['classification'](images(path), show_dir=str(tmp_path / 'drawn'))
    for result in found:
        np.testing.assert_allclose(result['pred_scores'], expected['pred_score'], rtol=1e-5)
        assert result['pred_label'] == expected['pred_label'].item()
        assert result['pred_class'] == str(result['pred_label'])
    assert [path.name for path in pictures(tmp_path)] == ['00.png', '1.png']


def test_objects(inferencers, tested, tmp_path):
    expected, path = tested('detection')
    expected = expected['pred_instances']
    file, array = images(path)
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
    name = Path(path).stem
    assert [path.name for path in pictures(tmp_path)] == ['00000001.jpg', f'{name}.jpg']
    assert json.loads((tmp_path / f'preds/{name}.json').read_text()) == written
    with pytest.raises(TypeError):  # an array has no name for the file of its predictions
        detect(array, out_dir=str(tmp_path), no_save_pred=False)


def test_label_maps(inferencers, tested, tmp_path):
    expected, path = tested('segmentation')
    found = inferencers['segmentation'](images(path), out_dir=str(tmp_path))
    expected = expected['pred_sem_seg']['data'][0].numpy()
    for number, labels in enumerate(found['predictions']):
        assert (labels == expected).mean() > 0.999
        written = Image.open(tmp_path / f'pred/{number:08d}_pred.png')
        assert np.array_equal(written, labels)
    assert [path.name for path in pictures(tmp_path / 'vis')] == ['00000001_vis.jpg', Path(path).name]


def test_colours_of_a_drawn_label_map_are_those_of_the_config(inferencers, tiny_run):
    run = tiny_run('segmentation')
    metainfo = Config.fromfile(run.config).test_dataloader.dataset.metainfo
    kept = inferencers['segmentation'].model.dataset_meta
    assert tuple(kept['classes']) == metainfo.classes
    assert kept['palette'] == metainfo.palette


def test_measurement_of_the_page_runs(capsys):
    code = re.findall(r'```python\n(.*?)```', (ROOT / 'docs/inference.md').read_text(), re.DOTALL)[-1]
    code = code.replace('(800, 1333)', '(32, 53)')
    exec(compile(code.replace("'configs/", f"'{ROOT}/configs/"), 'docs/inference.md', 'exec'), {})
    assert re.search(r'\d+\.\d s, \d+\.\d\d GiB\n$', capsys.readouterr().out)
