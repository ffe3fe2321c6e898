"""What tokenization may do to a text: control tokens that the text spells, and answers that are cut off."""

import numpy as np

from utils.errors import CourseError, first_ten

NOT_IN_THE_LOSS = -100  # the label that PyTorch's cross entropy leaves out
MANY_UNKNOWN = 0.05  # of all tokens: above it, a line says so


def escape_special_tokens(text, tokenizer):
    """`text` with a space inside each control token that it spells ("</s>" becomes "< /s>"), so that it has none.

    For a byte-level BPE (OPT, GPT-2) tokenizer(text, split_special_tokens=True) does as much and leaves the text as it
    is. For a Unigram (T5) it does not: "</s>", "<pad>" and "<extra_id_0>" are pieces of its own vocabulary, which it
    finds again, even behind full-width letters. The tokenizer must be a fast one. The id of unknown text may remain.
    """
    control_ids = _control_ids(tokenizer)
    while True:
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        pairs = zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
        spans = [span for token_id, span in pairs if token_id in control_ids]
        if not spans:
            return text
        for start, end in reversed(spans):  # from the end, so that the other spans stay where they are
            token = text[start:end].lstrip()  # some tokens swallow the space before them
            middle = end - len(token) + 1
            text = f"{text[:middle]} {text[middle:]}"


def _control_ids(tokenizer):
    """The ids of all control tokens, without the unknown token, unless that is also first, last or padding token."""
    control_ids = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    control_ids |= {*tokenizer.all_special_ids}
    if tokenizer.unk_token_id not in (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id):
        control_ids.discard(tokenizer.unk_token_id)
    return control_ids


def warn_of_unknown(rows, tokenizer):
    """Prints a line if many tokens are the token for unknown text, which tells the model nothing; returns their share.

    rows: the token ids of each text, lists of integers. Special tokens of the model do not count.
    """
    unknown = tokenizer.unk_token_id
    if unknown in (None, tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id):
        return 0.0  # such as GPT-2, which spells every text in bytes
    ids = np.fromiter((number for row in rows for number in row), dtype=np.int64)
    ids = ids[~np.isin(ids, [number for number in tokenizer.all_special_ids if number != unknown])]
    if not len(ids):
        return 0.0
    share = float(np.mean(ids == unknown))
    if share > MANY_UNKNOWN:
        what = f"{share:.0%} of the tokens are {tokenizer.unk_token}: the tokenizer does not know this writing"
        remedy = "take a model_id that was trained on it, such as FacebookAI/xlm-roberta-base for many languages"
        print(f"Warning: {what}, and the model cannot read it; {remedy}.")
    return share


def drop_cut(encoded, max_length, split="train", eos_token_id=None):
    """Drops the rows of a tokenized Dataset of which `max_length` leaves no answer; prints a line if any answer is cut.

    encoded: its column labels holds the ids of the answer (T5), or of prompt and answer with -100 on the prompt, cut to
    `max_length` or not yet. Returns the rows kept, unchanged; raises CourseError if there is none. An answer is empty
    if it is only eos_token_id, and cut in part if it goes on after max_length, or fills it without an eos_token_id at
    its end (if given). T5's tokenizer ends a cut answer with one, too: to see such cuts, hand in uncut labels.
    """
    kept, gone, cut = [], [], 0
    for row, labels in enumerate(encoded["labels"][:]):
        left = what_is_left(labels, max_length, eos_token_id)
        if left == "gone":
            gone.append(row)
            continue
        kept.append(row)
        if left == "cut":
            cut += 1
    answers = f"of {len(encoded)} answers"
    if not kept:
        raise CourseError(f"split {split!r}: none {answers} begins within max_length {max_length}; raise max_length.")
    messages = []
    if gone:
        rows = f"row {gone[0]}" if len(gone) == 1 else f"rows {first_ten(gone)}"
        beyond = f"lie wholly beyond max_length {max_length}, or are empty ({rows}): dropped"
        messages.append(f"{len(gone)} {answers} {beyond}")
    if cut:
        messages.append(f"{cut} {answers} are cut in part at max_length {max_length}")
    if messages:
        print(f"split {split!r}: {'; '.join(messages)}; raise max_length to keep them.")
    return encoded.select(kept) if gone else encoded


def what_is_left(labels, max_length, eos_token_id=None):
    """What of an answer stands within max_length tokens: "whole", "cut" or "gone"."""
    nothing = (NOT_IN_THE_LOSS, eos_token_id)
    inside, beyond = labels[:max_length], labels[max_length:]
    if all(label in nothing for label in inside):
        return "gone"
    if any(label != NOT_IN_THE_LOSS for label in beyond):
        return "cut"
    fills_it = eos_token_id is not None and len(labels) == max_length
    if fills_it and labels[-1] not in nothing:
        return "cut"
    return "whole"
