from .grootv_cls_head import GrootVClsHead

__all__ = ['GrootVClsHead']
