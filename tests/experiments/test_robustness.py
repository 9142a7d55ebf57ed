import measure
import pytest
import robustness
import torch

from grootv.ops import breadth_first_order
from grootv.visualization.blocks import BlockTree


def test_figures_by_hand():
    def built(edges):
        tree = breadth_first_order(torch.tensor(edges, dtype=torch.int32), 2, 3)
        return {(0, 0): BlockTree(torch.zeros(2, 2, 3, 1), tree, 'cosine', lambda _: torch.zeros(0))}

    before = torch.tensor([[3.0, 0], [0, 4]]), built([[0, 1, 2, 3, 4], [0, 1, 2, 3, 4]])
    after = torch.tensor([[3.0, 0], [5, 4]]), built([[0, 1, 2, 3, 6], [0, 1, 2, 3, 4]])
    found = robustness.figures([robustness.difference(before, after, torch.tensor([0, 1]))])
    assert found['changed_edges'] == 0.1  # one of five in one of two images
    assert found['logits'] == 1  # off by 5 where the norm is 5
    assert found['changed_predictions'] == 0.5 and found['accuracy'] == 50


def test_record_of_a_tiny_classifier(tiny_run, tmp_path, monkeypatch):
    run = tiny_run('classification')
    monkeypatch.setattr(robustness, 'SETTINGS', [('euclidean', 'stage', 'last')])
    arguments = [str(run.config), str(run.checkpoint), '--out', str(tmp_path), '--count', '5']
    robustness.main(arguments)
    about, rows = measure.read(tmp_path / 'robustness.jsonl')
    assert about['images'] == 5
    own, other = (row['changes'] for row in rows if 'setting' in row)
    assert [*own] == [*other] == ['none', *robustness.CHANGES, *robustness.PRECISIONS]
    assert own['none']['changed_edges'] == 0 < other['none']['changed_edges']
    noise = [own[f'gaussian_noise, severity {each}']['changed_edges'] for each in (1, 5)]
    assert 0 < noise[0] < noise[1]
    assert own['float16 autocast']['logits'] < own['bfloat16 autocast']['logits'] < 0.2
    stress = {row['input']: row for row in rows if row.get('metric') == 'cosine'}
    assert [name for name, row in stress.items() if not row['finite']] == ['one NaN pixel', 'all NaN']
    assert (stress['all NaN']['distinct_weights'], stress['all NaN']['depth']) == (1, 7 + 7)
    assert '| euclidean, stage, last ' in (tmp_path / 'robustness.md').read_text()
    with pytest.raises(robustness.UserError, match='is no classifier'):
        robustness.main([*arguments, '--cfg-options', 'default_scope=mmdet'])
