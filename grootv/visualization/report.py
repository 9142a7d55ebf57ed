"""A page to read in a browser, without a network."""

import html
from collections.abc import Iterable, Sequence
from pathlib import Path
from urllib.parse import quote

STYLE = """
body { font-family: sans-serif; max-width: 75rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; font-size: .85rem }
td, th { padding: .25rem .6rem; border-bottom: 1px solid #ddd; text-align: right }
td:first-child, th:first-child { text-align: left }
img { max-width: 100%; height: auto }
"""


class Page:
    """Headings, tables and pictures under a title, in the order they are added. All text is escaped."""

    def __init__(self, title: str):
        self.title = title
        self.parts = [f'<h1>{html.escape(title)}</h1>']

    def heading(self, text: str) -> None:
        self.parts.append(f'<h2>{html.escape(text)}</h2>')

    def paragraph(self, text: str) -> None:
        self.parts.append(f'<p>{html.escape(text)}</p>')

    def table(self, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
        lines = [''.join(f'<th>{html.escape(cell)}</th>' for cell in header)]
        lines += [''.join(f'<td>{html.escape(str(cell))}</td>' for cell in row) for row in rows]
        self.parts.append('<table>\n' + '\n'.join(f'<tr>{line}</tr>' for line in lines) + '\n</table>')

    def picture(self, path: str, text: str) -> None:
        """Show a file, its path relative to the page; ``text`` says what it is."""
        self.parts.append(f'<p><img src="{quote(path)}" alt="{html.escape(text)}"></p>')

    def write(self, path: Path) -> Path:
        body = '\n'.join(self.parts)
        path.write_text(
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            f'<title>{html.escape(self.title)}</title>\n<style>{STYLE}</style>\n</head>\n'
            f'<body>\n{body}\n</body>\n</html>\n'
        )
        return path
