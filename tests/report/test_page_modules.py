"""The page's script: its modules, how they are joined, and their own tests, which Node runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from saelink.report import join, render

from helpers.node import run

PAGE = Path(join.__file__).parent / "page"

LINES = 250


def write(folder: Path, **modules: str) -> Path:
    for name, text in modules.items():
        (folder / f"{name}.js").write_text(text)
    return folder


# --------------------------------------------------------------------------- the page's own modules


def test_every_module_is_joined_and_none_is_too_large() -> None:
    modules = {path.stem: path.read_text("utf-8") for path in PAGE.glob("*.js")}
    entries = ("main", "prompt")
    assert {module.name for entry in entries for module in join.in_order(PAGE, entry)} == set(modules)
    for name, text in modules.items():
        assert len(text.splitlines()) < LINES, name


def test_script_and_python_read_the_same_schema() -> None:
    (written,) = re.findall(r"^export const SCHEMA = (\d+);", (PAGE / "pieces.js").read_text("utf-8"), re.MULTILINE)
    assert int(written) == render.SCHEMA


def test_the_page_runs_its_one_script_and_fetches_nothing() -> None:
    page = render.render({"title": "</script><script>"}, {}).decode()
    types = re.findall(r"<script( type=\"[^\"]+\")?[^>]*>", page)
    assert types.count("") == 1 and set(types) == {"", ' type="application/json"', ' type="text/plain"'}
    assert join.joined(PAGE, "main") in page
    assert "default-src 'none'" in page and "<link" not in page and not re.search(r"<script[^>]* src=", page)
    assert f'"schema": {render.SCHEMA}' in page


def test_the_joined_script_is_one_that_node_can_read(node: str, tmp_path: Path) -> None:
    path = tmp_path / "joined.cjs"
    path.write_text(join.joined(PAGE, "main"), "utf-8")
    run(node, "--check", path)


def test_unit_tests_of_the_modules(node: str) -> None:
    tests = sorted((Path(__file__).parent / "page").glob("*.test.js"))
    assert len(tests) > 3
    output = run(node, "--test", "--test-reporter=tap", *tests)
    passed = re.search(r"^# pass (\d+)$", output, re.MULTILINE)
    assert passed and int(passed[1]) >= len(tests), output


# --------------------------------------------------------------------------- joining

PLANTED = {
    "main": """import { twice } from "./middle.js";
import {
  base,
  later,
} from "./base.js";
const own = "main";
console.log(own, base, twice(base), later());
""",
    "middle": """// own is also defined elsewhere
import { base } from "./base.js";
const own = "middle";
console.log(own, base);
export const twice = (n) => 2 * n;
""",
    "base": """const own = "base";
console.log(own);
export const base = hoisted();
export async function unused() {}
export function later() { return own; }
function hoisted() { return 21; }
""",
}


def test_a_module_stands_after_what_it_imports(tmp_path: Path) -> None:
    ordered = join.in_order(write(tmp_path, **PLANTED), "main")
    assert [module.name for module in ordered] == ["base", "middle", "main"]
    assert ordered[0].exports == ["base", "unused", "later"]
    assert ordered[2].imports == [("middle", ["twice"]), ("base", ["base", "later"])]


def test_the_joined_script_does_what_the_modules_do(node: str, tmp_path: Path) -> None:
    folder = write(tmp_path, **PLANTED)
    (folder / "package.json").write_text('{"type": "module"}')
    (folder / "joined.cjs").write_text(join.joined(folder, "main"))
    expected = "base\nmiddle 21\nmain 21 42 base\n"
    assert run(node, folder / "main.js") == run(node, folder / "joined.cjs") == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("const a = 1;\nfunction a() {}\n", "main.js: defined or imported twice: a"),
        ('import { a } from "./other.js";\nconst a = 1;\n', "main.js: defined or imported twice: a"),
        ('import { a } from "./other.js";\nimport { a } from "./third.js";\n', "imported twice: a"),
        ("export const a = 1;\nexport const a = 2;\n", "defined or imported twice: a"),
        ('import { b } from "./other.js";\n', "main.js: other.js does not export b"),
        ('import { hidden } from "./other.js";\n', "other.js does not export hidden"),
        ('import { a } from "./nowhere.js";\n', "main.js: imports from nowhere.js, which does not exist"),
        ('import { a as b } from "./other.js";\n', "imports under another name"),
        ('import { a } from "https://example.org/other.js";\n', "main.js: can't be joined: import"),
        ('import { a } from "../other.js";\n', "can't be joined: import"),
        ('import * as other from "./other.js";\n', "can't be joined: import"),
        ('import other from "./other.js";\n', "can't be joined: import"),
        ('import "./other.js";\n', "can't be joined: import"),
        ('const other = await import("./other.js");\n', "can't be joined: import"),
        ("console.log(import.meta.url);\n", "can't be joined: import.meta"),
        ("export default 1;\n", "can't be joined: export default"),
        ("export let a = 1;\n", "can't be joined: export let"),
        ("const a = 1;\nexport { a };\n", "can't be joined: export { a }"),
        ('export { a } from "./other.js";\n', "can't be joined: export"),
        ('export * from "./other.js";\n', "can't be joined: export"),
        ("  export const a = 1;\n", "can't be joined: export"),
        ('const a = "</script>";\n', "can't be joined: </script"),
        ('const a = "<!--";\n', "can't be joined: <!--"),
    ],
)
def test_what_is_not_understood_is_refused(text: str, message: str, tmp_path: Path) -> None:
    folder = write(tmp_path, main=text, other="const hidden = 0;\nexport const a = 1;\n", third="export const a = 2;\n")
    with pytest.raises(ValueError, match=re.escape(message)):
        join.joined(folder, "main")


def test_a_circle_is_refused(tmp_path: Path) -> None:
    a = 'import { b } from "./b.js";\nexport const a = 1;\n'
    b = 'import { a } from "./main.js";\nexport const b = 1;\n'
    with pytest.raises(ValueError, match="main -> b -> main: modules import each other in a circle"):
        join.joined(write(tmp_path, main=a, b=b), "main")


def test_no_name_of_the_modules_is_seen_outside(node: str, tmp_path: Path) -> None:
    folder = write(tmp_path, **PLANTED)
    check = "\nconsole.log(typeof own, typeof base, typeof twice, typeof $base);\n"
    (folder / "joined.cjs").write_text(join.joined(folder, "main") + check)
    assert run(node, folder / "joined.cjs").splitlines()[-1] == " ".join(["undefined"] * 4)
