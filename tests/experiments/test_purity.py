import measure
import purity
import torch

from grootv.ops import build_tree


def test_one_edge_of_an_object_leaves_it():
    colours = torch.zeros(1, 4, 4, 3)
    colours[0, 1:3, 1:3] = 200.0
    owned = (colours[..., 0] > 0).flatten(1)
    assert purity.share_inside(build_tree(colours, 'euclidean'), owned) == 3 / 4  # 3 edges join 4 vertices


def test_from_scenes_to_page(few_stamps, tmp_path):
    out = tmp_path / 'purity.jsonl'
    purity.main(['--quick', '--out', str(out)])
    rows = measure.read(out)[1]
    assert len(rows) == len(purity.STRIDES) * sum(len(sizes) for _, sizes in purity.SCENES.values())
    assert all(0 <= value <= 1 for row in rows for value in row['inside'].values())
    assert 'Edges inside objects' in out.with_suffix('.md').read_text() and out.with_suffix('.png').exists()
