from .tree_ssm import TreeSSM

__all__ = ['TreeSSM']
