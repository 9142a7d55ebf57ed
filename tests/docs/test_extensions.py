"""What the site is generated from, and what is looked at once it is built."""

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
  - Name: small
    In Collection: Trees
    Config: configs/small.py
    Metadata: {Parameters: 1234567, FLOPs: 2500000000}
    Results: [{Metrics: {mIoU: 48.5}}, {Metrics: {mIoU(ms+flip): 49.4}}]
  - {Name: large, In Collection: Trees, Config: c.py, Metadata: {Parameters: 2e6}, Weights: 'https://a.org/b.pth'}
"""


def test_a_collection_becomes_a_table():
    lines = model_zoo.table(yaml.safe_load(METAFILE.replace('2e6', '2000000')), '../')
    assert lines == [
        '## Trees',
        '',
        'Trained on Fields; [recipe](../configs/README.md).',
        '',
        '| Model | Parameters (M) | FLOPs (G) | mIoU, published | mIoU(ms+flip), published | Weights |',
        '| :--- | ---: | ---: | ---: | ---: | :--- |',
        '| [small](../configs/small.py) | 1.23 | 2.50 | 48.5 | 49.4 | none yet |',
        '| [large](../c.py) | 2.00 |  |  |  | [download](https://a.org/b.pth) |',
        '',
    ]


def test_the_zoo_has_every_model_of_the_metafiles():
    text = '\n'.join(line for file in model_zoo.read(ROOT).values() for line in model_zoo.table(file, ''))
    for path in (ROOT / 'configs').glob('*/metafile.yml'):
        for model in yaml.safe_load(path.read_text())['Models']:
            assert f'| [{model["Name"]}]({model["Config"]}) |' in text


def test_the_reference_has_what_configs_name_and_explains_it():
    found = {kind.__name__: kind for kinds in registered.classes().values() for kind in kinds}
    named = {'GrootV', 'GrootVClsHead', 'CocoDataset', 'CheckSegLabels', 'EpochSeedHook'}
    named |= {'LanguageModel', 'InstructionDataset', 'TextDataset', 'Perplexity'}
    assert named | {'LayerDecayOptimWrapperConstructor', 'BFloat16OptimWrapper'} <= set(found)
    assert all('__doc__' in vars(kind) and kind.__doc__ for kind in found.values())


@pytest.mark.parametrize(
    ('body', 'fault'),
    [
        ('<a href="other.html#here">x</a><img src="data:image/png;base64,AA">', None),
        ('<a href="https://arxiv.org/abs/2406.02395">x</a><a href="mailto:a@b.org">x</a>', None),
        ('<a href="none.html">x</a>', 'page.html: none.html leads nowhere'),
        ('<a href="other.html#there">x</a>', 'page.html: other.html#there has no such place'),
        ('<a href="#there">x</a>', 'page.html: #there has no such place'),
        ('<a href="https://nowhere/x">x</a>', 'page.html: https://nowhere/x is no address'),
        ('<script src="https://cdn.org/a.js"></script>', 'page.html: loads https://cdn.org/a.js'),
        ('<link rel="stylesheet" href="//fonts.org/a.css">', 'page.html: loads //fonts.org/a.css'),
    ],
)
def test_a_link_that_leads_nowhere_and_a_foreign_asset_are_told(tmp_path, body, fault):
    (tmp_path / 'other.html').write_text('<h1 id="here">x</h1>')
    (tmp_path / 'page.html').write_text(body)
    found, _ = site_check.faults(tmp_path)
    assert (fault in found) if fault else not found


def test_a_style_that_loads_a_foreign_font_is_told(tmp_path):
    (tmp_path / 'a.css').write_text('@font-face { src: url("https://fonts.org/a.woff") }')
    assert site_check.faults(tmp_path)[0] == ['a.css: loads https://fonts.org/a.woff']


def test_outside_addresses_are_collected(tmp_path):
    (tmp_path / 'page.html').write_text('<a href="https://a.org/x">x</a>')
    assert site_check.faults(tmp_path) == ([], {'https://a.org/x': ['page.html']})
