"""Warn of pages and styles of the built site that load something from another host."""

import re
from pathlib import Path

from sphinx.util import logging

logger = logging.getLogger(__name__)
REMOTE = r'["\'(]?\s*((?:https?:)?//[^"\')\s>]+)'
LOADS = {
    '*.html': re.compile(rf'<(?!a\b)\w+\s[^>]*\b(?:src|data|href)={REMOTE}'),
    '*.css': re.compile(rf'(?:url\(|@import)\s*{REMOTE}'),
}


def remote_assets(site: Path) -> list[str]:
    """Name of each file and what it loads from elsewhere."""
    return [
        f'{path.relative_to(site)}: loads {address}'
        for ending, loads in LOADS.items()
        for path in sorted(site.rglob(ending))
        for address in loads.findall(path.read_text())
    ]


def check(app, exception):
    if not exception and app.builder.name == 'html':
        for fault in remote_assets(Path(app.outdir)):
            logger.warning(fault)


def setup(app):
    app.connect('build-finished', check)
    return dict(parallel_read_safe=True)
