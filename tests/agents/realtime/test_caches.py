"""Claims about a policy's workers: whatever they keep, they deliver the sequential features."""

import pickle
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch.nn.utils import parameters_to_vector

from fox.agents.realtime import wavefront
from fox.agents.realtime.agent import GreedyHead
from fox.agents.realtime.behaviour import beta
from fox.agents.realtime.caches import LONGEST, policy_workers
from fox.agents.realtime.clock import VirtualClock
from fox.agents.realtime.envs.catch import CatchRT
from fox.agents.realtime.loop import Interaction
from fox.agents.realtime.policy import PolicyConfig, RealtimePolicy, batch_of
from fox.agents.realtime.processes import ProcessTransport
from fox.agents.realtime.rings import ObservationRing, Overwritten
from fox.agents.realtime.scheduler import TickDispatcher
from fox.agents.realtime.ticks import Done, Job, Joined, Source, token_dtype
from fox.agents.realtime.transport import VirtualTransport
from fox.agents.realtime.wavefront import KeyRing
from fox.agents.weights import WeightBuffers

SMALL = PolicyConfig(hidden_size=32, num_hidden_layers=3, num_heads=4, window=16, history=64)
TOKEN = token_dtype(np.zeros(4, np.float32))
POLICY = ((4,), np.dtype(np.float32), 3)
TICKS = 60
STARTS = (0, 17, 41)


def config_of(block, cache, **changes):
    fields = {name: getattr(SMALL, name) for name in ("hidden_size", "num_hidden_layers")}
    fields |= {"num_heads": 4, "window": 16, "history": 64, "d_max": 16}
    return PolicyConfig(block=block, cache=cache, **(fields | changes))


def random_policy(config):
    """A policy whose gates, shifts and scales all matter."""
    torch.manual_seed(3)
    policy = RealtimePolicy(config, *POLICY).eval()
    with torch.no_grad():
        for parameter in policy.trunk.parameters():
            parameter.mul_(6) if parameter.dim() > 1 else parameter.add_(
                0.3 * torch.randn_like(parameter)
            )
        for layer in (policy.q_head.into, policy.q_head.hidden, policy.q_head.out):
            layer.weight.mul_(3)
    return policy


def random_tokens(ticks=TICKS):
    random = np.random.default_rng(0)
    tokens = np.zeros(ticks, TOKEN)
    tokens["tick"] = np.arange(ticks)
    tokens["obs"] = random.normal(size=(ticks, 4))
    tokens["action"], tokens["source"] = random.integers(3, size=(2, ticks))
    tokens["reward"] = random.normal(size=ticks)
    tokens["start"][list(STARTS)] = True
    return tokens


def ring_of(tokens, shared=False):
    ring = ObservationRing(TOKEN, 16, 64, shared)
    for token in tokens:
        ring.publish(token)
    return ring


def flat_of(policy):
    return parameters_to_vector(policy.parameters()).detach().numpy()


def setup(config, workers=4, shared=False, **options):
    """A factory of workers, the tokens' ring, and the features of the sequential model."""
    policy, tokens = random_policy(config), random_tokens()
    flat = flat_of(policy)
    weights = WeightBuffers(len(flat), workers, shared)
    weights.publish(flat, 0)
    batch = batch_of(tokens)
    with torch.inference_mode():
        wanted = policy.window(policy.encode(batch), batch["start"])[0].numpy()
    factory = policy_workers(config, *POLICY, weights, **options)
    return factory, ring_of(tokens, shared), wanted


def job(k, worker=0):
    return Job(k, worker, k, k + 3, 0)


def close(features, wanted):
    np.testing.assert_allclose(features, wanted, rtol=0, atol=1e-5)


@pytest.fixture(params=["llama", "pro"])
def block(request):
    return request.param


def test_a_window_is_the_sequential_model_on_its_tokens(block):
    config = config_of(block, "window")
    factory, ring, _ = setup(config)
    policy, tokens = random_policy(config), random_tokens()
    worker = factory(0)
    for k in (0, 3, 16, 30, 41, 59):
        batch = batch_of(tokens[max(k - 15, 0) : k + 1])
        with torch.inference_mode():
            wanted = policy.window(policy.encode(batch), batch["start"])[0, -1].numpy()
        features, version = worker.infer(job(k), ring)
        close(features, wanted)
        assert version == 0


@pytest.mark.parametrize("cache", ["catchup", "wavefront"])
def test_caches_deliver_the_sequential_features_whatever_ticks_got_a_job(block, cache):
    factory, ring, wanted = setup(config_of(block, cache))
    workers = [factory(0), factory(1)]
    for k in (0, 1, 2, 5, 6, 16, 17, 18, 19, 30, 42, 43, 58, 59):
        features, _ = workers[k % 2].infer(job(k, k % 2), ring)
        close(features, wanted[k])


def run_threads(factory, ring, ticks, number=4):
    """Features of the ticks, thread w infers each `number`-th one, with its own worker."""
    features = {}

    def infer(worker):
        for k in ticks[worker::number]:
            features[k], _ = made[worker].infer(job(k, worker), ring)

    made = [factory(worker) for worker in range(number)]
    yield made
    with ThreadPoolExecutor(number) as threads:
        list(threads.map(infer, range(number)))
    yield features


def test_a_wavefront_of_threads_is_the_sequential_model(block):
    factory, ring, wanted = setup(config_of(block, "wavefront"))
    run = run_threads(factory, ring, range(TICKS))
    log, lock = [], threading.Lock()

    def slow(layer):
        def hook(module, arguments):
            with lock:
                log.append((threading.get_ident(), layer))
            time.sleep(0.003)

        return hook

    for worker in next(run):
        for number, layer in enumerate(worker.policy.trunk.model.layers):
            layer.mlp.register_forward_pre_hook(slow(number))
    features = next(run)
    close(np.stack([features[k] for k in range(TICKS)]), wanted)
    depth, most = {}, 0  # of each thread: how deep its tick is in the layers, behind attention
    for thread, layer in log:
        depth[thread] = layer
        most = max(most, len(set(depth.values())))
        if layer == 2:
            del depth[thread]
    assert most >= 3  # ticks at once, each in another layer


def test_a_tick_whose_worker_was_lost_is_taken_in_by_the_next(block):
    factory, ring, wanted = setup(config_of(block, "wavefront"), patience=0.05)
    workers = [factory(number) for number in range(3)]
    for k in range(10):
        workers[0].infer(job(k), ring)

    def die(module, arguments):
        raise InterruptedError("killed")

    # Worker 1 dies when its tick has keys in layer 0 only; worker 2 had just begun.
    handle = workers[1].policy.trunk.model.layers[0].mlp.register_forward_pre_hook(die)
    with pytest.raises(InterruptedError):
        workers[1].infer(job(10, 1), ring)
    factory.keys.take_on(11)
    features, _ = workers[0].infer(job(12), ring)
    close(features, wanted[12])
    handle.remove()
    # Worker 1 was only slow: what it brings now is there already, and its features are right.
    for k, worker in ((11, 2), (10, 1), (13, 1), (14, 0)):
        features, _ = workers[worker].infer(job(k, worker), ring)
        close(features, wanted[k])


def test_all_that_wait_for_a_lost_worker_go_on(block):
    factory, ring, wanted = setup(config_of(block, "wavefront"), patience=0.05)
    factory(0).infer(job(0), ring)
    factory.keys.take_on(1)
    run = run_threads(factory, ring, range(2, 30), number=3)
    next(run)
    features = next(run)
    close(np.stack([features[k] for k in range(2, 30)]), wanted[2:30])


def test_running_gates_stay_exact_after_hours(block):
    factory, ring, wanted = setup(config_of(block, "wavefront"))
    worker = factory(0)
    worker.infer(job(9), ring)
    factory.keys.running -= 1e7  # where neighbours in float32 are 1 apart
    for k in (10, 16, 30):
        close(worker.infer(job(k), ring)[0], wanted[k])


def test_a_job_that_comes_after_its_successor_delivers_its_own_features(block):
    factory, ring, wanted = setup(config_of(block, "wavefront"))
    workers = [factory(0), factory(1)]
    for k in (5, 3, 4, 6, 0, 7):
        features, _ = workers[k % 2].infer(job(k, k % 2), ring)
        close(features, wanted[k])


def test_a_wavefront_of_processes_is_the_sequential_model_though_one_is_killed():
    config = config_of("pro", "wavefront")
    factory, ring, wanted = setup(config, workers=3, shared=True, patience=0.2)
    transport = ProcessTransport(factory, ring, features=32)
    features, idle, k = {}, [0, 1, 2], 0
    try:
        transport.start(range(3))
        until = time.monotonic() + 60
        while len(features) + transport.counters["Lost"] < TICKS and time.monotonic() < until:
            for event in transport.poll(time.perf_counter()):
                if isinstance(event, Done):
                    features[event.job_id] = event.features
                if isinstance(event, Done | Joined):
                    idle.append(event.worker)
            while idle and k < TICKS:
                transport.send(job(k, idle.pop(0)), time.perf_counter())
                k += 1
                if k == 20:
                    transport.kill(1)
    finally:
        transport.close()
    assert transport.counters["Lost"] == 1
    assert len(features) == TICKS - 1
    for k, delivered in features.items():
        close(delivered, wanted[k])


def test_a_window_of_keys_slides_as_ticks_go_on(block):
    """Three layers of a window of 8 keys see 22 ticks: what is older changes nothing."""
    config = config_of(block, "wavefront", history=8, d_max=1)
    factory, _, _ = setup(config)
    policy, tokens = random_policy(config), random_tokens()
    tokens["start"][1:] = False
    changed = tokens.copy()
    changed["obs"][:20] += 1
    kept = []
    for rows in (tokens, changed):
        factory, _, _ = setup(config)
        worker, ring = factory(0), ring_of(rows)
        kept.append(np.stack([worker.infer(job(k), ring)[0] for k in range(TICKS)]))
    reach = 3 * 7 + (3 if block == "pro" else 0)  # a shift reaches one tick further, per layer
    assert np.abs(kept[0] - kept[1])[20:28].max() > 1e-3
    close(kept[0][20 + reach :], kept[1][20 + reach :])
    batch = batch_of(tokens[:8])
    with torch.inference_mode():
        close(kept[0][7], policy.window(policy.encode(batch), batch["start"])[0, -1].numpy())


def test_after_a_gap_longer_than_the_history_the_last_ticks_are_read_again():
    for cache in ("catchup", "wavefront"):
        config = config_of("pro", cache, history=12)
        factory, ring, _ = setup(config)
        policy, tokens = random_policy(config), random_tokens()
        worker = factory(0)
        worker.infer(job(2), ring)
        features, _ = worker.infer(job(39), ring)
        batch = batch_of(tokens[28:40])
        with torch.inference_mode():
            close(features, policy.window(policy.encode(batch), batch["start"])[0, -1].numpy())


def test_a_run_that_goes_on_has_no_tokens_of_the_one_before(block):
    for cache in ("window", "catchup", "wavefront"):
        config = config_of(block, cache)
        factory, _, _ = setup(config)
        policy, tokens = random_policy(config), random_tokens()
        worker, ring = factory(0), ring_of(tokens[25:])
        for k in (25, 26, 39):
            features, _ = worker.infer(job(k), ring)
            batch = batch_of(tokens[max(25, k - 15 if cache == "window" else 0) : k + 1])
            with torch.inference_mode():
                close(features, policy.window(policy.encode(batch), batch["start"])[0, -1].numpy())


def test_a_job_whose_tokens_are_gone_is_dropped_and_the_next_begins_anew():
    config = config_of("pro", "wavefront", history=12)
    factory, ring, _ = setup(config)
    policy, tokens = random_policy(config), random_tokens()
    worker = factory(0)
    worker.infer(job(3), ring)
    late = ObservationRing(TOKEN, 1, 1, False)
    for token in tokens:
        late.publish(token)
    with pytest.raises(Overwritten):
        worker.infer(job(43), late)
    for k in (44, 50):
        features, _ = worker.infer(job(k), ring)
        batch = batch_of(tokens[44 : k + 1])
        with torch.inference_mode():
            close(features, policy.window(policy.encode(batch), batch["start"])[0, -1].numpy())


@pytest.mark.parametrize("part", ["mlp", "attn"])
def test_a_job_that_the_others_have_given_up_is_dropped(part):
    """The others begin anew while it is in layer 0, or in layer 1 before its keys."""
    factory, ring, _ = setup(config_of("pro", "wavefront"))
    worker = factory(0)

    def give_up(module, arguments):
        factory.keys.begin_at(20)

    heads = worker.policy.trunk.model.layers[0]
    where = heads.mlp if part == "mlp" else heads.attn.q_proj
    where.register_forward_pre_hook(give_up)
    with pytest.raises(Overwritten, match="tick 0 was given up before layer"):
        worker.infer(job(3), ring)


def test_a_job_that_reads_what_others_write_meanwhile_is_dropped(monkeypatch):
    factory, ring, _ = setup(config_of("pro", "wavefront"))
    attention = wavefront.forgetting_attention_with_kvcache

    def slow(*arguments, **options):
        factory.keys.begun[0] = factory.keys.slots
        return attention(*arguments, **options)

    monkeypatch.setattr(wavefront, "forgetting_attention_with_kvcache", slow)
    with pytest.raises(Overwritten, match="keys of tick 0 went while they were read"):
        factory(0).infer(job(3), ring)


@pytest.mark.parametrize("cache", ["catchup", "wavefront"])
def test_no_key_is_older_than_the_version_lag(cache):
    config = config_of("llama", cache, version_lag=3)
    factory, ring, _ = setup(config)
    worker = factory(0)
    flat = flat_of(random_policy(config))
    random = np.random.default_rng(0)
    lags = []
    for k in range(1, 40):
        factory.weights.publish(flat + random.normal(0, 0.1, flat.shape).astype(np.float32), k)
        _, version = worker.infer(job(k), ring)
        assert version == k
        lags.append(version - worker.trunk.oldest)
    assert max(lags) == factory.largest_lag == 3


def test_a_policy_runs_on_the_weights_where_they_lie_and_on_new_ones_at_once():
    factory, ring, wanted = setup(config_of("llama", "window"))
    worker = factory(0)
    worker.infer(job(3), ring)
    flat = flat_of(random_policy(factory.config))
    factory.weights.publish(flat * 0, 1)
    assert not worker.infer(job(3), ring)[0].any()
    for version in (2, 3, 4):  # round all three buffers
        factory.weights.publish(flat, version)
        features, newest = worker.infer(job(3), ring)
        close(features, wanted[3])
        assert newest == version


def test_a_cache_of_bounded_keys_forgets_them_and_stays_right():
    config = config_of("pro", "catchup", history=300)
    factory, _, _ = setup(config)
    policy, tokens = random_policy(config), np.resize(random_tokens(), 1500)
    tokens["tick"], tokens["start"] = np.arange(1500), False
    ring = ObservationRing(TOKEN, 300, 1500, False)
    for token in tokens:
        ring.publish(token)
    worker = factory(0)
    for k in range(50, 1500, 50):
        features, _ = worker.infer(job(k), ring)
    batch = batch_of(tokens[: k + 1])
    with torch.inference_mode():
        close(features, policy.window(policy.encode(batch), batch["start"])[0, -1].numpy())
    assert worker.trunk.cache.report().kept.max() < 700


def test_a_cache_of_unbounded_keys_is_filled_anew_before_it_grows_for_ever():
    config = config_of("llama", "catchup", history=2)
    factory, ring, _ = setup(config)
    worker, lengths = factory(0), []
    for k in range(TICKS):
        worker.infer(job(k), ring)
        lengths.append(worker.trunk.cache.length)
    assert max(lengths) <= 2 * LONGEST


def played(cache, policy, ticks=170):
    """The actions of a policy on CatchRT with 9 workers, some of whose jobs come too late."""
    env = CatchRT(lives=1)
    weights = WeightBuffers(len(flat_of(policy)), 9, False)
    weights.publish(flat_of(policy), 0)
    config = config_of(policy.config.block, cache, window=400, history=400)
    factory = policy_workers(config, *POLICY, weights)
    head = GreedyHead(policy, weights)
    dispatcher, clock = TickDispatcher(range(9), 7), VirtualClock(1 / 64)
    ring = ObservationRing(token_dtype(env.reset(0)), 7, 400, False)

    def seconds(job):
        return 9.5 / 64 if job.id % 11 == 0 else 6 / 64

    transport = VirtualTransport(factory, ring, seconds)
    transport.start(range(9))
    behaviour = beta("repeat", n_actions=env.n_actions, noop=env.noop, seed=0)
    interaction = Interaction(env, head, dispatcher, clock, transport, ring, behaviour=behaviour)
    steps = [interaction.tick() for _ in range(ticks)]
    assert {step.source for step in steps} >= {Source.POLICY, Source.BETA_LATE}
    assert steps[-1].episode >= 1
    return [step.action for step in steps]


def test_all_cache_modes_play_the_same_game():
    policy = random_policy(config_of("pro", "window"))
    games = [played(cache, policy) for cache in ("window", "catchup", "wavefront")]
    assert len(set(games[0])) == 3
    assert games[0] == games[1] == games[2]


def test_wavefronts_are_refused_where_they_cannot_be():
    factory, _, _ = setup(config_of("pro", "wavefront"))
    with pytest.raises(ValueError, match="share memory, which other hosts cannot"):
        pickle.dumps(factory)
    rope = config_of("pro", "wavefront").blocks().replace(use_rope=True)
    with pytest.raises(ValueError, match="does not go with rotary embedding"):
        KeyRing(rope, 8, 8, shared=False)


def test_other_workers_go_to_other_hosts():
    factory, ring, wanted = setup(config_of("pro", "catchup"))
    worker = pickle.loads(pickle.dumps(factory))(0)
    close(worker.infer(job(7), ring)[0], wanted[7])
