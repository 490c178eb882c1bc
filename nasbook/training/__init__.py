"""Training: bilevel updates, runs that resume, checkpoints (Chapter 1)."""

from nasbook.operations.batch_norms import kept_statistics
from nasbook.training.bilevel import (
    ArchitectureGradient,
    Batch,
    BilevelUpdate,
    FiniteDifference,
    FirstOrder,
    Objective,
    SecondOrder,
    StepResult,
    ToyProblem,
    UnrolledUpdate,
)
from nasbook.training.checkpoints import (
    load_checkpoint,
    random_state,
    read_checkpoint,
    restore_random_state,
    save_checkpoint,
)
from nasbook.training.driver import drive
from nasbook.training.fit import (
    CIFAR10_EVALUATION,
    IMAGENET_EVALUATION,
    Fit,
    FitConfig,
    check_classes,
    evaluate,
    fit,
)
from nasbook.training.run import EpochReport, Resumable, Run, accuracy, cosine, optimizer_form

__all__ = [
    "CIFAR10_EVALUATION",
    "IMAGENET_EVALUATION",
    "ArchitectureGradient",
    "Batch",
    "BilevelUpdate",
    "EpochReport",
    "FiniteDifference",
    "FirstOrder",
    "Fit",
    "FitConfig",
    "Objective",
    "Resumable",
    "Run",
    "SecondOrder",
    "StepResult",
    "ToyProblem",
    "UnrolledUpdate",
    "accuracy",
    "check_classes",
    "cosine",
    "drive",
    "evaluate",
    "fit",
    "kept_statistics",
    "load_checkpoint",
    "optimizer_form",
    "random_state",
    "read_checkpoint",
    "restore_random_state",
    "save_checkpoint",
]
