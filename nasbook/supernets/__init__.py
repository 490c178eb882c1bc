"""Supernets: networks that hold every candidate, and the relaxations that weigh them (Chapters 1 to 3, 5 and 6)."""

from nasbook.supernets.cell_changes import (
    Build,
    CandidateWeights,
    NodeMorphism,
    add_node,
    carry_states,
    changed,
    inverse_softmax,
    node_morphism,
    prune,
    pruned_spaces,
    remaining_cells,
)
from nasbook.supernets.cells import MixedOperation, SearchCell, SharedCell
from nasbook.supernets.fused import FusedCell
from nasbook.supernets.inheritance import corresponding_cells, inherit
from nasbook.supernets.partial import (
    PARTIAL_ENGINES,
    EdgeNormalizedRelaxation,
    FusedPartialCell,
    PartialCell,
    PartialMixedOperation,
    PartialNetwork,
    require_partition,
)
from nasbook.supernets.pool_statistics import (
    distinct_operations,
    mean_similarity,
    operation_mix,
    pool_similarity,
    similarity,
)
from nasbook.supernets.pools import (
    MORPHISM_CHOICES,
    Life,
    Pool,
    morphism_likelihoods,
    possible_children,
)
from nasbook.supernets.ragged import FusedRaggedCell
from nasbook.supernets.recurrent import NodeSoftmax, RecurrentSearchNetwork
from nasbook.supernets.relaxations import (
    PoolSoftmax,
    Relaxation,
    SoftmaxRelaxation,
    connected_cell,
    softmax_relaxation,
    strongest_edges,
)
from nasbook.supernets.search_network import (
    ENGINE_CELLS,
    ENGINES,
    EngineCells,
    EngineName,
    SearchNetwork,
    engine_positions,
)
from nasbook.supernets.sparse import AnnealedSoftmax, SparseRelaxation, strongest_connections
from nasbook.supernets.topology import (
    AnyOutputEdges,
    InputEdges,
    OutputEdges,
    StrongestOutputs,
    TopologyRelaxation,
    output_edge_space,
)

__all__ = [
    "ENGINES",
    "ENGINE_CELLS",
    "MORPHISM_CHOICES",
    "PARTIAL_ENGINES",
    "AnnealedSoftmax",
    "AnyOutputEdges",
    "Build",
    "CandidateWeights",
    "EdgeNormalizedRelaxation",
    "EngineCells",
    "EngineName",
    "FusedCell",
    "FusedPartialCell",
    "FusedRaggedCell",
    "InputEdges",
    "Life",
    "MixedOperation",
    "NodeMorphism",
    "NodeSoftmax",
    "OutputEdges",
    "PartialCell",
    "PartialMixedOperation",
    "PartialNetwork",
    "Pool",
    "PoolSoftmax",
    "RecurrentSearchNetwork",
    "Relaxation",
    "SearchCell",
    "SearchNetwork",
    "SharedCell",
    "SoftmaxRelaxation",
    "SparseRelaxation",
    "StrongestOutputs",
    "TopologyRelaxation",
    "add_node",
    "carry_states",
    "changed",
    "connected_cell",
    "corresponding_cells",
    "distinct_operations",
    "engine_positions",
    "inherit",
    "inverse_softmax",
    "mean_similarity",
    "morphism_likelihoods",
    "node_morphism",
    "operation_mix",
    "output_edge_space",
    "pool_similarity",
    "possible_children",
    "prune",
    "pruned_spaces",
    "remaining_cells",
    "require_partition",
    "similarity",
    "softmax_relaxation",
    "strongest_connections",
    "strongest_edges",
]
