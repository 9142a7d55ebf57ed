"""Tasks that lm-eval's own do not cover, named by ``settings`` in a config of tools/language/evaluate.py."""

import ast
from collections.abc import Mapping
from typing import Any

from grootv.errors import UserError

LETTERS = 'ABCD'


def _problems(item: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The questions on an article of RACE: the last one is asked, the others are shown with their answers."""
    try:
        problems = ast.literal_eval(item['problems'])
        fits = all(len(problem['options']) == 4 and problem['question'] for problem in problems)
        if problems and fits and all(problem['answer'] in tuple(LETTERS) for problem in problems):
            return problems
    except (KeyError, TypeError, ValueError, SyntaxError):
        pass
    raise UserError(
        'RACE: problems of an article are a list of question, four options and an answer of A to D, got '
        f'{str(item.get("problems"))[:80]!r}'
    )


def race_as_published(item: Mapping[str, Any]) -> str:
    """RACE's prompt in the harness of the published results.

    Of an earlier question that ends in a blank it shows the last five characters, the blank, before the
    answer. Since then lm-eval shows the question without them.
    """
    text = f'Article: {item["article"]}\n\n'
    *earlier, asked = _problems(item)
    for problem in earlier:
        question, answer = problem['question'], problem['options'][LETTERS.index(problem['answer'])]
        blank = question.endswith('  _  .')
        text += f'{question[-5:]}{answer}\n' if blank else f'Question: {question}\nAnswer: {answer}\n'
    return text + asked['question']


SETTINGS: dict[str, dict[str, Any]] = {
    'race_as_published': dict(
        output_type='multiple_choice',
        doc_to_text=race_as_published,
        doc_to_choice=lambda item: _problems(item)[-1]['options'],
        doc_to_target=lambda item: LETTERS.index(_problems(item)[-1]['answer']),
        metric_list=[dict(metric='acc', aggregation='mean', higher_is_better=True)],
    )
}
