"""Settings on a command line: KEY=VALUE, and what a value means."""

import argparse
import os
from typing import Any

from grootv.errors import UserError


class KeyValueAction(argparse.Action):
    """Arguments KEY=VALUE with the values of :func:`parse_value`, as a dict."""

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        options = dict(getattr(namespace, self.dest) or {})
        for text in values or ():
            key, separator, value = text.partition('=')
            if not separator or not all(key.split('.')):
                raise UserError(
                    f'{option_string} takes KEY=VALUE with a dotted KEY such as '
                    f'train_dataloader.batch_size=64, got {text!r}'
                )
            try:
                options[key] = parse_value(value)
            except ValueError as error:
                raise UserError(f'{option_string} {key}: {error}') from error
        setattr(namespace, self.dest, options)


def parse_value(text: str) -> Any:
    """The value that an argument means.

    ``[a, b]`` and ``a,b`` are lists, ``(a, b)`` is a tuple, nested as one likes; their elements and any other
    value are numbers, True, False, None or texts. A value that contains a slash or names a file is one text
    unless it is in brackets, and what is in quotes is the text between them.

    Raises:
        ValueError: If a bracket is not closed, or the value is a dict.
    """
    value, parts = text.strip(), _elements(text)
    if parts is not None and len(parts) == 1:
        if len(value) > 1 and value[0] == value[-1] and value[0] in '"\'':
            return value[1:-1]
        inner = _elements(value[1:-1]) if value[:1] + value[-1:] in ('[]', '()') else None
        if inner is not None:
            return _values(inner) if value[0] == '[' else tuple(_values(inner))
    scalar = _scalar(value)
    if '/' in text or (os.path.exists(text) and (isinstance(scalar, str) or '_' in text)):
        return text
    if parts is None and value[0] in '[(':
        raise ValueError(f'close the brackets of {value}, or put the text into quotes inside the quotes')
    if value[:1] + value[-1:] == '{}':
        raise ValueError(f'set the keys of a dict one by one, KEY.NAME=VALUE, got {value}')
    return _values(parts) if parts and len(parts) > 1 else scalar


def _values(parts: list[str]) -> list:
    return [parse_value(part) for part in (parts if parts[-1] else parts[:-1])]  # a comma may end a list


def _elements(text: str) -> list[str] | None:
    """Split at the commas outside of brackets and quotes; None where a bracket has no partner."""
    parts, closing, quote, before = [''], [], '', ','
    for letter in text:
        if quote:
            quote = '' if letter == quote else quote
        elif letter in '"\'' and before in '[(,':
            quote = letter
        elif letter in '[(':
            closing.append(']' if letter == '[' else ')')
        elif letter in '])' and (not closing or closing.pop() != letter):
            return None
        before = before if letter.isspace() else letter
        if letter == ',' and not quote and not closing:
            parts.append('')
        else:
            parts[-1] += letter
    return None if closing else [part.strip() for part in parts]


def _scalar(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return {'true': True, 'false': False}.get(text.lower(), None if text == 'None' else text)
