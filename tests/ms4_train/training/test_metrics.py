"""Operations against closed forms and torch's own counter; router load by hand."""

from functools import partial

import pytest
import torch
from support.models import tiny_config, tiny_model
from support.multimodal import image_batch, random_pixels, tiny_multimodal
from support.quantised_models import KINDS, dequantised_twin, quantised_tiny
from torch.utils.flop_counter import FlopCounterMode

from ms4_kernels.attention import packed_attention
from ms4_train.adapters import attach
from ms4_train.config.schema import AdapterSection
from ms4_train.model import Mistral3ForConditionalGeneration, Mistral4ForCausalLM, SequenceLayout, TextConfig, VisionConfig
from ms4_train.training.metrics import ExpertCounter, FlopCounter, Speedometer, peak_flops, router_load


def test_release_has_its_active_parameters():
    with torch.device("meta"):
        counter = FlopCounter.of_model(Mistral4ForCausalLM(TextConfig()))
    # Spec section 1.3: 5.559 billion active without embedding and head, norms (0.3 million) included there and not here.
    assert counter.per_token / 6 == pytest.approx(5.559e9, rel=1e-3)
    assert counter.per_trained_token == 6 * 131072 * 4096
    assert counter.per_attention_pair == 6 * 36 * 32 * (128 + 128)


@pytest.mark.parametrize("frozen", [False, True])
def test_products_equal_torchs_own_count(frozen, monkeypatch):
    """Every expert is chosen for every token, so dense products are what is active; in plain torch, whose counter sees nothing else."""
    monkeypatch.setattr("ms4_kernels.moe.interface.against", lambda *tensors: "a test")
    config = tiny_config(n_routed_experts=2, num_experts_per_tok=2)
    model = tiny_model(config)
    if frozen:
        # A frozen base with a trained embedding: gradients of inputs everywhere, of weights nowhere but there.
        model.requires_grad_(False)
        model.model.embed_tokens.weight.requires_grad_(True)
    tokens = torch.randint(0, 512, (24,))
    with FlopCounterMode(display=False) as counted:
        logits = model.logits(model(tokens, SequenceLayout.from_lengths((24,))))
        torch.nn.functional.cross_entropy(logits, tokens).backward()
    products = sum(flops for op, flops in counted.get_flop_counts()["Global"].items() if str(op) in {"aten.mm", "aten.bmm", "aten.addmm"})
    counter = FlopCounter.of_model(model)
    ours = counter.count(tokens=24, trained_tokens=24, lengths=())
    assert ours == pytest.approx(products, rel=0.02)


@pytest.mark.parametrize("kind", KINDS)
def test_quantised_weights_cost_what_frozen_ones_cost(kind):
    model = quantised_tiny(kind)
    plain = dequantised_twin(model)
    for each in (model, plain):
        attach(each, AdapterSection(r=2, target_modules=["o_proj"], target_parameters=["mlp.experts.down_proj"]))
    assert FlopCounter.of_model(model) == FlopCounter.of_model(plain)


def test_attention_is_counted_inside_documents():
    counter = FlopCounter(per_token=10.0, per_trained_token=100.0, per_attention_pair=1.0)
    assert counter.count(tokens=7, trained_tokens=2, lengths=(3, 4)) == 70 + 200 + (6 + 10)


def test_frozen_parts_cost_two_thirds():
    model = tiny_model()
    full = FlopCounter.of_model(model)
    model.requires_grad_(False)
    assert FlopCounter.of_model(model).per_token == pytest.approx(full.per_token * 4 / 6)


def test_release_has_its_vision_parameters():
    with torch.device("meta"):
        model = Mistral3ForConditionalGeneration(TextConfig(), VisionConfig())
        counter, text = FlopCounter.of_model(model), FlopCounter.of_model(Mistral4ForCausalLM(TextConfig()))
    assert counter.vision is not None
    assert (counter.per_token, counter.per_trained_token, counter.per_attention_pair) == (
        text.per_token,
        text.per_trained_token,
        text.per_attention_pair,
    )
    norms, pixels = 1024 * 49, 3 * 14 * 14 * 1024  # spec section 1.3; the gradient of pixels is not wanted
    assert counter.vision.per_patch == 6 * (403_305_472 - norms) - 2 * pixels
    assert counter.vision.per_image_token == 6 * (25_166_848 - 1024)
    assert counter.vision.per_patch_pair == 6 * 24 * 16 * (64 + 64)


@pytest.mark.parametrize("trained", ["all", "projector", "text"])
def test_vision_products_equal_torchs_own_count(trained, monkeypatch):
    """Every product of tower and projector, attention's too: the reference's, of one image, are what torch's counter sees."""
    monkeypatch.setattr("ms4_train.model.vision.packed_attention", partial(packed_attention, backend="reference"))
    monkeypatch.setattr("ms4_kernels.native.linear.library", lambda: None)
    model = tiny_multimodal(tiny_config(n_routed_experts=2, num_experts_per_tok=2))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trained == "all" or name.startswith({"projector": "multi_modal", "text": "model."}[trained]))
    images = image_batch(random_pixels([(6, 5)], model.vision_config), model.vision_config)
    with FlopCounterMode(display=False) as counted:
        features = model.image_features(images)
        if features.requires_grad:
            features.sum().backward()
    counter = FlopCounter.of_model(model)
    assert counter.vision is not None
    assert counter.vision.count(images) == pytest.approx(counted.get_total_flops(), rel=1e-6)
    counts = {"tokens": 40, "trained_tokens": 9, "lengths": (40,)}
    assert counter.count(**counts, images=images) == counter.count(**counts) + counter.vision.count(images)


def test_router_load():
    load = router_load(torch.tensor([[4, 4, 4, 4], [16, 0, 0, 0]]))
    assert load.max_over_mean == pytest.approx((1 + 4) / 2)
    assert load.dead_experts == 3


def test_expert_counts_add_up_over_micro_batches():
    model, counter = tiny_model(), ExpertCounter()
    assert counter.take() is None
    for length in (5, 9):
        model(torch.arange(length), SequenceLayout.from_lengths((length,)))
        counter.add(model.expert_counts())
    counts = counter.take()
    assert counts.shape == (2, 8)
    assert counts.sum(dim=1).tolist() == [14 * 2, 14 * 2]
    assert counter.take() is None


def test_speed(monkeypatch):
    clock = iter([10.0, 12.0, 12.0, 20.0, 21.0, 21.0]).__next__
    monkeypatch.setattr("ms4_train.training.metrics.time.perf_counter", clock)
    speed = Speedometer(peak=1000.0)
    speed.add(100, 500.0)
    assert speed.read() == {"tokens_per_second": 50.0, "mfu": 0.25}
    assert Speedometer(peak=None).read() == {"tokens_per_second": 0.0}


def test_peak_of_this_machine_is_plausible():
    assert 1e8 < peak_flops(torch.device("cpu"), torch.bfloat16) < 1e14


@pytest.mark.parametrize(
    ("name", "expected"),
    [("NVIDIA H100 80GB HBM3", 989e12), ("NVIDIA H100 PCIe", 756e12), ("NVIDIA GB200", 2.5e15), ("NVIDIA L40S", 362e12), ("Unknown", None)],
)
def test_known_devices(monkeypatch, name, expected):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert peak_flops(torch.device("cuda"), torch.bfloat16) == expected
