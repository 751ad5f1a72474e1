"""HanabiNet: texts are read alone, seats remember their own turns, and values are the formula."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from episodes import made_up
from nets import make_net

from fox.agents.hanabi.encoder import LastFeature, Sequences, pairs
from fox.agents.hanabi.memory import small_fox
from fox.agents.hanabi.network import NetworkConfig
from fox.agents.hanabi.rules import Rules
from fox.agents.hanabi.text import (
    FIELDS,
    VOCABULARY,
    WORDS,
    Texts,
    action_places,
    action_texts,
    action_words,
    collate,
    observation_places,
    token_ids,
)
from fox.checkpoints import write_folder
from fox.model import FoxForCausalLM
from fox.policy import FoxPolicy

UNITS, MEMORIES = ("clause", "token"), ("fox", "lstm", "none")


def some_texts():
    """Views of all numbers of players and of two games, and moves, in ids and places."""
    rows, places = [], []
    for game, players in (("2c2r", 2), ("full", 5), ("2c2r", 4), ("full", 3)):
        episode = made_up(players, number=1, turns=3, game=game)
        for ids in episode.views():
            rows.append(ids)
            places.append(observation_places(episode.rules, len(ids)))
    for move in Rules.of("full", 5).moves[::7]:
        rows.append(token_ids(action_words(move)))
        places.append(action_places(move))
    return rows, places


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("unit", UNITS)
def test_neither_padding_nor_neighbours_change_what_a_text_means(unit, layers):
    net = make_net(unit=unit, num_hidden_layers=layers)
    rows, places = some_texts()
    texts = collate(rows, places)
    together = net.encode(texts)
    alone = torch.cat(
        [net.encode(collate([row], [place])) for row, place in zip(rows, places, strict=True)]
    )
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)
    wider = Texts(*(np.pad(part, ((0, 0), (0, 9)), mode="edge") for part in texts[:4]), texts[4])
    wider.words[:, -9:], wider.field[:, -9:] = 0, 0
    torch.testing.assert_close(net.encode(wider), together, rtol=1e-5, atol=1e-5)
    assert (together[:-1] - together[1:]).abs().amax(1).min() > 1e-3  # unlike texts differ


def test_a_clause_is_its_words_by_field_and_its_offset_whatever_else_is_said():
    clauses = make_net().clauses
    rows, places = some_texts()
    found = clauses(collate(rows, places))
    for row, (ids, place) in enumerate(zip(rows, places, strict=True)):
        expected = []
        for clause in range(place.clause.max() + 1):
            there = place.clause == clause
            words = clauses.pair.weight[pairs()[ids[there], place.field[there]]].sum(0)
            expected.append(clauses.mlp(words + clauses.offset.weight[place.offset[there][0]]))
        got = found.vectors[found.number[row, found.start[row] :]]
        torch.testing.assert_close(got, torch.stack(expected))
        torch.testing.assert_close(found.sums()[row], torch.stack(expected).sum(0))


@pytest.mark.parametrize("unit", UNITS)
def test_the_blocks_read_the_clauses_or_the_words_and_then_the_sum_of_the_clauses(unit):
    net = make_net(unit=unit)
    rows, places = some_texts()
    x = net.encode(collate(rows, places))
    for row, (ids, place) in enumerate(zip(rows, places, strict=True)):
        text = collate([ids], [place])
        clauses = net.clauses(text)
        read = clauses if unit == "clause" else net.words(text)
        whole = clauses.vectors[clauses.number].sum(1, keepdim=True)
        sequence = torch.cat([read.vectors[read.number], whole], 1)
        expected = net.reader.trunk(sequence)[:, -1]
        torch.testing.assert_close(x[row], expected[0], rtol=1e-4, atol=1e-5)


def test_what_is_said_twice_is_computed_once():
    net = make_net(unit="token")
    rows, places = some_texts()
    texts = collate(rows * 3, places * 3)
    for part in (net.clauses, net.words):
        once, thrice = part(collate(rows, places)), part(texts)
        assert len(thrice.vectors) == len(once.vectors)
    said = {
        (bytes(ids[place.clause == clause]), bytes(place.field[place.clause == clause]),
         place.offset[place.clause == clause][0])
        for ids, place in zip(rows, places, strict=True)
        for clause in range(place.clause.max() + 1)
    }  # fmt: skip
    assert len(net.clauses(texts).vectors) == len(said)


def test_a_word_is_a_sum_of_word_field_and_offset():
    words = make_net(unit="token").words
    rows, places = some_texts()
    found = words(collate(rows, places))
    for row, (ids, place) in enumerate(zip(rows, places, strict=True)):
        tables = (words.word, words.field, words.offset)
        parts = (ids, place.field, place.offset)
        expected = sum(table.weight[part] for table, part in zip(tables, parts, strict=True))
        got = found.vectors[found.number[row, found.start[row] :]]
        torch.testing.assert_close(got, expected)


def test_every_word_of_every_field_has_a_number_of_its_own():
    numbers = pairs()[pairs() >= 0]
    assert sorted(numbers) == list(range(len(numbers)))
    assert len(numbers) == sum(len(words) for words in WORDS.values())
    assert pairs()[VOCABULARY.index("red3"), FIELDS.index("card0.card")] >= 0
    assert pairs()[VOCABULARY.index("red3"), FIELDS.index("clues")] == -1


@pytest.mark.parametrize("layers", [1, 2])
def test_the_last_feature_and_its_gradients_are_those_of_the_whole_trunk(layers):
    torch.manual_seed(0)
    trunk = FoxPolicy(small_fox(16, layers, 2))
    distinct = torch.randn(7, 16, requires_grad=True)
    lengths = [5, 3, 1, 4]
    number = torch.randint(7, (4, 5))
    sequences = Sequences(distinct, number, torch.tensor([5 - length for length in lengths]))
    fast = LastFeature(trunk)(sequences)
    slow = torch.stack(
        [trunk(distinct[number[None, row, 5 - n :]])[0, -1] for row, n in enumerate(lengths)]
    )
    torch.testing.assert_close(fast, slow)
    cotangent = torch.randn(4, 16)
    inputs = [distinct, *trunk.parameters()]
    torch.testing.assert_close(
        torch.autograd.grad(fast, inputs, cotangent),
        torch.autograd.grad(slow, inputs, cotangent),
        rtol=1e-4,
        atol=1e-5,
    )


@pytest.mark.parametrize("unit", UNITS)
def test_it_matters_which_partner_holds_what(unit):
    net = make_net(unit=unit)
    episode = made_up(3, turns=1)
    ids = episode.views()[0]
    place = observation_places(episode.rules, len(ids))
    swapped = ids.copy()
    first, second = (np.flatnonzero(place.clause == clause)[1:] for clause in (2, 3))
    swapped[first], swapped[second] = ids[second], ids[first]  # all but +1 and +2
    x = net.encode(collate([ids, swapped], [place, place]))
    assert (x[0] - x[1]).abs().max() > 1e-3


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("memory", MEMORIES)
@torch.no_grad()
def test_step_by_step_a_seat_remembers_what_it_does_of_the_whole_game(memory, layers):
    net = make_net(memory=memory, memory_layers=layers)
    x = torch.randn(5, 9, 16)
    lengths = [9, 2, 5, 9, 4]
    whole = net.memory(x)
    state, rows = net.memory.start(5, max_turns=9), list(range(5))
    for turn in range(9):
        going = [row for row in rows if lengths[row] > turn]
        if turn == 3:
            going.reverse()
        state = net.memory.select(state, [rows.index(row) for row in going])
        rows = going
        h, state = net.memory.step(state, x[rows, turn])
        torch.testing.assert_close(h, whole[rows, turn], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("memory", MEMORIES)
def test_a_memory_knows_neither_later_turns_nor_other_seats(memory):
    net = make_net(memory=memory)
    x = torch.randn(3, 6, 16)
    changed = x.clone()
    changed[0, 4:], changed[1:] = 7.0, -7.0
    torch.testing.assert_close(net.memory(changed)[0, :4], net.memory(x)[0, :4])
    if memory != "none":
        assert not torch.allclose(net.memory(changed)[0, 5], net.memory(x)[0, 5])


def test_without_a_memory_nothing_is_remembered():
    net, x = make_net(memory="none"), torch.randn(3, 6, 16)
    h, _ = net.memory.step(net.memory.start(3, max_turns=6), x[:, 0])
    assert not net.memory(x).any()
    assert not h.any()


@torch.no_grad()
def test_a_new_memory_begins_anew():
    net = make_net()
    x, y = torch.randn(2, 2, 16)
    _, state = net.memory.step(net.memory.start(2, max_turns=3), x)
    second, _ = net.memory.step(state, y)
    first, _ = net.memory.step(net.memory.start(2, max_turns=3), y)
    torch.testing.assert_close(first, net.memory(y[:, None])[:, 0])
    assert not torch.allclose(second, first)


def test_new_gates_remember():
    net = make_net()
    for trunk in (net.reader.trunk, net.memory.trunk):
        log_f = trunk.model.layers[0].attn.log_gates(torch.zeros(1, 1, 16))
        torch.testing.assert_close(log_f.exp(), torch.full((1, 1, 2), 0.982), rtol=0, atol=1e-3)


def test_values_are_the_formula_for_each_state_and_move():
    head = make_net().head
    o, e = torch.randn(5, 16), torch.randn(3, 16)
    for row in range(5):
        for move in range(3):
            mixed = head.mixed(head.state(o[row]) * head.action(e[move]))
            expected = head.value(o[row]) + head.advantage(F.silu(mixed))
            torch.testing.assert_close(head(o, e, None)[row, move], expected[0])


def test_centred_advantages_have_mean_zero_over_the_legal_moves():
    o, e = torch.randn(5, 16), torch.randn(4, 16)
    legal = torch.tensor([[True, False, True, True]] * 4 + [[False, True, False, False]])
    plain, centred = make_net(centre=False), make_net(centre=True)
    Q = centred.head(o, e, legal)
    advantage = Q - centred.head.value(o)
    mean = (advantage * legal).sum(1) / legal.sum(1)
    torch.testing.assert_close(mean, torch.zeros(5), rtol=0, atol=1e-6)
    shift = Q - plain.head(o, e, legal)  # the same of every move
    torch.testing.assert_close(shift, shift[:, :1].expand(5, 4))
    with pytest.raises(ValueError, match="depend on which are legal: pass legal"):
        centred.head(o, e)


@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize("unit", UNITS)
def test_a_gradient_reaches_every_parameter(unit, memory):
    net = make_net(unit=unit, memory=memory, centre=True)
    rows, places = some_texts()
    x = net.encode(collate(rows, places))
    e = net.encode(action_texts(Rules.of("2c2r", 3).moves))
    o = x + net.memory(x[None])[0]
    net.head(o, e, torch.ones(len(x), len(e), dtype=torch.bool)).square().sum().backward()
    still = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()]
    assert still == []


def test_the_same_seed_makes_the_same_network_and_the_same_features():
    texts = collate(*some_texts())
    for unit in UNITS:
        one, other = make_net(3, unit=unit), make_net(3, unit=unit)
        assert torch.equal(one.encode(texts), other.encode(texts))


def language_model(folder, **changes):
    config = small_fox(16, 2, 2).replace(**{"vocab_size": len(VOCABULARY)} | changes)
    torch.manual_seed(5)
    model = FoxForCausalLM(config)
    write_folder(model, folder)
    return model


def test_a_pretrained_network_reads_as_the_language_model_did(tmp_path):
    model = language_model(tmp_path)
    net = make_net(unit="token", num_hidden_layers=2, pretrained=str(tmp_path))
    rows, places = some_texts()
    features = net.reader(net.words(collate(rows, places)))
    for row, ids in enumerate(rows):
        expected = model.model(torch.from_numpy(ids.astype(np.int64))[None])[0, -1]
        torch.testing.assert_close(features[row], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab_size": 300}, "has vocab_size=300, but the network needs vocab_size=313"),
        ({"hidden_size": 32, "num_heads": 4}, "has hidden_size=32, num_heads=4, but the network"),
        ({"num_hidden_layers": 1}, "needs num_hidden_layers=2: train another, or change"),
        ({"use_k_shift": True}, "has use_k_shift=True, but"),
        ({"intermediate_size": 24}, "has intermediate_size=24, but"),
        ({"fgate_type": "none"}, "has fgate_type=none, but the network needs fgate_type=full"),
    ],
)  # fmt: skip
def test_a_language_model_of_other_sizes_is_refused(tmp_path, changes, message):
    language_model(tmp_path, **changes)
    with pytest.raises(ValueError, match=message):
        make_net(unit="token", num_hidden_layers=2, pretrained=str(tmp_path))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"unit": "word"}, r"unit must be one of \('clause', 'token'\), but got 'word'"),
        ({"memory": "gru"}, "memory must be one of .*, but got 'gru'"),
        ({"style": "long"}, "style must be one of .*, but got 'long'"),
        ({"memory_layers": 0}, "memory_layers must be at least 1, but got 0"),
        ({"hidden_size": 15}, "must be a multiple of num_heads, but got 15 and 2"),
        ({"pretrained": "folder"}, "reads tokens: set unit='token', but got 'clause'"),
    ],
)
def test_a_network_that_cannot_be_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        NetworkConfig(**changes)
