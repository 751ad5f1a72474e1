"""The Game Boy: our own ROM plays CatchRT exactly, other images are checked before they run."""

import hashlib
import shutil
import subprocess
import sys

import numpy as np
import pytest

from fox.agents.realtime.envs.catch import CatchRT
from fox.agents.realtime.envs.gameboy import (
    OWN_ROM,
    OWN_SHA256,
    Cartridge,
    GameBoyEnv,
)
from fox.agents.realtime.envs.rom.build import build, read_ihx, with_header

PX, BX, BY, SEED = 0xC0AA, 0xC0A8, 0xC0A9, 0xC0A6


@pytest.fixture
def make():
    """Makes Game Boys, and switches them off."""
    pytest.importorskip("pyboy")
    made = []

    def make(*arguments, **settings):
        made.append(GameBoyEnv(*arguments, **settings))
        return made[-1]

    yield make
    for env in made:
        env.close()


@pytest.mark.parametrize("seed", [0, 5])
def test_our_rom_plays_catch_exactly(make, seed):
    env, catch = make(), CatchRT()
    env.reset(seed)
    catch.reset(seed)
    actions = np.random.default_rng(1).integers(3, size=400).repeat(7)
    for action in actions:
        _, reward, over, _, _ = env.step(action)
        assert reward == catch.step(action)[1]
        assert over == (catch.misses >= 10)
        memory = [env.read(PX), env.read(BX), env.read(BY), env.read(SEED, 2)]
        assert memory == [catch.px, catch.bx, catch.by, catch.seed]
    assert catch.misses > 10


def test_features_are_the_cartridges_bytes(make):
    np.testing.assert_allclose(make().reset(0), np.array([76, 80, 16]) / 127.5 - 1, rtol=1e-6)


def test_a_state_continues_exactly_picture_and_held_button_included(make):
    env, other = make("image"), make()
    env.step(2)
    state = env.get_state()
    other.set_state(state)
    np.testing.assert_array_equal(other.render84(), env.render84())
    for action in (0, 2, 2, 1):
        image = env.step(action)[0]
        other.step(action)
    np.testing.assert_array_equal(other.render84(), image)
    assert other.read(PX) == env.read(PX) == 76 - 2 - 4 + 2


def test_a_new_episode_begins_with_no_button_held(make):
    env = make()
    env.step(2)
    env.reset(0)
    env.step(0)
    assert env.read(PX) == 76


def test_the_picture_shows_ball_and_paddle_one_frame_later(make):
    env = make("image")
    for _ in range(21):
        image = env.step(0)[0]
    rows, columns = np.nonzero(image[:70] < 128)
    # The ball was at (80, 36), that is at (72, 20) on the screen of 160 x 144.
    assert (rows.min(), rows.max()) == (12, 15)
    assert (columns.min(), columns.max()) == (38, 41)
    assert (image[80:, 36:47] < 128).all()


def test_a_cartridge_of_ones_own_tells_score_buttons_and_end(make, tmp_path):
    rom = tmp_path / "mine.gb"
    rom.write_bytes(OWN_ROM.read_bytes())
    frames = Cartridge(score=0xC0A4, features=(BY,), buttons=("left",), boot_frames=100)
    env = make(rom=str(rom), sha256=OWN_SHA256.upper(), cartridge=frames)
    assert env.action_names == ("noop", "left")
    observation, reward, over, _, _ = env.step(1)
    assert (observation.shape, reward, over) == ((1,), 1.0, False)  # each frame is a point
    assert len({float(env.reset(seed)[0]) for seed in range(10)}) > 4  # idle frames come first
    assert list(tmp_path.iterdir()) == [rom]


def test_another_image_than_the_one_asked_for_is_refused(make, tmp_path):
    rom = tmp_path / "other.gb"
    rom.write_bytes(b"other")
    with pytest.raises(ValueError, match=f"expected sha256 {OWN_SHA256}, but got d9298a10"):
        make(rom=str(rom), sha256=OWN_SHA256)


def test_an_unknown_image_needs_a_cartridge(make, tmp_path):
    rom = tmp_path / "other.gb"
    rom.write_bytes(b"other")
    with pytest.raises(ValueError, match=r"not known: pass cartridge=Cartridge\(...\)"):
        make(rom=str(rom), sha256=hashlib.sha256(b"other").hexdigest())


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="rom and sha256 go together"):
        GameBoyEnv(rom="mine.gb")
    with pytest.raises(ValueError, match="must be 'features' or 'image', but got 'ram'"):
        GameBoyEnv("ram")


def test_a_missing_pyboy_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyboy", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'fox-transformer\[gameboy\]'"):
        GameBoyEnv()


def test_our_image_carries_no_logo_and_correct_sums():
    image = OWN_ROM.read_bytes()
    assert hashlib.sha256(image).hexdigest() == OWN_SHA256
    assert image[0x104:0x134] == bytes(48)
    assert with_header(image) == image
    assert sum(image[:0x14E] + image[0x150:]) & 0xFFFF == int.from_bytes(image[0x14E:0x150], "big")


def test_a_damaged_line_of_intel_hex_is_refused():
    assert read_ihx(":0401000000C35001E7\n:00000001FF\n")[0x100:0x105].hex() == "00c35001ff"
    with pytest.raises(ValueError, match="checksum of the Intel HEX line :0401000000C35001E8"):
        read_ihx(":0401000000C35001E8\n")


def test_our_image_is_what_its_source_compiles_to():
    if shutil.which("sdcc") is None:
        pytest.skip("sdcc is not installed")
    version = subprocess.run(["sdcc", "--version"], capture_output=True, text=True).stdout
    if " 4.2.0 " not in version:
        pytest.skip(f"another sdcc gives other bytes than 4.2.0: {version.splitlines()[0]}")
    assert build() == OWN_ROM.read_bytes()
