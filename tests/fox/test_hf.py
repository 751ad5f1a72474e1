"""FoX models inside transformers: the same numbers, its generation, its Trainer."""

from string import ascii_letters

import pytest
import torch
import torch.nn.functional as F
from accelerate import dispatch_model
from tokenizers import Tokenizer, decoders, models
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    DynamicCache,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from fox import FoxConfig, FoxForCausalLM
from fox.checkpoints import write_tokenizer
from fox.generation import ENDED
from fox.hf import BACKENDS, FoxHFCache, FoxHFConfig, FoxHFForCausalLM, FoxHFModel
from fox.layers import ForgettingAttention
from fox.model import Block
from fox.train.tokenizer import END_OF_TEXT, train_tokenizer

IDS = torch.tensor([[3, 14, 15, 9, 26, 5, 3, 5, 8], [9, 7, 9, 3, 2, 3, 8, 4, 6]])


def hf_of(model):
    """The same model for transformers."""
    hf = FoxHFForCausalLM(FoxHFConfig.from_fox(model.config)).eval()
    hf.load_state_dict(model.state_dict())
    return hf


@pytest.fixture
def hf(fox_pro):
    """The FoX (Pro) of conftest for transformers."""
    return hf_of(fox_pro)


@pytest.fixture
def tokenizer():
    """A letter per id of the small models."""
    letters = {letter: place for place, letter in enumerate(ascii_letters[:31])}
    tokenizer = Tokenizer(models.BPE(letters, merges=[]))
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


@pytest.fixture
def continued(hf):
    """What greedy decoding makes of IDS, and the function that makes it, with options."""

    def generate(**options):
        return hf.generate(IDS, max_new_tokens=12, do_sample=False, **options)

    return generate(), generate


def attention_layers(model):
    return [module for module in model.modules() if isinstance(module, ForgettingAttention)]


def test_transformers_has_no_type_fox_of_its_own():
    assert "fox" not in CONFIG_MAPPING_NAMES


def test_our_folder_loads_by_its_type_with_the_same_logits_and_loss(variant, tmp_path):
    variant.save_pretrained(tmp_path)
    hf = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(hf) is FoxHFForCausalLM
    out, ours = hf(IDS, labels=IDS), variant(IDS, labels=IDS)
    assert torch.equal(out.logits, ours.logits)
    torch.testing.assert_close(out.loss, ours.loss)  # summed in another order


def test_its_folder_loads_here_with_the_same_weights(variant, tmp_path):
    hf_of(variant).save_pretrained(tmp_path)
    ours = FoxForCausalLM.from_pretrained(tmp_path)
    assert ours.config == variant.config
    assert torch.equal(ours(IDS).logits, variant(IDS).logits)


def test_its_sharded_folder_loads_here_and_there(fox_pro, hf, tmp_path):
    hf.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    expected = fox_pro(IDS).logits
    assert torch.equal(FoxForCausalLM.from_pretrained(tmp_path)(IDS).logits, expected)
    assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path)(IDS).logits, expected)


def test_the_model_without_head_gives_the_features(fox_pro, tmp_path):
    fox_pro.save_pretrained(tmp_path)
    base = AutoModel.from_pretrained(tmp_path)
    assert type(base) is FoxHFModel
    assert torch.equal(base(IDS).last_hidden_state, fox_pro.model(IDS))


def test_a_folder_loads_in_another_dtype_and_onto_a_device_map(build, fox_pro, tmp_path):
    fixed = fox_pro.config.replace(fgate_type="fixed", decay_time_min=2.0, decay_time_max=64.0)
    ours = build(fixed)
    ours.save_pretrained(tmp_path)
    hf = AutoModelForCausalLM.from_pretrained(
        tmp_path, dtype=torch.bfloat16, device_map="cpu", low_cpu_mem_usage=True
    )
    assert {tensor.device.type for tensor in hf.state_dict().values()} == {"cpu"}
    assert torch.equal(hf(IDS).logits, ours.bfloat16()(IDS).logits)


def test_a_model_spread_by_accelerate_still_fills_its_cache(fox_pro, hf):
    parts = ["model.embeddings", "model.layers.0", "model.layers.1", "model.norm", "lm_head"]
    skipped = list(hf._skip_keys_device_placement)
    dispatch_model(hf, dict.fromkeys(parts, "cpu"), force_hooks=True, skip_keys=skipped)
    theirs = hf.generate(IDS, max_new_tokens=8, do_sample=False)
    assert torch.equal(theirs, fox_pro.generate(IDS, 8))


def test_our_tokenizer_is_found_by_auto_tokenizer_with_its_special_tokens(fox_pro, tmp_path):
    fox_pro.save_pretrained(tmp_path)
    ours = train_tokenizer(["the cat sat on the mat"], 270)
    config = fox_pro.config.replace(eos_token_id=ours.token_to_id(END_OF_TEXT))
    write_tokenizer(ours.to_str(), config, tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert theirs.eos_token == END_OF_TEXT
    assert theirs.bos_token is None
    text = "the cat's hat \n é"
    assert theirs(text)["input_ids"] == ours.encode(text).ids
    assert theirs.decode(ours.encode(text).ids) == text


def test_the_config_converts_both_ways_and_through_a_file(variant, tmp_path):
    config = FoxHFConfig.from_fox(variant.config)
    config.save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).to_fox() == config.to_fox() == variant.config


def test_the_config_knows_the_usual_names(fox_pro):
    config = FoxHFConfig.from_fox(fox_pro.config.replace(num_kv_heads=2))
    assert (config.num_attention_heads, config.num_key_value_heads) == (4, 2)
    fields = {"vocab_size": 31, "hidden_size": 32, "num_hidden_layers": 2}
    assert FoxHFConfig(**fields, num_attention_heads=8).to_fox().num_heads == 8


def test_the_config_is_checked_as_ours_is(fox_pro):
    with pytest.raises(ValueError, match="hidden_size must be a multiple of num_heads"):
        FoxHFConfig(vocab_size=31, hidden_size=32, num_hidden_layers=2, num_heads=5)
    config = FoxHFConfig.from_fox(fox_pro.config)
    config.num_heads = 5
    with pytest.raises(ValueError, match="hidden_size must be a multiple of num_heads"):
        FoxHFModel(config)


SHAPED = FoxConfig(
    vocab_size=500,
    hidden_size=64,
    num_hidden_layers=2,
    num_heads=4,
    use_k_shift=True,
    qk_norm=True,
    decay_time_min=2.0,
    decay_time_max=64.0,
    pad_token_id=7,
)


@pytest.mark.parametrize("fgate_type", ["full", "bias_only", "fixed"])
def test_new_weights_are_distributed_as_ours(fgate_type):
    config = SHAPED.replace(fgate_type=fgate_type)
    hf, ours = FoxHFForCausalLM(FoxHFConfig.from_fox(config)), FoxForCausalLM(config)
    theirs = hf.state_dict()
    assert theirs.keys() == ours.state_dict().keys()
    for name, weight in ours.state_dict().items():
        if weight.dim() == 1:  # scales and biases
            assert torch.equal(theirs[name], weight), name
            continue
        mean, std, n = theirs[name].mean().item(), theirs[name].std().item(), weight.numel()
        assert mean == pytest.approx(0, abs=5 * 0.02 / n**0.5), name
        assert std == pytest.approx(0.02, rel=5 / (2 * n) ** 0.5), name
    assert not theirs["model.embeddings.weight"][7].any()


def test_only_missing_weights_are_drawn_again(build, tmp_path):
    config = SHAPED.replace(fgate_type="bias_only")
    expected = build(config).state_dict()
    missing = "model.layers.1.attn.fgate_bias"
    given = {name: weight for name, weight in expected.items() if name != missing}
    hf = FoxHFForCausalLM.from_pretrained(
        None, config=FoxHFConfig.from_fox(config), state_dict=given
    )
    loaded = hf.state_dict()
    assert all(torch.equal(loaded[name], weight) for name, weight in given.items())
    fresh = FoxForCausalLM(config).state_dict()[missing]
    assert torch.equal(loaded[missing], fresh)


@pytest.mark.parametrize("tied", [False, True])
def test_the_vocabulary_can_grow(build, fox_pro, tied, tmp_path):
    hf = hf_of(build(fox_pro.config.replace(tie_word_embeddings=tied)))
    before = hf(IDS).logits
    hf.resize_token_embeddings(40, mean_resizing=False)
    after = hf(IDS).logits
    assert after.shape == (2, 9, 40)
    assert torch.equal(after[..., :31], before)
    assert (hf.lm_head.weight is hf.get_input_embeddings().weight) == tied
    hf.save_pretrained(tmp_path)
    assert torch.equal(FoxForCausalLM.from_pretrained(tmp_path)(IDS).logits, after)


def test_hidden_states_go_from_the_embeddings_to_the_features(fox_pro, hf):
    states = hf(IDS, output_hidden_states=True).hidden_states
    embedded = fox_pro.model.embeddings(IDS)
    assert len(states) == 3
    assert torch.equal(states[0], embedded)
    assert torch.equal(states[1], fox_pro.model.layers[0](embedded))
    assert torch.equal(states[2], fox_pro.model(IDS))


@torch.no_grad()
def test_hidden_states_through_a_cache_stay_in_place_or_are_refused(hf):
    mask = torch.ones_like(IDS)
    mask[0, :4] = 0
    states, cached = (
        hf(IDS, attention_mask=mask, output_hidden_states=True, use_cache=use_cache).hidden_states
        for use_cache in (False, True)
    )
    for plain, through_cache in zip(states, cached, strict=True):
        torch.testing.assert_close(plain[mask == 1], through_cache[mask == 1])
    right = mask.flip(1)
    with pytest.raises(ValueError, match="for output_hidden_states pad on the left"):
        hf(IDS, attention_mask=right, output_hidden_states=True, use_cache=True)


def test_embeddings_stand_for_ids(hf):
    embedded = hf.get_input_embeddings()(IDS)
    assert torch.equal(hf(inputs_embeds=embedded).logits, hf(IDS).logits)


def test_without_return_dict_the_outputs_are_a_tuple(hf):
    loss, logits = hf(IDS, labels=IDS, return_dict=False)
    assert torch.equal(logits, hf(IDS).logits)
    assert loss.dim() == 0
    assert isinstance(hf(IDS, return_dict=False), tuple)


def test_logits_to_keep_are_the_last_or_the_named_ones(hf):
    logits = hf(IDS).logits
    torch.testing.assert_close(hf(IDS, logits_to_keep=2).logits, logits[:, -2:])
    torch.testing.assert_close(
        hf(IDS, logits_to_keep=torch.tensor([1, 4])).logits, logits[:, [1, 4]]
    )


def test_masked_labels_are_not_counted(fox_pro, hf):
    labels = IDS.masked_fill(torch.arange(9) < 4, -100)
    ours = fox_pro(IDS, labels=labels).loss
    torch.testing.assert_close(hf(IDS, labels=labels).loss, ours)  # summed in another order


def test_the_loss_is_a_share_of_the_items_in_the_batch(hf):
    mean = hf(IDS, labels=IDS).loss
    torch.testing.assert_close(hf(IDS, labels=IDS, num_items_in_batch=64).loss, mean * 16 / 64)


def test_padded_rows_have_the_logits_of_each_row_alone(hf):
    mask = torch.ones_like(IDS)
    mask[0, :4] = 0
    mask[1, 7:] = 0
    logits = hf(IDS, attention_mask=mask).logits
    torch.testing.assert_close(logits[:1, 4:], hf(IDS[:1, 4:]).logits)
    torch.testing.assert_close(logits[1:, :7], hf(IDS[1:, :7]).logits)


def test_no_cache_is_made_unless_asked_for(hf):
    assert hf(IDS).past_key_values is None
    with torch.no_grad():
        assert hf(IDS, use_cache=True).past_key_values.fox.lengths == [9, 9]


def test_attention_weights_are_refused(hf):
    with pytest.raises(ValueError, match="return no attention weights"):
        hf(IDS, output_attentions=True)


def test_neither_and_both_inputs_are_refused(hf):
    with pytest.raises(ValueError, match="expected input_ids or inputs_embeds, but got neither"):
        hf()
    with pytest.raises(ValueError, match="expected input_ids or inputs_embeds, but got both"):
        hf(IDS, inputs_embeds=hf.get_input_embeddings()(IDS))


def test_a_mask_of_another_shape_is_refused(hf):
    with pytest.raises(ValueError, match=r"shape \(B, past \+ T\) = \(2, 9\), but got \(2, 8\)"):
        hf(IDS, attention_mask=torch.ones(2, 8))


def test_another_cache_is_refused(hf):
    with pytest.raises(ValueError, match=r"must be a fox.hf.FoxHFCache.*got a DynamicCache"):
        hf(IDS, past_key_values=DynamicCache())


@pytest.mark.parametrize(("name", "backend"), BACKENDS.items())
def test_attn_implementation_chooses_the_backend(fox_pro, hf, name, backend, tmp_path):
    fox_pro.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation=name)
    hf.set_attn_implementation(name)
    for model in (loaded, hf):
        assert {layer.backend for layer in attention_layers(model)} == {backend}
        if backend != "flash":  # needs a GPU
            torch.testing.assert_close(model(IDS).logits, fox_pro(IDS).logits)


def test_without_a_name_the_device_chooses(hf):
    assert {layer.backend for layer in attention_layers(hf)} == {None}


@pytest.mark.parametrize("name", ["flash_attention_2", "flex_attention"])
def test_attention_without_gates_is_refused(fox_pro, hf, name, tmp_path):
    fox_pro.save_pretrained(tmp_path)
    message = f"attn_implementation must be one of eager, .* but got '{name}'"
    with pytest.raises(ValueError, match=message):
        AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation=name)
    with pytest.raises(ValueError, match=message):
        hf.set_attn_implementation(name)


def test_greedy_decoding_is_ours(variant):
    ours = variant.generate(IDS, 12)
    hf = hf_of(variant)
    for options in ({}, {"use_cache": False}, {"prefill_chunk_size": 4}):
        theirs = hf.generate(IDS, max_new_tokens=12, do_sample=False, **options)
        assert torch.equal(theirs, ours), options


def test_rows_padded_on_the_left_continue_as_alone(variant):
    hf = hf_of(variant)
    mask = torch.ones_like(IDS)
    mask[0, :4] = 0
    padded = hf.generate(IDS, attention_mask=mask, max_new_tokens=8, do_sample=False)
    alone = hf.generate(IDS[:1, 4:], max_new_tokens=8, do_sample=False)
    assert torch.equal(padded[:1, 4:], alone)


def test_beams_follow_their_rows(variant):
    hf = hf_of(variant)
    mask = torch.ones_like(IDS)
    mask[0, :4] = 0
    cached, recomputed = (
        hf.generate(
            IDS,
            attention_mask=mask,
            max_new_tokens=8,
            num_beams=3,
            num_return_sequences=2,
            do_sample=False,
            use_cache=use_cache,
        )
        for use_cache in (True, False)
    )
    assert torch.equal(cached, recomputed)


@pytest.mark.parametrize("stop", [None, 30])
def test_beam_search_finds_what_ours_does(variant, stop):
    ids, scores = variant.beam_search(
        IDS, 8, num_beams=4, stop_token_ids=[] if stop is None else [stop]
    )
    theirs = hf_of(variant).generate(
        IDS,
        max_new_tokens=8,
        num_beams=4,
        num_return_sequences=4,
        do_sample=False,
        eos_token_id=stop,
        pad_token_id=1,
        output_scores=True,
        return_dict_in_generate=True,
    )
    torch.testing.assert_close(theirs.sequences_scores, scores.flatten())
    filled = ids.masked_fill(ids == ENDED, 1).flatten(0, 1)
    assert torch.equal(theirs.sequences, filled)


def test_a_model_assisted_by_lookup_or_by_another_still_decodes_greedily(variant, build):
    hf = hf_of(variant)
    greedy = hf.generate(IDS[:1], max_new_tokens=20, do_sample=False)
    helper = hf_of(build(variant.config, seed=1))
    for options in ({"prompt_lookup_num_tokens": 3}, {"assistant_model": helper}):
        assisted = hf.generate(IDS[:1], max_new_tokens=20, do_sample=False, **options)
        assert torch.equal(assisted, greedy), options


def test_rejected_drafts_are_taken_back_from_a_cache_that_evicts(fox_pro, build):
    model = build(fox_pro.config.replace(log_pruning_tolerance=-20.0))
    for layer in model.model.layers:
        layer.attn.fgate_proj.weight.data.mul_(0.1)
        layer.attn.fgate_proj.bias.data = torch.tensor([0.0, 1.0, 2.0, 8.0])
    hf, half = hf_of(model), torch.randint(31, (1, 300))
    prompt = torch.cat([half, half], dim=1)
    cache = FoxHFCache()
    cache.activate_past_recording()
    options = {"max_new_tokens": 40, "do_sample": False}
    assisted = hf.generate(prompt, prompt_lookup_num_tokens=40, past_key_values=cache, **options)
    assert torch.equal(assisted, model.generate(prompt, 40))
    kept = cache.fox.report().kept
    assert (kept < cache.fox.length).any()
    assert (kept == cache.fox.length).any()


def test_long_drafts_can_be_rejected(hf):
    prompt = torch.randint(3, 31, (1, 60)).repeat(1, 2)  # the draft after it is all of the rest
    greedy = hf.generate(prompt, max_new_tokens=20, do_sample=False)
    options = {"prompt_lookup_num_tokens": 50, "max_new_tokens": 20, "do_sample": False}
    assert torch.equal(hf.generate(prompt, **options), greedy)


def test_samples_are_those_of_recomputation_with_the_same_seed(hf):
    drawn = []
    for use_cache in (True, False):
        torch.manual_seed(5)
        options = {"do_sample": True, "temperature": 2.0, "use_cache": use_cache}
        drawn.append(hf.generate(IDS, max_new_tokens=12, **options))
    assert torch.equal(*drawn)


def test_rows_end_at_the_stop_token_and_are_filled_up(continued):
    greedy, generate = continued
    stop = greedy[0, 11].item()
    end = (greedy[0, 9:] == stop).nonzero()[0].item() + 10
    stopped = generate(eos_token_id=stop, pad_token_id=0)
    assert torch.equal(stopped[0, :end], greedy[0, :end])
    assert not stopped[0, end:].any()


def test_a_returned_cache_goes_on_where_it_stopped(hf, continued):
    greedy, _ = continued
    first = hf.generate(IDS, max_new_tokens=5, do_sample=False, return_dict_in_generate=True)
    rest = hf.generate(
        first.sequences,
        past_key_values=first.past_key_values,
        max_new_tokens=7,
        do_sample=False,
    )
    assert torch.equal(rest, greedy)


def test_embeddings_can_be_the_prompt(hf, continued):
    embedded = hf.get_input_embeddings()(IDS)
    theirs = hf.generate(inputs_embeds=embedded, max_new_tokens=12, do_sample=False)
    assert torch.equal(theirs, continued[0][:, 9:])


def test_a_model_that_prunes_evicts(build, fox_pro):
    for tolerance in (None, -10.0):
        hf = hf_of(build(fox_pro.config.replace(log_pruning_tolerance=tolerance)))
        out = hf.generate(IDS, max_new_tokens=2, do_sample=False, return_dict_in_generate=True)
        assert out.past_key_values.fox.evicts == (tolerance is not None)


def test_a_cache_with_options_evicts(hf, continued):
    greedy, generate = continued
    cache = FoxHFCache(log_pruning_tolerance=-20.0)
    assert torch.equal(generate(past_key_values=cache), greedy)
    assert cache.fox.evicts


def test_stop_strings_end_what_is_generated(hf, tokenizer, continued):
    greedy = continued[0][:1]
    stop = tokenizer.decode(greedy[0, 12:14])
    assert stop not in tokenizer.decode(greedy[0, 9:13])
    options = {"stop_strings": [stop], "tokenizer": tokenizer, "do_sample": False}
    assert torch.equal(hf.generate(IDS[:1], max_new_tokens=12, **options), greedy[:, :14])
    beams = hf.generate(IDS[:1], max_new_tokens=2, num_beams=3, **options)
    assert beams.shape == (1, 11)


def test_other_kinds_of_cache_are_refused(hf, fox_pro):
    with pytest.raises(ValueError, match="leave cache_implementation out, but got 'static'"):
        hf.generate(IDS, max_new_tokens=2, cache_implementation="static")
    with pytest.raises(ValueError, match=r"must be a fox.hf.FoxHFCache.*got a FoxCache"):
        hf.generate(IDS, max_new_tokens=2, past_key_values=fox_pro.new_cache(2))


def test_a_draft_by_the_first_layers_is_refused(hf):
    with pytest.raises(ValueError, match="leave assistant_early_exit out"):
        hf.generate(IDS[:1], max_new_tokens=2, assistant_early_exit=1)


def test_continuous_batching_is_refused(hf):
    with pytest.raises(ValueError, match=r"cannot run generate_batch.*call generate"):
        hf.generate_batch(IDS.tolist())


@torch.no_grad()
def test_a_crop_takes_back_columns_not_padding(hf):
    cache = FoxHFCache()
    mask = torch.tensor([[0, 1, 1, 1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 1, 1, 1, 1]])
    hf(IDS, attention_mask=mask, past_key_values=cache)
    hf(IDS[:, :2], past_key_values=cache)
    assert cache.get_seq_length() == 11
    cache.crop(-4)
    assert cache.get_seq_length() == 7
    assert cache.fox.lengths == [5, 7]
    mask = torch.cat([mask[:, :7], torch.ones(2, 3)], dim=1)
    out = hf(IDS[:, :3], attention_mask=mask, past_key_values=cache).logits
    alone = torch.cat([IDS[:1, 1:6], IDS[:1, :3]], dim=1)
    torch.testing.assert_close(out[:1], hf(alone).logits[:, -3:])


@torch.no_grad()
def test_rows_can_be_repeated_chosen_and_forgotten(hf):
    cache = FoxHFCache()
    mask = torch.ones_like(IDS)
    mask[0, :4] = 0
    assert cache.batch_size == -1
    hf(IDS, attention_mask=mask, past_key_values=cache)
    cache.batch_repeat_interleave(2)
    assert cache.fox.lengths == [5, 5, 9, 9]
    cache.reorder_cache(torch.tensor([0, 2, 3, 1]))
    assert cache.fox.lengths == [5, 9, 9, 5]
    cache.batch_select_indices(torch.tensor([2, 3]))
    assert cache.fox.lengths == [9, 5]
    assert cache.batch_size == 2
    cache.crop(-7)
    assert cache.fox.lengths == [2, 0]
    cache.reset()
    assert (cache.get_seq_length(), cache.fox) == (0, None)


def test_a_length_is_no_crop():
    with pytest.raises(ValueError, match="minus the number of columns to take back, but got 3"):
        FoxHFCache().crop(3)


def test_checkpointing_recomputes_blocks_and_gives_the_same_gradients(build, fox_pro):
    gradients = []
    calls = 0

    def count(*_):
        nonlocal calls
        calls += 1

    for checkpointing in (False, True):
        hf = hf_of(fox_pro).train()
        if checkpointing:
            hf.activation_checkpointing_enable()
        for module in hf.modules():
            if isinstance(module, Block):
                module.attn.register_forward_hook(count)
        hf(IDS, labels=IDS).loss.backward()
        gradients.append({name: weight.grad for name, weight in hf.named_parameters()})
    assert calls == 2 + 4
    for name, gradient in gradients[0].items():
        assert torch.equal(gradients[1][name], gradient), name


def test_smoothed_labels_are_shifted_too(fox_pro, hf, tmp_path):
    options = {"report_to": [], "use_cpu": True, "disable_tqdm": True}
    args = TrainingArguments(output_dir=tmp_path, label_smoothing_factor=0.1, **options)
    rows = [{"input_ids": row, "labels": row} for row in IDS]
    smoothed = Trainer(model=hf, args=args, eval_dataset=rows).evaluate()["eval_loss"]
    expected = F.cross_entropy(
        fox_pro(IDS).logits[:, :-1].flatten(0, 1), IDS[:, 1:].flatten(), label_smoothing=0.1
    )
    assert smoothed == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_trainer_learns_and_saves(fox_pro, checkpointing, tmp_path):
    hf = FoxHFForCausalLM(FoxHFConfig.from_fox(fox_pro.config))
    rows = [{"input_ids": row, "labels": row} for row in IDS] * 4
    trainer = Trainer(
        model=hf,
        args=TrainingArguments(
            output_dir=tmp_path,
            max_steps=20,
            per_device_train_batch_size=2,
            gradient_accumulation_steps=2,
            learning_rate=3e-3,
            activation_checkpointing=checkpointing,
            logging_steps=5,
            save_steps=20,
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
        ),
        train_dataset=rows,
        eval_dataset=rows,
    )
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < before - 1
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[0] == pytest.approx(before, abs=1)  # a mean, not a sum over the batches
    ours = FoxForCausalLM.from_pretrained(tmp_path / "checkpoint-20")
    assert torch.equal(ours(IDS).logits, hf.eval()(IDS).logits)
