"""Continual learning: sequences of tasks, the master network of Firefly, and the learners that it is compared with.

Chapter 7. A learner sees one task after the other and must still know the earlier ones. :class:`ContinualRun` is the
loop that all learners share; :class:`MasterNetwork` keeps the networks of all tasks in one, with a mask for each. The
method of the paper is :mod:`nasbook.methods.firefly_continual`.
"""

from nasbook.continual.backbone import Backbone
from nasbook.continual.cpg import CPG, CPGConfig, PickingNetwork, TaskCompaction
from nasbook.continual.ewc import EWC, EWCConfig, fisher_information, pulled
from nasbook.continual.fine_tuned import FineTunedConfig
from nasbook.continual.individual import Individual, IndividualConfig
from nasbook.continual.lwf import LwF, LwFConfig, distillation
from nasbook.continual.masks import MaskedNetwork
from nasbook.continual.master import MasterNetwork, TaskPart
from nasbook.continual.ownership import Axes, LockedEntries, Slots, all_owned, axes_of, free_entries, statistics_of
from nasbook.continual.packing import PackedNetwork, PackedTask
from nasbook.continual.packnet import PackNet, PackNetConfig
from nasbook.continual.progressive import progressive_parameters
from nasbook.continual.run import ContinualConfig, ContinualReport, ContinualRun, Phase
from nasbook.continual.shared_body import SharedBody, SharedBodyConfig
from nasbook.continual.tasks import Task, hold_out, split_classes, take_classes

__all__ = [
    "CPG",
    "EWC",
    "Axes",
    "Backbone",
    "CPGConfig",
    "ContinualConfig",
    "ContinualReport",
    "ContinualRun",
    "EWCConfig",
    "FineTunedConfig",
    "Individual",
    "IndividualConfig",
    "LockedEntries",
    "LwF",
    "LwFConfig",
    "MaskedNetwork",
    "MasterNetwork",
    "PackNet",
    "PackNetConfig",
    "PackedNetwork",
    "PackedTask",
    "Phase",
    "PickingNetwork",
    "SharedBody",
    "SharedBodyConfig",
    "Slots",
    "Task",
    "TaskCompaction",
    "TaskPart",
    "all_owned",
    "axes_of",
    "distillation",
    "fisher_information",
    "free_entries",
    "hold_out",
    "progressive_parameters",
    "pulled",
    "split_classes",
    "statistics_of",
    "take_classes",
]
