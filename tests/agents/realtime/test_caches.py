"""Claims about the workers of a policy: whatever they keep, they deliver the sequential features."""

import pickle
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch.nn.utils import parameters_to_vector

from fox.agents.realtime.caches import policy_workers
from fox.agents.realtime.policy import PolicyConfig, RealtimePolicy, batch_of
from fox.agents.realtime.rings import ObservationRing, Overwritten
from fox.agents.realtime.ticks import Job, token_dtype
from fox.agents.realtime.weights import WeightBuffers

SMALL = PolicyConfig(hidden_size=32, num_hidden_layers=3, num_heads=4, window=16, history=64)
TOKEN = token_dtype(np.zeros(5, np.float32))
POLICY = ((5,), np.dtype(np.float32), 3)
TICKS = 60
STARTS = (0, 17, 41)


def config_of(block, cache, **changes):
    fields = {name: getattr(SMALL, name) for name in ("hidden_size", "num_hidden_layers")}
    fields |= {"num_heads": 4, "window": 16, "history": 64, "d_max": 16}
    return PolicyConfig(block=block, cache=cache, **(fields | changes))


def random_policy(config):
    """A policy whose gates, shifts and scales all matter."""
    torch.manual_seed(1)
    policy = RealtimePolicy(config, *POLICY).eval()
    with torch.no_grad():
        for parameter in policy.trunk.parameters():
            parameter.mul_(6) if parameter.dim() > 1 else parameter.add_(
                0.3 * torch.randn_like(parameter)
            )
    return policy


def random_tokens(ticks=TICKS):
    random = np.random.default_rng(0)
    tokens = np.zeros(ticks, TOKEN)
    tokens["tick"] = np.arange(ticks)
    tokens["obs"] = random.normal(size=(ticks, 5))
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
    factory = policy_workers(config, *POLICY, weights, shared=shared, **options)
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


def test_a_job_that_comes_after_its_successor_delivers_its_own_features(block):
    factory, ring, wanted = setup(config_of(block, "wavefront"))
    workers = [factory(0), factory(1)]
    for k in (5, 3, 4, 6, 0, 7):
        features, _ = workers[k % 2].infer(job(k, k % 2), ring)
        close(features, wanted[k])
