"""A Mamba, a tokenizer and instructions that fit into a test."""

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import MambaConfig, MambaForCausalLM, PreTrainedTokenizerFast

from grootv.datasets.instructions import WITH_INPUT, WITHOUT_INPUT

END = '<|endoftext|>'
TOPICS = ('bread', 'rivers', 'tides', 'glass', 'wool', 'salt', 'clocks', 'bees')
ITEMS = [
    dict(
        instruction=f'Tell me about {topic}.',
        input='' if i % 2 else 'Be brief.',
        output=f'A word on {topic}.',
    )
    for i, topic in enumerate(TOPICS)
]


def write_model(folder: Path) -> Path:
    """A random model whose state reaches far, so that the tree has something to say."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
    )
    texts = [text for item in ITEMS for text in item.values()]
    bpe.train_from_iterator([*texts, *4 * [WITH_INPUT, WITHOUT_INPUT]], trainer)
    PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=END).save_pretrained(folder)
    config = MambaConfig(
        vocab_size=bpe.get_vocab_size(),
        hidden_size=16,
        state_size=4,
        num_hidden_layers=2,
        eos_token_id=0,
        bos_token_id=0,
        pad_token_id=0,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = MambaForCausalLM(config)
        for name, parameter in model.named_parameters():
            if name.endswith(('in_proj.weight', 'x_proj.weight', 'embeddings.weight')):
                torch.nn.init.normal_(parameter, std=0.4)
    model.save_pretrained(folder)
    return folder


def write_items(path: Path, items: object = ITEMS) -> Path:
    path.write_text(json.dumps(items))
    return path
