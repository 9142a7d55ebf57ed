"""The notebook runs from top to bottom, with a trained checkpoint and without one."""

import nbformat
import pytest
import torch
from mmengine.config import Config
from nbclient import NotebookClient

from grootv.visualization.network import build_model
from tests.tools.tiny_run import ROOT

NOTEBOOK = nbformat.read(ROOT / 'demo/grootv_tour.ipynb', as_version=4)
CONFIG = ROOT / 'configs/demo/grootv-pico_digits.py'
CODE = [cell for cell in NOTEBOOK.cells if cell.cell_type == 'code']


def test_it_is_kept_without_outputs():
    nbformat.validate(NOTEBOOK)
    assert all(not cell.outputs and cell.execution_count is None for cell in CODE)


@pytest.mark.parametrize('trained', [False, True])
def test_it_runs(tmp_path, monkeypatch, trained):
    for name in ('configs', 'tools'):
        (tmp_path / name).symlink_to(ROOT / name)
    if trained:
        checkpoint = tmp_path / 'work_dirs/grootv-pico_digits/epoch_20.pth'
        checkpoint.parent.mkdir(parents=True)
        torch.save(build_model(Config.fromfile(CONFIG), None).state_dict(), checkpoint)
    monkeypatch.setenv('PYDEVD_DISABLE_FILE_VALIDATION', '1')
    notebook = nbformat.from_dict(NOTEBOOK)
    resources = dict(metadata=dict(path=str(tmp_path)))
    NotebookClient(notebook, timeout=120, kernel_name='python3', resources=resources).execute()
    outputs = [output for cell in notebook.cells for output in cell.get('outputs', ())]
    text = ''.join(output.get('text', '') for output in outputs)
    pictures = [output for output in outputs if 'image/png' in output.get('data', {})]
    assert len(pictures) == 5
    assert ('epoch_20.pth: ' in text) == trained
    assert ('step 40: loss' in text) != trained
