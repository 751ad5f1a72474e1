"""A heat map says what its colours mean."""

from matplotlib.figure import Figure

from fox.eval.plots import MAX_COLUMNS_WITH_VALUES, heat_map


def test_cells_have_their_values_or_where_there_are_too_many_a_colour_bar() -> None:
    for columns, values, bars in (
        (MAX_COLUMNS_WITH_VALUES, MAX_COLUMNS_WITH_VALUES, 0),
        (MAX_COLUMNS_WITH_VALUES + 1, 0, 1),
    ):
        figure = Figure()
        axes = figure.subplots()
        heat_map(axes, [[0.5] * columns], ["50%"], range(columns), None)
        assert len(axes.texts) == values
        assert len(figure.axes) == 1 + bars
