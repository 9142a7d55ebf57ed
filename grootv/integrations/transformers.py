"""GrootV as backbone and classifier of transformers, under the names that it has in timm.

Importing this file registers them. It also keeps DETR of transformers 5 from losing weights: what DETR's
files call out_proj, its attention calls o_proj, and the loader renames every out_proj, the scan's too.
"""

from transformers.conversion_mapping import (
    get_checkpoint_conversion_mapping,
    register_checkpoint_conversion_mapping,
)
from transformers.core_model_loading import WeightRenaming

import grootv.integrations.timm  # noqa: F401

register_checkpoint_conversion_mapping(
    'DetrModel',
    [
        WeightRenaming('attn.out_proj', 'attn.o_proj') if rule.source_patterns == ['out_proj'] else rule
        for rule in get_checkpoint_conversion_mapping('DetrModel') or ()
    ],
    overwrite=True,
)
