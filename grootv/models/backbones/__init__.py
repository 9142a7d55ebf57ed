from .grootv import GrootV

__all__ = ['GrootV']
