"""Split Python's own help texts into passages to train a language model on and passages to test it with.

    python tools/dataset_converters/topics.py data/topics

The texts of ``help('assert')`` and the other topics ship with Python as pydoc_data.topics; another version of
Python has slightly other ones. Neighbouring paragraphs make a passage; one that several topics quote stays in
the shortest of them. A fifth of the passages, by a hash of their text, is held out; none of those shares 13
words in a row with a training passage. OUT holds, as lists of records:

texts_{train,held-out}.json: text, topic.
continue_{train,held-out}.json: instruction, input, output (Alpaca's form): continue a passage.
name_{train,held-out}.json: the same: name the topic of a passage, for topics with enough passages.
choices.json: instruction, input, choices, answer: the topic of a passage among four.
"""

import grootv.interrupt  # noqa: F401 # isort: skip
import argparse
import hashlib
import json
import platform
import random
import re
import shutil
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from pydoc_data.topics import topics

from grootv import cli
from grootv.errors import UserError
from grootv.files import write_atomically

LENGTH = 250  # characters: a passage has at least so many, and a part of a paragraph at most
SHARED_WORDS = 13  # in a row; a held-out passage with so many of a training passage is dropped
HELD_OUT = 5  # one passage in so many
CHOICES = 4
ENOUGH = 10  # training passages of a topic whose name is asked for
NAME = 'Which topic of the Python documentation does this passage belong to?'
CONTINUE = 'Continue this passage of the Python documentation.'


def digest(text: str) -> int:
    """A number that depends on the text alone."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], 'big')


def parts(paragraph: str) -> Iterable[str]:
    """A paragraph, in pieces of whole lines if it is long."""
    part = ''
    for line in paragraph.split('\n'):
        if part and len(part) + len(line) > LENGTH:
            yield part
            part = ''
        part = f'{part}\n{line}' if part else line
    yield part


def passages(paragraphs: Iterable[str]) -> list[str]:
    """Neighbouring paragraphs put together."""
    found, passage = [], ''
    for part in (part for paragraph in paragraphs for part in parts(paragraph)):
        passage = f'{passage}\n\n{part}' if passage else part
        if len(passage) >= LENGTH:
            found.append(passage)
            passage = ''
    return [*found, passage] if len(passage) >= LENGTH / 2 else found


def by_topic(texts: dict[str, str]) -> dict[str, list[str]]:
    """The passages of every topic by its title: the first line of its text, without quotes."""
    seen, found = set(), {}
    for text in sorted(texts.values(), key=lambda text: (len(text), text)):
        title, *paragraphs = (part.strip('\n') for part in re.split(r'\n[ \t]*\n', text.strip()))
        own = [part for part in paragraphs if part.strip() and ' '.join(part.split()) not in seen]
        seen.update(' '.join(part.split()) for part in own)
        found.setdefault(title.split('\n')[0].replace('"', ''), []).extend(passages(own))
    return {title: found[title] for title in sorted(found) if found[title]}


def split(by_title: dict[str, list[str]]) -> dict[str, list[dict[str, str]]]:
    """The passages to train on and those held out, as records of text and topic."""

    def runs(text: str) -> set[tuple[str, ...]]:
        words = text.split()
        return {tuple(words[i : i + SHARED_WORDS]) for i in range(len(words) - SHARED_WORDS + 1)}

    sides = {'train': [], 'held-out': []}
    for title, texts in by_title.items():
        for text in texts:
            side = 'held-out' if digest(text) % HELD_OUT == 0 else 'train'
            sides[side].append(dict(text=text, topic=title))
    known = set().union(*(runs(record['text']) for record in sides['train']))
    sides['held-out'] = [record for record in sides['held-out'] if not runs(record['text']) & known]
    return sides


def continuation(text: str) -> dict[str, str]:
    """The passage cut in two at the space nearest to its middle."""
    spaces = [match.start() for match in re.finditer(r'\s', text)]
    middle = min(spaces, key=lambda place: abs(place - len(text) // 2))
    return dict(instruction=CONTINUE, input=text[:middle].rstrip(), output=text[middle:].strip())


def choices(record: dict[str, str], known: list[str]) -> dict[str, object]:
    """The passage with its topic among others, drawn by a hash of the passage.

    They are drawn from the topics of all training passages, so that frequent ones are offered more often and
    to know them helps nobody.
    """
    draw = random.Random(digest(record['text']))
    offered = [record['topic']]
    while len(offered) < CHOICES:
        other = draw.choice(known)
        offered += [] if other in offered else [other]
    draw.shuffle(offered)
    answer = offered.index(record['topic'])
    return dict(instruction=NAME, input=record['text'], choices=offered, answer=answer)


def records(texts: dict[str, str]) -> dict[str, list[dict]]:
    """The content of every file by its name."""
    sides = split(by_topic(texts))
    count = Counter(record['topic'] for record in sides['train'])
    known = [record['topic'] for record in sides['train'] if count[record['topic']] >= ENOUGH]
    files = {}
    for side, found in sides.items():
        asked = [record for record in found if record['topic'] in known]
        files[f'texts_{side}'] = found
        files[f'continue_{side}'] = [continuation(record['text']) for record in found]
        files[f'name_{side}'] = [
            dict(instruction=NAME, input=record['text'], output=record['topic']) for record in asked
        ]
    files['choices'] = [choices(record, known) for record in sides['held-out'] if record['topic'] in known]
    return files


def export(out: Path) -> dict[str, list[dict]]:
    """Write the folder, or find it complete; the records of every file by its name.

    Raises:
        UserError: If the folder holds anything but an earlier export by the same version of Python.
    """
    content = records(topics)
    files = {f'{name}.json': json.dumps(content[name], indent=1, ensure_ascii=False) for name in content}
    present = {path.name: path.is_file() and path.read_text() for path in sorted(out.glob('*'))}
    foreign = [name for name, text in present.items() if text != files.get(name)]
    if foreign:
        raise UserError(
            f'{out} holds files that are not of this data set or of another Python ({foreign[0]}): '
            'remove them, or give another folder'
        )
    if present.keys() != files.keys():
        with write_atomically(out) as draft:
            draft.mkdir()
            for name, text in files.items():
                (draft / name).write_text(text)
            shutil.rmtree(out, ignore_errors=True)
    return content


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('out', type=Path, help='folder to create, for example data/topics')
    out = parser.parse_args().out
    content = export(out.absolute())
    train, held_out, questions = (len(content[name]) for name in ('texts_train', 'texts_held-out', 'choices'))
    print(
        f'{out}: {train} passages to train, {held_out} held out, {questions} questions; '
        f'of Python {platform.python_version()}'
    )


if __name__ == '__main__':
    cli.run(main)
