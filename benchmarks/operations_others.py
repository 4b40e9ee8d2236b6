"""Routing, the sort by expert, packed attention, and the cross-entropy of a head, against torch's and transformers' ways of doing them.

Exercise it: ``python benchmarks/operations.py --tiny --operations routing attention cross_entropy``.

Shape suffixes: t tokens, e experts, k experts per token, d hidden, h heads, x width of a head, b documents, s tokens of the longest one,
v vocabulary, n tokens with a target, r sorted rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from operations_timing import OURS, Comparison, Contestant, grad_mode, gradients
from torch import Tensor
from transformers import Mistral4Config
from transformers.models.mistral4.modeling_mistral4 import Mistral4TopkRouter

from ms4_kernels.attention import PackedDocuments, packed_attention
from ms4_kernels.cross_entropy import IGNORED_TARGET, linear_cross_entropy
from ms4_kernels.routing import route, sort_by_expert

TOP_K = 4
BARE = "bare products"


@dataclass(frozen=True)
class Setting:
    """Where and in which type."""

    dtype: torch.dtype
    device: torch.device

    def generator(self) -> torch.Generator:
        """The same numbers for every comparison."""
        return torch.Generator(self.device).manual_seed(0)

    def normal(self, generator: torch.Generator, *shape: int, scale: float = 1.0, wanted: bool = False) -> Tensor:
        """Random numbers."""
        x = torch.randn(*shape, device=self.device, generator=generator).mul_(scale).to(self.dtype)
        return x.requires_grad_(wanted)


def routing_comparison(setting: Setting, tokens: int, num_experts: int, hidden: int, *, backward: bool) -> Comparison:
    """Router logits, softmax, choice and renormalisation, from hidden states to weights and ids."""
    generator = setting.generator()
    hidden_td = setting.normal(generator, tokens, hidden, wanted=backward)
    weight_ed = setting.normal(generator, num_experts, hidden, scale=hidden**-0.5, wanted=backward)
    dweights_tk = torch.randn(tokens, TOP_K, device=setting.device, generator=generator)
    config = Mistral4Config(hidden_size=hidden, n_routed_experts=num_experts, num_experts_per_tok=TOP_K, n_group=1, topk_group=1)
    with torch.device("meta"):
        router = Mistral4TopkRouter(config)
    router.weight = torch.nn.Parameter(weight_ed.detach(), requires_grad=backward)
    with torch.no_grad():
        # The peer leaves the order of a token's slots open: it gets the same factors for the same experts, and is compared after sorting.
        order_tk = router(hidden_td)[1].argsort(dim=-1, descending=True)
        peer_dweights_tk = torch.empty_like(dweights_tk).scatter_(1, order_tk, dweights_tk)
    wanted = [hidden_td, weight_ed] if backward else []
    peer_wanted = [hidden_td, router.weight] if backward else []

    def ours() -> list[Tensor]:
        with grad_mode(wanted):
            weights_tk, ids_tk = route(F.linear(hidden_td, weight_ed), TOP_K)
        return [ids_tk, *gradients(weights_tk, wanted, dweights_tk)]

    def peer() -> list[Tensor]:
        with grad_mode(wanted):
            _, weights_tk, ids_tk = router(hidden_td)
        return [ids_tk, *gradients(weights_tk, peer_wanted, peer_dweights_tk)]

    def comparable(found: Sequence[Tensor]) -> list[Tensor]:
        return [*(x_tk.detach().gather(1, order_tk) for x_tk in found[:2]), *found[2:]]

    name = f"router, {'forward + backward' if backward else 'forward'}, {num_experts} experts, {tokens} tokens"
    contestants = {OURS: Contestant(ours), "transformers (Mistral4TopkRouter)": Contestant(peer, comparable)}
    return Comparison("routing", name, tokens, setting.dtype, contestants, kept_anyway=[weight_ed])


def sort_comparison(setting: Setting, tokens: int, num_experts: int) -> Comparison:
    """From ids to the order by expert, its inverse, and the ends of the experts' rows."""
    ids_tk = torch.rand(tokens, num_experts, device=setting.device, generator=setting.generator()).topk(TOP_K).indices

    def ours() -> list[Tensor]:
        return list(sort_by_expert(ids_tk, num_experts))

    def peer() -> list[Tensor]:
        id_r = ids_tk.flatten()
        pair_r = id_r.argsort(stable=True)
        return [pair_r, pair_r.argsort().view(ids_tk.shape), torch.bincount(id_r, minlength=num_experts).cumsum(0)]

    contestants = {OURS: Contestant(ours), "torch (argsort twice)": Contestant(peer)}
    return Comparison("routing", f"sort by expert, {num_experts} experts, {tokens} tokens", tokens, torch.float32, contestants)


def attention_comparison(
    setting: Setting, lengths: Sequence[int], kind: str, heads: int, width: int, *, backward: bool, backends: Sequence[str] = ()
) -> Comparison:
    """Causal attention of documents: packed here, a right-padded batch there, which needs no mask beyond the causal one."""
    generator, tokens, scale = setting.generator(), sum(lengths), width**-0.5
    packed = [setting.normal(generator, tokens, heads, width, wanted=backward) for _ in range(3)]
    dout_thx = setting.normal(generator, tokens, heads, width)
    documents = PackedDocuments(tuple(lengths), setting.device)
    padded = [_padded(x, lengths).requires_grad_(backward) for x in packed]
    dout_bhsx = _padded(dout_thx, lengths)
    wanted, peer_wanted = (packed, padded) if backward else ([], [])

    def ours(backend: str = "auto") -> list[Tensor]:
        with grad_mode(wanted):
            out_thx = packed_attention(*packed, documents, scale=scale, backend=backend)  # type: ignore[arg-type]
            return gradients(out_thx, wanted, dout_thx)

    def peer() -> list[Tensor]:
        with grad_mode(wanted):
            query, key, value = padded
            out_bhsx = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale)
            return gradients(out_bhsx, peer_wanted, dout_bhsx)

    def comparable(found: Sequence[Tensor]) -> list[Tensor]:
        return [_unpadded(x, lengths) for x in found]

    contestants = {OURS: Contestant(ours)}
    contestants |= {f"{OURS}, {backend}": Contestant(lambda backend=backend: ours(backend)) for backend in backends}
    contestants["torch SDPA, padded batch"] = Contestant(peer, comparable)
    name = f"{'forward + backward' if backward else 'forward'}, {len(lengths)} documents, {kind}, {tokens} tokens, {heads} heads"
    # Products of the pairs at and below the diagonal: two forward, five backward, where scores are formed again.
    flop = (7 if backward else 2) * 2 * heads * width * sum(length * (length + 1) // 2 for length in lengths)
    return Comparison("attention", name, tokens, setting.dtype, contestants, flop)


def _padded(x_thx: Tensor, lengths: Sequence[int]) -> Tensor:
    """[T, h, x] -> [b, h, s, x], zeros on the right."""
    documents = x_thx.detach().split(list(lengths))
    return torch.nn.utils.rnn.pad_sequence(list(documents), batch_first=True).transpose(1, 2).contiguous()


def _unpadded(x_bhsx: Tensor, lengths: Sequence[int]) -> Tensor:
    return torch.cat([x_hsx[:, :length].transpose(0, 1) for x_hsx, length in zip(x_bhsx, lengths, strict=True)])


def loss_comparison(setting: Setting, tokens: int, hidden: int, vocabulary: int, *, masked: float) -> Comparison:
    """Loss and both gradients of head and cross-entropy: all logits at once there; and the three products of the trained tokens alone."""
    generator = setting.generator()
    hidden_td = setting.normal(generator, tokens, hidden, wanted=True)
    head_vd = setting.normal(generator, vocabulary, hidden, scale=hidden**-0.5, wanted=True)
    target_t = torch.randint(0, vocabulary, (tokens,), device=setting.device, generator=generator)
    target_t[: round(masked * tokens)] = IGNORED_TARGET
    target_t = target_t[torch.randperm(tokens, device=setting.device, generator=generator)]
    trained = int((target_t != IGNORED_TARGET).sum())
    wanted = [hidden_td, head_vd]

    def ours() -> list[Tensor]:
        return gradients(linear_cross_entropy(hidden_td, head_vd, target_t), wanted, None)

    def peer() -> list[Tensor]:
        logits_tv = F.linear(hidden_td, head_vd).float()
        return gradients(F.cross_entropy(logits_tv, target_t, ignore_index=IGNORED_TARGET, reduction="sum"), wanted, None)

    with torch.no_grad():
        rows_nd, logits_nv = hidden_td[:trained].clone(), hidden_td.new_empty(trained, vocabulary)
        drows_nd, dhead_vd = torch.empty_like(rows_nd), torch.empty_like(head_vd)

    @torch.no_grad()
    def products() -> list[Tensor]:
        torch.mm(rows_nd, head_vd.T, out=logits_nv)
        torch.mm(logits_nv, head_vd, out=drows_nd)
        torch.mm(logits_nv.T, rows_nd, out=dhead_vd)
        return []

    contestants = {OURS: Contestant(ours), "torch, all logits": Contestant(peer), BARE: Contestant(products, None)}
    share = f", {masked:.0%} masked" if masked else ""
    name = f"head and loss, forward + backward, {tokens} tokens{share}, vocabulary {vocabulary}"
    return Comparison("cross_entropy", name, tokens, setting.dtype, contestants, 6 * trained * hidden * vocabulary, kept_anyway=[head_vd])
