"""Settings and groups that do not exist: found before anything runs, each with the one that was probably meant.

What Hydra complains of is put into our own words here too.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
import shlex
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from saelink.compose import choices_of, composing, declared_options
from saelink.config.files import conf_dir
from saelink.config.grammar import is_text, parsed, quoted, shortened, with_quotes
from saelink.config.names import CHOSEN, TABLE, Settings, has, settings_of, texts_of
from saelink.config.schema import Config, ConnectorConfig
from saelink.errors import SaelinkError, closest, printable

if TYPE_CHECKING:
    from hydra.core.config_loader import ConfigLoader
    from hydra.core.override_parser.types import Override

EXTRAS = {
    "joblib": "joblib",
    "submitit_local": "submitit",
    "submitit_slurm": "submitit",
    "ray": "ray",
    "optuna": "optuna",
}
"""Hydra's launchers and sweepers that are packages of their own, by the extra that brings them."""

PLUGINS = ("hydra.launcher", "hydra.sweeper")
"""Where the settings of Hydra's own plugins are, which it makes objects of before any job begins."""

COMBINATIONS = 64
"""At most so many combinations of a multirun's choices are looked at."""


def settings_by_choice() -> dict[str, Mapping[str, type[Any]]]:
    """By group and choice the settings of every connector and solver."""
    options = declared_options()
    return {"connector": options.connectors, "solver": options.solvers}


class Checked(NamedTuple):
    """Overrides that name settings which exist."""

    overrides: list[str]
    """In a multirun, what only some of its jobs have is marked with ++, so that the others take it too."""
    notes: list[str]
    """Which these are, a line each."""


def checked(overrides: Sequence[str], many: bool = True) -> Checked:
    """The overrides of a job, or with `many` of a multirun, as Hydra takes them.

    Raises SaelinkError for what can't be read, for a setting or choice that does not exist, in a multirun for one that
    no job has, and for several values where there is one job.
    """
    texts = text_settings()
    overrides = with_quotes(overrides, texts)
    for override in overrides:
        _check_name(override)
        _check_outputs(override)
    try:
        with composing(declared_options()) as loader:
            return _Check(loader, parsed(overrides, loader, texts), many).done()
    except Exception as error:  # of the settings: said when they are composed
        if not of_settings(error):
            raise
        return Checked(list(overrides), [])


def _check_name(override: str) -> None:
    """Hydra takes what has no name for a choice, and looks into its value."""
    if not override.partition("=")[0].strip("+~ "):
        raise SaelinkError(f"{shortened(override)}: there is no name; settings are key=value, such as layer=3")


def _check_outputs(override: str) -> None:
    """Hydra makes a multirun's folder itself, before any job looks at its settings."""
    key, _, value = override.partition("=")
    if key.lstrip("+") == "runtime.outputs" and not value.strip("'\" "):
        raise SaelinkError(f"{override}: there is no name; give a folder for the artifacts, such as outputs")


class _Check:
    """The check of one command's overrides."""

    def __init__(self, loader: ConfigLoader, parsed: list[Override], many: bool):
        self._places = [each.input_line or "" for each in parsed if each.key_or_group == "hydra.searchpath"]
        self._groups = choices_of(loader, self._places)
        self._parsed = parsed
        self._many = many
        self._ours = [
            each for each in parsed if not each.is_hydra_override() and not each.key_or_group.startswith("hydra/")
        ]
        self._choices = [
            each for each in self._ours if each.key_or_group in self._groups and not isinstance(each.value(), dict)
        ]
        self._lines: list[str] = [each.input_line or "" for each in parsed]

    def done(self) -> Checked:
        for each in self._parsed:
            self._check_key(each)
            if each.is_sweep_override() and not self._many:
                raise SaelinkError(_several(each))
        for choice in self._choices:
            self._check_choice(choice)
        fixed = settings_of(Config) | settings_of(declared_options().experiment, "experiment.")
        asked = [each for each in self._ours if each not in self._choices]
        for each in asked:
            if has(fixed, each.key_or_group):
                _check_group(each, fixed)
                self._as_entries(each, fixed)
        named = [(each, key) for each in asked for key in _named(each, fixed)]
        named = [(each, key) for each, key in named if key.startswith(CHOSEN) or not has(fixed, key)]
        if not named:
            return Checked(self._lines, [])
        jobs = self._chosen()
        notes: list[str] = []
        for each, key in named:
            lacking = [job for job in jobs if not has(fixed | of_chosen(job), key)]
            if len(lacking) == len(jobs) or (lacking and (each.is_delete() or key != each.key_or_group)):
                raise SaelinkError(self._unknown(each, key, fixed, jobs))
            if lacking:
                group = key.partition(".")[0]
                without = listed(f"{group}={job[group].name}" for job in lacking)
                notes.append(f"{key}: ignored by the jobs with {without}, which have no such setting")
                self._force(each)
        return Checked(self._lines, notes)

    def _check_key(self, override: Override) -> None:
        """Raise SaelinkError for what Hydra would take for a setting or a group that there is none of."""
        key, line = override.key_or_group, shortened(override.input_line or "")
        if override.package is not None:
            raise SaelinkError(f"{line}: @ is for files of settings; choose by the group's own name, {key}=...")
        if "/" in key and not key.startswith("hydra/"):
            raise SaelinkError(f"{line}: there is no group {key}; there are {', '.join(self._groups)}")
        if key.startswith("hydra/") and not override.is_delete() and not _names(override.value()):
            raise SaelinkError(f"{line}: {key} takes the name of one of its choices, such as basic")
        is_group = key.startswith("hydra/") or key in self._groups
        if is_group and override.is_delete() and not isinstance(override.value(), str | None):
            raise SaelinkError(f"{line}: to take a choice away give ~{key}, or ~{key}=NAME with the name it has")
        above, _, last = key.rpartition(".")
        if override.is_delete() and last.isdigit():
            raise SaelinkError(
                f"{line}: an entry of a list can't be taken away; give the list without it, {above}=[...]"
            )
        if override.is_hydra_override() and "/" not in key:
            _check_hydra(override)

    def _as_entries(self, override: Override, fixed: Settings) -> None:
        """Entries of a table that is free to have any are added, with or without a + before them."""
        from hydra.core.override_parser.types import OverrideType

        key = override.key_or_group
        group = any(name.startswith(f"{key}.") for name in fixed)
        table = (fixed.get(key, TABLE) == TABLE or group) and isinstance(override.value(), dict)
        changes = override.type is OverrideType.CHANGE and key not in fixed and not key.rpartition(".")[2].isdigit()
        if changes or (table and override.type in (OverrideType.CHANGE, OverrideType.ADD)):
            self._force(override)

    def _force(self, override: Override) -> None:
        line = override.input_line or ""
        self._lines[self._lines.index(line)] = "++" + line.lstrip("+")

    def _check_choice(self, override: Override) -> None:
        group = override.key_or_group
        options = self._groups[group]
        values = values_of(override)
        if not values and not override.is_delete():
            raise SaelinkError(f"{shortened(override.input_line or '')}: choose one of {', '.join(options)}")
        for value in values:
            if value not in options and "/" not in value and not override.is_delete():
                meant = closest(value, options)
                suggestion = "" if meant is None else f"did you mean {group}={meant}? "
                raise SaelinkError(f"{group}={value}: {suggestion}There are {', '.join(options)}")

    def _chosen(self) -> list[dict[str, Chosen]]:
        """The connector and solver of each job that the choices make."""
        from hydra import compose
        from omegaconf import OmegaConf

        each = [[_with(choice, value) for value in values_of(choice)] for choice in self._choices]
        found: list[dict[str, Chosen]] = []
        for words in itertools.islice(itertools.product(*each), COMBINATIONS):
            cfg = compose("config", [*self._places, *words])
            kinds: dict[str, Any] = {group: OmegaConf.get_type(cfg[group]) for group in CHOSEN}
            found.append({group: Chosen(cfg[group].name, kind) for group, kind in kinds.items()})
        return found

    def _unknown(self, override: Override, key: str, fixed: Settings, jobs: list[dict[str, Chosen]]) -> str:
        """The line for a setting that no job has."""
        line = shortened(override.input_line or "")
        names = list(dict.fromkeys([*fixed, *(name for job in jobs for name in of_chosen(job))]))
        others = [
            name
            for group, kinds in settings_by_choice().items()
            for kind in kinds.values()
            for name in settings_of(kind, f"{group}.")
        ]
        if key in others:
            return f"{line}: {_whose(key, jobs)}"
        meant = closest(key, [*names, *self._groups, *others])
        if meant is None:
            return f"{line}: there is no such setting; `saelink train --help-all` lists all"
        told = meant
        if meant in self._groups:
            told = "=".join([meant, *itertools.islice(values_of(override), 1)])
        also = "" if meant in names or meant in self._groups else f" {_whose(meant, jobs)}"
        return f"{line}: there is no such setting; did you mean {told}?{also}"


def _names(value: Any) -> bool:
    """Whether it is a name, or a list of names: Hydra looks into them without asking."""
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(each, str) for each in value))


def _named(override: Override, fixed: Settings) -> list[str]:
    """The settings that an override is about: itself, or those in {...} for a group of settings."""

    def inside(name: str, value: Any) -> Iterator[str]:
        group = any(each.startswith(f"{name}.") for each in fixed) or name in CHOSEN
        if not group or not isinstance(value, dict):
            yield name
            return
        for key, inner in value.items():
            yield from inside(f"{name}.{key}", inner)

    return list(inside(override.key_or_group, None if override.is_delete() else override.value()))


def _check_group(override: Override, fixed: Settings) -> None:
    """Raise SaelinkError for one value in the place of a group of settings."""
    key = override.key_or_group
    inside = [name for name in fixed if name.startswith(f"{key}.")]
    if inside and not override.is_delete() and not isinstance(override.value(), dict):
        line = shortened(override.input_line or "")
        raise SaelinkError(f"{line}: {key} is a group of settings, such as {inside[0]}=...")


def _several(override: Override) -> str:
    """The line for several values of what is one job's."""
    line, key = shortened(override.input_line or ""), override.key_or_group
    value = (override.input_line or "").partition("=")[2]
    quotes = shlex.quote(f"{key}={quoted(value)}")
    if is_text(key, text_settings()):
        return (
            f"{line}: several values are jobs of a sweep, which need -m; a text with a comma stands in quotes: {quotes}"
        )
    lists = settings_of(Config) | settings_of(declared_options().experiment, "experiment.")
    if lists.get(key) and override.is_choice_sweep():
        return f"{line}: several values are jobs of a sweep, which need -m; one list is {key}=[{shortened(value)}]"
    return f"{line}: several values are jobs of a sweep, which need -m"


def _check_hydra(override: Override) -> None:
    """Raise SaelinkError for what is no setting of Hydra's, and for what keeps it from finding its own classes."""
    key, line = override.key_or_group, shortened(override.input_line or "")
    value: Any = None if override.is_delete() else override.value()
    if not _hydra_has(key):
        raise SaelinkError(f"{line}: Hydra has no such setting; `saelink train --cfg hydra` shows those it has")
    for plugin in PLUGINS:
        if key != plugin and not key.startswith(f"{plugin}."):
            continue
        group = plugin.replace(".", "/")
        if (key == plugin and not isinstance(value, dict)) or "_target_" in f"{key}={value}":
            raise SaelinkError(f"{line}: {plugin} is a group of settings; choose one by {group}=..., such as basic")


def _hydra_has(key: str) -> bool:
    """Whether Hydra itself has a setting, or takes entries there."""
    from hydra.conf import HydraConf
    from omegaconf import DictConfig, ListConfig, OmegaConf

    node: Any = OmegaConf.structured(HydraConf)
    for part in key.split(".")[1:]:
        kind = OmegaConf.get_type(node)
        if isinstance(node, ListConfig):
            return part.isdigit() and int(part) < len(node)
        if not isinstance(node, DictConfig) or not dataclasses.is_dataclass(kind):
            return True  # its plugins', or a table
        if part not in {entry.name for entry in dataclasses.fields(kind)}:
            return False
        if OmegaConf.is_missing(node, part) or OmegaConf.is_interpolation(node, part):
            return True
        node = node[part]
    return True


def text_settings() -> set[str]:
    """The settings that are texts; a dot behind one says that its entries are."""
    return texts_of(Config) | texts_of(ConnectorConfig, "connector.")


def names_setting(word: str) -> bool:
    """Whether a word key=value is about a setting or group that some job has, without a look at the choices."""
    key = word.partition("=")[0].lstrip("+~").split("@")[0]
    top = key.split(".")[0]
    options = declared_options()
    if key in {path.name for path in conf_dir().iterdir()} or top == "hydra" or key.startswith("hydra/"):
        return True
    known = settings_of(Config) | settings_of(options.experiment, "experiment.")
    for group, kinds in settings_by_choice().items():
        for kind in kinds.values():
            known |= settings_of(kind, f"{group}.")
    return has(known, key)


class Chosen(NamedTuple):
    """A connector or solver of a job."""

    name: str
    kind: type[Any]
    """The dataclass of its settings."""


def _whose(key: str, jobs: list[dict[str, Chosen]]) -> str:
    """Which connector or solver is in use, and which ones have the setting."""
    group, _, name = key.partition(".")
    having = [choice for choice, kind in settings_by_choice()[group].items() if name in settings_of(kind)]
    using = [f"{group}={job[group].name}" for job in jobs]
    return f"{listed(using)} {_have(using)} no such setting; {listed(having)} {_have(having)} it"


def _have(names: Sequence[str]) -> str:
    return "has" if len(set(names)) == 1 else "have"


def listed(names: Iterable[str]) -> str:
    """Each name once, in a sentence."""
    *others, last = dict.fromkeys(names)
    return f"{', '.join(others)} and {last}" if others else last


def values_of(override: Override) -> list[str]:
    """The values of a choice: several in a multirun."""
    if override.is_choice_sweep():
        return [str(value) for value in override.sweep_string_iterator()]
    value: Any = override.value()
    return [str(each) for each in value] if isinstance(value, list) else ["null" if value is None else str(value)]


def _with(choice: Override, value: str) -> str:
    """A choice with one of its values, as an override."""
    line = choice.input_line or ""
    if isinstance(choice.value(), list):
        return line
    return f"{line.partition('=')[0]}={value}" if "=" in line else line


def of_chosen(job: Mapping[str, Chosen]) -> Settings:
    """The settings of a job's connector and solver."""
    return {name: open for group in CHOSEN for name, open in settings_of(job[group].kind, f"{group}.").items()}


def of_settings(error: Exception) -> bool:
    """Whether it is about settings or a file of them: Hydra's, OmegaConf's, those of YAML, and a number too large."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    if isinstance(error, HydraException | OmegaConfBaseException | YAMLError):
        return True
    return _too_large(error) or _too_deep(error)


def _too_deep(error: Exception) -> bool:
    """Whether brackets in a file of settings are nested deeper than YAML's reader goes."""
    frames = traceback.walk_tb(error.__traceback__)
    return isinstance(error, RecursionError) and any(
        "yaml" in Path(frame.f_code.co_filename).parts for frame, _ in frames
    )


def _too_large(error: Exception) -> bool:
    """Whether a setting is an integer that no float can hold, of which OmegaConf makes no error of its own."""
    return isinstance(error, OverflowError) and "full_key: " in str(error)


def hydra_line(error: Exception) -> str:
    """Hydra's own complaint in one line, with the way out where we know a better one."""
    text = str(error)
    if _too_deep(error):
        return "a file of settings is nested too deep to be read"
    if _too_large(error):
        key = re.search(r"full_key: (\S+)", text)
        return printable(f"{key[1] if key else 'a number in a file of settings'}: give a number below 2^63")
    if error.__cause__ is not None and str(error.__cause__) not in text:
        text += f" ({error.__cause__})"
    text = text.split("Config search path:")[0].split("See https://hydra.cc")[0]
    for plugin, extra in EXTRAS.items():
        if re.search(rf"hydra/(launcher|sweeper)/{plugin}\b", text):
            text += f" (install it with `pip install 'saelink[{extra}]'`)"
            break
    text = " ".join(text.split())
    missing = re.search(r"Could not find '([^']*)/([^'/][^']*)' Available options in '\1': (.+?)(?= \(|$)", text)
    if missing is not None:
        group, value, options = missing.groups()
        extra = text[missing.end() :]
        return printable(f"{group}={shortened(value)}: there are {', '.join(options.split())}{extra}")
    text = re.sub(
        r" To append to your (config|default list) use \+.*?(?= \(Key|$)", "", text
    )  # which is seldom what helps
    value = re.fullmatch(r"Error merging override (.*?) \((.*?) full_key: .*\)", text)
    return printable(text if value is None else f"{shortened(value[1])}: {value[2]}")
