"""The explorer carries the whole table, needs nothing from outside, and refuses paths that lead nowhere."""

import json
import re
import subprocess
import sys

import pytest
from film_stage import needs_node

from nasbook.errors import InvalidInput
from nasbook.plots import explore_table, pick_cell
from nasbook.tabular import canonical, code_of, genotype_of, load_table
from nasbook.tabular.space import all_codes


@pytest.fixture(scope="module")
def page():
    return explore_table(load_table(), {"a search": [3, 3, 5], "</script>": [0]}).data


def test_it_has_every_cell_and_number(page):
    table = load_table()
    data = json.loads(re.search(r"const t = (\{.*?\});\n", page)[1])
    assert data["codes"] == ["".join(map(str, code_of(entry.genotype))) for entry in table]
    for row in (0, 11, 579, 854):
        entry = table[row]
        assert data["test"][row] == round(1e5 * entry.test_accuracy)
        assert data["spread"][row] == round(1e5 * entry.spread)
        assert [data[name][row] for name in ("rank", "parameters", "macs")] == [
            entry.rank, entry.parameters, entry.macs
        ]  # fmt: skip
    assert data["paths"] == [["a search", [3, 3, 5]], ["</script>", [0]]]


def test_it_asks_nobody(page):
    assert len(page) < 100_000
    assert "http" not in page and "src=" not in page and "import" not in page
    assert page.count("</script>") == 1  # a name can't end the script
    assert page == explore_table(load_table(), {"a search": [3, 3, 5], "</script>": [0]}).data
    key = re.search(r'data-table="(\w+)"', page)[1]
    assert key not in explore_table(load_table()).data  # two on one page don't disturb each other
    assert 'data-part="paths"' in page and "<div hidden>" in explore_table(load_table()).data


def test_without_scripts_there_is_the_best_cell():
    shown = explore_table(load_table())
    assert shown.alt.startswith("All 855 cells as dots") and "Node 2 adds" in shown.alt
    assert shown.data.count("h0") == 855
    assert f'aria-label="{shown.alt}"' in shown.data


@pytest.mark.parametrize("rows", [[], [855], [-1]])
def test_wrong_paths_are_refused(rows):
    with pytest.raises(InvalidInput, match=r"paths\['x'\]: expected rows from 0 to 854"):
        explore_table(load_table(), {"x": rows})


def test_menus_for_a_kernel():
    box = pick_cell(load_table())
    *menus, shown = box.children
    assert len(menus) == 5 and "Rank 1 of 855" in shown.value
    for menu in menus:
        menu.value = 0
    assert "at least one edge" in shown.value
    menus[1].value = 2
    assert f"Rank {load_table()[genotype_of((0, 2, 0, 0, 0))].rank} of 855" in shown.value


@needs_node
def test_the_page_names_the_table_s_neighbours(page):
    """As a cell is shown, in either labelling: the same neighbours, and the change that leads to each."""
    script = page.split("<script>")[1].split("document.querySelectorAll")[0]
    some = all_codes()[::13]
    codes = ["".join(map(str, code)) for code in some]
    asked = f"console.log(JSON.stringify({json.dumps(codes)}.map(function (c) {{ return [rowOf(c), near(c)]; }})));"
    program = f"{script}{asked}}})();"
    told = subprocess.run(["node", "-"], input=program, capture_output=True, text=True, timeout=60, check=True).stdout
    table = load_table()
    assert any(canonical(code) != code for code in some)
    for code, (row, near) in zip(some, json.loads(told), strict=True):
        assert row == table[genotype_of(code)].index
        assert sorted(other["row"] for other in near) == [entry.index for entry in table.neighbours(row)]
        assert [table[other["row"]].rank for other in near] == sorted(table[other["row"]].rank for other in near)
        for other in near:
            start = (code[2], code[3], code[0], code[1], 0) if other["turned"] else code
            changed = (*start[: other["edge"]], other["column"], *start[other["edge"] + 1 :])
            assert other["code"] == "".join(map(str, changed))
            assert table[genotype_of(changed)].index == other["row"]


def test_every_edge_can_be_met_with_a_finger(page):
    assert page.count('class="target"') == page.count('class="edge"') == 5
    assert len(re.findall(r"<select disabled data-edge=", page)) == 5


def test_without_ipywidgets(monkeypatch):
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    with pytest.raises(InvalidInput, match="explore_table shows the same without it"):
        pick_cell(load_table())
