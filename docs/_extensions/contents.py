"""Append the table of contents to the README, which a code host shows without one."""

from pathlib import Path


def append(app, docname, source):
    if docname == app.config.root_doc:
        source[0] += '\n' + (Path(app.confdir) / 'contents.md').read_text()


def setup(app):
    app.connect('source-read', append)
    return dict(parallel_read_safe=True)
