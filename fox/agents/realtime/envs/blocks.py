"""BlocksRT: falling blocks on a 10 x 18 board, of which every play repeats byte for byte.

Legend: a cell is (row, column), row 0 at the top; a piece lies in a square box whose upper left
cell is (self.row, self.column).
"""

from typing import Any

import numpy as np

ROWS, COLUMNS = 18, 10
NOOP, LEFT, RIGHT, CLOCKWISE, COUNTERCLOCKWISE, DROP = range(6)
REWARDS = (0.0, 1.0, 3.0, 5.0, 8.0)  # for 0 .. 4 lines at once
REPEAT = 4  # ticks after which a held action acts again
_PICTURES = (
    "....####........",
    "####",
    "###.#....",
    ".####....",
    "##..##...",
    "####.....",
    "###..#...",
)
_SCALARS = ("piece", "turn", "row", "column", "age", "held", "held_ticks", "over")


def _orientations(picture: str) -> list[list[tuple[int, int]]]:
    """The four lists of cells of a piece, each turned clockwise from the one before."""
    side = int(len(picture) ** 0.5)
    cells = [divmod(i, side) for i, mark in enumerate(picture) if mark == "#"]
    turns = [cells]
    for _ in range(3):
        turns.append([(column, side - 1 - row) for row, column in turns[-1]])
    return turns


PIECES = [_orientations(picture) for picture in _PICTURES]


class BlocksRT:
    """Seven four-cell pieces fall in shuffled bags; a full line goes and pays.

    1, 2, 3 or 4 lines at once give 1, 3, 5 or 8. The episode ends when a new piece finds no room.
    An action that is held acts on its first tick and then on every fourth.

    Args:
        observation: "features" or "image": what reset() and step() return.
        gravity: ticks in which a piece falls by one row.

    Raises:
        ValueError: an argument is not as above.
    """

    fps = 60.0
    n_actions = 6
    noop = NOOP
    action_names = ("noop", "left", "right", "clockwise", "counterclockwise", "drop")

    turn: int
    row: int
    column: int
    age: int
    over: bool

    def __init__(self, observation: str = "features", gravity: int = 24) -> None:
        if observation not in ("features", "image"):
            raise ValueError(f"observation must be 'features' or 'image', but got {observation!r}")
        if gravity < 1:
            raise ValueError(f"gravity must be at least 1 tick per row, but got {gravity}")
        self.gravity = gravity
        self._observe = self.features if observation == "features" else self.render84
        self.reset(0)

    def reset(self, seed: int) -> np.ndarray:
        """Begins an episode with an empty board."""
        self._random = np.random.PCG64(seed)
        self.board = np.zeros((ROWS, COLUMNS), np.uint8)  # 0 or 1 + the number of the piece
        self.bag: list[int] = []
        self.held, self.held_ticks = NOOP, 0
        self._spawn()
        return self._observe()

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """One frame: (observation, reward, terminated, False, {})."""
        if not 0 <= action < self.n_actions:
            raise ValueError(
                f"action must be 0 .. 5 ({', '.join(self.action_names)}), not {action}"
            )
        if self.over:
            raise ValueError("the episode has ended: call reset(seed) before step(action)")
        self.held_ticks = self.held_ticks + 1 if action == self.held else 0
        self.held = action
        reward = 0.0
        if self.held_ticks % REPEAT == 0:
            reward = self._act(action)
        self.age += 1
        if self.age >= self.gravity and not self.over:
            reward += self._fall()
        return self._observe(), reward, self.over, False, {}

    def _act(self, action: int) -> float:
        if action == DROP:
            return self._fall()
        shift = {LEFT: -1, RIGHT: 1}.get(action, 0)
        turn = (self.turn + {CLOCKWISE: 1, COUNTERCLOCKWISE: 3}.get(action, 0)) % 4
        if self._fits(turn, self.row, self.column + shift):
            self.turn, self.column = turn, self.column + shift
        return 0.0

    def _cells(self, turn: int, row: int, column: int) -> list[tuple[int, int]]:
        return [(row + r, column + c) for r, c in PIECES[self.piece][turn]]

    def _fits(self, turn: int, row: int, column: int) -> bool:
        return all(
            0 <= r < ROWS and 0 <= c < COLUMNS and not self.board[r, c]
            for r, c in self._cells(turn, row, column)
        )

    def _fall(self) -> float:
        self.age = 0
        if self._fits(self.turn, self.row + 1, self.column):
            self.row += 1
            return 0.0
        for cell in self._cells(self.turn, self.row, self.column):
            self.board[cell] = 1 + self.piece
        left = self.board[~self.board.all(axis=1)]
        lines = ROWS - len(left)
        self.board = np.concatenate([np.zeros((lines, COLUMNS), np.uint8), left])
        self._spawn()
        return REWARDS[lines]

    def _spawn(self) -> None:
        if not self.bag:
            self.bag = list(range(len(PIECES)))
            for i in range(len(PIECES) - 1, 0, -1):  # raw numbers: the same with every NumPy
                j = self._random.random_raw() % (i + 1)
                self.bag[i], self.bag[j] = self.bag[j], self.bag[i]
        self.piece = self.bag.pop()
        side = 1 + max(max(cell) for cell in PIECES[self.piece][0])
        self.turn, self.row, self.column, self.age = 0, 0, (COLUMNS - side) // 2, 0
        self.over = not self._fits(self.turn, self.row, self.column)

    def features(self) -> np.ndarray:
        """(183,) float32: the board row by row (1 filled, -1 the falling piece), and in 0..1 the
        piece's turn, its time on this row, and the held action's time since it acted.
        """
        values = np.zeros(ROWS * COLUMNS + 3, np.float32)
        values[:-3] = self.board.ravel() > 0
        for row, column in self._cells(self.turn, self.row, self.column):
            values[row * COLUMNS + column] = -1
        values[-3:] = self.turn / 4, self.age / self.gravity, self.held_ticks % REPEAT / REPEAT
        return values

    def render84(self) -> np.ndarray:
        """(84, 84) uint8: cells of 4 x 4 pixels with a dark edge, the falling piece white."""
        shades = np.array([0, 90, 110, 130, 150, 170, 190, 210, 255], np.uint8)
        board = self.board.copy()
        for cell in self._cells(self.turn, self.row, self.column):
            board[cell] = 8
        image = np.full((84, 84), 40, np.uint8)
        cells = shades[board].repeat(4, axis=0).repeat(4, axis=1)
        cells[3::4] //= 2
        cells[:, 3::4] //= 2
        image[6:78, 22:62] = cells
        return image

    def get_state(self) -> dict[str, Any]:
        """Board, bag, falling piece, held action, and the random generator."""
        return {name: getattr(self, name) for name in _SCALARS} | {
            "board": self.board.copy(),
            "bag": list(self.bag),
            "random": self._random.state,
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Continues exactly where get_state() was called."""
        for name in _SCALARS:
            setattr(self, name, state[name])
        self.board, self.bag = state["board"].copy(), list(state["bag"])
        self._random.state = state["random"]

    def close(self) -> None:
        """Nothing to free."""
