"""GrootL: the tree scan in a language model. Needs the packages of requirements/language.txt."""

from .mixer import TreeMambaMixer
from .model import load_language_model, use_tree_scan
from .prompts import instruction_prompt

__all__ = ['TreeMambaMixer', 'instruction_prompt', 'load_language_model', 'use_tree_scan']
