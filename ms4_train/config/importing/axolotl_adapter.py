"""axolotl's adapter -> ``adapter``: which modules its target really means, said with numbers.

Exercise it: ``pytest tests/ms4_train/config/importing/test_axolotl_adapter.py``.
"""

from __future__ import annotations

import re
from collections import Counter

from ms4_train.config.importing.draft import Draft
from ms4_train.config.importing.module_names import (
    MLA_PROJECTIONS,
    ROUTER,
    STACKS,
    TEXT_LAYERS,
    adaptable_names,
    is_text,
    kind_of,
    parameter_names,
)
from ms4_train.config.importing.patterns import matching_names
from ms4_train.errors import ConfigError

_ALL_TEXT = "Attention (five projections), shared experts and routed experts instead of the lines below:"
_PRESET = "  preset: attention+experts"
_ROWS = re.compile(r"(.+)\[[0-9]*(?::[0-9]*)?\]")
"""A pattern of axolotl's with rows of the parameter behind it."""


def translate_adapter(draft: Draft) -> None:
    """``adapter``, ``lora_*``, ``peft_*``; without an adapter, what is frozen.

    Raises:
        ConfigError: another kind of adapter, a target that matches nothing, or unusable values.
        UntrustedInputError: a pattern that cannot be matched.
    """
    kind = draft.text("adapter")
    if kind is None or kind == "none":
        _full(draft)
        return
    if kind not in ("lora", "qlora"):
        raise draft.wrong(("adapter",), "lora, qlora or nothing")
    draft.put("adapter", ("adapter", "type"), "lora", "the base is quantised by model.dequantize" if kind == "qlora" else "")
    if (rank := draft.whole("lora_r")) is not None:
        draft.put("lora_r", ("adapter", "r"), rank)
    if (alpha := draft.number("lora_alpha")) is not None:
        draft.put("lora_alpha", ("adapter", "lora_alpha"), alpha)
    parameters = _target_parameters(draft)
    _dropout(draft, parameters)
    for key, target in (("peft_use_rslora", "use_rslora"), ("peft_use_dora", "use_dora")):
        if (chosen := draft.boolean(key)) is not None:
            draft.put(key, ("adapter", target), chosen)
    if (start := draft.value(("peft_init_lora_weights",))) is not None and start is not True:
        draft.put("peft_init_lora_weights", ("adapter", "init_lora_weights"), draft.text("peft_init_lora_weights"))
    _target_modules(draft, parameters)
    if parameters:
        draft.put("lora_target_parameters", ("adapter", "target_parameters"), parameters)
    elif draft.boolean("quantize_moe_experts"):
        draft.warn(
            "quantize_moe_experts without lora_target_parameters: the routed experts, 97 % of the parameters, carry no adapter in the "
            f"original. To adapt them: target_parameters: [{', '.join(STACKS)}]."
        )
    if (whole := draft.texts("lora_modules_to_save")) is not None:
        draft.put("lora_modules_to_save", ("adapter", "modules_to_save"), whole)
    if (folder := draft.text("lora_model_dir")) is not None:
        draft.put("lora_model_dir", ("adapter", "init_from"), folder)


def _target_parameters(draft: Draft) -> list[str]:
    known = (*STACKS, ROUTER)
    wanted = draft.texts("lora_target_parameters") or []
    found = [name for name in known if any(name == text or name.endswith(f".{text}") or text.endswith(f".{name}") for text in wanted)]
    if len(found) < len(wanted):
        raise draft.wrong(("lora_target_parameters",), f"a list of some of {', '.join(known)}")
    return found


def _dropout(draft: Draft, parameters: list[str]) -> None:
    dropout = draft.number("lora_dropout")
    if dropout is None:
        return
    if dropout and parameters:
        draft.put("lora_dropout", ("adapter", "lora_dropout"), 0.0, f"{dropout:g} in the original")
        draft.warn(
            f"lora_dropout: {dropout:g} together with lora_target_parameters is refused by PEFT and by axolotl, so that the original "
            "does not start; it is 0 here."
        )
        return
    draft.put("lora_dropout", ("adapter", "lora_dropout"), float(dropout))
    if dropout:
        draft.comment(("adapter", "lora_dropout"), "Must be 0 once target_parameters or a preset with experts is used.")


def _target_modules(draft: Draft, parameters: list[str]) -> None:
    """Evaluate the target on the released model's names, and write down what it means."""
    names, target = adaptable_names(), draft.value(("lora_target_modules",))
    takes_all = bool(draft.boolean("lora_target_linear"))
    key = "lora_target_linear" if takes_all else "lora_target_modules"
    if isinstance(target, str) and target != "all-linear" and not takes_all:
        matched = matching_names(target, names, how="fullmatch", key=key)
    else:
        # With lora_target_linear axolotl puts the target into a list with the names of all linear modules. In a list it is an end of names,
        # even if it was written as a pattern.
        wanted = [] if target == "all-linear" else draft.texts("lora_target_modules") or []
        found = {name for name in names if any(name == end or name.endswith(f".{end}") for end in wanted)}
        if takes_all or target == "all-linear":
            found |= _all_linear(draft, names)
        matched = [name for name in names if name in found]
    matched = _in_layers(draft, matched)
    if not matched and not parameters:
        raise ConfigError(
            "matches no linear module of this model.",
            file=draft.document.file,
            line=draft.document.line_of((key,)),
            key=key,
            fix=f"name some of {', '.join(MLA_PROJECTIONS)}.",
        )
    source = f"lora_target_modules, {key}" if takes_all and target is not None else key
    note = f"{'true adds all linear modules; ' if takes_all else ''}matches {len(matched)} of {len(names)} modules"
    draft.put(source, ("adapter", "target_modules"), _ends(matched, names), note)
    _warn_of_coverage(draft, key, matched, names)


def _all_linear(draft: Draft, names: list[str]) -> set[str]:
    """All linear modules but the head; those of the vision part where the original loads it."""
    linear = {name for name in names if not name.endswith(("lm_head", "embed_tokens"))}
    return linear if draft.text("processor_type") is not None else set(filter(is_text, linear))


def _in_layers(draft: Draft, matched: list[str]) -> list[str]:
    """``peft_layers_to_transform`` keeps some layers only."""
    layers = draft.value(("peft_layers_to_transform",))
    if layers is None:
        return matched
    numbers = [layers] if isinstance(layers, int) and not isinstance(layers, bool) else layers
    if not isinstance(numbers, list) or not all(isinstance(number, int) for number in numbers):
        raise draft.wrong(("peft_layers_to_transform",), "a list of layer numbers")
    draft.drop("peft_layers_to_transform", "the targets name the layers")
    return [name for name in matched if any(f"layers.{number}." in name for number in numbers)]


def _ends(matched: list[str], names: list[str]) -> list[str]:
    """The shortest ends of names that mean just these modules: a kind where all layers have it, else layer by layer."""
    total, found = Counter(map(kind_of, names)), Counter(map(kind_of, matched))
    ends: dict[str, None] = {}
    for name in matched:
        kind = kind_of(name)
        ends[kind if found[kind] == total[kind] else name.removeprefix("model.").removeprefix("language_model.")] = None
    return list(ends)


def _warn_of_coverage(draft: Draft, key: str, matched: list[str], names: list[str]) -> None:
    projections = [f"self_attn.{name}" for name in MLA_PROJECTIONS]
    found = Counter(kind_of(name) for name in matched)
    some = [name for name in projections if found[name]]
    missed = [name for name in projections if found[name] < TEXT_LAYERS]
    if missed and some:
        count = sum(found[name] for name in projections)
        what = (
            f"matches {', '.join(some)} among the projections of attention: {count} of {len(projections) * TEXT_LAYERS} modules. "
            f"It does not match {', '.join(missed)}"
        )
        shared = [name for name in ("gate_proj", "up_proj", "down_proj") if not found[f"shared_experts.{name}"]]
        what += ", nor shared_experts." + "/".join(shared) + "." if shared else "."
        draft.warn(f"{key}: {what} The original trains far less than it seems to say.")
        draft.comment(("adapter", "target_modules"), f"The original {what}", _ALL_TEXT, _PRESET)
    elif not some and found:
        sees = "only modules of the vision; the text network has none of these names" if not any(map(is_text, matched)) else None
        draft.warn(f"{key}: matches {sees or 'no projection of attention'}.")
    heads = [name for name in matched if name.endswith(("lm_head", "embed_tokens"))]
    if heads:
        draft.warn(f"{key}: matches {', '.join(map(kind_of, heads))} too.")


def _full(draft: Draft) -> None:
    """No adapter: everything is trained, or what ``unfrozen_parameters`` leaves."""
    draft.drop("adapter", "none: every parameter is trained") if draft.value(("adapter",)) else None
    patterns = draft.texts("unfrozen_parameters")
    router = True
    if patterns is not None:
        router = _unfrozen(draft, patterns)
    draft.put("unfrozen_parameters" if patterns is not None else "(full fine-tuning)", ("training", "train_router"), router)
    if router:
        draft.comment(
            ("training", "train_router"),
            "The original trains the routers, without a loss that keeps them balanced. false freezes them, which is our default.",
        )
        draft.warn(
            "The routers are trained in the original, without a balancing loss; load is not logged there. Consider "
            "training.train_router: false, or a small training.router_aux_loss_coef; router_max_over_mean in the log shows the load."
        )


def _unfrozen(draft: Draft, patterns: list[str]) -> bool:
    """Translate the list; returns whether it unfreezes the routers. axolotl takes dots literally and matches from a name's beginning."""
    names = parameter_names()
    matched: set[str] = set()
    for index, pattern in enumerate(patterns):
        rows = _ROWS.fullmatch(pattern)
        found = matching_names(_literal_dots(rows[1] if rows else pattern), names, how="match", key=f"unfrozen_parameters.{index}")
        shown = ascii(pattern)[1:-1][:60]
        if not found:
            draft.warn(f"unfrozen_parameters: {shown} matches no parameter from its beginning on, so that it unfreezes nothing.")
        elif rows:
            draft.warn(f"unfrozen_parameters: {shown} trains some rows of a parameter; here all of them are trained.")
        matched |= set(found)
    text = {name for name in names if is_text(name)}
    vision = set(names) - text
    routers = {name for name in text if name.endswith(ROUTER)}
    frozen = text - matched - routers
    if frozen:
        kinds = ", ".join(list(dict.fromkeys(kind_of(name) for name in names if name in frozen))[:6])
        draft.warn(f"unfrozen_parameters: {len(frozen)} parameters of the text network are frozen there ({kinds}); here they are trained.")
    if not vision & matched:
        draft.put("unfrozen_parameters", ("model", "vision"), "skip", "the text network is trained; vision weights go along unchanged")
    elif vision - matched:
        draft.warn(f"unfrozen_parameters: {len(vision - matched)} parameters of the vision part are frozen there; here they are trained.")
    return bool(routers & matched)


def _literal_dots(pattern: str) -> str:
    pieces: list[str] = []
    for index, character in enumerate(pattern):
        literal = character == "." and pattern[index + 1 : index + 2] != "+"
        pieces.append("\\." if literal else character)
    return "".join(pieces)
