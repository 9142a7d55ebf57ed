"""What GrootV needs in other libraries besides the examples of docs/frameworks.md."""

import subprocess
import sys

import pytest
import timm
import torch
from transformers import DetrConfig, DetrForObjectDetection, TimmBackboneConfig

import grootv.integrations.transformers  # noqa: F401


def test_a_saved_detr_gets_all_its_weights_back(tmp_path):
    """Both renamings: files of DETR say out_proj for the attention, and the scan has one of its own."""
    backbone = TimmBackboneConfig(backbone='grootv_tiny', out_indices=(0,))
    sizes = dict(d_model=16, encoder_layers=1, decoder_layers=1, num_queries=2)
    model = DetrForObjectDetection(DetrConfig(backbone_config=backbone, **sizes))
    model.save_pretrained(tmp_path)
    again = DetrForObjectDetection.from_pretrained(tmp_path).state_dict()
    weights = model.state_dict()
    assert {name.rsplit('.', 2)[1] for name in weights} >= {'out_proj', 'o_proj'}
    assert [name for name in weights if not torch.equal(weights[name], again[name])] == []


def run_script(*args, folder):
    command = [sys.executable, '-m', 'grootv.integrations', *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder)


def test_a_script_runs_with_the_models_registered(tmp_path):
    (tmp_path / 'names.py').write_text('NAME = "grootv_tiny"\n')
    script = 'import sys, timm, names\nprint(__name__, names.NAME in timm.list_models(), sys.argv)\n'
    path = tmp_path / 'train.py'
    path.write_text(script)
    done = run_script(path, '--model', 'grootv_tiny', folder=tmp_path.parent)
    assert done.stdout == f"__main__ True ['{path}', '--model', 'grootv_tiny']\n", done.stderr


def test_a_script_that_is_not_there(tmp_path):
    for args in ((), ('absent.py',)):
        done = run_script(*args, folder=tmp_path)
        assert done.returncode == 1
        assert done.stderr == f'python -m grootv.integrations: give a script that exists, got {[*args]}\n'


def test_dilated_networks_are_refused():
    with pytest.raises(ValueError, match=r'^grootv_tiny: output_stride must be 32, got 16$'):
        timm.create_model('grootv_tiny', features_only=True, output_stride=16)
