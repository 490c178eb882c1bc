"""A tabular benchmark of our own: a space so small that every cell of it was trained (Chapter 8).

``load_table()[genotype]`` is all that a user needs. The recipe of the trainings is in
:mod:`nasbook.tabular.recipe`, the script that made the table is ``tools/tabular.py``.
"""

from nasbook.tabular.space import TABULAR_SPACE, TabularCells, canonical, code_of, genotype_of, labellings
from nasbook.tabular.table import Entry, Table, load_table

__all__ = [
    "TABULAR_SPACE",
    "Entry",
    "Table",
    "TabularCells",
    "canonical",
    "code_of",
    "genotype_of",
    "labellings",
    "load_table",
]
