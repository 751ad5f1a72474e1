"""Tables of an evaluation in the terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from fox.agents.hanabi.partners import PARTNERS

REFERENCES = ("random", "cheater")  # shown beside the best rule agent

Rows = Sequence[Mapping[str, Any]]


def report_run(result: Mapping[str, Any]) -> None:
    """What run_agent returns: greedy self-play with every number of players."""
    rows = [
        {"seen": "trained" if score["trained"] else "zero-shot", "players": players[:-1], **score}
        for players, score in result["scores"].items()
    ]
    table = _table(f"greedy self-play, {result['games']:,} games each", ("players",))
    _score_columns(table)
    for row in rows:
        table.add_row(row["players"] + _mark(row), *_scores(row))
    table.caption = _note(rows)
    _show(table)


def report_self_play(rows: Rows, title: str) -> None:
    """The agents, their means, the best rule agent, and the references."""
    table = _table(title, ("players", "agent"))
    _score_columns(table, "over best")
    last = None
    for row in rows:
        name = row["agent"]
        if name in PARTNERS and not row["best_rules"] and name not in REFERENCES:
            continue
        if last not in (None, row["players"]):
            table.add_section()
        table.add_row(
            str(row["players"]) if last != row["players"] else "",
            (name if row["runs"] == 1 else f"mean of {row['runs']}") + _mark(row),
            *_scores(row),
            "" if row["best_rules"] else _interval(row, "over_best", "+"),
        )
        last = row["players"]
    table.caption = f"{_note(rows)}; over best: over the rule agent that is best"
    _show(table)


def report_cross_play(matrix: Rows, title: str) -> None:
    """A row for each host, a column for each guest."""
    table = _table(title, ("host / guest",))
    for number in range(1, len(matrix) + 1):
        table.add_column(str(number), justify="right", no_wrap=True)
    for number, row in enumerate(matrix, start=1):
        scores = [f"{score:.2f}" for guest, score in row.items() if guest != "host"]
        table.add_row(f"{number} {row['host']}", *scores)
    _show(table)


def report_seeds(rows: Rows) -> None:
    """Self-play beside play with runs of other seeds."""
    table = _table("runs that differ in the seed alone, strict score", ("players", "agents"))
    for heading in ("self-play", "with each other", "gap"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            str(row["players"]),
            row["agents"] + _mark(row),
            *(_interval(row, name) for name in ("self_play", "cross_play", "gap")),
        )
    table.caption = _note(rows)
    _show(table)


def _table(title: str, headings: Sequence[str]) -> Table:
    table = Table(title=title, box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    table.title_justify = table.caption_justify = "left"
    for heading in headings:
        table.add_column(heading, overflow="fold", min_width=7)
    return table


def _score_columns(table: Table, *more: str) -> None:
    for heading in ("strict", "kept", "perfect", "bombed", "turns", *more):
        table.add_column(heading, justify="right", no_wrap=True)


def _scores(row: Mapping[str, Any]) -> list[str]:
    return [
        _interval(row, "strict"),
        f"{row['keep']:.2f}",
        f"{row['perfect_rate']:.0%}",
        f"{row['bomb_rate']:.0%}",
        f"{row['turns']:.1f}",
    ]


def _show(table: Table) -> None:
    console = Console(markup=False)  # names may have brackets
    console.print(table)
    console.print()


def _mark(row: Mapping[str, Any]) -> str:
    return " *" if row["seen"] == "zero-shot" else ""


def _interval(row: Mapping[str, Any], name: str, sign: str = "") -> str:
    """The mean, and half of the interval, which lies evenly around it."""
    mean, half = row[name], row[f"{name}_high"] - row[name]
    return f"{round(mean, 2) + 0.0:{sign}.2f} ± {half:.2f}"  # + 0.0: no -0.00


def _note(rows: Rows) -> str:
    unseen = any(row["seen"] == "zero-shot" for row in rows)
    return "±: 95 % interval" + "; *: never trained in such a game" * unseen
