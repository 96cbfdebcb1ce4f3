"""What single pairs do to a pattern, against softmaxes with the pair's term taken out, one at a time."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from saelink.looks import pairs as stage
from saelink.looks.rotary import Rotary
from saelink.looks.scores import Form, Norm, Side
from saelink.looks.text import MODES, Text
from saelink.saes.sae import SAE

D, D_HEAD, N, LATENTS = 16, 8, 12, 10


def made(seed: int = 0, sequences: int = 3, centred: bool = True) -> Text:
    """A text of random streams, read by a random form with a query norm."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    angles = torch.outer(torch.arange(N), torch.tensor([1.0, 0.1]))
    both = torch.cat([angles, angles], 1)
    rotary = Rotary(both.cos(), both.sin(), False)
    own = Norm(1 + 0.3 * draw(D_HEAD), torch.zeros(D_HEAD), False, 1e-6)
    form = Form(
        Norm(torch.ones(D), torch.zeros(D), centred, 1e-5),
        Side(0.4 * draw(4, D, D_HEAD), 0.3 * draw(4, D_HEAD), own),
        Side(0.4 * draw(2, D, D_HEAD), 0.3 * draw(2, D_HEAD), None),
        D_HEAD**-0.5,
        rotary,
    )
    sae = SAE(draw(D, LATENTS), draw(LATENTS), draw(LATENTS, D), draw(D), k=3)
    stream = draw(sequences, N, D)
    stream[1, 5] *= 20  # a sink
    ids = torch.randint(50, (sequences, N), generator=generator)
    return Text(form, sae, stream, ids, torch.ones(N, N, dtype=torch.bool).tril(), drop=1)


def term(text: Text, number: int, head: int, i: int, j: int) -> torch.Tensor:
    """[n, n] what latent i at the query and j at the key have of a score, from the form alone."""
    form, sae, stream = text.form, text.sae, text.stream[number]
    latents, scales, position = sae.encode(stream), form.scales(stream), torch.arange(N)
    query = form.part(form.query, latents[:, i, None] * sae.W_dec[i], scales.stream, scales.query)[:, head]
    key = form.part(form.key, latents[:, j, None] * sae.W_dec[j], scales.stream, scales.key)[:, form.key_head(head)]
    return form.scaling * form.rotary.turned(query, position) @ form.rotary.turned(key, position).T


def pattern(text: Text, number: int, head: int, gone: torch.Tensor, mode: int) -> torch.Tensor:
    scores = text.form.scores(text.stream[number], torch.arange(N))[head] - gone
    seen = text.seen.clone()
    if mode == 1:
        seen = seen & ~text.sinks[number][None]
    return scores.masked_fill(~seen, -torch.inf).softmax(-1).nan_to_num(0.0)


def test_sinks_and_queries_that_count() -> None:
    text = made()
    assert text.sinks.sum() == 4 and bool(text.sinks[1, 5]) and bool(text.sinks[:, 0].all())
    assert not bool(text.counted[1, 5]) and not bool(text.counted[:, 0].any())


def test_the_groups_sum_to_the_whole() -> None:
    text, head = made(), 3
    vectors = text.vectors(0, head, text.directions(head))
    queries, keys = text.groups(0, head, vectors)
    assert torch.allclose(
        queries.sum(0) @ keys.sum(0).T, text.form.scores(text.stream[0], torch.arange(N))[head], atol=1e-4
    )
    error = text.stream[0] - text.sae.decode(text.sae.encode(text.stream[0]))
    scales = text.form.scales(text.stream[0])
    direct = text.form.part(text.form.key, error, scales.stream, scales.key)[:, text.form.key_head(head)]
    assert torch.allclose(keys[1], text.form.rotary.turned(direct, torch.arange(N)), atol=1e-4)


def test_the_screen_is_the_first_order_of_every_pair() -> None:
    text, head = made(), 2
    found = stage.screen(text, head, text.directions(head), LATENTS)
    table, seen = np.zeros((len(MODES), LATENTS, LATENTS), np.float32), np.zeros((LATENTS, LATENTS))
    for i, j, number, mode in itertools.product(range(LATENTS), range(LATENTS), range(len(text)), range(2)):
        a = pattern(text, number, head, torch.zeros(N, N), mode) * text.counted[number][:, None]
        t = term(text, number, head, i, j)
        seen[i, j] += int(((t != 0) & (a > 0)).any(-1).sum()) if mode == 0 else 0
        centred = t - (a * t).sum(-1, keepdim=True)
        table[mode, i, j] += 0.5 * (a * centred.abs()).sum().item()
    full, rows = np.zeros_like(table), np.zeros_like(table[0])
    full[:, found.query[:, None], found.key] = found.table
    rows[found.query[:, None], found.key] = found.rows
    assert np.allclose(full, table, atol=1e-4) and np.array_equal(rows, seen)


@pytest.mark.parametrize("shuffled", [False, True])
def test_the_kernel_is_the_plain_tensor_operations(shuffled: bool) -> None:
    text, head = made(1), 1
    read = text.directions(head)
    found = stage.screen(text, head, read, 7, shuffled)
    slots = [np.full(LATENTS, -1) for _ in range(2)]
    slots[0][found.query], slots[1][found.key] = np.arange(len(found.query)), np.arange(len(found.key))
    table, generator = torch.zeros(3, *found.rows.shape), torch.Generator().manual_seed(0)
    for number, sequence in enumerate(text.sequences):
        at = torch.randperm(N, generator=generator) if shuffled else None
        vectors = text.vectors(number, head, read, at)
        patterns = text.patterns(number, (vectors.whole_queries, vectors.whole_keys))
        stands = sequence.position if at is None else at[sequence.position]
        stage.screen_plain(sequence, vectors, patterns, stands, slots, table)
    assert found.table.max() > 0 and np.allclose(found.table, table[:-1].numpy(), atol=1e-4)
    assert np.array_equal(found.rows, table[-1].numpy())


def test_a_pairs_effect_is_the_softmax_without_it() -> None:
    text, head = made(2), 3
    found = stage.chosen(text, head, LATENTS)
    assert len(found.query) > 20
    for c in range(0, len(found.query), 3):
        i, j = int(found.query[c]), int(found.key[c])
        for mode in range(2):
            rows, variation, lost, by_offset = 0, 0.0, 0.0, np.zeros(len(stage.OFFSETS))
            for number in range(len(text)):
                t = term(text, number, head, i, j)
                counted = text.counted[number][:, None]
                a, b = (pattern(text, number, head, gone, mode) * counted for gone in (0 * t, t))
                at = (t != 0) & (a > 0)
                rows += int(at.any(-1).sum())
                variation += 0.5 * (a - b).abs().sum().item()
                lost += ((a - b) * at).sum().item()
                for q, k in at.nonzero().tolist():
                    by_offset[stage.bins(N)[q - k]] += 0.5 * abs(float(a[q, k] - b[q, k]))
            assert found.rows[c, mode] == rows
            assert found.variation[c, mode] == pytest.approx(variation, abs=1e-4)
            assert found.lost[c, mode] == pytest.approx(lost, abs=1e-4)
            assert np.allclose(found.offsets[c, mode], by_offset, atol=1e-4)


def test_the_best_places_are_where_the_row_moves_most() -> None:
    text, head = made(3), 0
    found = stage.chosen(text, head, LATENTS)
    c = int(found.variation[:, 0].argmax())
    i, j = int(found.query[c]), int(found.key[c])
    best = []
    for number in range(len(text)):
        t = term(text, number, head, i, j)
        a, b = (pattern(text, number, head, gone, 0) * text.counted[number][:, None] for gone in (0 * t, t))
        best.append((0.5 * (a - b).abs().sum(-1).max().item(), number))
    best = sorted((value, number) for value, number in best if value > 0)[::-1]
    kept = found.best[c, 0][found.best[c, 0] > 0]
    assert np.allclose(kept, [value for value, _ in best], atol=1e-5)
    assert found.places[c, 0, : len(kept), 0].tolist() == [number for _, number in best]


def test_pairs_taken_out_together() -> None:
    text, head, mode = made(4), 2, 1
    found = stage.chosen(text, head, LATENTS)
    query, key = found.query[:9], found.key[:9]
    removed, nothing = stage.remove(
        text, head, [stage.Together(query, key, mode), stage.Together(query[:0], key[:0], mode)]
    )
    rows, total = 0, 0.0
    for number in range(len(text)):
        gone = torch.stack([term(text, number, head, int(i), int(j)) for i, j in zip(query, key, strict=True)])
        a = pattern(text, number, head, 0 * gone[0], mode) * text.counted[number][:, None]
        b = pattern(text, number, head, gone.sum(0), mode) * text.counted[number][:, None]
        rows += int(((gone.sum(0) != 0) & (a > 0)).any(-1).sum())
        total += 0.5 * (a - b).abs().sum().item()
    assert removed.rows == rows and removed.variation == pytest.approx(total / int(text.counted.sum()), abs=1e-4)
    assert removed.control > 0 and nothing == (0, 0.0, 0.0)


def test_a_planted_pair_leads_and_its_control_does_not() -> None:
    """A head that looks from latent 0 to latent 1 and at nothing else."""
    text = made(5, sequences=30)
    form, sae = text.form, text.sae
    weight = torch.zeros(2, 4, D, D_HEAD)
    inverse = torch.linalg.pinv(sae.W_dec)
    weight[0, :, :, 6], weight[1, :, :, 6] = 3 * inverse[:, 0], 3 * inverse[:, 1]
    own = form.query._replace(weight=weight[0], bias=torch.zeros(4, D_HEAD), norm=None)
    keys = form.key._replace(weight=weight[1, :2], bias=torch.zeros(2, D_HEAD))
    planted = Text(form._replace(query=own, key=keys, norm=None), sae, text.stream, text.ids, text.seen, drop=1)
    found = stage.chosen(planted, 0, LATENTS)
    c = int(found.variation[:, 1].argmax())
    assert (found.query[c], found.key[c]) == (0, 1)
    assert found.more_than_control()[c, 1] and found.lost[c, 1] > 0
