"""Defects that are put into a copy of the package, one a case: the tests nearest to each have to fail.

A case is a change of text in one file. The same tests pass on the copy without a change, which is looked at once.
"""

from __future__ import annotations

import atexit
import os
import re
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent

PARTS = ("saelink", "conf", "tests", "benchmarks", "pyproject.toml")
"""What the tests need of the repository."""

STORE = ("tests/store/test_damage.py", "tests/store/test_upkeep.py")
RECIPE = ("tests/store/test_recipe_properties.py",)
LATENTS = ("tests/latents", "tests/saes")
PRODUCTS = ("tests/fit/test_exact.py", "tests/fit/test_sparse.py")


class Defect(NamedTuple):
    """A change of the code."""

    what: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


DEFECTS = [
    Defect("a key without its inputs", "saelink/store/recipe.py",
           '"recipe": self.recipe, "inputs": self.inputs}', '"recipe": self.recipe}', RECIPE),
    Defect("a key that goes by the order of settings", "saelink/store/recipe.py",
           "json.dumps(identity, sort_keys=True,", "json.dumps(identity,", RECIPE),
    Defect("files that are not compared", "saelink/store/artifact.py",
           'if file_sha256(path) != expected["sha256"]', "if False", ("tests/store/test_store.py",)),
    Defect("a manifest of another artifact", "saelink/store/manifest.py",
           "if (plan.stage, plan.key) != (folder.parent.name, folder.name):", "if False:", STORE),
    Defect("a seal that is not compared", "saelink/store/seal.py", "if entries[SEAL] != actual:", "if False:", STORE),
    Defect("a journal of another artifact", "saelink/store/manifest.py",
           'if note.get("key") == key and _files({', "if _files({", STORE),
    Defect("unfinished files that are not compared", "saelink/store/draft.py",
           "if found in entries:", "if True:", STORE),
    Defect("removal beside a worker", "saelink/store/locks.py",
           'if still_held(folder.parent.glob(f".{key}.*.worker")):', "if False:",
           (*STORE, "tests/store/test_workers.py")),
    Defect("gc in any folder", "saelink/store/upkeep.py", "    check_marked(root)\n    for stage in",
           "    for stage in", STORE),
    Defect("ids that don't fit into 16 bits", "saelink/latents/rows.py",
           "rows.d <= 2**16 else torch.int32", "rows.d <= 2**17 else torch.int32", LATENTS),
    Defect("sums of latents at the wrong position", "saelink/latents/encode.py",
           "position = rows.row_of % context", "position = rows.row_of // context % context", LATENTS),
    Defect("latents that fire once are dead", "saelink/latents/encode.py", "(fired == 0)", "(fired <= 1)", LATENTS),
    Defect("norms that are sums", "saelink/latents/shards.py", "batch.norm(dim=1)", "batch.abs().sum(dim=1)", LATENTS),
    Defect("latents of another SAE", "saelink/latents/encode.py", ', "sae": self._choice.key}', "}", LATENTS),
    Defect("latents of another precision", "saelink/latents/encode.py",
           ', "sae_dtype": self.cfg.sae.dtype.name}', "}", LATENTS),
    Defect("a decoder without its input's scale", "saelink/saes/sae.py",
           "out * units.scale + units.mean", "out + units.mean", LATENTS),
    Defect("products without the diagonal", "saelink/kernels/products.py",
           "for other in range(pair, x_offsets", "for other in range(pair + 1, x_offsets", PRODUCTS),
    Defect("a variance that is not centred", "saelink/fit/products/dense.py",
           "yy=self.yy - self.y.square(),", "yy=self.yy,", PRODUCTS),
    Defect("the diagonal twice", "saelink/fit/products/dense.py", "upper.triu(1).T", "upper.T", PRODUCTS),
    Defect("parts that are added and not counted", "saelink/fit/products/dense.py",
           'n=self.n + int(tensors["n"])', "n=self.n", (*PRODUCTS, "tests/store/test_workers.py")),
]  # fmt: skip


@cache
def _copy() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="saelink-defects-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    for name in PARTS:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name)
        else:
            shutil.copy2(ROOT / name, folder / name)
    return folder


def _tested(tests: tuple[str, ...]) -> tuple[int, str]:
    """Exit code of the tests on the copy, and the first that failed, or what else was said."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:randomly", "-p", "no:cacheprovider", *tests],
        cwd=_copy(), env={**os.environ, "PYTHONPATH": str(_copy())}, capture_output=True, text=True, timeout=3600,
    )  # fmt: skip
    failed = re.search(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.MULTILINE)
    return done.returncode, failed[1] if failed else (done.stdout + done.stderr)[-300:]


@cache
def _passes(tests: tuple[str, ...]) -> None:
    code, what = _tested(tests)
    assert code == 0, f"without a defect: {what}"


def defect_case(case: int, _: Path) -> str:
    """Put one defect in, run its tests, take it out. Raises AssertionError where all of them pass."""
    defect = DEFECTS[case]
    path = _copy() / defect.file
    whole = path.read_text()
    assert whole.count(defect.old) == 1, f"{defect.what}: {defect.file} has changed; write the defect anew"
    broken = whole.replace(defect.old, defect.new)
    compile(broken, defect.file, "exec")
    _passes(defect.tests)
    path.write_text(broken)
    try:
        code, what = _tested(defect.tests)
    finally:
        path.write_text(whole)
    assert code != 0, f"{defect.what}: no test of {', '.join(defect.tests)} fails"
    assert code == 1 and what.startswith("tests/"), f"{defect.what}: exit code {code}: {what}"
    return "caught"
