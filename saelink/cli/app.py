"""The command line: Typer commands that hand their overrides to Hydra, and the store's housekeeping.

Nothing heavy is imported before a command needs it, so that `saelink --help` answers at once.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shlex
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from saelink.config.schema import Config
    from saelink.store.store import Store


app = typer.Typer(
    name="saelink",
    help="How one set of SAE latents computes the next.",
    epilog="Settings are overrides, key=value: saelink train layer=3 connector=mlp. "
    "Several values need -m: saelink train -m l1_alpha=1e-5,1e-3. `saelink train --help` lists them all.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

PASS_TO_HYDRA = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []}

EXTRAS = {
    "joblib": "joblib",
    "submitit_local": "submitit",
    "submitit_slurm": "submitit",
    "ray": "ray",
    "optuna": "optuna",
}
"""Hydra's launchers and sweepers that are packages of their own, by the extra that brings them."""

DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR)


def _run_cache(cfg: Config, store: Store) -> None:
    from saelink.activations.cache import cache
    from saelink.latents.link import link_of

    link = link_of(cfg, store)
    cache(cfg, store, [*link.sources, link.target])


def _run_sae(cfg: Config, store: Store) -> None:
    from saelink.latents.link import link_of
    from saelink.saes.choice import sae_choice
    from saelink.saes.training import train_sae

    link = link_of(cfg, store)
    for hook in [*link.sources, link.target]:
        choice = sae_choice(cfg, store, hook)
        if not choice.exists:
            train_sae(cfg, store, hook)
        else:
            store.say(f"sae: {hook} has one already ({choice.about}, {choice.where})")


def _run_encode(cfg: Config, store: Store) -> None:
    from saelink.latents.link import pull_sides

    pull_sides(cfg, store)


def _run_train(cfg: Config, store: Store) -> None:
    from saelink.fit.train import train
    from saelink.tracking.runs import publish
    from saelink.tracking.sweep import record

    connector = train(cfg, store)
    record(store, cfg.runtime.sweep, connector, _swept())
    publish(cfg.wandb, store, connector, group=cfg.runtime.sweep)


def _run(cfg: Config, store: Store) -> None:
    """The whole chain, or the experiments of an experiment file."""
    if not cfg.experiment.names:
        return _run_evaluate(cfg, store)
    from hydra.core.hydra_config import HydraConfig

    from saelink.errors import SaelinkError
    from saelink.experiments.runner import run_experiments
    from saelink.tracking.runs import publish_experiment
    from saelink.tracking.sweep import Finish, record_experiment

    for override in HydraConfig.get().overrides.task:
        if re.match(r"(l1_alpha|seed|connector)\b", override):
            raise SaelinkError(f"{override}: an experiment chooses that itself; see the experiment.* settings")

    for result in run_experiments(cfg, store, layers=Finish.layers):
        record_experiment(store, cfg.runtime.sweep, result)
        publish_experiment(cfg.wandb, store, result, group=cfg.runtime.sweep)


def _run_evaluate(cfg: Config, store: Store) -> None:
    from saelink.evidence.evaluate import evaluate
    from saelink.fit.train import train
    from saelink.terminal.evaluation import print_evaluation
    from saelink.tracking.runs import publish
    from saelink.tracking.sweep import record

    connector = train(cfg, store)
    evaluation = evaluate(cfg, store)
    record(store, cfg.runtime.sweep, connector, _swept())
    print_evaluation(store, connector, evaluation)
    if cfg.transcoder.path is not None:
        from saelink.evidence.transcoder import transcoder
        from saelink.terminal.evaluation import print_comparison

        print_comparison(store, transcoder(cfg, store))
    publish(cfg.wandb, store, connector, evaluation, group=cfg.runtime.sweep)
    if cfg.eval.verify:
        _run_verify(cfg, store)


def _run_verify(cfg: Config, store: Store) -> None:
    from saelink.evidence.consequences import chosen_edges, consequences
    from saelink.evidence.evaluate import evaluate
    from saelink.evidence.stability import Stability, stability, stability_plan, wanted
    from saelink.evidence.verify import verify
    from saelink.fit.train import train
    from saelink.interventions.effects import check_measurable
    from saelink.terminal.verdicts import print_consequences, print_verdicts
    from saelink.tracking.runs import publish

    check_measurable(cfg)
    chosen_edges(cfg, store)  # a mistake there is said before hours of work
    again = wanted(cfg)
    if again:
        stability_plan(cfg, store)
    verdicts, evaluation = verify(cfg, store), evaluate(cfg, store)
    stable = Stability(stability(cfg, store)) if again else None
    lost = consequences(cfg, store) if cfg.verify.consequences or cfg.verify.chosen else None
    print_verdicts(store, verdicts, evaluation, stable)
    if lost is not None:
        print_consequences(store, lost)
    store.say(f"\n  {verdicts.path}")
    publish(cfg.wandb, store, train(cfg, store), evaluation, cfg.runtime.sweep, verdicts)


def _run_export(cfg: Config, store: Store) -> None:
    from saelink.share.export import export

    artifact = export(cfg, store)
    store.say(f"\n  export     {artifact.path} ({artifact.facts['edges']:,} edges: csv, parquet, GraphML, JSON)")


def _run_report(cfg: Config, store: Store) -> None:
    from hydra.core.hydra_config import HydraConfig

    from saelink.report.stage import page_path, report

    # What is no part of a key is no part of the page: equal recipes make equal pages, wherever they are made.
    overrides = [o for o in HydraConfig.get().overrides.task if not re.match(r"\+*(runtime|wandb|report\.path)\b", o)]
    artifact = report(cfg, store, shlex.join(["saelink", "report", *overrides]))
    path = page_path(cfg, artifact)
    store.say(f"\n  report     {path} ({artifact.facts['bytes'] / 1e6:.0f} MB; opens in any browser, off line)")


def _swept() -> str:
    """The overrides that make this job differ from the others of its sweep."""
    from hydra.core.hydra_config import HydraConfig

    overrides = HydraConfig.get().overrides.task
    return " ".join(override for override in overrides if not override.startswith("runtime.sweep="))


class _Failures:
    """Jobs of this process that ended with a user's error; their line is already printed."""

    count = 0


def _one_line(error: Exception) -> str:
    """The line that a user's mistake gets, or the error again when it is not one."""
    from omegaconf.errors import OmegaConfBaseException

    from saelink.errors import SaelinkError

    if isinstance(error, SaelinkError):
        return str(error)
    if isinstance(error, OmegaConfBaseException):
        return str(error).splitlines()[0]
    if isinstance(error, OSError) and error.errno in DISK_ERRORS:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}; nothing half-written stays. Make room or change runtime.outputs"
    raise error


def _objective(cfg: Config, store: Store) -> float | list[float]:
    """What runtime.objective names of the job's connector: a number, or a list for several names."""
    from saelink.errors import SaelinkError
    from saelink.fit.train import train_plan

    connector = store.find(train_plan(cfg, store))
    assert connector is not None, "asked for before it was trained"
    facts = {name: value for name, value in connector.facts.items() if isinstance(value, int | float)}
    for name in cfg.runtime.objective:
        if name not in facts:
            raise SaelinkError(f"runtime.objective: there is no {name!r}; there are {', '.join(sorted(facts))}")
    values = [float(facts[name]) for name in cfg.runtime.objective]
    return values[0] if len(values) == 1 else values


def _job(stage: Callable[[Config, Store], None]) -> Callable[[DictConfig], float | list[float] | None]:
    """The function Hydra calls: one job, its errors as one line. Returns the job's objective to a sweeper."""

    def job(raw: DictConfig) -> float | list[float] | None:
        from hydra.core.hydra_config import HydraConfig
        from hydra.types import RunMode
        from omegaconf import OmegaConf

        from saelink.config.check import check
        from saelink.config.schema import Config
        from saelink.store.store import Store

        hydra = HydraConfig.get()
        sweeping, last = hydra.mode == RunMode.MULTIRUN, None
        if sweeping:
            print(f"\njob {hydra.job.num}: {_swept()}", flush=True)
        try:
            cfg = OmegaConf.to_object(raw)
            assert isinstance(cfg, Config)
            if not sweeping:
                cfg.runtime.sweep = None
            check(cfg)
            store = Store(cfg.runtime.outputs, say=lambda line: print(line, flush=True))
            if cfg.experiment.names or stage not in (_run, _run_train, _run_evaluate, _run_verify, _run_export):
                stage(cfg, store)
            else:
                from saelink.fit.penalties import penalties

                for each in penalties(cfg, store):
                    stage(each, store)
                    if sweeping:
                        last = _objective(each, store)
                if stage is _run and not sweeping:
                    _run_report(cfg, store)
        except KeyboardInterrupt:
            print("\nsaelink: interrupted; the same command goes on with what is finished", file=sys.stderr)
            raise SystemExit(130) from None
        except Exception as error:
            print(f"saelink: {_one_line(error)}", file=sys.stderr, flush=True)
            _Failures.count += 1
            if sweeping:
                from saelink.tracking.sweep import record_failure

                record_failure(raw.runtime.outputs, raw.runtime.sweep, hydra.job.num, _one_line(error))
            return None
        return last

    return job


_OVERRIDE = re.compile(r"^[~+]{0,2}[A-Za-z_][\w@./:-]*=|^~")


def hydra_arguments(arguments: list[str]) -> list[str]:
    """Overrides first, then flags: argparse takes no positionals on both sides of a flag."""
    overrides = [argument for argument in arguments if _OVERRIDE.match(argument)]
    return overrides + [argument for argument in arguments if not _OVERRIDE.match(argument)]


def _hydra(command: str, arguments: list[str], stage: Callable[[Config, Store], None]) -> None:
    import hydra

    from saelink.compose import register
    from saelink.config.files import conf_dir
    from saelink.tracking.sweep import Finish

    register()
    _Failures.count = Finish.failed = 0
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors reach main(), which prints them as lines
    arguments = hydra_arguments(arguments)
    if "hydra/launcher=ray_local" in arguments:  # read when Ray is imported: every port on loopback, no report home
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    experiment = any(argument.startswith("experiment=") for argument in arguments)  # its file says MULTIRUN
    if experiment and command != "run":
        from saelink.errors import SaelinkError

        raise SaelinkError(f"{command}: experiments are for `saelink run`, such as saelink run experiment=dense")
    sweeping = experiment or "-m" in arguments or "--multirun" in arguments
    shows = [flag for flag in ("--cfg", "-c", "--info", "-i") if flag in arguments]
    if shows and ("-m" in arguments or "--multirun" in arguments):
        from saelink.errors import SaelinkError

        raise SaelinkError(f"{command}: {shows[0]} shows the settings of one job; leave out -m and give single values")
    sweep_id = "sweep" + hashlib.sha256(" ".join([command, *sorted(arguments)]).encode()).hexdigest()[:8]
    argv = sys.argv
    sys.argv = [f"saelink {command}", *([f"runtime.sweep={sweep_id}"] if sweeping else []), *arguments]
    try:
        hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")(_job(stage))()
    finally:
        sys.argv = argv
    if _Failures.count or Finish.failed:  # jobs of a sweep may have run in other processes
        raise typer.Exit(1)


def _complete(context: typer.Context, arguments: list[str], incomplete: str) -> list[str]:
    """Groups, options and keys, from Hydra's own completion."""
    from saelink.cli.completion import complete

    return complete(incomplete)


Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[OVERRIDES]...", help="key=value", autocompletion=_complete)
]


def _stage_command(name: str, help: str, stage: Callable[[Config, Store], None]) -> None:
    def command(context: typer.Context, overrides: Overrides = None) -> None:
        _hydra(name, [*(overrides or []), *context.args], stage)

    command.__doc__ = help
    app.command(name, context_settings=PASS_TO_HYDRA, help=help)(command)


_stage_command("run", "The whole chain: cache, encode, train, evaluate, report; or experiment=NAME.", _run)

_stage_command("cache", "Run the language model and keep its activations at the link's hooks.", _run_cache)

_stage_command("sae", "Train SAEs for the link's hooks that have none.", _run_sae)

_stage_command("encode", "Encode the activations through the SAEs.", _run_encode)

_stage_command("train", "Fit a connector.", _run_train)

_stage_command("evaluate", "Measure a connector on held-out documents; print its circuits.", _run_evaluate)

_stage_command(
    "verify", "Ablate every source latent in the model and compare a connector's edges with it.", _run_verify
)

_stage_command("report", "One HTML page of what a connector found, with what the store holds beside it.", _run_report)

_stage_command(
    "export", "A connector as a folder that loads without saelink's settings; its edges as tables.", _run_export
)

Outputs = Annotated[str, typer.Option("--outputs", "-o", help="Folder of the artifacts.")]


def _complete_key(incomplete: str) -> list[str]:
    from pathlib import Path

    return sorted(path.parent.name for path in Path("outputs").glob(f"*/{incomplete}*/manifest.json"))


Key = Annotated[str, typer.Argument(help="A key, or enough of its first digits.", autocompletion=_complete_key)]


@app.command("ls")
def ls(outputs: Outputs = "outputs") -> None:
    """List the artifacts: stage, key, size, age, what."""
    import time
    from calendar import timegm

    from saelink.store.files import folder_bytes, gigabytes
    from saelink.store.store import Store

    for artifact in Store(outputs).artifacts():
        age = time.time() - timegm(time.strptime(artifact.manifest["provenance"]["made"], "%Y-%m-%dT%H:%M:%SZ"))
        size = gigabytes(folder_bytes(artifact.path))
        print(f"{artifact.stage:9} {artifact.key}  {size:>9}  {_age(age):>4}  {artifact.manifest['about']}")


def _age(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f}{unit}"
    return f"{seconds:.0f}s"


@app.command("rm")
def rm(key: Key, outputs: Outputs = "outputs") -> None:
    """Remove one artifact. What was computed from it stays."""
    from saelink.store.store import Store

    for path in Store(outputs).remove(key):
        print(f"removed {path}")


@app.command("push")
def push(
    key: Key,
    repository: Annotated[str, typer.Argument(help="owner/name on the hub.")],
    private: Annotated[bool, typer.Option("--private", help="Make the repository a private one.")] = False,
    outputs: Outputs = "outputs",
) -> None:
    """Send an exported connector to a hub repository; HF_TOKEN or `hf auth login` says who you are."""
    from saelink.share.hub import push
    from saelink.store.store import Store

    print(push(Store(outputs), key, repository, private))


@app.command("gc")
def gc(outputs: Outputs = "outputs") -> None:
    """Remove what killed runs left unfinished."""
    from saelink.store.files import gigabytes
    from saelink.store.store import Store

    for path, size in Store(outputs).collect_garbage():
        print(f"removed {path} ({gigabytes(size)})")


@app.command("track", context_settings=PASS_TO_HYDRA)
def track(context: typer.Context, arguments: Overrides = None) -> None:
    """Publish train artifacts to Weights & Biases later: saelink track KEY... [wandb.project=x]."""
    words = [*(arguments or []), *context.args]
    keys = [word for word in words if not _OVERRIDE.match(word) and not word.startswith("-")]
    if not keys:
        from saelink.errors import SaelinkError

        raise SaelinkError("track: name at least one train artifact; `saelink ls` lists their keys")

    def stage(cfg: Config, store: Store) -> None:
        from saelink.tracking.runs import publish_key

        for key in keys:
            publish_key(cfg.wandb, store, key)

    _hydra("track", [word for word in words if word not in keys], stage)


@app.command("show", context_settings=PASS_TO_HYDRA)
def show(context: typer.Context, arguments: Overrides = None) -> None:
    """A latent's card: saelink show target 1064, saelink show source 324 [--json] [key=value ...]."""
    from saelink.errors import SaelinkError

    words = [*(arguments or []), *context.args]
    as_json = "--json" in words
    words = [word for word in words if word != "--json"]
    asked = [word for word in words if not _OVERRIDE.match(word) and not word.startswith("-")]
    if len(asked) != 2 or asked[0] not in ("target", "source"):
        raise SaelinkError("show: give a side and a latent, such as `saelink show target 1064` or `show source 324`")
    side, latent = asked
    if side == "target" and not latent.isdigit():
        raise SaelinkError(f"show target {latent}: give the latent's number, such as 1064")

    def stage(cfg: Config, store: Store) -> None:
        from saelink.config.check import single
        from saelink.report.cards import Cards
        from saelink.terminal import cards as terminal

        if as_json:
            store.say = lambda line: print(line, file=sys.stderr, flush=True)
        cards = Cards(single(cfg), store)
        found = cards.target(int(latent)) if side == "target" else cards.source(cards.source_number(latent))
        if as_json:
            print(terminal.as_json(found))
        else:
            from rich.console import Console

            terminal.print_card(found, Console(highlight=False))

    _hydra("show", [word for word in words if word not in asked], stage)


@app.command("graph", context_settings=PASS_TO_HYDRA)
def graph(context: typer.Context, arguments: Overrides = None) -> None:
    """A prompt as a graph: tokens, latents, next tokens: saelink graph "The old king" [key=value ...]."""
    words = [*(arguments or []), *context.args]
    asked = [
        word
        for before, word in zip(["", *words], words, strict=False)
        if not _OVERRIDE.match(word) and not word.startswith("-") and before not in ("--cfg", "-c", "--package", "-p")
    ]

    def stage(cfg: Config, store: Store) -> None:
        from saelink.config.check import single
        from saelink.share.graph.stage import graph

        if len(asked) > 1:
            from saelink.errors import SaelinkError

            raise SaelinkError(f'graph: give one text, in quotes: saelink graph "{" ".join(asked)}"')
        cfg.graph.prompt = asked[0] if asked else cfg.graph.prompt
        found = graph(single(cfg), store)
        chances = ", ".join(f"{token!r} {chance:.0%}" for token, chance in found.facts["next"][:5])
        print(f"\n  next       {chances}")
        for line in found.facts["lines"]:
            print(f"  {line}")
        print(f"\n  graph      {found.facts['nodes']} nodes, {found.facts['links']} links")
        print(f"  file       {found.path}/{found.facts['slug']}.json", flush=True)

    _hydra("graph", [word for word in words if word not in asked], stage)


@app.command("pareto")
def pareto(sweep_id: Annotated[str, typer.Argument(metavar="SWEEP")], outputs: Outputs = "outputs") -> None:
    """The MSE-against-L1 table and picture of a sweep, also after a failed job."""
    from saelink.store.store import Store
    from saelink.tracking.sweep import pareto

    pareto(Store(outputs), sweep_id)


def main() -> Any:
    """Entry point: users' mistakes end as one line and exit code 1, bugs with their traceback."""
    # torch's large buffers on huge pages: fewer page faults on Linux, ignored elsewhere.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    try:
        app()
    except Exception as error:
        from hydra.errors import HydraException

        if isinstance(error, HydraException):
            text = str(error)
            if error.__cause__ is not None and str(error.__cause__) not in text:
                text += f" ({error.__cause__})"
            text = text.split("Config search path:")[0].split("See https://hydra.cc")[0]
            for plugin, extra in EXTRAS.items():
                if re.search(rf"hydra/(launcher|sweeper)/{plugin}\b", text):
                    text += f" (install it with `pip install 'saelink[{extra}]'`)"
                    break
            if "Could not override 'solver." in text:
                text = text.split("To append")[0] + "(connector=linear is solved exactly unless you say solver=adam)"
            print(f"saelink: {' '.join(text.split())}", file=sys.stderr)
        elif "No trials are completed yet" in str(error):  # Optuna's, after each trial has said its own
            print("saelink: no trial of the search succeeded, see the lines above", file=sys.stderr)
        elif isinstance(error, OSError) and error.filename:  # Hydra makes a multirun's folder itself
            print(f"saelink: {error.filename}: {error.strerror}; change runtime.outputs", file=sys.stderr)
        else:
            print(f"saelink: {_one_line(error)}", file=sys.stderr)
        sys.exit(1)
