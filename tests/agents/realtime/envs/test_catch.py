"""CatchRT against its golden values, and the two oracles against hand-made cases."""

import numpy as np
import pytest

from fox.agents.realtime.envs.catch import LEFT, NOOP, RIGHT, CatchRT, moved
from fox.agents.realtime.envs.oracles import aware_oracle, plain_oracle

GOLDEN = [80, 28, 62, 103, 134, 135, 136, 53, 62, 138, 41, 130, 20]


def test_seed_zero_plays_the_golden_balls():
    env = CatchRT()
    balls = [env.bx]
    for tick in range(1, 128 * 12 + 1):
        reward = env.step(NOOP)[1]
        assert bool(reward) == (tick % 128 == 0)
        if reward:
            balls.append(env.bx)
    assert balls == GOLDEN
    assert env.seed == 0x43C7


def test_the_paddle_moves_two_pixels_between_its_walls():
    assert [moved(76, action) for action in (NOOP, RIGHT, LEFT)] == [76, 78, 74]
    assert (moved(144, RIGHT), moved(8, LEFT)) == (144, 8)


@pytest.mark.parametrize(("bx", "reward"), [(68, -1.0), (69, 1.0), (99, 1.0), (100, -1.0)], ids=str)
def test_a_ball_is_caught_where_it_overlaps_the_paddle(bx, reward):
    env = CatchRT()
    env.set_state(env.get_state() | {"bx": bx, "by": 143})
    assert env.step(NOOP)[1] == reward
    assert abs(env.features()[3]) <= 4


def test_different_seeds_give_different_balls_and_equal_seeds_equal_ones():
    def balls(seed):
        env = CatchRT()
        env.reset(seed)
        return [env.bx for _ in range(1280) if env.step(NOOP)[1]]

    assert balls(3) == balls(3)
    assert len({tuple(balls(seed)) for seed in range(20)}) == 20


def test_the_miss_of_the_last_life_ends_the_episode():
    env = CatchRT(lives=2)
    ended = [env.step(NOOP)[1:4] for _ in range(128 * 3)]
    assert ended[127] == (1.0, False, False)  # ball 80 is caught by the paddle at 76
    assert ended[255] == (-1.0, False, False)
    assert ended[383] == (-1.0, True, False)
    with pytest.raises(ValueError, match="the episode has ended: call reset"):
        env.step(NOOP)
    env.reset(0)
    env.step(NOOP)


def test_gusts_push_the_falling_ball_as_often_as_asked_and_never_the_landing_one():
    env = CatchRT(gusts=0.2)
    pushes, balls = [], [env.bx]
    for _ in range(128 * 100):
        before, landed = env.bx, bool(env.step(NOOP)[1])
        if landed:
            balls.append(env.bx)
            continue
        assert 8 <= env.bx <= 150
        if 24 <= before <= 134:  # at the sides a push is cut short
            pushes.append(env.bx - before)
    assert balls[: len(GOLDEN)] == GOLDEN
    assert set(pushes) == {0, 16, -16}
    assert np.mean(np.array(pushes) != 0) == pytest.approx(0.2, abs=0.015)


def test_a_state_continues_exactly_gusts_included():
    env, other = CatchRT(gusts=0.3), CatchRT("image", gusts=0.3)
    env.reset(7)
    for tick in range(1000):
        env.step(tick % 3)
    other.set_state(env.get_state())
    for tick in range(1000):
        env.step(tick % 3)
        other.step(tick % 3)
    np.testing.assert_equal(other.get_state(), env.get_state())


def test_features_tell_the_state_in_numbers_of_order_one():
    env = CatchRT()
    np.testing.assert_allclose(env.reset(0), [0, 1 / 71, -1, -4 / 16], rtol=1e-6)
    assert env.features().dtype == np.float32
    env.set_state(env.get_state() | {"px": 8, "bx": 150, "by": 143})
    np.testing.assert_allclose(env.features(), [-1, 1, 63 / 64, 4], rtol=1e-6)


def test_the_image_shows_paddle_and_ball_with_half_covered_pixels_gray():
    env = CatchRT("image")
    image = env.reset(0)
    assert image.shape == (84, 84)
    assert image.dtype == np.uint8
    assert (image[76:80, 38:50] == 255).all()
    assert (image[8:12, 40:44] == 255).all()
    assert image.sum() == 255 * (4 * 12 + 4 * 4)
    env.set_state(env.get_state() | {"bx": 81, "by": 17})
    assert env.render84()[9:12, [40, 44]].tolist() == 3 * [[127, 127]]
    assert (env.render84()[[8, 12], 41:44] == 127).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"observation": "pixels"}, "must be 'features' or 'image', but got 'pixels'"),
        ({"lives": 0}, "lives must be at least 1, or None for no end, but got 0"),
        ({"gusts": 1.5}, r"probability in \[0, 1\], but got 1.5"),
    ],
    ids=str,
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        CatchRT(**arguments)


def test_an_action_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match=r"must be 0, 1 or 2 \(noop, right, left\), but got 3"):
        CatchRT().step(3)


def test_the_plain_oracle_stands_still_only_under_the_ball():
    assert [plain_oracle(76, bx) for bx in (79, 80, 86, 87)] == [LEFT, NOOP, NOOP, RIGHT]


def test_the_aware_oracle_counts_the_actions_on_their_way_and_the_walls():
    assert plain_oracle(76, 96) == RIGHT
    assert aware_oracle(76, 96, 5 * [RIGHT]) == NOOP
    assert aware_oracle(76, 96, 9 * [RIGHT]) == LEFT
    assert aware_oracle(144, 150, 9 * [RIGHT]) == NOOP
    assert aware_oracle(76, 96, []) == plain_oracle(76, 96)
