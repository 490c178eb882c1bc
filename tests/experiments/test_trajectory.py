"""The film of Chapter 2: what a record keeps of every epoch reads back as a report that figures take."""

import json

import torch

from nasbook.experiments import trajectory_reports
from nasbook.experiments.stretchable_cells import trajectory_step
from nasbook.genotypes import Genotype, Space
from nasbook.methods import stretchable
from nasbook.plots import Epoch
from nasbook.supernets import AnyOutputEdges


def test_a_trajectory_reads_back_what_was_written():
    torch.manual_seed(0)
    relaxation = AnyOutputEdges(Space(("skip_connect", "max_pool_3x3"), nodes=3))
    cell = relaxation.derive()
    report = stretchable.Report(
        epoch=3,
        train_loss=1.0,
        train_accuracy=0.5,
        validation_loss=1.0,
        validation_accuracy=0.5,
        learning_rate=0.025,
        seconds=1.0,
        genotype=Genotype({"normal": cell, "reduction": cell}),
        coefficients={"normal": relaxation.coefficients().detach(), "reduction": torch.zeros(9, 2)},
        edge_probabilities={"normal": relaxation.edge_probabilities().detach(), "reduction": torch.zeros(9)},
        penalty=0.0,
    )
    (read,) = trajectory_reports(json.loads(json.dumps([trajectory_step(report)])))
    assert isinstance(read, Epoch)
    assert read.epoch == 3
    assert read.genotype.normal == cell
    for name in ("coefficients", "edge_probabilities"):
        written, kept = getattr(report, name)["normal"], getattr(read, name)["normal"]
        assert kept.shape == tuple(written.shape)
        assert abs(kept - written.numpy()).max() <= 5e-4
