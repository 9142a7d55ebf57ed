"""The directive ``registered-classes``: signature and docstring of all that a config can name."""

import importlib

from sphinx.util.docutils import SphinxDirective

from grootv import registry

TITLES = {
    'MODELS': 'Models',
    'DATASETS': 'Data sets',
    'TRANSFORMS': 'Transforms',
    'HOOKS': 'Hooks',
    'OPTIM_WRAPPERS': 'Optimizer wrappers',
    'OPTIM_WRAPPER_CONSTRUCTORS': 'Optimizer wrapper constructors',
}
# Imported by the configs that name their classes.
LANGUAGE = ('grootv.language.fine_tuning', 'grootv.language.data')


def classes() -> dict[str, list[type]]:
    """Every class of this package by the name of its registry in ``grootv.registry``."""
    found = {}
    for module in LANGUAGE:
        importlib.import_module(module)
    for name, value in vars(registry).items():
        if isinstance(value, registry.root.Registry):
            for location in value._locations:
                package = importlib.import_module(location)
                for part in getattr(package, '__all__', ()):  # some import theirs when they are asked
                    getattr(package, part)
            found[name] = sorted(
                (
                    kind
                    for kind in value.module_dict.values()
                    if isinstance(kind, type) and kind.__module__.startswith('grootv.')
                ),
                key=lambda kind: kind.__name__,
            )
    return {name: found[name] for name in sorted(found, key=[*TITLES, *found].index) if found[name]}


class RegisteredClasses(SphinxDirective):
    def run(self):
        lines = []
        for name, kinds in classes().items():
            lines += [f'## {TITLES.get(name, name.replace("_", " ").capitalize())}', '']
            for kind in kinds:
                lines += [f'### grootv.{kind.__name__}', '', '```{eval-rst}']
                lines += [f'.. autoclass:: {kind.__module__}.{kind.__name__}', '   :noindex:', '```', '']
        return self.parse_text_to_nodes('\n'.join(lines), allow_section_headings=True)


def setup(app):
    app.add_directive('registered-classes', RegisteredClasses)
    return dict(parallel_read_safe=True)
