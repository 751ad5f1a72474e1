"""BlocksRT against hand-made boards and a recorded play."""

import hashlib

import numpy as np
import pytest

from fox.agents.realtime.envs.blocks import CLOCKWISE, DROP, LEFT, NOOP, PIECES, RIGHT, BlocksRT

BAR, SQUARE = 0, 1


def with_piece(env, piece, **state):
    env.set_state(env.get_state() | {"piece": piece} | state)
    return env


def play(env, ticks):
    """A digest of every observation, reward and end of a scripted play."""
    digest = hashlib.sha256()
    for tick in range(ticks):
        observation, reward, over, _, _ = env.step(tick * tick // 11 % env.n_actions)
        digest.update(observation.tobytes() + bytes([int(reward), over]))
        if over:
            digest.update(env.reset(tick).tobytes())
    return digest.hexdigest()


@pytest.mark.parametrize(
    ("observation", "start"), [("features", "4b0bed1e"), ("image", "e897ba84")], ids=str
)
def test_every_play_repeats_byte_for_byte(observation, start):
    env = BlocksRT(observation, gravity=3)
    digest = play(env, 3000)
    env.reset(0)
    assert play(env, 3000) == digest
    assert digest.startswith(start)


def test_every_bag_holds_the_seven_pieces_in_an_order_of_its_own():
    env = BlocksRT()
    orders = []
    for _ in range(50):
        orders.append([env.piece, *reversed(env.bag)])
        assert sorted(orders[-1]) == list(range(len(PIECES)))
        env.bag.clear()
        env._spawn()
    assert len({tuple(order) for order in orders}) > 40


def test_a_piece_falls_by_one_row_every_gravity_ticks():
    env = BlocksRT(gravity=5)
    rows = [(env.step(NOOP), env.row)[1] for _ in range(15)]
    assert rows == [0, 0, 0, 0, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 3]


def test_a_held_action_acts_at_once_and_then_on_every_fourth_tick():
    env = with_piece(BlocksRT(), SQUARE, column=4)
    columns = [(env.step(LEFT), env.column)[1] for _ in range(9)]
    assert columns == [3, 3, 3, 3, 2, 2, 2, 2, 1]
    columns = [(env.step(action), env.column)[1] for action in (RIGHT, LEFT, LEFT, NOOP, LEFT)]
    assert columns == [2, 1, 1, 1, 0]


@pytest.mark.parametrize(("lines", "reward"), [(0, 0), (1, 1), (2, 3), (3, 5), (4, 8)], ids=str)
def test_lines_that_fall_together_pay_more(lines, reward):
    env = BlocksRT()
    env.board[14:, 0] = 3
    env.board[18 - lines :] = 3
    env.board[:, 5] = 0
    with_piece(env, BAR, turn=1, column=3)
    total = sum(env.step(action)[1] for _ in range(15) for action in (DROP, NOOP))
    assert total == reward
    assert (env.board[:14] == 0).all()
    # Of what lay in the first column and of the bar, the lines took as many cells as they are.
    assert (env.board[:, 0] > 0).sum() == 4 - lines
    assert (env.board[:, 5] == 1 + BAR).sum() == 4 - lines


def test_a_piece_does_not_turn_or_move_into_walls_and_blocks():
    env = with_piece(BlocksRT(), BAR, turn=1, column=-2)  # upright at the left wall
    env.step(CLOCKWISE)
    assert env.turn == 1
    env.step(LEFT)
    assert env.column == -2
    env.board[2, 1] = 1
    env.step(RIGHT)
    assert env.column == -2


def test_the_episode_ends_when_a_new_piece_finds_no_room():
    env = BlocksRT(gravity=1)
    env.board[2:, :9] = 1
    with_piece(env, SQUARE)
    _, _, over, _, _ = env.step(NOOP)
    assert over
    with pytest.raises(ValueError, match="the episode has ended: call reset"):
        env.step(NOOP)
    env.reset(0)
    assert not env.step(NOOP)[2]


def test_a_state_continues_exactly():
    env, other = BlocksRT(gravity=12), BlocksRT("image", gravity=12)
    env.reset(5)
    for tick in range(103):  # in the middle of a held action
        env.step(tick // 5 % 6)
    other.set_state(env.get_state())
    for tick in range(103, 200):
        observation = env.step(tick // 5 % 6)[0]
        other.step(tick // 5 % 6)
        np.testing.assert_array_equal(other.features(), observation)
    np.testing.assert_equal(other.get_state(), env.get_state())


def test_features_and_image_show_board_and_falling_piece():
    env = BlocksRT()
    env.board[17, 9] = 4
    with_piece(env, SQUARE, row=2, column=0)
    board = env.features()[:180].reshape(18, 10)
    assert (board[2:4, 0:2] == -1).all()
    assert board[17, 9] == 1
    assert np.abs(board).sum() == 5
    image = env.render84()
    assert image.shape == (84, 84)
    assert image[14:17, 22:25].tolist() == 3 * [3 * [255]]
    assert image[74, 58] == 150
    assert (image[:6] == 40).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"observation": "pixels"}, "must be 'features' or 'image', but got 'pixels'"),
        ({"gravity": 0}, "gravity must be at least 1 tick per row, but got 0"),
    ],
    ids=str,
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        BlocksRT(**arguments)


def test_an_action_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match=r"must be 0 .. 5 \(noop, left, .*\), not 6"):
        BlocksRT().step(6)
