"""``nasbook count``: what the network of a genotype costs, and which kind of cell stands where."""

from __future__ import annotations

from nasbook.cli.genotypes import load_image_genotype
from nasbook.cli.options import CountOptions, parse, positional
from nasbook.errors import require_positive


def count(arguments: list[str]) -> None:
    """Prints the stack of a genotype's cells with their edges and parameters, and the network's size and work."""
    name, rest = positional(arguments, "count", "GENOTYPE", "A JSON file, or a name from `nasbook list`.")
    title = "Count the parameters and multiply-adds of a genotype's network, without an auxiliary head."
    options = parse(CountOptions, CountOptions(), "nasbook count GENOTYPE", title, rest)
    require_positive(image_size=options.image_size)
    genotype = load_image_genotype(name)

    import torch

    from nasbook.analysis import cell_depth, count_macs, count_parameters, operation_counts, skip_count
    from nasbook.networks import DerivedNetwork, kinds_of_cells, stack_runs

    with torch.device("meta"):  # shapes are enough to count
        network = DerivedNetwork(
            genotype, options.channels, options.cells, options.classes,
            stem=options.stem, in_channels=options.in_channels, cell_output=options.cell_output,
        )  # fmt: skip
    macs = count_macs(network, (1, options.in_channels, options.image_size, options.image_size))
    rows: list[tuple[str, ...]] = [("cells", "kind", "channels", "edges", "identities", "depth", "parameters")]
    rows.append(("", "stem", "", "", "", "", f"{count_parameters(network.stem):,}"))
    for run in stack_runs(kinds_of_cells(options.cells, genotype.kinds)):
        cell = genotype[run.kind]
        parameters = sum(count_parameters(network.cells[place]) for place in range(run.first, run.last + 1))
        channels = options.channels * 2**run.doublings
        numbers = (channels, len(cell.edges), skip_count(cell), cell_depth(cell))
        rows.append((run.places, run.kind, *map(str, numbers), f"{parameters:,}"))
    rows.append(("", "classifier", "", "", "", "", f"{count_parameters(network.classifier):,}"))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        first = f"{row[0]:>{widths[0]}}  {row[1]:<{widths[1]}}"
        print(first, *(f"{text:>{width}}" for text, width in zip(row[2:], widths[2:], strict=True)), sep="  ")
    print("operations:", ", ".join(f"{operation} {often}" for operation, often in operation_counts(genotype).items()))
    size = f"{options.in_channels}×{options.image_size}×{options.image_size}"
    print(f"{count_parameters(network):,} parameters, {macs:,} multiply-adds an image of {size}")
