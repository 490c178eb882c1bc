"""The recurrent cells in fewer, larger steps; see :mod:`nasbook.networks.recurrent_cells` for what they compute."""

from __future__ import annotations

from nasbook.networks.recurrent_cells import RecurrentCell

FUSED_CELLS: dict[str, type[RecurrentCell]] = {}
"""The fused form of each backbone that has one, by name; parameters, state and values are those of the readable one."""
