"""Write a small Mamba with random weights, and a tokenizer trained on texts, as transformers writes them.

python tools/language/new_model.py data/topics/texts_train.json work_dirs/language/start
"""

import grootv.interrupt  # noqa: F401 # isort: skip
import argparse
from collections.abc import Iterable
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import MambaConfig, MambaForCausalLM, PreTrainedTokenizerFast

from grootv import cli
from grootv.errors import UserError
from grootv.files import write_atomically
from grootv.language.data import read_texts

END = '<|endoftext|>'


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE with at most ``vocabulary`` tokens, the 256 bytes and end-of-text among them."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, pad_token=END)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('texts', type=Path, help='JSON list, or JSON lines, of objects with a text')
    parser.add_argument('out', type=Path, help='folder to create')
    parser.add_argument('--vocabulary', type=cli.positive, default=1024, help='most tokens; default 1024')
    parser.add_argument('--layers', type=cli.positive, default=4, help='default 4')
    parser.add_argument('--width', type=cli.positive, default=128, help='default 128')
    parser.add_argument('--states', type=cli.positive, default=16, help='of a channel; default 16')
    parser.add_argument('--seed', type=int, default=0, help='of the weights; default 0')
    args = parser.parse_args()
    if args.vocabulary < 257:
        raise UserError(f'--vocabulary: 256 bytes and end-of-text make 257, got {args.vocabulary}')
    if args.out.exists():
        raise UserError(f'{args.out} is there already: remove it, or give another folder')
    texts = read_texts('new_model', args.texts)
    tokenizer = train_tokenizer(texts, args.vocabulary)
    torch.manual_seed(args.seed)
    config = MambaConfig(
        vocab_size=len(tokenizer),
        hidden_size=args.width,
        num_hidden_layers=args.layers,
        state_size=args.states,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )
    model = MambaForCausalLM(config)
    with write_atomically(args.out) as draft:
        model.save_pretrained(draft)
        tokenizer.save_pretrained(draft)
    tokens = sum(map(len, tokenizer(texts).input_ids))
    print(
        f'{args.out}: {model.num_parameters():,} parameters, {len(tokenizer)} tokens in the vocabulary; '
        f'the texts have {tokens:,} tokens, one for {sum(map(len, texts)) / tokens:.2f} characters'
    )


if __name__ == '__main__':
    cli.run(main)
