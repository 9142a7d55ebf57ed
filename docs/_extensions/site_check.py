"""Look through the built site: its links lead somewhere, and it needs nothing from another host.

The addresses of other sites are only looked at, never visited; ``outside_links.txt`` lists them.
"""

import re
from collections import defaultdict
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

from sphinx.util import logging

logger = logging.getLogger(__name__)
ASSETS = {'script': 'src', 'img': 'src', 'source': 'src', 'video': 'src', 'iframe': 'src', 'object': 'data'}
LOADED = {'stylesheet', 'icon', 'shortcut icon', 'preload', 'manifest', 'preconnect', 'dns-prefetch'}
REMOTE = re.compile(r'(?:https?:)?//')


class Page(HTMLParser):
    """What a page refers to: ids of its own, links, and files that a browser loads at once."""

    def __init__(self, text: str):
        super().__init__()
        self.ids, self.links, self.assets = set(), [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        values = {name: value or '' for name, value in attributes}
        self.ids |= {values[name] for name in ('id', 'name') if name in values}
        if tag == 'a' and 'href' in values:
            self.links.append(values['href'])
        elif tag == 'link' and values.get('rel') in LOADED:
            self.assets.append(values['href'])
        elif ASSETS.get(tag) in values:
            self.assets.append(values[ASSETS[tag]])


def well_formed(address: str) -> bool:
    parts = urlsplit(address)
    if parts.scheme == 'mailto':
        return '@' in parts.path
    host = parts.hostname or ''
    return parts.scheme in ('http', 'https') and '.' in host and not re.search(r'\s', address)


def faults(site: Path) -> tuple[list[str], dict[str, list[str]]]:
    """What is wrong with the site in ``site``, and the pages by the outside address they link."""
    pages = {path: Page(path.read_text()) for path in sorted(site.rglob('*.html'))}
    found, outside = [], defaultdict(list)
    for path, page in pages.items():
        name = path.relative_to(site)
        found += [f'{name}: loads {asset}' for asset in page.assets if REMOTE.match(asset)]
        for link in dict.fromkeys([*page.links, *page.assets]):
            parts = urlsplit(link)
            if parts.scheme == 'data':
                continue
            if REMOTE.match(link) or parts.scheme:
                outside[link].append(str(name))
                if not well_formed(link):
                    found.append(f'{name}: {link} is no address')
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not target.exists():
                found.append(f'{name}: {link} leads nowhere')
            elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].ids:
                found.append(f'{name}: {link} has no such place')
    for path in sorted(site.rglob('*.css')):
        for address in re.findall(r'(?:url\(|@import)\s*[\'"]?((?:https?:)?//[^\'")\s]+)', path.read_text()):
            found.append(f'{path.relative_to(site)}: loads {address}')
    return found, outside


def check(app, exception):
    if exception or app.builder.name != 'html':
        return
    site = Path(app.outdir).resolve()
    found, outside = faults(site)
    for fault in found:
        logger.warning(fault)
    lines = [f'{address}  {" ".join(pages)}\n' for address, pages in sorted(outside.items())]
    (site / 'outside_links.txt').write_text(''.join(lines))


def setup(app):
    app.connect('build-finished', check)
    return dict(parallel_read_safe=True)
