"""The index that OpenMMLab's tools read names files that exist and numbers that are true."""

import pytest
import yaml
from modelindex.load_model_index import load

from .parts import CONFIGS, ROOT, count, model_of

INDEX = yaml.safe_load((ROOT / 'model-index.yml').read_text())['Import']
METAFILES = {name: yaml.safe_load((ROOT / name).read_text()) for name in INDEX}
COLLECTIONS = [entry for content in METAFILES.values() for entry in content['Collections']]
ENTRIES = [entry for content in METAFILES.values() for entry in content['Models']]


def test_the_package_that_reads_such_indexes_finds_no_fault():
    index = load(str(ROOT / 'model-index.yml'))
    # It looks for a README next to the metafile; OpenMMLab names it from the root.
    assert not [fault for fault in index.check(silent=True) if 'Path to README' not in fault]
    assert len(index.models.models) == len(ENTRIES)


def test_every_metafile_and_config_is_in_the_index_under_a_name_of_its_own():
    assert {str(path.relative_to(ROOT)) for path in (ROOT / 'configs').rglob('metafile.yml')} == set(INDEX)
    for name in METAFILES:
        stems = {path.stem for path in (ROOT / name).parent.glob('*.py')}
        assert stems == {entry['Name'] for entry in METAFILES[name]['Models']}
    for entries in (COLLECTIONS, ENTRIES):
        names = [entry['Name'] for entry in entries]
        assert len(names) == len(set(names))


@pytest.mark.parametrize('entry', ENTRIES, ids=lambda entry: entry['Name'])
def test_an_entry_is_true_and_the_readme_says_the_same(entry):
    name, metadata = entry['Name'], entry['Metadata']
    if name in CONFIGS:
        assert ROOT / entry['Config'] == CONFIGS[name]
        assert count(model_of(name)) == metadata['Parameters']
    else:
        assert (ROOT / entry['Config']).parent.name == 'language'
    assert 'Weights' not in entry or entry['Weights'].startswith('https://')

    (collection,) = [found for found in COLLECTIONS if found['Name'] == entry['In Collection']]
    assert (ROOT / collection['Code']['URL']).is_file()
    readme = (ROOT / collection['README']).read_text()
    (row,) = [line for line in readme.splitlines() if f'| `{name}` |' in line]
    assert f'({name}.py)' in row
    cells = [cell.strip() for cell in row.split('|')]
    figures = {float(cell.split()[0]) for cell in cells if cell[:1].isdigit()}
    for key, unit in (('Parameters', 1e6), ('FLOPs', 1e9)):
        if key in metadata:
            assert {round(metadata[key] / unit, digits) for digits in (0, 2)} & figures, key
    results = entry.get('Results', [])
    assert {value for result in results for value in result['Metrics'].values()} <= figures
    assert ('none' in cells) == (not results)
