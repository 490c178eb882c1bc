"""The size of a progressive network (Rusu et al. 2016): a column for each task, which reads all earlier columns."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from nasbook.continual.backbone import Backbone
from nasbook.errors import InvalidInput


def progressive_parameters(backbone: Backbone, classes: Sequence[int]) -> int:
    """Parameters of a progressive network after all its tasks.

    Column k is a whole backbone. Each of its layers but the first also reads what the layer below gives in every
    earlier column, by weights of the shape of its own (Eq. 1); so does its classifier. Depthwise convolutions, which
    act on each channel alone, read their own column only. The adapters of Eq. 2, which make earlier columns narrower
    before they are read, are left out.

    Args:
        backbone: of each column.
        classes: number of classes of each task, in order.

    Raises:
        InvalidInput: no task, or a backbone that can't be built.
    """
    if not classes:
        raise InvalidInput("classes is empty; give the number of classes of each task.")
    total = 0
    for column, outputs in enumerate(classes):
        with torch.device("meta"):  # for its shapes only
            network = backbone.build(outputs, 0)
        readers = {path for width in network.declare().widths for path in width.read_by}
        lateral = sum(network.get_parameter(f"{path}.weight").numel() for path in readers)
        total += sum(parameter.numel() for parameter in network.parameters()) + column * lateral
    return total
