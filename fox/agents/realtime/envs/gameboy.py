"""Game Boy games in PyBoy (LGPL-3.0): our own CatchRT, or an image that the user has.

No image but our own is part of the package; a user's image is read, never copied or changed.
"""

import hashlib
import io
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fox.agents.realtime.envs.catch import ball_seed
from fox.agents.realtime.envs.image import shrink

if TYPE_CHECKING:
    from pyboy import PyBoy

OWN_ROM = Path(__file__).parent / "rom" / "catch.gb"
BUTTONS = ("right", "left", "up", "down", "a", "b", "start", "select")


@dataclass(frozen=True)
class Cartridge:
    """Where a game keeps what the agent may know: addresses in the Game Boy's memory.

    Args:
        score: a little-endian number of two bytes, whose growth is reward.
        misses: another, whose growth is negative reward, or None.
        over: a byte that is not 0 once the game is over, or None: it never ends.
        features: bytes that features() tells.
        seed: a number of two bytes from which the game draws its chances, set by reset(seed);
            None: a seed lets 0..30 frames pass instead.
        buttons: the actions after noop, of "right", "left", "up", "down", "a", "b", "start" and
            "select".
        boot_frames: frames until the game begins.
    """

    score: int
    misses: int | None = None
    over: int | None = None
    features: tuple[int, ...] = ()
    seed: int | None = None
    buttons: tuple[str, ...] = BUTTONS
    boot_frames: int = 200


CATCH = Cartridge(
    score=0xC0A0,
    misses=0xC0A2,
    over=0xC0AB,
    features=(0xC0AA, 0xC0A8, 0xC0A9),
    seed=0xC0A6,
    buttons=("right", "left"),
    boot_frames=74,
)
CARTRIDGES = {"f66de68f0352c68909bb3014e21cc5ad1199d96e7d7c103bdfbabf8dc39aaae8": CATCH}
OWN_SHA256 = next(iter(CARTRIDGES))


class GameBoyEnv:
    """A Game Boy whose every frame is a tick.

    The memory tells the state right after the frame. The picture is the one that was on the screen
    meanwhile: it shows an action one frame later, as the machine does.

    Args:
        observation: "features" (the cartridge's bytes) or "image".
        rom: path of an image; None: our own CatchRT, of which ten misses end an episode.
        sha256: of the image, in hexadecimal: required with rom.
        cartridge: of the image; None: what CARTRIDGES knows by its sha256.

    Raises:
        ModuleNotFoundError: PyBoy is not installed.
        ValueError: the image is another one than sha256 says, or an argument is not as above.
    """

    fps = 4194304 / 70224  # 59.7275
    noop = 0

    def __init__(
        self,
        observation: str = "features",
        rom: str | None = None,
        sha256: str | None = None,
        cartridge: Cartridge | None = None,
    ) -> None:
        if observation not in ("features", "image"):
            raise ValueError(f"observation must be 'features' or 'image', but got {observation!r}")
        if (rom is None) != (sha256 is None):
            raise ValueError("rom and sha256 go together: give both (see sha256sum), or neither")
        path = OWN_ROM if rom is None else Path(rom)
        image = _read(path, OWN_SHA256 if sha256 is None else sha256.lower())
        self.cartridge = cartridge or _known(image, path)
        self._buttons = ("", *self.cartridge.buttons)
        self.n_actions, self.action_names = len(self._buttons), ("noop", *self.cartridge.buttons)
        self._pressed = ""
        self._pyboy = _start(image)
        for _ in range(self.cartridge.boot_frames):
            self._pyboy.tick(1, True)
        self._begin = self.get_state()
        self._observe = self.features if observation == "features" else self.render84
        self.reset(0)

    def reset(self, seed: int) -> np.ndarray:
        """Begins an episode from the state after booting; the same balls as CatchRT.reset(seed)."""
        self.set_state(self._begin)
        address = self.cartridge.seed
        if address is None:
            for _ in range(np.random.default_rng(seed).integers(31)):
                self._pyboy.tick(1, True)
        else:
            start = ball_seed(seed)
            self._pyboy.memory[address] = start & 0xFF
            self._pyboy.memory[address + 1] = start >> 8
        self._points = self._read_points()
        return self._observe()

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """One frame: (observation, growth of score - misses, game over, False, {})."""
        button = self._buttons[action]
        if button != self._pressed:
            if self._pressed:
                self._pyboy.button_release(self._pressed)
            if button:
                self._pyboy.button_press(button)
            self._pressed = button
        self._pyboy.tick(1, True)
        points, before = self._read_points(), self._points
        self._points = points
        over = self.cartridge.over is not None and self._pyboy.memory[self.cartridge.over] != 0
        return self._observe(), float(points - before), over, False, {}

    def read(self, address: int, size: int = 1) -> int:
        """The little-endian number of `size` bytes at an address of the memory."""
        return int.from_bytes(bytes(self._pyboy.memory[address : address + size]), "little")

    def _read_points(self) -> int:
        misses = 0 if self.cartridge.misses is None else self.read(self.cartridge.misses, 2)
        return self.read(self.cartridge.score, 2) - misses

    def features(self) -> np.ndarray:
        """(n,) float32, the cartridge's bytes scaled to -1..1."""
        values = [self._pyboy.memory[address] for address in self.cartridge.features]
        return np.array(values, np.float32) / 127.5 - 1

    def render84(self) -> np.ndarray:
        """(84, 84) uint8, the screen in gray."""
        return shrink(self._pyboy.screen.ndarray[..., 0])  # the palette is gray

    def get_state(self) -> dict[str, Any]:
        """The machine's state as bytes, and the button that is held."""
        with io.BytesIO() as file:
            self._pyboy.save_state(file)
            return {"pyboy": file.getvalue(), "pressed": self._pressed}

    def set_state(self, state: dict[str, Any]) -> None:
        """Continues exactly where get_state() was called."""
        with io.BytesIO(state["pyboy"]) as file:
            self._pyboy.load_state(file)
        self._pressed = state["pressed"]
        self._points = self._read_points()

    def close(self) -> None:
        """Stops the machine; nothing is saved."""
        self._pyboy.stop(save=False)


def _read(path: Path, sha256: str) -> bytes:
    image = path.read_bytes()
    found = hashlib.sha256(image).hexdigest()
    if found != sha256:
        raise ValueError(
            f"{path} is not the image that was asked for: expected sha256 {sha256}, but got {found}"
        )
    return image


def _known(image: bytes, path: Path) -> Cartridge:
    sha256 = hashlib.sha256(image).hexdigest()
    if sha256 not in CARTRIDGES:
        raise ValueError(
            f"where {path} keeps its score is not known: pass cartridge=Cartridge(...)"
        )
    return CARTRIDGES[sha256]


def _start(image: bytes) -> "PyBoy":
    """A machine without window, sound and speed limit."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Using SDL2 binaries")  # for windows, of which none
            from pyboy import PyBoy
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "Game Boy games need PyBoy: pip install 'fox-transformer[gameboy]'"
        ) from error
    machine = PyBoy(io.BytesIO(image), window="null", sound_emulated=False, log_level="ERROR")
    machine.set_emulation_speed(0)
    return machine
