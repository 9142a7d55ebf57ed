"""Configuration of Sphinx. The source folder is the repository: a link works here as on a code host."""

import sys
from pathlib import Path

import ziamath

import grootv

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / 'docs/_extensions'))

project = 'grootv'
release = grootv.__version__
html_title = f'grootv {release}'
root_doc = 'README'
include_patterns = ['*.md', 'docs/**.md', 'experiments/**.md', 'configs/*/README.md']
exclude_patterns = ['docs/contents.md', '.*', 'build', 'data', 'work_dirs', 'tests', '**/node_modules']

extensions = [
    'myst_parser',
    'sphinx.ext.autodoc',
    'sphinx.ext.napoleon',
    'sphinx_copybutton',
    'contents',
    'mathml',
    'model_zoo',
    'registered',
    'site_check',
]
myst_enable_extensions = ['dollarmath']
myst_heading_anchors = 4
suppress_warnings = ['myst.header']  # a page may start below the first level
nitpicky = True
nitpick_ignore_regex = [('py:.*', r'(?!grootv\b).*')]  # other projects' names are not looked up
autodoc_member_order = 'bysource'
autodoc_typehints = 'description'
autodoc_typehints_description_target = 'documented_params'
autodoc_preserve_defaults = True
napoleon_use_ivar = True

html_theme = 'furo'
html_math_renderer = 'mathml'
html_static_path = ['_static', str(Path(ziamath.__file__).parent / 'fonts')]  # of formulas
html_css_files = ['site.css']
templates_path = ['_templates']
html_additional_pages = {'index': 'redirect.html'}
html_show_sphinx = False
html_copy_source = False
copybutton_exclude = '.linenos, .gp, .go'
