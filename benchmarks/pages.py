"""The tables of docs that come from receipts, and the figure: `make bench-table` writes them."""

import json

from benchmarks import arms, receipts
from tools.tables import markdown_table, put_into_page

# the arms that are compared, in the order of the tables: how one says "times as fast as", and the color in the figure
COMPARED = {
    "reference": ("the reference's", "#7f7f7f"),
    "peer": ("the peer's", "#1f77b4"),
    "unsloth": ("Unsloth's", "#2ca02c"),
    "unsloth with the cap": ("Unsloth's with the cap", "#9467bd"),
    "course": ("the course's", "#ff7f0e"),
}

# Operations a real token, without which no method does the same: 2 N for a forward pass and 2 N for its way back, with
# N multiplied weights (04 and 05: also attention, all rows of 1,024 tokens), 2 N more where N learns. 03: of 1,024
# tokens of a text with 128 of its summary. At 790 TFLOP/s, which such cards reach with large bfloat16 matrices.
OPERATIONS_A_TOKEN = {"01": 0.517e9, "02": 1.233e9, "03": 7.44e12 / 1024, "04": 5.44e9, "05": 34.0e9}
OPERATIONS_A_SECOND = 790e12

CAP_RECEIPT = receipts.FOLDER / "unsloth_cap_h200.json"


def share_of_arithmetic(receipt):
    """How near an arm's real tokens/s come to what the card's arithmetic allows, 0 to 1."""
    return receipt.real_tokens_per_second * OPERATIONS_A_TOKEN[receipt.lesson] / OPERATIONS_A_SECOND


def by_lesson_and_arm(bench_receipts):
    """{(lesson, arm): receipt}"""
    return {(receipt.lesson, receipt.arm): receipt for receipt in bench_receipts}


def lessons_of(bench_receipts):
    """The numbers of the lessons that have receipts, sorted."""
    return sorted({receipt.lesson for receipt in bench_receipts})


def speedups(bench_receipts):
    """How many times a recipe's real tokens/s the course makes on the same card, by (lesson, arm).

    A recipe whose receipt says what the course made beside it, in the same call, is compared with that; the others with
    the course's receipt on a card of the same kind. Lessons without a receipt of the course are left out.
    """
    receipt_of = by_lesson_and_arm(bench_receipts)
    times = {}
    for (lesson, arm), receipt in receipt_of.items():
        if arm == "course" or arm not in COMPARED or (lesson, "course") not in receipt_of:
            continue
        course_rate = receipt.beside
        if not course_rate:
            on_this_card = [
                other.real_tokens_per_second
                for other in bench_receipts
                if other.is_course and other.lesson == lesson and other.device == receipt.device
            ]
            course_rate = on_this_card[-1]
        times[lesson, arm] = course_rate / receipt.real_tokens_per_second
    return times


def speed_table(bench_receipts):
    """The table of docs/benchmarks.md: a line for the course and for each recipe that it is compared with."""
    receipt_of = by_lesson_and_arm(bench_receipts)
    times = speedups(bench_receipts)
    rows = []
    for lesson in lessons_of(bench_receipts):
        for arm in COMPARED:
            receipt = receipt_of.get((lesson, arm))
            if receipt is None:
                continue
            faster = ""
            if (lesson, arm) in times:
                faster = f"{times[lesson, arm]:.1f} times as fast"
            rows.append(
                {
                    "lesson": lesson,
                    "recipe": arm,
                    "card": receipt.card,
                    "real tokens/s": f"{receipt.real_tokens_per_second:,.0f}",
                    "the course is": faster,
                    "of the card's arithmetic": f"{share_of_arithmetic(receipt):.1%}",
                    "peak GiB": f"{receipt.peak_gib:.1f}",
                }
            )
    return markdown_table(rows)


def is_lever(receipt):
    """Whether it is the course without one lever."""
    return receipt.arm in arms.levers_of(receipt.lesson)


def place_in_tables(receipt):
    """What receipts are sorted by: lesson, then the arms of COMPARED in their order, then the others by name."""
    order = list(COMPARED)
    position = len(order)
    if receipt.arm in order:
        position = order.index(receipt.arm)
    return receipt.lesson, position, receipt.arm


def every_run_table(bench_receipts):
    """The table of docs/benchmarks-full.md: all arms but those without a lever, with all columns."""
    rows = []
    for receipt in sorted(bench_receipts, key=place_in_tables):
        if is_lever(receipt):
            continue
        each_run = ""
        if len(receipt.runs) > 1:
            each_run = " ".join(f"{run['real_tokens_per_second']:,.0f}" for run in receipt.runs)
        planned = ""
        if receipt.planned_bytes:
            planned = f"{receipt.planned_bytes / 2**30:.1f}"
        rows.append(
            {
                "lesson": receipt.lesson,
                "recipe": receipt.arm,
                "card": receipt.card,
                "rows/s": f"{receipt.rows_per_second:.1f}",
                "real tokens/s": f"{receipt.real_tokens_per_second:,.0f}",
                "of each run": each_run,
                "of the floor": f"{share_of_arithmetic(receipt):.1%}",
                "s a step": f"{receipt.step_seconds:.2f}",
                "first steps, s": f"{receipt.first_steps_seconds:.0f}",
                "planned GiB": planned,
                "measured GiB": f"{receipt.peak_gib:.1f}",
            }
        )
    return markdown_table(rows)


def speedups_in_words(bench_receipts):
    """A sentence: how many times faster the course is, by lesson, and on which cards."""
    times = speedups(bench_receipts)
    parts = []
    for lesson in arms.LESSONS:
        compared = []
        for arm, (whose, _) in COMPARED.items():
            if (lesson, arm) in times:
                compared.append(f"{times[lesson, arm]:.1f} times {whose}")
        if compared:
            parts.append(f"{lesson} {', '.join(compared)}")
    cards = sorted({receipt.device for receipt in bench_receipts if not is_lever(receipt)})
    return f"The course's real tokens/s, by lesson: {'; '.join(parts)}. Cards: {'; '.join(cards)}."


def other_recipes_in_words(bench_receipts):
    """A sentence: what the recipes are that are neither published nor the course's; empty if none has a receipt."""
    receipt_of = by_lesson_and_arm(bench_receipts)
    parts = []
    for arm in ("peer", "unsloth", "unsloth with the cap"):
        for lesson in arms.LESSONS:
            if (lesson, arm) in receipt_of:
                parts.append(f"{lesson} {arms.RECIPES[lesson][arm].description}")
    if not parts:
        return ""
    return f"Others: {'; '.join(parts)}."


def every_run_text(bench_receipts):
    """What stands in docs/benchmarks-full.md: the table of all arms, and two sentences below it."""
    parts = [every_run_table(bench_receipts), speedups_in_words(bench_receipts)]
    others = other_recipes_in_words(bench_receipts)
    if others:
        parts.append(others)
    return "\n\n".join(parts)


def levers_table(bench_receipts):
    """The table of docs/benchmarks.md: the course without one lever, beside the course in the same call."""
    receipt_of = by_lesson_and_arm(bench_receipts)
    rows = []
    for lesson, levers in arms.LEVERS.items():
        for arm in levers:
            receipt = receipt_of.get((lesson, arm))
            if receipt is None or receipt.beside is None:
                continue
            rate = receipt.real_tokens_per_second
            rows.append(
                {
                    "lesson": lesson,
                    "the course, but": arm,
                    "card": receipt.card,
                    "real tokens/s": f"{rate:,.0f}",
                    "of the course's beside it": f"{rate / receipt.beside:.0%} of {receipt.beside:,.0f}",
                    "s a step": f"{receipt.step_seconds:.3f}",
                    "measured GiB": f"{receipt.peak_gib:.1f}",
                }
            )
    return markdown_table(rows)


def attention_cap_table():
    """The table of docs/benchmarks.md: Unsloth's attentions, from the receipt of check_cap.py."""
    distances = json.loads(CAP_RECEIPT.read_text("utf-8"))
    rows = []
    for way, attention in distances["attention"].items():
        name = f"`{attention}`"
        if way == "unsloth":
            name += ", as it comes"
        rows.append(
            {
                "Unsloth's attention": name,
                "from logits with the cap": f"{distances[f'with the cap | {way}']:.2f}",
                "from logits without it": f"{distances[f'without it | {way}']:.2f}",
            }
        )
    return markdown_table(rows)


def draw_bars(axes, bench_receipts, title, value):
    """Draws bars beside each other: a group for each lesson, in it a bar of `value(receipt)` for each arm."""
    receipt_of = by_lesson_and_arm(bench_receipts)
    lessons = lessons_of(bench_receipts)
    width = 0.2
    for arm, (_, color) in COMPARED.items():
        positions, heights = [], []
        for group, lesson in enumerate(lessons):
            arms_here = [name for name in COMPARED if (lesson, name) in receipt_of]
            if arm in arms_here:
                positions.append(group + width * (arms_here.index(arm) - (len(arms_here) - 1) / 2))
                heights.append(value(receipt_of[lesson, arm]))
        axes.bar(positions, heights, width, label=arm, color=color)
    axes.set_xticks(range(len(lessons)), [f"lesson {lesson}" for lesson in lessons])
    axes.set_title(title)
    axes.spines[["top", "right"]].set_visible(False)


def draw_rates(bench_receipts, path):
    """Real tokens/s and memory of all compared arms as bars, into an SVG that is the same each time."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = [receipt for receipt in bench_receipts if receipt.arm in COMPARED]
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # whatever style somebody has set
        matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "bench", "font.size": 9})
        figure, (rates, memory) = pyplot.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
        draw_bars(rates, shown, "real tokens/s (logarithmic)", lambda receipt: receipt.real_tokens_per_second)
        draw_bars(memory, shown, "peak memory, GiB", lambda receipt: receipt.peak_gib)
        rates.set_yscale("log")
        memory.legend()
        figure.savefig(path, metadata={"Date": None})
        pyplot.close(figure)


def whole_lessons_table(whole_lessons):
    """The table of docs/which-card.md: lessons that were rehearsed to their end."""
    rows = []
    for lesson in whole_lessons:
        profile = f"`{lesson.profile}`"
        if lesson.changes:
            profile += f", {lesson.changes}"
        rows.append(
            {
                "lesson": lesson.lesson,
                "model": lesson.model_id,
                "profile": profile,
                "card": lesson.card,
                "planned GiB": f"{lesson.planned_peak_bytes / 2**30:.1f}",
                "measured GiB": f"{lesson.measured_peak_bytes / 2**30:.1f}",
                "whole lesson, GiB": f"{lesson.highest_reserved_bytes / 2**30:.1f}",
                "receipt": f"[{lesson.path.stem}](../benchmarks/receipts/{lesson.path.name})",
            }
        )
    return markdown_table(rows)


def need_of_lesson(whole_lessons):
    """In words, from all receipts of a lesson in one profile: the card it needs as it is, and a smaller one that does.

    "24 GB, or 16 GB with `per_device_train_batch_size` 4"
    """
    as_it_is = min(lesson.needed_gb for lesson in whole_lessons if not lesson.changes)
    smallest = min(whole_lessons, key=lambda lesson: lesson.needed_gb)
    if smallest.needed_gb < as_it_is:
        return f"{as_it_is} GB, or {smallest.needed_gb} GB with {smallest.changes}"
    return f"{as_it_is} GB"


def cards_table(whole_lessons):
    """The table of docs/which-card.md: cards that each profile needs as it is, and smaller ones that do."""
    rows = [{"you have": "no GPU", "profile": "`tiny`", "needs": "nothing more"}]
    card_and_profile = {
        "colab": ("a GPU before Ampere (T4, V100, GTX 16, RTX 20)", "`colab` (float16; 03 float32)"),
        "full": ("Ampere or newer (RTX 30, 40, 50, A10, A100, L4, H100)", "`full` (bfloat16)"),
    }
    for profile, (card, described) in card_and_profile.items():
        needs = []
        for number in arms.LESSONS:
            of_lesson = [one for one in whole_lessons if one.lesson == number and one.profile == profile]
            needs.append(f"{number}: {need_of_lesson(of_lesson)}")
        rows.append({"you have": card, "profile": described, "needs": " · ".join(needs)})
    return markdown_table(rows)


def write_all():
    """Puts all tables between their marks in docs, and draws the figure."""
    bench_receipts = receipts.read_receipts()
    whole_lessons = receipts.read_whole_lessons()
    put_into_page("docs/benchmarks.md", "speed", speed_table(bench_receipts))
    put_into_page("docs/benchmarks.md", "levers", levers_table(bench_receipts))
    put_into_page("docs/benchmarks.md", "caps", attention_cap_table())
    put_into_page("docs/benchmarks-full.md", "bench", every_run_text(bench_receipts))
    draw_rates(bench_receipts, receipts.BENCH / "rates.svg")
    put_into_page("docs/which-card.md", "rehearsals", whole_lessons_table(whole_lessons))
    put_into_page("docs/which-card.md", "cards", cards_table(whole_lessons))
