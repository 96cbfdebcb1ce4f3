"""What single terms of attention's scores do to where a head looks: over all pairs of latents, and over chosen ones.

A term t(q, k) is one latent's part of the query at q times another's part of the key at k. Taking it out of a row of
scores s turns the row's pattern A = softmax(s) into A' with A'(k) = A(k) exp(-t(q, k)) / Z, so only the keys at which
the term is not 0 are needed. `patterns` [modes, n, n] are 0 where a query does not look, rows of 0 don't count.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from saelink.kernels.compiled import compiled


@compiled()
def screen(
    first: int, last: int, starts: Any, slots: Any, key_position: Any, products: Any, query_position: Any,
    query_slot: Any, patterns: Any, table: Any,
) -> None:  # pragma: no cover  # fmt: skip
    """table[m, i, j] += half the sum over keys of A(q, k) |t(q, k) - mean_A t(q, .)|, for key latents first to last.

    products [e, p] are the terms of query entry e and key entry p; entry e stands at query_position[e] (not falling)
    and belongs to row query_slot[e] of the table (-1: to none). Key entries of latent g are starts[g] to starts[g + 1],
    by position. table[-1, i, j] counts the queries at which the term is seen.
    """
    modes = patterns.shape[0]
    most = starts[last] - starts[first]
    # What a query sees is the same for all latents active at it: which keys, their weights, and their sums by latent.
    at, weights = np.empty(most, np.int64), np.empty((modes, most), np.float32)
    begins, column = np.empty(last - first + 1, np.int64), np.empty(last - first, np.int64)
    rest = np.empty((modes, last - first), np.float32)
    now, groups = -1, 0
    for e in range(products.shape[0]):
        i, q = query_slot[e], query_position[e]
        if i < 0:
            continue
        if q != now:
            now, groups, n = q, 0, 0
            for g in range(first, last):
                if slots[g] < 0:
                    continue
                begins[groups] = n
                for m in range(modes):
                    rest[m, groups] = 1
                for p in range(starts[g], starts[g + 1]):
                    k = key_position[p]
                    if k > q:
                        break
                    if patterns[0, q, k] == 0:
                        continue
                    at[n] = p
                    for m in range(modes):
                        weights[m, n] = patterns[m, q, k]
                        rest[m, groups] -= patterns[m, q, k]
                    n += 1
                if n > begins[groups]:
                    column[groups] = slots[g]
                    groups += 1
            begins[groups] = n
        for x in range(groups):
            low, high = begins[x], begins[x + 1]
            table[modes, i, column[x]] += 1
            for m in range(modes):
                left = max(rest[m, x], np.float32(0))
                if high == low + 1:  # one key, as most often
                    a, t = weights[m, low], products[e, at[low]]
                    table[m, i, column[x]] += a * left * abs(t)
                    continue
                mean = np.float32(0)
                for y in range(low, high):
                    mean += weights[m, y] * products[e, at[y]]
                change = left * abs(mean)
                for y in range(low, high):
                    change += weights[m, y] * abs(products[e, at[y]] - mean)
                table[m, i, column[x]] += np.float32(0.5) * change


@compiled()
def scrambled(a: int, b: int, c: int) -> int:  # pragma: no cover
    """A number >= 0 that looks random, always the same for the same three."""
    x = (a * 2654435761 + b * 40503 + c * 97) & 0x7FFFFFFF
    x = ((x ^ (x >> 15)) * 2246822519) & 0x7FFFFFFF
    x = ((x ^ (x >> 13)) * 3266489917) & 0x7FFFFFFF
    return x ^ (x >> 16)


@compiled()
def another(entry: int, rows: Any, position: Any, salt: int) -> int:  # pragma: no cover
    """Another latent's entry at the same token, at random; -1 where there is none."""
    first = rows[position[entry]]
    n = rows[position[entry] + 1] - first
    if n < 2:
        return -1
    chosen = first + scrambled(entry, n, salt) % (n - 1)
    return chosen if chosen < entry else chosen + 1


@compiled()
def product(query: Any, key: Any) -> float:  # pragma: no cover
    """The inner product of two vectors."""
    total = np.float32(0)
    for d in range(len(query)):
        total += query[d] * key[d]
    return total  # type: ignore[return-value]


@compiled()
def moved(weights: Any, terms: Any, n: int, after: Any) -> Any:  # pragma: no cover
    """How far a row of the pattern moves when a term goes, as total variation, and how much attention its keys lose.

    weights, terms [n] at the keys where it is not 0; after [n] becomes what they have then.
    """
    weight, least = 0.0, 0.0
    for p in range(n):
        weight += weights[p]
        least = min(least, terms[p])
    rest = 1 - weight
    if rest < 1e-6:  # what rounding leaves of keys that see it all
        rest = 0.0
    z = rest * np.exp(least)  # all sizes are below 1, so nothing overflows
    for p in range(n):
        after[p] = weights[p] * np.exp(least - terms[p])
        z += after[p]
    distance, lost = 0.0, 0.0
    if z == 0:
        return 0.0, 0.0
    distance = rest * abs(np.exp(least) / z - 1)
    for p in range(n):
        after[p] /= z
        distance += abs(after[p] - weights[p])
        lost += weights[p] - after[p]
    return 0.5 * distance, lost


@compiled()
def exact(
    first: int, last: int, query_latents: Any, key_latents: Any, starts: Any, entries: Any, position: Any, rows: Any,
    queries: Any, keys: Any, patterns: Any, bins: Any, sequence: int, figures: Any, offsets: Any, best: Any,
    places: Any,
) -> None:  # pragma: no cover  # fmt: skip
    """For pairs first to last what taking each out of the scores does to the pattern, added up over a sequence.

    Entry e is a latent active at position[e], in the order of positions (those of token t are rows[t] to rows[t + 1]);
    latent j's are entries[starts[j]] to entries[starts[j + 1]]. queries, keys [e, d_head] are their parts of both.
    figures [pair, mode, 6]: rows that have the term, their total variation, the attention that goes from its keys, the
    total variation of a control (another latent at the query, others at the keys), the square of what one is more than
    the other in this sequence, and 1 for the sequence. offsets [pair, mode, bin]: half the changes of the pattern at
    the term's keys, by q - k. best [pair, mode, top] falling; places [pair, mode, top, 3]: sequence, query and most
    changed key.
    """
    n_tokens = len(rows) - 1
    weights, terms, others = np.empty(n_tokens), np.empty(n_tokens), np.empty(n_tokens)
    after, at = np.empty(n_tokens), np.empty(n_tokens, np.int64)
    for c in range(first, last):
        i, j = query_latents[c], key_latents[c]
        for m in range(patterns.shape[0]):
            rows_seen, total, control_total = 0, 0.0, 0.0
            most, most_q, most_k = 0.0, -1, -1
            for x in range(starts[i], starts[i + 1]):
                e = entries[x]
                q = position[e]
                n = 0
                e_other = another(e, rows, position, i * 65537 + j)
                for y in range(starts[j], starts[j + 1]):
                    p = entries[y]
                    a = patterns[m, q, position[p]]
                    if position[p] <= q and a > 0:
                        weights[n], at[n] = a, position[p]
                        terms[n] = product(queries[e], keys[p])
                        p_other = another(p, rows, position, i * 65537 + j)
                        known = e_other >= 0 and p_other >= 0
                        others[n] = product(queries[e_other], keys[p_other]) if known else 0.0
                        n += 1
                if n == 0:
                    continue
                control, _ = moved(weights, others, n, after)
                distance, lost = moved(weights, terms, n, after)
                rows_seen += 1
                total += distance
                control_total += control
                figures[c, m, 2] += lost
                strongest = 0
                for p in range(n):
                    offsets[c, m, bins[q - at[p]]] += 0.5 * abs(after[p] - weights[p])
                    if abs(after[p] - weights[p]) > abs(after[strongest] - weights[strongest]):
                        strongest = p
                if distance > most:
                    most, most_q, most_k = distance, q, at[strongest]
            if rows_seen == 0:
                continue
            figures[c, m, 0] += rows_seen
            figures[c, m, 1] += total
            figures[c, m, 3] += control_total
            figures[c, m, 4] += (total - control_total) ** 2
            figures[c, m, 5] += 1
            place = best.shape[2] - 1
            if most <= best[c, m, place]:
                continue
            while place > 0 and most > best[c, m, place - 1]:
                best[c, m, place] = best[c, m, place - 1]
                places[c, m, place] = places[c, m, place - 1]
                place -= 1
            best[c, m, place] = most
            places[c, m, place, 0], places[c, m, place, 1], places[c, m, place, 2] = sequence, most_q, most_k


@compiled()
def gathered(
    query_latents: Any, key_latents: Any, starts: Any, entries: Any, position: Any, rows: Any, queries: Any, keys: Any,
    terms: Any, control: Any,
) -> None:  # pragma: no cover  # fmt: skip
    """terms[q, k] += what the given pairs hold of the scores of a sequence; control: as many others at the same places.

    Everything as for `exact`; keys behind their query are left out.
    """
    for c in range(len(query_latents)):
        i, j = query_latents[c], key_latents[c]
        for x in range(starts[i], starts[i + 1]):
            e = entries[x]
            e_other = another(e, rows, position, i * 65537 + j)
            for y in range(starts[j], starts[j + 1]):
                p = entries[y]
                if position[p] > position[e]:
                    break
                terms[position[e], position[p]] += product(queries[e], keys[p])
                p_other = another(p, rows, position, i * 65537 + j)
                if e_other >= 0 and p_other >= 0:
                    control[position[e], position[p]] += product(queries[e_other], keys[p_other])
