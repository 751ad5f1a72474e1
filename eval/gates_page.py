"""One page of figures on the gates of a model.

Legend: L layers, T tokens, H heads, n blocks of a map.
"""

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from fox.eval.plots import mark_training_lengths
from fox.figures import FAINT, FOX, INK, TRANSFORMER, new_figure, plain_axes, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from fox.eval.gates import Maps

DECAY_FLOOR = -20.0  # nats; what is forgotten below exp(-20) has one colour
ATTENTION_FLOOR = 1e-4
WINDOW = 96  # tokens of which the gates are drawn one by one
MOST_VALUES = 160  # cells with their value written in


def draw(
    result: dict[str, Any],
    maps: "Sequence[Maps]",
    words: Sequence[str],
    log_f: Tensor | None,
    path: Path,
) -> None:
    """Half-lives, computed shares, maps of the chosen heads, and one head's gates over the text.

    Args:
        result: of `inspect_model`.
        maps: of the chosen heads.
        words: T tokens as text.
        log_f: (L, T, H); None without gates, and only the attention maps are drawn.
        path: the picture.
    """
    if log_f is None:
        figure = new_figure(13, 4.3)
        rows: list[Any] = [["attention 0", "attention 1", "attention 2"]]
        panels = figure.subplot_mosaic(rows)
    else:
        figure = new_figure(13, 15)
        rows = [["half-life", "share", "by length"]]
        rows += [[f"{kind} {place}" for place in range(3)] for kind in ("decay", "attention")]
        panels = figure.subplot_mosaic([*rows, ["gates"] * 3], height_ratios=[1, 1.1, 1.1, 0.8])
        draw_numbers(panels, result)
        draw_gates(panels["gates"], words, log_f)
    for place, (name, (layer, head)) in enumerate(result["chosen"].items()):
        where = f"{name}: layer {layer}, head {head}"
        draw_maps(panels, place, where, maps[place], result["tokens"])
    about = "" if log_f is not None else "; it has no forget gates, so there is no more to show"
    figure.suptitle(
        f"{result['model']} on {result['tokens']:,} tokens of {result['text']}{about}",
        fontsize=12,
        color=INK,
    )
    save_figure(figure, path)


def draw_numbers(panels: "dict[str, Axes]", result: dict[str, Any]) -> None:
    """Half-life and computed share of each head, and the share against the length of the text."""
    from matplotlib.colors import LogNorm, Normalize

    heads = result["heads"]
    lives = [math.inf if head["half_life"] is None else head["half_life"] for head in heads]
    finite = [tokens for tokens in lives if tokens < math.inf] or [1.0]
    scale = LogNorm(min(finite) / 1.01, max(finite) * 1.01)
    head_table(panels["half-life"], "Half-life (tokens)", heads, lives, "viridis", scale, short)
    shares = [list(head["computed_share"].values())[-1] for head in heads]
    title = "Share of attention left by pruning"
    head_table(panels["share"], title, heads, shares, "cividis", Normalize(0, 1), "{:.0%}".format)

    axes = panels["by length"]
    lengths = [int(length) for length in heads[0]["computed_share"]]
    curves = [list(head["computed_share"].values()) for head in heads]
    for curve in curves:
        axes.plot(lengths, curve, color=FAINT, linewidth=0.8, alpha=0.7)
    means = [sum(shares) / len(shares) for shares in zip(*curves, strict=True)]
    axes.plot(lengths, means, "o-", color=FOX, linewidth=2)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    mark_training_lengths(axes, [result["training_length"]])
    axes.set_ylim(0, 1.03)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    title = f"{means[-1]:.0%} left by pruning at {result['log_pruning_tolerance']:g}"
    plain_axes(axes, title, "tokens of the text (red: mean of the heads)", "")


def head_table(
    axes: "Axes",
    title: str,
    heads: Sequence[dict[str, Any]],
    values: Sequence[float],
    colours: str,
    scale: Any,
    spell: Any,
) -> None:
    """One cell per layer (rows, the first on top) and head."""
    layers, columns = heads[-1]["layer"] + 1, heads[-1]["head"] + 1
    table = [list(values[row * columns : (row + 1) * columns]) for row in range(layers)]
    image = axes.imshow(table, cmap=colours, aspect="auto", norm=scale)
    axes.set_title(title, loc="left", fontsize=11, color=INK, fontweight="bold")
    axes.set_xlabel("head", color=INK)
    axes.set_ylabel("layer", color=INK)
    for axis, count in ((axes.xaxis, columns), (axes.yaxis, layers)):
        axis.set_ticks(range(0, count, max(1, count // 8)))
    axes.tick_params(length=0, colors=INK)
    axes.spines[:].set_visible(False)
    if len(values) > MOST_VALUES:
        axes.figure.colorbar(image, ax=axes, shrink=0.8)
        return
    for row, line in enumerate(table):
        for column, value in enumerate(line):
            bright = scale(value) > 0.6
            axes.text(
                column,
                row,
                spell(value),
                ha="center",
                va="center",
                color=INK if bright else "white",
                fontsize=9 if columns <= 8 else 7,
            )


def draw_maps(panels: "dict[str, Axes]", place: int, where: str, maps: "Maps", tokens: int) -> None:
    """Decay and attention of one head; in the empty corner, the last tokens one by one."""
    from matplotlib.colors import LogNorm, Normalize

    draw_map(
        panels[f"attention {place}"],
        f"Attention, {where}",
        (maps.attention.clamp(min=ATTENTION_FLOOR), maps.last_attention.clamp(min=ATTENTION_FLOOR)),
        {"cmap": "magma", "norm": LogNorm(ATTENTION_FLOOR, 1.0)},
        tokens,
    )
    if maps.decay is not None and maps.last_decay is not None:
        draw_map(
            panels[f"decay {place}"],
            f"Decay (nats), {where}",
            (maps.decay, maps.last_decay),
            {"cmap": "inferno", "norm": Normalize(DECAY_FLOOR, 0.0)},
            tokens,
        )


def draw_map(
    axes: "Axes", title: str, maps: tuple[Tensor, Tensor], colours: dict[str, Any], tokens: int
) -> None:
    """Queries are rows, keys are columns; the first of maps is the text, the second its end."""
    inset = axes.inset_axes((0.62, 0.62, 0.38, 0.38))
    last = len(maps[1])
    for panel, values, first in ((axes, maps[0], 0), (inset, maps[1], tokens - last)):
        future = values.new_ones(values.shape).triu(1).bool()
        shown = values.masked_fill(future, math.nan).numpy()
        extent = (first, tokens, tokens, first)
        image = panel.imshow(shown, extent=extent, interpolation="nearest", **colours)
        panel.tick_params(colors=INK)
        panel.spines[["top", "right"]].set_visible(False)
    inset.set_xlabel(f"last {last} tokens", fontsize=8, color=INK)
    inset.set_xticks([])
    inset.set_yticks([])
    axes.set_title(title, loc="left", fontsize=10, color=INK, fontweight="bold")
    axes.set_xlabel("key", color=INK)
    axes.set_ylabel("query", color=INK)
    axes.figure.colorbar(image, ax=axes, shrink=0.8, extend="min")


def draw_gates(axes: "Axes", words: Sequence[str], log_f: Tensor) -> None:
    """The gates of the head that changes most, where it does so most, token by token."""
    gates = log_f.exp()  # (L, T, H)
    spread = gates.std(1)  # (L, H)
    layer, head = divmod(int(spread.argmax()), spread.shape[1])
    values = gates[layer, :, head]
    width = min(WINDOW, len(values))
    start = int(values.unfold(0, width, 1).std(1).argmax())
    place = range(start, start + width)
    shown = values[start : start + width].tolist()
    colours = [FOX if value < 0.5 else TRANSFORMER for value in shown]
    axes.bar(place, shown, width=0.8, color=colours, alpha=0.6)
    title = f"Gates of layer {layer}, head {head}, the one that changes most; red: below one half"
    plain_axes(axes, title, f"tokens {start:,} to {start + width - 1:,}", "gate (1 keeps all)")
    names = [visible(words[t]) for t in place]
    axes.set_xticks(place, names, rotation=90, fontsize=7.5, parse_math=False)
    for label, colour in zip(axes.get_xticklabels(), colours, strict=True):
        label.set_color(colour)
    axes.tick_params(axis="x", length=0, pad=1)
    axes.grid(axis="x", visible=False)
    axes.set_xlim(start - 0.7, start + width - 0.3)
    axes.set_ylim(0, 1.02)


def visible(word: str) -> str:
    """A token as every font can draw it: white space shown and counted, other scripts escaped."""
    word = re.sub(" {4,}", lambda spaces: f"{len(spaces.group())}·", word)
    word = word.replace(" ", "·").replace("\n", "⏎").replace("\t", "→")
    return "".join(
        letter
        if letter in "⏎→" or (letter.isprintable() and ord(letter) < 0x530)
        else letter.encode("unicode_escape").decode()
        for letter in word
    )


def short(tokens: float) -> str:
    """12345.6 -> 12k, in at most four signs."""
    if tokens == math.inf:
        return "∞"
    for size, sign in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if tokens >= size:
            return f"{tokens / size:.0f}{sign}"
    return f"{tokens:.0f}" if tokens >= 10 else f"{tokens:.1f}"
