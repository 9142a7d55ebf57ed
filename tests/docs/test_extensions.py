"""What the site is generated from, and what is checked once it is built."""

import sys

import pytest
import yaml

from tests.docs.blocks import ROOT

sys.path.append(str(ROOT / 'docs/_extensions'))

import model_zoo
import registered
import site_check

METAFILE = """
Collections:
  - {Name: Trees, Metadata: {Training Data: Fields}, README: configs/README.md}
Models:
  - {Name: small, In Collection: Trees, Config: small.py, Metadata: {Parameters: 1234567, FLOPs: 2500000000},
     Results: [{Metrics: {mIoU: 48.5}}, {Metrics: {mIoU(ms+flip): 49.4}}]}
  - {Name: large, In Collection: Trees, Config: c.py, Metadata: {Parameters: 2000000}, Weights: 'https://a.org/b.pth'}
"""


def test_a_collection_becomes_a_table():
    lines = model_zoo.table(yaml.safe_load(METAFILE), '../')
    assert [line for line in lines if line] == [
        '## Trees',
        'Trained on Fields; [recipe](../configs/README.md).',
        '| Model | Parameters (M) | FLOPs (G) | mIoU, published | mIoU(ms+flip), published | Weights |',
        '| :--- | ---: | ---: | ---: | ---: | :--- |',
        '| [small](../small.py) | 1.23 | 2.50 | 48.5 | 49.4 | none yet |',
        '| [large](../c.py) | 2.00 |  |  |  | [download](https://a.org/b.pth) |',
    ]


def test_reference_has_what_configs_name_and_explains_it():
    found = {kind.__name__: kind for kinds in registered.classes().values() for kind in kinds}
    named = {'GrootV', 'GrootVClsHead', 'CocoDataset', 'CheckSegLabels', 'EpochSeedHook'}
    named |= {'LanguageModel', 'InstructionDataset', 'TextDataset', 'Perplexity'}
    assert named | {'LayerDecayOptimWrapperConstructor', 'BFloat16OptimWrapper'} <= set(found)
    assert all('__doc__' in vars(kind) and kind.__doc__ for kind in found.values())


@pytest.mark.parametrize(
    ('name', 'text', 'loaded'),
    [
        ('page.html', '<a href="https://arxiv.org">x</a><img src="data:image/png;base64,AA">', None),
        ('page.html', '<script async src="https://cdn.org/a.js"></script>', 'https://cdn.org/a.js'),
        ('page.html', '<link rel="stylesheet" href="//fonts.org/a.css">', '//fonts.org/a.css'),
        ('a.css', '@font-face { src: url("https://fonts.org/a.woff") }', 'https://fonts.org/a.woff'),
    ],
)
def test_an_asset_of_another_host_is_reported(tmp_path, name, text, loaded):
    (tmp_path / name).write_text(text)
    assert site_check.remote_assets(tmp_path) == ([f'{name}: loads {loaded}'] if loaded else [])
