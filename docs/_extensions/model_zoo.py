"""The directive ``model-zoo``: tables of all models that the metafiles describe."""

import os
from pathlib import Path

import yaml
from sphinx.util.docutils import SphinxDirective


def read(root: Path) -> dict[str, dict]:
    """The metafiles that model-index.yml names, by path."""
    index = yaml.safe_load((root / 'model-index.yml').read_text())
    return {path: yaml.safe_load((root / path).read_text()) for path in index['Import']}


def quantity(number: int | None, unit: float) -> str:
    return '' if number is None else f'{number / unit:,.2f}'


def row(cells: list[str]) -> str:
    return f'| {" | ".join(cells)} |'


def table(metafile: dict, prefix: str) -> list[str]:
    """Markdown: one section a collection, one row a model.

    Args:
        metafile: Content of a metafile.yml.
        prefix: Leads from the page to the root of the repository.
    """
    lines = []
    for collection in metafile['Collections']:
        models = [model for model in metafile['Models'] if model['In Collection'] == collection['Name']]
        found = [{} for _ in models]
        for metrics, model in zip(found, models, strict=True):
            for result in model.get('Results', []):
                metrics.update(result['Metrics'])
        names = list(dict.fromkeys(name for metrics in found for name in metrics))
        data = collection['Metadata']['Training Data']
        lines += [f'## {collection["Name"]}', '']
        lines += [f'Trained on {data}; [recipe]({prefix}{collection["README"]}).', '']
        published = [f'{name}, published' for name in names]
        header = ['Model', 'Parameters (M)', 'FLOPs (G)', *published, 'Weights']
        lines += [row(header), row([':---', *['---:'] * (len(header) - 2), ':---'])]
        for metrics, model in zip(found, models, strict=True):
            about, weights = model['Metadata'], model.get('Weights')
            lines.append(
                row(
                    [
                        f'[{model["Name"]}]({prefix}{model["Config"]})',
                        quantity(about['Parameters'], 1e6),
                        quantity(about.get('FLOPs'), 1e9),
                        *(str(metrics.get(name, '')) for name in names),
                        f'[download]({weights})' if weights else 'none yet',
                    ]
                )
            )
        lines.append('')
    return lines


class ModelZoo(SphinxDirective):
    def run(self):
        root = Path(self.env.srcdir)
        prefix = os.path.relpath(root, Path(self.env.doc2path(self.env.docname)).parent) + '/'
        lines = []
        for path, metafile in read(root).items():
            self.env.note_dependency(str(root / path))
            lines += table(metafile, prefix)
        return self.parse_text_to_nodes('\n'.join(lines), allow_section_headings=True)


def setup(app):
    app.add_directive('model-zoo', ModelZoo)
    return dict(parallel_read_safe=True)
