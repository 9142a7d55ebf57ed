import hashlib

import pytest
import torch

from grootv.checkpoint import build_model, load_checkpoint_file

from .tiny_run import run_tool, train_tiny

TOOL = 'model_converters/publish_model.py'


@pytest.mark.parametrize('kind', ['pth', 'safetensors'])
def test_published_weights_are_those_of_the_run_and_the_card_tells_of_them(tmp_path, kind, capsys):
    run, folder = train_tiny(tmp_path, 'classification'), tmp_path / 'published'
    assert run_tool(TOOL, run.config, run.checkpoint, folder, '--format', kind) == 0
    card, path = sorted(folder.iterdir(), key=lambda path: path.suffix != '.md')
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    assert path.name == f'{run.config.stem}-{sha256[:8]}.{kind}'
    whole, found = load_checkpoint_file(run.checkpoint), load_checkpoint_file(path)
    assert not {'optimizer', 'message_hub', 'ema_state_dict'} & found.keys()
    weights = found.get('state_dict', found)
    assert weights.keys() == whole['state_dict'].keys()
    assert all(torch.equal(weights[name], value) for name, value in whole['state_dict'].items())
    build_model(run.config, path)
    text = card.read_text()
    count = sum(parameter.numel() for parameter in build_model(run.config).parameters())
    for part in (sha256, path.name, f'| parameters | {count:,} |', f'{whole["meta"]["iter"]} iterations'):
        assert part in text
    capsys.readouterr()
    assert run_tool(TOOL, run.config, run.checkpoint, path) == 1
    assert f'{path} is a file: give a folder' in capsys.readouterr().err
