"""Text as people have it: what is read of files, what is left out, and what a file's identity stands for."""

from __future__ import annotations

import bz2
import gzip
import json
import logging
import lzma
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from saelink.activations.documents import Documents, text_identity
from saelink.activations.tokens import TokensStage
from saelink.config.data import DataConfig, DataSource
from saelink.config.schema import Config
from saelink.errors import SaelinkError
from saelink.progress import Observer
from saelink.store.store import Store

from helpers.world import Run, World, write_llama


def data(path: Path | str, **settings: Any) -> DataConfig:
    return DataConfig(name="text", source=DataSource.files, path=str(path), **settings)


def texts(path: Path | str, **settings: Any) -> list[str]:
    return list(Documents(data(path, **settings)))


def refusal(path: Path | str, **settings: Any) -> str:
    with pytest.raises(SaelinkError) as refused:
        texts(path, **settings)
    line = str(refused.value)
    assert "\n" not in line and (f"data.path={path}" in line or "data.text_column=" in line), line
    return line


TEXTS = ["one cat", 'two, "dogs"', "three\nlines é"]


def as_json(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def as_csv(sign: str) -> bytes:
    quoted = [f'{n}{sign}"{text.replace(chr(34), chr(34) * 2)}"' for n, text in enumerate(TEXTS)]
    return "\r\n".join([f"n{sign}text", *quoted, ""]).encode()


def as_parquet(rows: dict[str, list[Any]]) -> bytes:
    sink = pa.BufferOutputStream()
    parquet.write_table(pa.table(rows), sink)
    return sink.getvalue().to_pybytes()


WRITTEN = {
    ".jsonl": as_json([{"text": text, "n": 1} for text in TEXTS]),
    ".ndjson": b"\xef\xbb\xbf\n" + as_json([{"text": text} for text in TEXTS]) + b"\n \n",
    ".json": json.dumps([{"text": text} for text in TEXTS], indent=1).encode(),
    ".csv": as_csv(","),
    ".tsv": as_csv("\t"),
    ".parquet": as_parquet({"text": TEXTS, "n": [1, 2, 3]}),
}

PACK: dict[str, Callable[[bytes], bytes]] = {
    "": lambda data: data,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": lambda data: pa.compress(data, codec="zstd", asbytes=True),
}


@pytest.mark.parametrize("packed", PACK)
@pytest.mark.parametrize("suffix", WRITTEN)
def test_every_kind_compressed_or_not_has_the_same_texts(tmp_path: Path, suffix: str, packed: str) -> None:
    (tmp_path / f"a.b{suffix}{packed}").write_bytes(PACK[packed](WRITTEN[suffix]))
    assert texts(tmp_path / f"a.b{suffix}{packed}") == TEXTS


def test_each_file_of_a_folder_is_read_by_its_own_suffix(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(as_json([{"text": "a", "extra": {"deep": 1}}]))
    (tmp_path / "b.jsonl").write_bytes(as_json([{"text": "b", "extra": "other"}, {"text": "b2", "more": 1}]))
    (tmp_path / "c.txt").write_bytes(b"c\r\nc")
    (tmp_path / "d.csv.gz").write_bytes(gzip.compress(b"number,text\n1,d\n"))
    (tmp_path / ".hidden").write_text("x")
    (tmp_path / "README.md").write_text("x")
    documents = Documents(data(tmp_path))
    assert list(documents) == ["a", "b", "b2", "c\nc", "d"]
    assert documents.left_out == [tmp_path / "README.md"]
    assert "README.md is none of .parquet" in refusal(tmp_path / "README.md")


@given(st.lists(st.one_of(st.none(), st.text(), st.just(...)), max_size=20))
def test_texts_that_are_null_missing_or_empty_are_counted(tmp_path_factory: Any, values: list[Any]) -> None:
    path = tmp_path_factory.mktemp("text") / "a.jsonl"
    path.write_bytes(as_json([{"n": 1} if value is ... else {"text": value} for value in [*values, "last"]]))
    documents = Documents(data(path))
    found = list(documents)
    kept = [value for value in values if isinstance(value, str) and value.strip()]
    assert [text for text in found if "�" not in text] == [text for text in [*kept, "last"] if "�" not in text]
    counts = {"null": values.count(None), "missing": values.count(...)}
    counts["empty"] = len(values) - len(kept) - sum(counts.values())
    assert documents.skipped == {why: n for why, n in counts.items() if n}
    for text in found:
        text.encode()


def test_half_a_surrogate_is_no_end(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a \\ud800 b"}\n{"text": "\\ud83d\\ude00"}\n')
    assert texts(tmp_path / "a.jsonl") == ["a � b", "😀"]


BAD: dict[str, tuple[str, bytes, str]] = {
    "json": ("a.jsonl", b'{"text": "a"}\n\n{"text": \n', "a.jsonl, line 3: it is no JSON"),
    "first line": ("a.jsonl", b'{"text": "a\n', "a.jsonl, line 1: it is no JSON"),
    "long number": ("a.jsonl", b'{"text": "a", "n": ' + b"1" * 5000 + b"}\n", "a.jsonl, line 1: it is no JSON"),
    "deep": ("a.jsonl", b'{"text": ' + b"[" * 100_000 + b"\n", "a.jsonl, line 1: it is no JSON"),
    "whole": ("a.json", b'[{"text": "a"},\n{"text" "b"}]', "a.json, line 2: it is no JSON"),
    "no object": ("a.jsonl", b'{"text": "a"}\n3\n', "a.jsonl, line 2: a int stands where an object"),
    "utf-8": ("a.jsonl", b'{"text": "a"}\n{"text": "\xff"}\n', "a.jsonl, line 2: it is no UTF-8"),
    "text utf-8": ("a.txt", b"a\n\xe9\n", "a.txt, line 2: it is no UTF-8"),
    "lost quote": ("a.csv", b'text,n\na,1\n"b,2\nc,3\n', "a.csv, line 3: unexpected end of data"),
    "fields": ("a.csv", b"text,n\na,1\nb,2,3\n", "a.csv, line 3: it has 3 fields where the first line names 2"),
    "returns": ("a.csv", b"text\ra\rb\r", "a.csv, line 1: new-line character seen in unquoted field"),
    "gzip": ("a.jsonl.gz", gzip.compress(as_json([{"text": "a"}] * 9))[:-9], "a.jsonl.gz can't be read"),
    "no gzip": ("a.jsonl.gz", b'{"text": "a"}\n', "a.jsonl.gz can't be read"),
    "zstd": ("a.jsonl.zst", PACK[".zst"](as_json([{"text": "a"}] * 9))[:-3], "zst can't be"),
    "no zstd": ("a.csv.zst", b"text\na\n", "a.csv.zst can't be read"),
    "xz": ("a.csv.xz", lzma.compress(b"text\na\n")[:-5], "a.csv.xz can't be read"),
    "parquet": ("a.parquet", b"PAR1", "a.parquet can't be read"),
    "number": ("a.jsonl", b'{"text": "a"}\n{"text": 1}\n', "a.jsonl, line 2 holds int, not text"),
    "chat": ("a.jsonl", b'{"text": []}\n', "holds list, not text; data.chat=true reads lists of messages"),
    "column": ("a.jsonl", b'{"body": "a", "n": 1}\n', "a.jsonl has the columns body, n"),
    "column of csv": ("a.csv", b"body,n\na,1\n", "a.csv has the columns body, n"),
    "column of parquet": ("a.parquet", as_parquet({"body": ["a"], "n": [1]}), "a.parquet has the columns body, n"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
def test_what_is_bad_is_named_by_file_and_line(tmp_path: Path, kind: str) -> None:
    name, content, expected = BAD[kind]
    (tmp_path / name).write_bytes(content)
    assert expected in refusal(tmp_path / name)


def test_one_file_of_many_without_the_column_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text\na\n")
    (tmp_path / "b.jsonl").write_text('{"body": "b"}\n')
    assert f"{tmp_path}, b.jsonl has the columns body" in refusal(tmp_path)


ODD = ["a[1].jsonl", "a b.jsonl", "a=b.jsonl", "a,b.jsonl", "[ab]*?.jsonl", "é'\".jsonl", "a(1)#{}&.jsonl"]


@pytest.mark.parametrize("name", ODD)
def test_a_path_that_exists_is_taken_as_it_is(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text('{"text": "a"}\n')
    (tmp_path / "a1.jsonl").write_text('{"text": "another"}\n')
    assert texts(tmp_path / name) == ["a"]


def test_home_and_patterns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "b").mkdir()
    for name in ("b/2.jsonl", "b/1.jsonl"):
        (tmp_path / name).write_text(json.dumps({"text": name}))
    assert texts("~/b/*.jsonl") == texts("~/b") == ["b/1.jsonl", "b/2.jsonl"]


# ----------------------------------------------------------------------------- identity


def replaced(path: Path, content: bytes) -> None:
    """As rsync -a, tar and cp -p do: other bytes, the old modification time."""
    times = path.stat()
    path.with_suffix(".new").write_bytes(content)
    path.with_suffix(".new").replace(path)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def in_place(path: Path, content: bytes) -> None:
    times = path.stat()
    path.write_bytes(content)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


@pytest.mark.parametrize("change", [replaced, in_place])
@pytest.mark.parametrize("settled", [0.0, 2.0])
def test_a_file_of_the_same_time_and_size_is_read_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path, bytes], None], settled: float
) -> None:
    monkeypatch.setattr("saelink.activations.files.SETTLED", settled)
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "cat"}\n')
    seen = set()
    for word in ("cat", "dog", "cow", "cat"):
        if settled == 0:
            time.sleep(0.02)  # the clock behind a file's times moves on in steps
        change(path, as_json([{"text": word}]))
        seen.add((json.dumps(text_identity(data(path))), word))
        assert texts(path) == [word]
    assert len(seen) == 3


def test_how_a_file_is_read_is_part_of_what_it_is(tmp_path: Path) -> None:
    names = ["a.jsonl", "a.txt", "a.csv", "a.tsv"]
    for name in names:
        (tmp_path / name).write_text('{"text": "a"}\n')
    found = [json.dumps(text_identity(data(tmp_path / name))) for name in names]
    assert len(set(found)) == len(names)
    (tmp_path / "b.json").write_text('{"text": "a"}\n')  # places and names are no part of it
    assert json.dumps(text_identity(data(tmp_path / "b.json"))) == found[0]


def test_a_file_that_changes_while_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(as_json([{"text": str(n)} for n in range(9)]))
    documents = Documents(data(path))
    reading = iter(documents)
    next(reading)
    documents.check()
    replaced(path, b"")
    with pytest.raises(SaelinkError, match=r"a.jsonl was changed while it was read; run the command again"):
        documents.check()


# ----------------------------------------------------------------------------- tokens


class Said(Observer):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


def test_what_is_left_out_is_said_once(config: Callable[..., Config], tmp_path: Path, world: World) -> None:
    lines = world.text.read_text().splitlines()
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join([*lines, '{"text": null}', '{"text": " "}', '{"text": ""}', '{"other": 1}']))
    said = Said()
    cfg = config(f"data.path={path}")
    tokens = TokensStage(cfg, Store(cfg.runtime.outputs, said)).pull()
    assert tokens.facts.get("skipped") == {"null": 1, "empty": 2, "missing": 1}
    told = [line for line in said.lines if "left out" in line]
    assert told == ["tokens: documents without text are left out (2 empty, 1 missing, 1 null)"]
    whole = TokensStage(config(), Store(cfg.runtime.outputs)).pull()
    assert whole.facts["documents"] == tokens.facts["documents"] and "skipped" not in whole.facts


def test_advice_fits_the_cause(config: Callable[..., Config], store: Store, tmp_path: Path) -> None:
    def line(name: str, content: str, *settings: str) -> str:
        (tmp_path / name).write_text(content)
        with pytest.raises(SaelinkError) as refused:
            TokensStage(config(f"data.path={tmp_path / name}", *settings), store).pull()
        return str(refused.value)

    long = "the old cat sat on the mat . " * 1000
    assert "one document of 8,001 tokens, and documents are what is split" in line("a.txt", long)
    two = json.dumps({"text": long}) + "\n" + json.dumps({"text": "the cat"}) + "\n"
    assert "split, which no document fell into; use more documents" in line("a.jsonl", two)
    many = "".join(json.dumps({"text": f"the cat {n}"}) + "\n" for n in range(500))
    limited = line("b.jsonl", many, "data.max_tokens=90")
    assert limited.startswith("data.max_tokens=90: ") or "no document fell into" in limited


# ----------------------------------------------------------------------------- conversations

TEMPLATE = "{% for m in messages %}{{ m.role }} : {{ m.content }} {% endfor %}"

MESSAGES = [{"role": "the", "content": "old cat"}, {"role": "a", "content": "young king"}]


def chat_model(folder: Path, template: str | None) -> Path:
    write_llama(folder)
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    return folder


def test_messages_become_text_by_the_tokenizers_template(
    config: Callable[..., Config], store: Store, tmp_path: Path
) -> None:
    path = tmp_path / "chats.jsonl"
    path.write_bytes(as_json([{"messages": [*MESSAGES, {"role": "the", "content": f"{n}"}]} for n in range(200)]))
    settings = [f"data.path={path}", "data.text_column=messages"]
    cfg = config(*settings, "data.chat=true", f"model.path={chat_model(tmp_path / 'chat', TEMPLATE)}")
    tokens = TokensStage(cfg, store).pull()
    texts = list(Documents(cfg.data, lambda messages: str(len(messages))))
    assert texts == ["3"] * 200 and sum(tokens.facts["documents"].values()) == 200
    ids = tokens.tensors("train.safetensors")["ids"]
    assert ids[0, :4].tolist() == [2, 1, 8, 3]  # the : old cat
    other = config(*settings, "data.chat=true", f"model.path={chat_model(tmp_path / 'other', TEMPLATE + '.')}")
    assert TokensStage(other, store).key != tokens.key
    with pytest.raises(SaelinkError, match=r"data.chat=true: the tokenizer has no chat template"):
        _ = TokensStage(config(*settings, "data.chat=true"), store).key


@pytest.mark.parametrize("name", ["chat_template.jinja", "tokenizer.json"])
def test_what_makes_the_text_is_what_named_it(
    config: Callable[..., Config], store: Store, tmp_path: Path, name: str
) -> None:
    """A template or tokenizer that is replaced between the key and the work."""
    path, folder = tmp_path / "chats.jsonl", chat_model(tmp_path / "chat", TEMPLATE)
    path.write_bytes(as_json([{"messages": MESSAGES}] * 200))
    stage = TokensStage(
        config(f"data.path={path}", "data.text_column=messages", "data.chat=true", f"model.path={folder}"), store
    )
    assert stage.key
    (folder / name).write_text((folder / name).read_text().replace("role", "content") + " ")
    with pytest.raises(SaelinkError, match="changed"):
        stage.pull()
    assert list(store.artifacts())[-1].stage == "model"


def test_what_a_library_warns_of_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a data set on the hub: what datasets logs while it is loaded and read, not what it raises too."""
    import datasets

    def load_dataset(*_: Any, **__: Any) -> Iterator[dict[str, str]]:
        logging.getLogger("datasets.load").warning("a part\nis missing")
        logging.getLogger("datasets.builder").error("raised too")
        for text in TEXTS:
            logging.getLogger("datasets.iterable_dataset").warning("a row is odd")
            yield {"text": text}

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    documents = Documents(DataConfig(source=DataSource.hub, path="a/b", revision="0" * 40))
    before = logging.getLogger("datasets").handlers
    assert list(documents) == TEXTS
    assert documents.remarks == ["a part is missing", "a row is odd"]
    assert logging.getLogger("datasets").handlers == before


def test_a_template_that_refuses_is_named_with_the_line(tmp_path: Path) -> None:
    path = tmp_path / "chats.jsonl"
    path.write_bytes(as_json([{"text": []}, {"text": [{"role": "x"}]}]))

    def refuse(_: list[Any]) -> str:
        raise RuntimeError("roles must alternate\nmore")

    with pytest.raises(SaelinkError, match=r"jsonl, line 2: the tokenizer's chat template refuses .*alternate\)$"):
        list(Documents(data(path), refuse))


def test_a_dated_template_is_the_same_every_day() -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    from saelink.activations.chat import rendered

    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, unk_token="a")))
    tokenizer.chat_template = "{{ strftime_now('%d %b %Y') }} {{ messages[0].content }}"
    assert rendered(tokenizer)([{"role": "user", "content": "hello"}]) == "26 Jul 2024 hello"


def test_a_text_that_cant_be_read_ends_a_command_in_one_line(saelink: Run, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n{')
    code, _, err = saelink("cache", f"data.path={tmp_path / 'a.jsonl'}")
    assert code == 1 and "a.jsonl, line 2" in err and len(err.strip().splitlines()) == 1
