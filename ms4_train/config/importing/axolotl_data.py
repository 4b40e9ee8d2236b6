"""axolotl's data sets, lengths and packing -> ``data``.

Exercise it: ``pytest tests/ms4_train/config/importing/test_axolotl_data.py``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ms4_train.config.importing.draft import Draft

_LOCAL = (".jsonl", ".ndjson", ".json", ".parquet")
_SAME_PROPERTIES = {"role": "role", "content": "content", "thinking": ("thinking", "reasoning_content"), "tool_calls": "tool_calls"}


def translate_data(draft: Draft) -> None:
    """Sources, validation rows, lengths, packing, and where the original's loss differs."""
    draft.run.setdefault("data", {})
    for key, target in (("datasets", "train"), ("test_datasets", "validation")):
        for index in range(draft.sections(key)):
            _source(draft, key, target, index)
    _validation_fraction(draft)
    if (length := draft.whole("sequence_len")) is not None:
        draft.put("sequence_len", ("data", "max_length"), length)
    _overlong(draft)
    _packing(draft)
    _masks(draft)


def _source(draft: Draft, key: str, target: str, index: int) -> None:
    """One data set: each key of it is put or dropped."""
    here, place = (key, index), ("data", target, index)
    name = f"{key}.{index}"
    settings = dict(draft.section(*here))
    path = draft.text(*here, "path") or ""
    files = draft.texts(*here, "data_files")
    if files and (len(files) == 1 or path in ("json", "parquet")):
        draft.put(f"{name}.path, {name}.data_files", (*place, "path"), files[0])
        if len(files) > 1:
            draft.warn(f"{name}.data_files: only the first of {len(files)} files was taken; add a source for each of the others.")
    else:
        draft.put(f"{name}.path", (*place, "path"), path)
    local = Path(files[0] if files else path).suffix.lower() in _LOCAL
    for part, to in (("name", ("name",)), ("split", ("split",)), ("revision", ("revision",)), ("streaming", ("streaming",))):
        value = settings.get(part)
        if value is None:
            continue
        if local and part != "streaming":
            draft.drop(f"{name}.{part}", "a local file has none")
        elif part == "streaming":
            draft.put(f"{name}.{part}", (*place, *to), draft.boolean(*here, part))
        else:
            draft.put(f"{name}.{part}", (*place, *to), draft.text(*here, part))
    for part, to in (("field_messages", "messages"), ("field_tools", "tools")):
        if (column := draft.text(*here, part)) is not None:
            draft.put(f"{name}.{part}", (*place, "fields", to), column)
    _effort(draft, (*here, "chat_template_kwargs"), f"{name}.chat_template_kwargs", place)
    _effort(draft, ("chat_template_kwargs",), "chat_template_kwargs", place)
    _row_format(draft, here, name)
    for part in settings:
        if not any(f"{name}.{part}" in entry.source for entry in draft.entries):
            draft.drop(f"{name}.{part}", _OTHER_KEYS.get(part, "has no counterpart here"))


_OTHER_KEYS = {
    "type": 'rows hold messages here: {"messages": [{role, content}, ...]}, which is what chat_template reads',
    "ds_type": "the file's ending says it",
    "chat_template": "the model's own format is used, through mistral-common",
    "roles_to_train": "assistant turns carry loss, nothing else",
    "train_on_eos": "the end of every trained turn carries loss",
    "message_property_mappings": "messages have role, content and reasoning_content here",
    "shards": "take fewer rows with another file",
    "data_files": "the path names the file",
}


def _effort(draft: Draft, path: tuple[str | int, ...], source: str, place: tuple[str | int, ...]) -> None:
    settings = draft.section(*path)
    if not settings:
        return
    effort = draft.text(*path, "reasoning_effort")
    if effort in ("none", "high"):
        draft.put(f"{source}.reasoning_effort", (*place, "reasoning_effort"), effort, "the mode of rows that name none")
    elif effort is not None:
        draft.drop(f"{source}.reasoning_effort", f"{ascii(effort)[:40]} is not a mode of this model; it has none and high")
    for part in settings:
        if part != "reasoning_effort":
            draft.drop(f"{source}.{part}", "the model's own format has no such setting")


def _row_format(draft: Draft, here: tuple[str | int, ...], name: str) -> None:
    """Warnings where rows, or what of them is trained, differ."""
    kind = draft.value((*here, "type"))
    if kind != "chat_template":
        draft.warn(
            f"{name}.type: {ascii(kind)[:40]} rows are not read; rows hold messages here. `ms4 data check` says what it makes of them."
        )
    for ours, theirs in draft.section(*here, "message_property_mappings").items():
        if theirs not in _SAME_PROPERTIES.get(ours, ()) and theirs != ours:
            column = ascii(theirs)[1:-1][:40]
            draft.warn(f"{name}.message_property_mappings: {ascii(ours)[1:-1][:40]} lies under {column} in these rows; rename it.")
    roles = draft.texts(*here, "roles_to_train")
    if roles is not None and roles != ["assistant"]:
        draft.warn(f"{name}.roles_to_train: {', '.join(roles)[:80]} were trained there; here assistant turns are, and nothing else.")
    eos = draft.value((*here, "train_on_eos"))
    if eos not in (None, "turn"):
        draft.warn(f"{name}.train_on_eos: {ascii(eos)[:20]} there; here the end of every trained turn carries loss.")


def _validation_fraction(draft: Draft) -> None:
    size = draft.number("val_set_size")
    if size is None:
        return
    if 0 <= size < 1:
        draft.put("val_set_size", ("data", "validation_fraction"), float(size))
    else:
        draft.drop("val_set_size", "a number of rows; data.validation_fraction takes a share of them, or data.validation its own files")
        draft.warn("val_set_size: a number of rows is not translated, so that nothing is held out.")


def _overlong(draft: Draft) -> None:
    """axolotl leaves out what is too long unless told otherwise; we stop."""
    key = next((key for key in ("excess_length_strategy", "sequence_len_overflow_handling") if draft.value((key,)) is not None), None)
    strategy = draft.text(key) if key else "drop"
    if strategy == "raise":
        draft.put(key or "", ("data", "overlong_rows"), "error")
        return
    draft.put(key or "(default of excess_length_strategy)", ("data", "overlong_rows"), "skip")
    draft.comment(("data", "overlong_rows"), "Rows longer than max_length are left out, as axolotl does; error stops at the first one.")
    if strategy == "truncate":
        draft.warn(f"{key}: rows that are too long are left out here, not cut: a cut row teaches to stop in the middle.")
    else:
        draft.warn("Rows longer than sequence_len are left out without a word by axolotl. `ms4 data check` counts them.")


def _packing(draft: Draft) -> None:
    packs = draft.boolean("sample_packing")
    draft.put("sample_packing" if packs is not None else "(default of sample_packing)", ("data", "packing"), bool(packs))
    if packs and _flash(draft):
        draft.warn(
            "sample_packing with FlashAttention: transformers' attention of this model does not hand on the positions by which "
            "FlashAttention tells documents apart, so that packed documents appear to see each other in the original (read in its code, "
            "not run). Here they never do, and losses differ."
        )
    if not packs:
        draft.comment(
            ("data", "packing"),
            "One row at a time, as in the original. true packs rows, with images or without, into max_length tokens; they never see each "
            "other, and a step costs about as much however short its rows are.",
        )


def _flash(draft: Draft) -> bool:
    return bool(draft.value(("flash_attention",))) or "flash" in str(draft.value(("attn_implementation",)) or "")


def _masks(draft: Draft) -> None:
    if draft.text("processor_type") is not None:
        draft.drop("processor_type", "rows with images need no setting; images are read and cut up as the release does it")
        draft.warn(
            "processor_type: in axolotl rows with images have no mask of turns for this model, so that system and user text carries "
            "loss too; it says so in its log. Here assistant turns alone carry loss: the loss logged is another one, and higher."
        )
    if draft.boolean("train_on_inputs"):
        draft.drop("train_on_inputs", "assistant turns carry loss, nothing else")
        draft.warn("train_on_inputs: user and system text carried loss there; here it does not.")


def holds_out(draft: Draft) -> bool:
    """Whether the translation has rows to validate on."""
    data: dict[str, Any] = draft.run.get("data", {})
    return bool(data.get("validation")) or data.get("validation_fraction", 0) > 0
