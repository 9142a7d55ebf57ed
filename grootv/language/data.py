"""Instructions and texts as token ids, from JSON files."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from grootv.errors import UserError
from grootv.registry import DATASETS, FUNCTIONS

from .model import load_tokenizer
from .prompts import instruction_prompt

IGNORED = -100  # label of a token that no loss counts
_AT_ONCE = 1000


@DATASETS.register_module()
class InstructionDataset(Dataset):
    """Prompts made from instructions by :func:`instruction_prompt`, and the answers to learn.

    The file is JSON, a list of items, or JSON lines, an item each, with the texts ``instruction``, ``output``
    and, where there is one, ``input``. Prompt and answer are tokenised by themselves, so that no token
    belongs to both, and end-of-text follows the answer; an empty answer is end-of-text alone. An item longer
    than ``max_length`` loses the end of its answer, and end-of-text with it. Items are not packed.

    Each item is a dict: ``input_ids`` (L,) int64; ``labels``, equal to it but -100 on the prompt; and
    ``context_length``, the number of tokens of the prompt, an int.

    Args:
        ann_file: The file.
        tokenizer: Folder that holds a tokenizer, as transformers writes it.
        data_root: Folder that ``ann_file`` is relative to.
        max_length: Most tokens of an item, at least 2.
        indices: Take the first items of the file, this many; or the last ones, if negative.
        preamble: As for :func:`instruction_prompt`.

    Attributes:
        path: The file.
        numbers: Which of its items, from 0.

    Raises:
        UserError: Names the file, the item and the rule where one is broken: no JSON, no list, a text is
            missing, or a prompt leaves no room for an answer.
    """

    def __init__(
        self,
        ann_file: str,
        tokenizer: str,
        data_root: str = '',
        max_length: int = 2048,
        indices: int | None = None,
        preamble: str = 'alpaca',
    ):
        path = path_of('InstructionDataset', data_root, ann_file)
        check_number('InstructionDataset: max_length', max_length)
        if isinstance(indices, bool) or not isinstance(indices, int | None):
            raise UserError(f'InstructionDataset: indices is a whole number or None, got {indices!r}')
        items = read_items('InstructionDataset', path)
        numbers = range(len(items))
        if indices is not None:
            numbers = numbers[:indices] if indices >= 0 else numbers[indices:]
        if not numbers:
            raise UserError(f'InstructionDataset: {path} with indices={indices} has no item')
        places = [f'InstructionDataset: {path}, item {number} (from 0)' for number in numbers]
        texts = [
            text_of(place, items[number], preamble) for place, number in zip(places, numbers, strict=True)
        ]
        loaded = load_tokenizer_with_end(tokenizer)
        prompts, answers = (encode(loaded, side) for side in zip(*texts, strict=True))
        self.metainfo: dict[str, Any] = {}
        self.path, self.numbers = path, numbers
        self._items = []
        for place, prompt, answer in zip(places, prompts, answers, strict=True):
            if len(prompt) >= max_length:
                raise UserError(
                    f'{place}: a prompt leaves room for an answer, got {len(prompt)} tokens where max_length '
                    f'is {max_length}'
                )
            ids = [*prompt, *answer, loaded.eos_token_id][:max_length]
            self._items.append((np.array(ids, dtype=np.int32), len(prompt)))

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> dict[str, Tensor | int]:
        ids, context_length = self._items[index]
        input_ids = torch.from_numpy(ids).long()
        labels = input_ids.clone()
        labels[:context_length] = IGNORED
        return dict(input_ids=input_ids, labels=labels, context_length=context_length)


@DATASETS.register_module()
class TextDataset(Dataset):
    """Windows over texts that follow each other, end-of-text after each, to learn the language itself.

    The file is JSON, a list of objects with a ``text``, or JSON lines. A window begins with the last token of
    the one before, so that every token but the very first is predicted once.

    Each item is a dict as :func:`pad_right` takes it: ``input_ids`` (L,) int64, ``labels``, the same, and
    ``context_length`` 0, because nothing is given.

    Args:
        ann_file, tokenizer, data_root: As for :class:`InstructionDataset`.
        length: Tokens of a window, at least 2; the last one may have fewer.

    Raises:
        UserError: As :class:`InstructionDataset`, and if there is nothing to predict.
    """

    def __init__(self, ann_file: str, tokenizer: str, data_root: str = '', length: int = 256):
        path = path_of('TextDataset', data_root, ann_file)
        check_number('TextDataset: length', length)
        texts = read_texts('TextDataset', path)
        loaded = load_tokenizer_with_end(tokenizer)
        tokens = encode(loaded, texts)
        self._tokens = torch.tensor([i for text in tokens for i in (*text, loaded.eos_token_id)])
        if len(self._tokens) < 2:
            raise UserError(f'TextDataset: {path} has {len(self._tokens)} tokens, nothing to predict')
        self._length = length
        self.metainfo: dict[str, Any] = {}
        self.path, self.numbers = path, range(len(texts))

    def __len__(self) -> int:
        return -(-(len(self._tokens) - 1) // (self._length - 1))

    def __getitem__(self, index: int) -> dict[str, Tensor | int]:
        if not 0 <= index < len(self):
            raise IndexError(f'TextDataset: items are 0 to {len(self) - 1}, got {index}')
        start = index * (self._length - 1)
        window = self._tokens[start : start + self._length]
        return dict(input_ids=window, labels=window.clone(), context_length=0)


@FUNCTIONS.register_module()
def pad_right(items: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
    """Stack items of different lengths, with padding after them.

    It follows the context, where no token receives from a later one: padding changes no output.

    Args:
        items: Those of :class:`InstructionDataset` or :class:`TextDataset`.

    Returns:
        ``input_ids`` (B, L), ``labels`` (B, L), -100 at padding, ``attention_mask`` (B, L), 0 there, and
        ``context_length`` (B,), all int64.
    """
    ids = [item['input_ids'] for item in items]
    return dict(
        input_ids=pad_sequence(ids, batch_first=True),
        labels=pad_sequence([item['labels'] for item in items], True, IGNORED),
        attention_mask=pad_sequence([torch.ones_like(tokens) for tokens in ids], True),
        context_length=torch.tensor([item['context_length'] for item in items]),
    )


def path_of(reader: str, data_root: Any, ann_file: Any) -> Path:
    if not isinstance(data_root, str | Path) or not isinstance(ann_file, str | Path):
        raise UserError(f'{reader}: data_root and ann_file are texts, got {data_root!r} and {ann_file!r}')
    return Path(data_root, ann_file)


def check_number(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 2:
        raise UserError(f'{name} is a whole number of at least 2, got {value!r}')


def read_items(reader: str, path: Path) -> list:
    """The items of a JSON list, or of JSON lines."""
    where = str(path)
    try:
        text = path.read_text(encoding='utf-8-sig')
        lines = [(number, line) for number, line in enumerate(text.split('\n'), 1) if line.strip()]
        start = lines[0][1].strip() if len(lines) > 1 else ''
        if path.suffix == '.jsonl' or start[:1] + start[-1:] == '{}':
            items = []
            for number, line in lines:
                where = f'{path}, line {number},'
                items.append(json.loads(line))
            return items
        items = json.loads(text)
    except FileNotFoundError as error:
        raise UserError(f'{reader}: {path} does not exist: check the path') from error
    except OSError as error:
        raise UserError(f'{reader}: {path} cannot be read: {error.strerror}') from error
    except (ValueError, RecursionError) as error:  # not JSON, or not text at all
        raise UserError(f'{reader}: {where} is no JSON: {error}') from error
    if not isinstance(items, list):
        raise UserError(
            f'{reader}: {path} holds a list of items, or one a line in a .jsonl, got a {type(items).__name__}'
        )
    return items


def read_texts(reader: str, path: Path) -> list[str]:
    """The ``text`` of every item."""
    records = read_items(reader, path)
    for number, record in enumerate(records):
        if not isinstance(record, dict) or not isinstance(record.get('text'), str):
            raise UserError(f'{reader}: {path}, item {number} (from 0): an item has a text')
    return [record['text'] for record in records]


def text_of(place: str, item: Any, preamble: str) -> tuple[str, str]:
    """Prompt and answer of an item."""
    if not isinstance(item, dict):
        raise UserError(f'{place}: an item has instruction, input and output, got a {type(item).__name__}')
    for key in ('instruction', 'output'):
        if key not in item:
            raise UserError(f'{place}: an item has an {key}, got {", ".join(item) or "an empty one"}')
    item = {'input': '', **item}
    for key in ('instruction', 'input', 'output'):
        if not isinstance(item[key], str):
            raise UserError(f'{place}: {key} is a text, got {item[key]!r}')
    return instruction_prompt(item['instruction'], item['input'], preamble), item['output']


def encode(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> Iterator[list[int]]:
    """The tokens of each text, some texts at a time: a tokenizer takes far more memory than its tokens."""
    broken = next((text for text in texts if text.encode(errors='ignore').decode() != text), None)
    if broken is not None:
        raise UserError(f'a text holds half a character, which no tokenizer takes: {broken[:60]!a}')
    for start in range(0, len(texts), _AT_ONCE):
        yield from tokenizer(list(texts[start : start + _AT_ONCE]), add_special_tokens=False).input_ids


def load_tokenizer_with_end(folder: str) -> PreTrainedTokenizerBase:
    tokenizer = load_tokenizer(folder)
    if tokenizer.eos_token_id is None:
        raise UserError(
            f'tokenizer {folder} has no end-of-text token: set eos_token in tokenizer_config.json'
        )
    return tokenizer
