from grootv.errors import UserError

_TASK = 'Below is an instruction that describes a task'
_WRITE = 'Write a response that appropriately completes the request.\n\n'
PREAMBLES = {  # before an instruction with an input, and before one without
    'alpaca': (
        f'{_TASK}, paired with an input that provides further context. {_WRITE}',
        f'{_TASK}. {_WRITE}',
    ),
    'none': ('', ''),
}


def instruction_prompt(instruction: str, input: str = '', preamble: str = 'alpaca') -> str:
    """The text that a fine-tuned model continues with its answer.

    Args:
        instruction: What to do.
        input: What to do it with; an empty one has no part in the prompt.
        preamble: 'alpaca' begins with the sentences of Stanford Alpaca; 'none' begins with the instruction,
            as in the published fine-tuning of GrootL.
    """
    if preamble not in tuple(PREAMBLES):
        raise UserError(f'preamble is one of {", ".join(PREAMBLES)}, got {preamble!r}')
    begin, given = PREAMBLES[preamble][not input], f'### Input:\n{input}\n\n' if input else ''
    return f'{begin}### Instruction:\n{instruction}\n\n{given}### Response:'
