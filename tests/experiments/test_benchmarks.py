"""The benchmarks from beginning to end, at tiny sizes."""

from itertools import count

import benchmark_model
import benchmark_ops
import benchmark_scaling
import benchmark_tokens
import measure
import networks
import pytest
import tables
import torch


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run a benchmark with instant figures of memory; its first line, rows and page."""
    sizes = count(2**20, 2**20)
    monkeypatch.setattr(measure, 'peak_memory', lambda *_, **__: next(sizes))

    def run_benchmark(script, *arguments: str):
        path = tmp_path / 'new/found.jsonl'
        script.main(['--quick', '--out', str(path), *arguments])
        page, picture = tables.write(path)
        assert picture.stat().st_size > 5_000 and 'A quick run' in page.read_text()
        return *measure.read(path), page.read_text()

    return run_benchmark


def test_operators(run, monkeypatch):
    shapes = [((2, 5, 6, 8), torch.float32, 2.5, 2.5), ((1, 5, 6, 8), torch.bfloat16, 2.5, None)]
    monkeypatch.setattr(benchmark_ops, 'SCANS', dict(cpu=shapes))
    monkeypatch.setattr(benchmark_ops, 'GROWTH', dict(cpu=((3, 6), 4)))
    monkeypatch.setattr(benchmark_ops, 'MAP', (5, 6, 8))
    _, rows, page = run(benchmark_ops)
    assert all(row['ms'] > 0 and row['value'] > 0 and row['verdict'] == 'none' for row in rows)
    names = ' '.join(row['name'] for row in rows)
    for operator in ('build_tree', 'tree_scan_backward', 'selective_tree_scan', 'per vertex, 6x6'):
        assert operator in names and operator in page


def test_networks(run):
    arguments = [
        '--arch',
        'pico',
        '--peers',
        'test_convnext',
        '--batch',
        '2',
        '--input-size',
        '32',
        '--profile',
    ]
    _, rows, page = run(benchmark_model, *arguments)
    timed = [row for row in rows if 'ms' in row and row['network'] != 'grootv_narrow']
    ways = {(row['network'], row['tree_per'], row['dtype'], row['mode']) for row in timed}
    assert len(ways) == 3 * 2 * 3 and all(row['finite'] for row in timed)
    for row in timed:
        over = {'/ test_convnext'} if row['tree_per'] else set()
        over |= {'/ block'} if row['tree_per'] == 'stage' else set()
        over |= {'/ float32'} if row['dtype'] == 'bfloat16' else set()
        assert {key for key in row if key.startswith('/')} == over
    assert sum('mib' in row for row in rows) == 2 * 6  # backward has none of its own
    profiles = [row for row in rows if 'parts_ms' in row]
    assert len(profiles) == 3
    for row in profiles:
        assert sum(row['parts_ms'].values()) == pytest.approx(row['profiled_ms'], rel=0.01)
        assert min(row['parts_ms'].values()) >= 0 and row['parts_ms']['MLP'] > 0
    assert 'grootv_pico, tree per stage' in page and '| MLP' in page


def test_exported_networks_give_the_same_logits(tmp_path):
    model = networks.build(networks.Way('grootv_pico', size=64), 'cpu').eval()
    images = torch.randn(3, 3, 64, 64)
    with torch.inference_mode():
        for kind in ('export', 'onnx'):
            found = networks.deployed(kind, model, 64, tmp_path)(images)
            torch.testing.assert_close(found, model(images), rtol=1e-4, atol=1e-5)


def test_configs_run_without_drop_path(classifier):
    way = networks.Way(str(classifier.config), tree_per='stage', size=32)
    model = networks.build(way, 'cpu')
    benchmark_model.Runs(model, way, 'cpu', 2).call('step')()
    assert [stage.share_tree for stage in model.backbone.stages] == [True] * 4
    assert not any(block.drop_path.drop_prob for stage in model.backbone.stages for block in stage.blocks)


@pytest.mark.parametrize(
    ('arguments', 'sentence'),
    [
        (['some.py', '--arch', 'tiny'], 'either a config or --arch, not both'),
        (['some.py', '--peers'], 'config some.py does not exist'),
        (['--peers', 'convnext_tinny'], 'timm has no such model, did you mean convnext_tiny?'),
        (['--peers', 'maxvit_tiny_rw_224', '--input-size', '50'], 'it takes no images of 50 px'),
    ],
)
def test_wrong_networks_are_reported(arguments, sentence, capsys):
    with pytest.raises(SystemExit) as stop:
        benchmark_model.main(arguments)
    assert sentence in f'{stop.value.code}{capsys.readouterr().err}'


def test_judged_ratio_is_the_worst_of_its_rows(monkeypatch):
    record = measure.Record('model', None)
    row = dict(
        mode='step', batch=8, px=224, network='grootv_tiny', tree_per='block', dtype='float32', how='eager'
    )
    record.rows += [{**row, 'ms': 9.0, 'finite': True, '/ swin': 1.2, '/ block': each} for each in (0.8, 1.1)]
    benchmark_model.judge(record, 'grootv_tiny', 'swin', named=True)
    found = {row['name']: (row['value'], row['verdict']) for row in record.rows if 'verdict' in row}
    assert found['step, batch 8, time over swin'] == (1.2, 'met')
    assert found['tree per stage over tree per block, everywhere'] == (1.1, 'missed')
    assert found['forward, batch 1, time over swin'] == (None, 'none')


def test_layers(run):
    _, rows, page = run(benchmark_scaling, '--sides', '8', '4', '--channels', '8')
    sides = [(row['mode'], row['side']) for row in rows if row.get('ms', {}).get('attention')]
    assert sides == [('forward', 4), ('forward', 8), ('training', 4), ('training', 8)]
    assert 'raster scan: selective_tree_scan' in page and '4 x 4 |' in page
    _, rows, page = run(benchmark_scaling, '--sides', '4', '8', '--channels', '8', '--limit', '0')
    assert [len(row.get('not_measured', ())) for row in rows[:4]] == [0, 3, 0, 3]
    assert 'Not measured at 8: tree scan, about 0 s a call' in page
    sides = {side: side**2 if 56 <= side <= 512 else 1e9 for side in (14, 56, 128, 512, 1024)}
    squares = [dict(side=side, ms=dict(layer=ms)) for side, ms in sides.items()]
    assert benchmark_scaling.exponent(squares, 'layer', 'ms') == pytest.approx(1)


def test_tokens(run, monkeypatch):
    monkeypatch.setattr(benchmark_tokens, 'CHANNELS', 8)
    monkeypatch.setattr(benchmark_tokens, 'WIDTH', 8)
    _, rows, page = run(benchmark_tokens, '--lengths', '4', '9')
    assert [len(row['us']) for row in rows if 'us' in row] == [6] * 4
    assert sum('verdict' in row for row in rows) == 4
    assert 'layer, chain and tree' in page
