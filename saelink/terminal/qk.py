"""Heads and the pairs of latents that decide where they look, in 80 columns."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from saelink.errors import printable
from saelink.looks.causal import DELETIONS
from saelink.looks.deletions import DELETIONS_FILE, QKDeletionsFacts
from saelink.looks.kinds import RULES
from saelink.looks.pairs import LEAST, OFFSETS
from saelink.looks.stage import HEADS_FILE, STRONGEST, TARGETS_FILE, QKFacts, QKTargetsFacts
from saelink.looks.text import GROUPS, MODES
from saelink.progress import Observer
from saelink.store.artifact import Artifact
from saelink.terminal.table import Column, pair_lines, table_lines, terminal_width

if TYPE_CHECKING:
    from saelink.evidence.names import Names

WIDTH = 80

WEAK = "moved, attn: at its queries; * not more than its control by 2 standard errors"

EXAMPLES = 3
"""Pairs of a head that are shown with sentences, and sentences of each."""

AROUND = (5, 2)
"""Tokens shown before the key and behind the query."""

NEAR = 9
"""A key and a query with more tokens between them are shown with a gap."""


def print_heads(
    observer: Observer, artifact: Artifact[QKFacts], names: Names, targets: Artifact[QKTargetsFacts] | None
) -> None:
    """A row a head, then each head's leading pairs."""
    facts, heads = artifact.facts, artifact.json(HEADS_FILE)
    hook = facts["hook_name"]
    groups = [each["pairs"] for each in heads[0]["together"][MODES[1]]]
    columns = [
        Column("head", right=True),
        Column("kind", wraps=True),
        Column("sinks", right=True),
        Column("lat x lat", right=True),
        *(Column(f"{n} out" if n > 1 else "1 pair out") for n in groups),
        Column("free r", right=True),
    ]
    rows = []
    for head in heads:
        together = head["together"][MODES[1]]
        rows.append(
            [
                str(head["head"]),
                ", ".join(head["kinds"]) or "-",
                short(head["looks"]["sinks"]),
                short(head["shares"][MODES[1]][0][0]),
                *(f"{percent(each['variation'])} ({percent(each['control'])})" for each in together),
                short(head["deleted"]["free_r"]),
            ]
        )
    observer.say("")
    _say_tokens(observer, facts)
    for line in table_lines(columns, rows, terminal_width() or WIDTH, indent=2):
        observer.say(line)
    for line in (
        "sinks: attention on the first token and massive ones; all else without them",
        "lat x lat: share of the centred score's square between two latents",
        "out: how far the pattern moves (total variation, all queries) when so many",
        "leading pairs go, and (when as many other latents at the same tokens do)",
        "free r: deletions in the model, norms free, against the formula's",
    ):
        observer.say(f"  {line}")
    if targets is not None:
        _print_targets(observer, targets, [head["head"] for head in heads])
    observer.say("\n  Leading pairs, query latent -> key latent")
    for head in heads:
        observer.say(f"  head {head['head']}" + ("" if head["pairs"][MODES[1]] else ": no pair"))
        leading = head["pairs"][MODES[1]][:2]
        named = [(pair["query"], pair["key"]) for pair in leading]
        others = [pair for pair in head["pairs"][STRONGEST] if (pair["query"], pair["key"]) not in named]
        _print_pairs(observer, leading + others[:EXAMPLES], names, hook, indent=4)
    observer.say(f"  two that lead in all, then the strongest where they are ({LEAST} queries or more)")
    observer.say(f"  {WEAK}")


def print_head(
    observer: Observer, artifact: Artifact[QKFacts], names: Names, text: Artifact[Any], number: int,
    targets: Artifact[QKTargetsFacts] | None,
) -> None:  # fmt: skip
    """One head in detail, with sentences."""
    facts = artifact.facts
    head = next(each for each in artifact.json(HEADS_FILE) if each["head"] == number)
    hook, looks = facts["hook_name"], head["looks"]
    width = terminal_width() or WIDTH
    observer.say("")
    _say_tokens(observer, facts)
    kind = "; ".join(f"{kind} ({RULES[kind]})" for kind in head["kinds"]) or "none of those that have a rule"
    rows = [
        ("head", f"{number}, reads {hook}"),
        ("kind", kind),
        ("looks at", f"sinks {short(looks['sinks'])}; of the rest the token itself {short(looks['current'])}, the one "
                     f"before {short(looks['previous'])}; in repeated random tokens the one behind the same "
                     f"{short(looks['induction'])}, the same {short(looks['duplicate'])}"),
        ("deleted", _deleted(head["deleted"])),
    ]  # fmt: skip
    for line in pair_lines(rows, width):
        observer.say(line)
    observer.say("\n  Shares of the centred score's square, query down, key across (without sinks)")
    shares = [[name, *map(short, row)] for name, row in zip(GROUPS, head["shares"][MODES[1]], strict=True)]
    for line in table_lines([Column(), *(Column(name, right=True) for name in GROUPS)], shares, width, indent=2):
        observer.say(line)
    for mode in (MODES[1], MODES[0]):
        _print_together(observer, head["together"][mode], mode, width)
    if targets is not None:
        _print_targets(observer, targets, [number])
    for mode in (STRONGEST, MODES[1], MODES[0]):
        how = f"strongest where they are ({LEAST} queries or more)" if mode == STRONGEST else f"most in all, {mode}"
        observer.say(f"\n  Pairs that move the pattern, {how}")
        _print_pairs(observer, head["pairs"][mode], names, hook, indent=2)
    observer.say(f"  {WEAK}")
    _print_examples(observer, head["pairs"][STRONGEST][:EXAMPLES], names, hook, text, width)


def print_tested(
    observer: Observer, qk: Artifact[QKFacts], deletions: Artifact[QKDeletionsFacts], targets: Artifact[QKTargetsFacts]
) -> None:
    """Where heads look, as `saelink verify` prints it: leading pairs against controls."""
    observer.say("\n  Where heads look: leading pairs against other latents at the same tokens (control)")
    _say_tokens(observer, qk.facts)
    titles = {"key": "key goes", "query": "query goes", "both": "both go"}
    changed = {each["head"]: each["together"][-1] for each in targets.json(TARGETS_FILE)}
    heads = {each["head"]: each for each in qk.json(HEADS_FILE)}
    n = next(iter(heads.values()))["together"][MODES[1]][-1]["pairs"]
    rows = []
    for each in deletions.json(DELETIONS_FILE):
        head = each["head"]
        together = heads[head]["together"][MODES[1]][-1]
        rows.append(
            [
                str(head),
                *(f"{percent(each['deletions'][d]['pair'])} ({percent(each['deletions'][d]['control'])})"
                  for d in DELETIONS),
                f"{each['more_than_control']} of {each['compared']}",
                f"{percent(together['variation'])} ({percent(together['control'])})",
                f"{percent(changed[head]['change'])} ({percent(changed[head]['control'])})",
            ]
        )  # fmt: skip
    columns = [Column("head", right=True), *(Column(titles[d], wraps=True) for d in DELETIONS)]
    columns += [Column("more", wraps=True), Column(f"{n} out", wraps=True), Column("latents", wraps=True)]
    for line in table_lines(columns, rows, terminal_width() or WIDTH, indent=2):
        observer.say(line)
    for line in (
        "goes: total variation of the pattern at the query when a leading pair's latents",
        "are deleted in the model, norms free; more: pairs that do more than their",
        "control when both go, by 2 standard errors",
        f"{n} out: so many pairs' terms taken out at once, mean over all queries;",
        "latents: what attn_out's latents change with them",
    ):
        observer.say(f"  {line}")


def _say_tokens(observer: Observer, facts: QKFacts) -> None:
    observer.say(
        f"  {facts['sequences']} test sequences, pairs chosen on one half, judged on {facts['n_tokens']:,} tokens"
    )


def _deleted(found: dict[str, Any]) -> str:
    if found["frozen_r"] is None:
        return "too few places"
    return (
        f"{found['places']} places: the formula against the model with scales frozen r = {found['frozen_r']:.6f}, "
        f"norms free {short(found['free_r'])} (slope {short(found['free_slope'])}); the pair alone "
        f"{short(found['pair_free_r'])} ({short(found['pair_free_slope'])})"
    )


def _print_together(observer: Observer, groups: list[dict[str, Any]], mode: str, width: int) -> None:
    observer.say(f"\n  How far the pattern moves when pairs go, mean over all queries, {mode}")
    nulls = list(groups[0]["nulls"])
    titles = ["pairs", "queries", "moved", "control"]
    titles += [*(["less text"] if nulls else []), *(name.split()[0] for name in nulls)]
    rows = []
    for each in groups:
        row = [str(each["pairs"]), f"{each['rows']:,}", percent(each["variation"]), percent(each["control"])]
        row += [percent(each["less_text"])] * bool(nulls) + [percent(each["nulls"][name]) for name in nulls]
        rows.append(row)
    for line in table_lines([Column(title, right=True) for title in titles], rows, width, indent=2):
        observer.say(line)


def _print_targets(observer: Observer, targets: Artifact[QKTargetsFacts], numbers: list[int]) -> None:
    heads = [each for each in targets.json(TARGETS_FILE) if each["head"] in numbers]
    observer.say(f"\n  Change of the latents of {targets.facts['hook_name']} when pairs go (control)")
    rows = [
        [
            str(each["head"]),
            *(f"{percent(group['change'])} ({percent(group['control'])})" for group in each["together"]),
        ]
        for each in heads
    ]
    columns = [Column("head", right=True)]
    columns += [Column(f"{group['pairs']} out") for group in heads[0]["together"]]
    for line in table_lines(columns, rows, None, indent=2):
        observer.say(line)


def _print_pairs(observer: Observer, pairs: list[dict[str, Any]], names: Names, hook: str, indent: int) -> None:
    columns = [Column("query"), Column("key"), Column("offset")]
    columns += [Column(title, right=True) for title in ("queries", "moved", "control", "attn")]
    rows = [
        [
            label(names, hook, pair["query"]),
            label(names, hook, pair["key"]),
            offsets(pair["offsets"]),
            f"{pair['rows']:,}",
            thousandths(pair["variation"]),
            thousandths(pair["control"]) + ("" if pair["more_than_control"] else "*"),
            f"{pair['attention']:+.3f}".replace("0.", "."),
        ]
        for pair in pairs
    ]
    for line in table_lines(columns, rows, None, indent):
        observer.say(line)


def label(names: Names, hook: str, latent: int) -> str:
    """IF17 "king"."""
    token = names.token_id(hook, latent)
    text = "" if token is None else shown(names.text(token)).strip()
    return f"IF{latent}" + (f' "{text[:8]}"' if text else "")


def offsets(shares: list[float]) -> str:
    """The shortest run of bins with at least .8 of the changes."""
    best = (0, len(shares) - 1)
    for low in range(len(shares)):
        for high in range(low, len(shares)):
            if sum(shares[low : high + 1]) >= 0.8 and high - low < best[1] - best[0]:
                best = (low, high)
    low, high = OFFSETS[best[0]], OFFSETS[best[1] + 1] - 1 if best[1] + 1 < len(OFFSETS) else None
    return f"{low}+" if high is None else str(low) if low == high else f"{low}-{high}"


def short(value: float | None) -> str:
    """Two digits behind the point, none in front of it."""
    return "-" if value is None else f"{value:.2f}".replace("0.", ".")


def thousandths(value: float) -> str:
    """Three digits behind the point, none in front of it."""
    return f"{value:.3f}".replace("0.", ".")


def percent(value: float) -> str:
    """A share with two digits that count, in percent."""
    return f"{value:.1%}" if value >= 0.001 or value == 0 else f"{value:.2%}"


def shown(text: str) -> str:
    """A token that can't break a line."""
    return printable(text.replace("\n", "⏎").replace("\t", " "))


def _print_examples(
    observer: Observer, pairs: list[dict[str, Any]], names: Names, hook: str, text: Artifact[Any], width: int
) -> None:
    ids = text.tensors("test.safetensors")["ids"]
    for pair in pairs:
        if not pair["examples"]:
            continue
        query, key = label(names, hook, pair["query"]), label(names, hook, pair["key"])
        observer.say(f"\n  {query} looks at {key}" if pair["attention"] >= 0 else f"\n  {query} looks away from {key}")
        for example in pair["examples"][:EXAMPLES]:
            tokens = [shown(names.text(int(token))) for token in ids[example["sequence"]].tolist()]
            observer.say("")
            for line in arrow(tokens, example["query"], example["key"], width - 4):
                observer.say(f"    {line}")


def arrow(tokens: list[str], query: int, key: int, width: int) -> list[str]:
    """A sentence around a query and the key it looks at, and below it an arrow from the key to the query."""
    from rich.cells import cell_len

    shown_at = list(range(max(key - AROUND[0], 0), min(query + AROUND[1] + 1, len(tokens))))
    if query - key > NEAR:
        shown_at = [at for at in shown_at if at <= key + 2 or at >= query - 4]

    def laid(at: list[int]) -> tuple[str, dict[int, int]]:
        line, middles, last = "", {}, None
        for place in at:
            if last is not None and place != last + 1:
                line += " ... "
            middles[place] = cell_len(line) + (cell_len(tokens[place]) - 1 + (tokens[place][:1] == " ")) // 2
            line, last = line + tokens[place], place
        return line, middles

    line, middles = laid(shown_at)
    while cell_len(line) > width and len(shown_at) > 2:
        outer = [at for at in shown_at if at not in (query, key)]
        if not outer:
            break
        shown_at.remove(max(outer, key=lambda at: min(abs(at - query), abs(at - key))))
        line, middles = laid(shown_at)
    if query == key:
        return [line, " " * middles[query] + "^ itself"]
    left, right = middles[key], middles[query]
    return [line, " " * left + "└" + "─" * max(right - left - 1, 0) + ">"]
