"""Texts in a row as token ids, to learn the language itself."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from grootv.errors import UserError
from grootv.registry import DATASETS

from .instructions import load_tokenizer, read_items


@DATASETS.register_module()
class TextDataset(Dataset):
    """Windows over texts that follow each other, end-of-text after each.

    The file is a JSON list of objects with a ``text``. A window begins with the last token of the one before,
    so that every token but the very first is predicted once.

    Each item is a dict as ``grootv.datasets.instructions.pad_right`` takes it: ``input_ids`` (L,) int64,
    ``labels``, the same, and ``context_length`` 0, for nothing is given.

    Args:
        ann_file: The file.
        tokenizer: Folder that holds a tokenizer, as transformers writes it.
        data_root: Leads to ``ann_file``.
        length: Tokens of a window, at least 2; the last one may have fewer.

    Raises:
        UserError: Names the file and the rule where one is broken: no JSON, no list, a text is missing, or
            there is nothing to predict.
    """

    def __init__(self, ann_file: str, tokenizer: str, data_root: str = '', length: int = 256):
        path = Path(data_root, ann_file)
        if length < 2:
            raise UserError(f'TextDataset: length is at least 2, got {length}')
        texts = []
        for number, record in enumerate(read_items(path)):
            if not isinstance(record, dict) or not isinstance(record.get('text'), str):
                raise UserError(f'TextDataset: {path}, item {number} (from 0): an item has a text')
            texts.append(record['text'])
        tokenizer = load_tokenizer(tokenizer)
        tokens = tokenizer(texts, add_special_tokens=False).input_ids if texts else []
        self._tokens = torch.tensor([i for text in tokens for i in (*text, tokenizer.eos_token_id)])
        if len(self._tokens) < 2:
            raise UserError(f'TextDataset: {path} has {len(self._tokens)} tokens, nothing to predict')
        self._length = length
        self.metainfo: dict[str, Any] = {}

    def __len__(self) -> int:
        return -(-(len(self._tokens) - 1) // (self._length - 1))

    def __getitem__(self, index: int) -> dict[str, Tensor | int]:
        if not 0 <= index < len(self):
            raise IndexError(f'TextDataset: items are 0 to {len(self) - 1}, got {index}')
        start = index * (self._length - 1)
        window = self._tokens[start : start + self._length]
        return dict(input_ids=window, labels=window.clone(), context_length=0)
