"""One network, trained on one task after the other, with nothing against forgetting: the lower end of the scale."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from nasbook.continual.backbone import Backbone
from nasbook.continual.shared_body import SharedBody, SharedBodyConfig
from nasbook.continual.tasks import Task


@dataclass(frozen=True)
class FineTunedConfig(SharedBodyConfig):
    """Fine-tuning."""

    method: ClassVar[str] = "fine-tuned"

    def begin(self, tasks: Sequence[Task], backbone: Backbone, seed: int = 0) -> SharedBody:
        return SharedBody(tasks, self, backbone, seed=seed)
