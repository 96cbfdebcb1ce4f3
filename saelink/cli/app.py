"""The command line: Typer commands that hand their overrides to Hydra, and the store's housekeeping.

Nothing heavy is imported before a command needs it, so that `saelink --help` answers at once.
"""

from __future__ import annotations

import gc as garbage
import io
import os
import sys
from typing import Annotated, Any

import typer

from saelink.cli import jobs, named, wandb
from saelink.cli.launch import launch, one_line, print_line
from saelink.cli.signals import StoppedError, stopping
from saelink.cli.words import asks_for_help, is_change, is_override
from saelink.errors import SaelinkError, closest, printable

app = typer.Typer(
    name="saelink",
    help="Sparse maps between SAE latents, tested by ablation.",
    epilog="Settings are overrides, key=value: saelink train layer=3 connector=mlp. "
    "Several values need -m: saelink train -m l1_alpha=1e-5,1e-3. `saelink train --help` lists those that matter for "
    "train, `saelink train --help-all` every one.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

PASS_TO_HYDRA = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []}


def _complete(incomplete: str) -> list[str]:
    """Groups, options and keys, from Hydra's own completion."""
    from saelink.cli.completion import complete

    return complete(incomplete)


Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[OVERRIDES]...", help="key=value", autocompletion=_complete)
]


def _say_version(asked: bool) -> None:
    if asked:
        from saelink._version import __version__

        print(f"saelink {__version__}")
        raise typer.Exit


@app.callback()
def _start(
    version: Annotated[
        bool, typer.Option("--version", callback=_say_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


# --------------------------------------------------------------------------- stages


def words_of(context: typer.Context, arguments: list[str] | None) -> list[str]:
    """What follows the command's name."""
    return [*(arguments or []), *context.args]


def _behind(words: list[str]) -> list[str]:
    """The words that are no settings, no flags and no flag's value."""
    return [
        word
        for before, word in zip(["", *words], words, strict=False)
        if not is_override(word) and not word.startswith("-") and before not in ("--cfg", "-c", "--package", "-p")
    ]


def _stage_command(name: str, help: str, command: jobs.Command) -> None:
    def stage(context: typer.Context, overrides: Overrides = None) -> None:
        launch(name, words_of(context, overrides), command)

    stage.__doc__ = help
    app.command(name, context_settings=PASS_TO_HYDRA, help=help)(stage)


_stage_command("run", "The whole pipeline, to the report; or an experiment.", jobs.run_all)
_stage_command("cache", "Run the language model and keep its activations.", jobs.run_cache)
_stage_command("sae", "Train SAEs for hooks that have none.", jobs.run_sae)
_stage_command("encode", "Encode the activations through the SAEs.", jobs.run_encode)
_stage_command("train", "Fit a connector.", jobs.run_train)
_stage_command("evaluate", "Measure a connector on held-out text, print circuits.", jobs.run_evaluate)
_stage_command("verify", "Test a connector's edges by ablating its sources.", jobs.run_verify)
_stage_command("qk", "Which pairs of latents decide where heads look.", jobs.run_qk)
_stage_command("report", "Write one HTML page of what a connector found.", jobs.run_report)
_stage_command("export", "Write a connector as a folder for others to load.", jobs.run_export)


@app.command("plan", context_settings=PASS_TO_HYDRA)
def plan(context: typer.Context, arguments: Overrides = None) -> None:
    """Print what a job will take, stage by stage."""
    words = words_of(context, arguments)
    launch("plan", [word for word in words if word != "--json"], jobs.plan("--json" in words))


@app.command("track", context_settings=PASS_TO_HYDRA)
def track(context: typer.Context, arguments: Overrides = None) -> None:
    """Publish fitted connectors to W&B later: track KEY."""
    words = words_of(context, arguments)
    keys = [word for word in words if not is_override(word) and not word.startswith("-")]
    if not keys and not asks_for_help(words):
        raise SaelinkError("track: name at least one train artifact; `saelink ls` lists their keys")
    launch("track", [word for word in words if word not in keys], named.track(keys))


@app.command("blind", context_settings=PASS_TO_HYDRA)
def blind(context: typer.Context, arguments: Overrides = None) -> None:
    """Draw pairs for a blind judge, or score the answers."""
    words = words_of(context, arguments)
    files = [] if asks_for_help(words) else _behind(words)
    launch("blind", [word for word in words if word not in files], named.blind(files))


@app.command("cite")
def cite(
    key: Annotated[str | None, typer.Argument(help="Of a result: also what it was made with.")] = None,
    outputs: Outputs = "outputs",
) -> None:
    """Print how to cite saelink, and a result."""
    from saelink.share.cite import citation
    from saelink.store.store import Store

    print("\n".join(map(printable, citation(Store(outputs), key).splitlines())))


@app.command("show", context_settings=PASS_TO_HYDRA)
def show(context: typer.Context, arguments: Overrides = None) -> None:
    """Print a card: show target 1064."""
    words = words_of(context, arguments)
    as_json, verbose = "--json" in words, "-v" in words
    words = [word for word in words if word not in ("--json", "-v")]
    asked = [word for word in words if not is_override(word) and not word.startswith("-")]
    if asks_for_help(words):
        asked = ["target", "0"]  # never looked at
    if len(asked) != 2 or asked[0] not in ("target", "source", "head"):
        raise SaelinkError(
            "show: give a side and a latent, such as `saelink show target 1064` or `show source 324`, or with link=ov "
            "a head, such as `show head 3`"
        )
    side, latent = asked
    if side != "source" and not latent.isdigit():
        what, such = ("head", 3) if side == "head" else ("latent", 1064)
        raise SaelinkError(f"show {side} {latent}: give the {what}'s number, such as {such}")
    if side == "head":
        launch("show", [word for word in words if word not in asked], named.show_head(int(latent), as_json))
        return
    launch("show", [word for word in words if word not in asked], named.show(side, latent, as_json, verbose))


def prompt_words(words: list[str]) -> list[str]:
    """Those of a command's words that are its prompt."""
    from saelink.mistakes import names_setting

    asked = _behind(words)
    if not asked:  # a text such as x=1 looks like a setting and is none
        asked = [word for word in words if is_override(word) and not names_setting(word)][:1]
    return asked


@app.command("test", context_settings=PASS_TO_HYDRA)
def circuit_tests(context: typer.Context, arguments: Overrides = None) -> None:
    """Test whether a circuit computes its target: test OF138."""
    words = words_of(context, arguments)
    names = _behind(words)
    if asks_for_help(words):
        names = names or ["OF0"]  # never looked at
    if not names:
        raise SaelinkError("test: name at least one target latent, such as `saelink test OF138`")
    launch("test", [word for word in words if word not in names], named.test(names))


@app.command("graph", context_settings=PASS_TO_HYDRA)
def graph(context: typer.Context, arguments: Overrides = None) -> None:
    """Write a prompt's graph: graph "The old king"."""
    words = words_of(context, arguments)
    asked = prompt_words(words)
    launch("graph", [word for word in words if word not in asked], named.graph(asked))


@app.command("intervene", context_settings=PASS_TO_HYDRA)
def intervene(context: typer.Context, arguments: Overrides = None) -> None:
    """Change latents on a prompt: intervene "A king" OF12@L3=0."""
    words = words_of(context, arguments)
    changes = [word for word in words if is_change(word)]
    words = [word for word in words if word not in changes]
    asked = prompt_words(words)
    launch("intervene", [word for word in words if word not in asked], named.intervene(asked, changes))


@app.command("circuit", context_settings=PASS_TO_HYDRA)
def circuit(context: typer.Context, arguments: Overrides = None) -> None:
    """Show what leads to a latent: circuit OF1262@L3."""
    words = words_of(context, arguments)
    asked = [word for word in prompt_words(words) if not is_override(word)]
    if asks_for_help(words):
        asked = ["OF0"]  # never looked at
    if len(asked) != 1:
        raise SaelinkError("circuit: name one latent, such as saelink circuit OF1262@L3 layers=0-3")
    launch("circuit", [word for word in words if word not in asked], named.circuit(asked[0]))


app.add_typer(wandb.app, name="wandb")


# --------------------------------------------------------------------------- housekeeping


def _folder(name: str) -> str:
    if not name.strip():
        raise SaelinkError("--outputs is empty: give a folder of artifacts, such as outputs")
    return os.path.expanduser(name)  # noqa: PTH111 (a path as text)


Outputs = Annotated[str, typer.Option("--outputs", "-o", help="Folder of the artifacts.", callback=_folder)]


def _complete_key(incomplete: str) -> list[str]:
    from pathlib import Path

    return sorted(path.parent.name for path in Path("outputs").glob(f"*/{incomplete}*/manifest.json"))


Key = Annotated[str, typer.Argument(help="A key, or enough of its first digits.", autocompletion=_complete_key)]


@app.command("ls")
def ls(
    stage: Annotated[list[str] | None, typer.Option("--stage", help="Only this stage; may be repeated.")] = None,
    layer: Annotated[int | None, typer.Option("--layer", help="Only this layer.")] = None,
    model: Annotated[str | None, typer.Option("--model", help="Only this model, such as smollm2.")] = None,
    sort: Annotated[str, typer.Option("--sort", help="time, size, fvu or stage.")] = "time",
    as_json: Annotated[bool, typer.Option("--json", help="A list of objects.")] = False,
    outputs: Outputs = "outputs",
) -> None:
    """List a store's artifacts: stage, key, FVU, size, age, what.

    The FVU of a fit is that on validation documents, of an evaluation that on test documents.
    """
    from saelink.store.store import Store
    from saelink.terminal.listing import print_artifacts, print_artifacts_json, rows_of
    from saelink.terminal.progress import TerminalObserver
    from saelink.terminal.table import terminal_width

    store = Store(outputs)
    rows = rows_of(store, stage or [], layer, model, sort)
    if as_json:
        print_artifacts_json(TerminalObserver(), rows)
    else:
        print_artifacts(TerminalObserver(), rows, store.root, terminal_width())


@app.command("rm")
def rm(key: Key, outputs: Outputs = "outputs") -> None:
    """Remove one artifact; what was computed from it stays."""
    from saelink.store.store import Store

    for path in Store(outputs).remove(key):
        print(printable(f"removed {path}"))


@app.command("push")
def push(
    key: Key,
    repository: Annotated[str, typer.Argument(help="owner/name on the hub.")],
    private: Annotated[bool, typer.Option("--private", help="Make the repository a private one.")] = False,
    outputs: Outputs = "outputs",
) -> None:
    """Send an exported connector to a hub repository.

    HF_TOKEN or `hf auth login` says who you are.
    """
    from saelink.share.hub import push as send
    from saelink.store.store import Store

    print(send(Store(outputs), key, repository, private))


@app.command("gc")
def gc(
    old: Annotated[bool, typer.Option("--outdated", help="Also artifacts of earlier versions, listed first.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="With --outdated: remove them without asking.")] = False,
    outputs: Outputs = "outputs",
) -> None:
    """Remove the unfinished work of killed runs.

    With --outdated also artifacts that no command finds any more: those of earlier versions of their stage, and what
    was made from them.
    """
    from saelink.config.size import gigabytes
    from saelink.store.store import Store

    for path, size in Store(outputs).collect_garbage():
        print(printable(f"removed {path} ({gigabytes(size)})"))
    if old:
        from saelink.cli.outdated import remove_listed

        remove_listed(Store(outputs), yes)


@app.command("pareto")
def pareto(sweep_id: Annotated[str, typer.Argument(metavar="SWEEP")], outputs: Outputs = "outputs") -> None:
    """Print and draw a sweep's MSE against L1 again.

    SWEEP is the name that a sweep prints at its end; its folder is in outputs/sweeps. Failed jobs are left out.
    """
    from saelink.store.store import Store
    from saelink.terminal.progress import TerminalObserver
    from saelink.terminal.sweep import print_pareto
    from saelink.tracking.sweep import sweep_folder, write_pareto

    observer = TerminalObserver()
    store = Store(outputs, observer)
    print_pareto(observer, sweep_id, write_pareto(store, sweep_id).rows, sweep_folder(store, sweep_id))


def _check_command(words: list[str]) -> None:
    """Raise SaelinkError for a command that does not exist."""

    names = [each.name or "" for each in [*app.registered_commands, *app.registered_groups]]
    if words and not words[0].startswith("-") and words[0] not in names:
        meant = closest(words[0], names)
        way_out = "saelink --help lists them" if meant is None else f"did you mean saelink {meant}?"
        raise SaelinkError(f"there is no command {words[0]}; {way_out}")


def _say_usage(error: Any) -> None:
    """What is wrong with a command's flags and arguments, or its help where it was called with none."""
    if type(error).__name__ == "NoArgsIsHelpError":
        error.show()
        sys.exit(error.exit_code)
    path = error.ctx.command_path if getattr(error, "ctx", None) is not None else ""
    command = " ".join(["saelink", *path.rpartition("saelink")[2].split()])
    message = printable(error.format_message()).rstrip(".")
    print(f"saelink: {message}; `{command} --help` has more", file=sys.stderr)


def _system_line(error: OSError) -> str:
    """The line for an error of the system, or for a file of settings that Hydra did not find, which it calls one."""
    if not type(error).__module__.startswith("hydra."):
        return one_line(error)
    from saelink.mistakes import hydra_line

    return hydra_line(error)


def main() -> Any:
    """Entry point: users' mistakes end as one line and exit code 1, bugs with their traceback."""
    # torch's large buffers on huge pages: fewer page faults on Linux, ignored elsewhere.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    for stream in (sys.stdout, sys.stderr):  # a terminal of ASCII, or a name that is no UTF-8
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")
    # Imports make millions of objects that all stay: looking for garbage among them takes a sixth of the start.
    garbage.disable()
    try:
        with stopping():
            _check_command(sys.argv[1:])
            code = app(standalone_mode=False)
            if isinstance(code, int) and code:
                sys.exit(code)
    except StoppedError as stop:
        if sys.stderr.isatty():  # behind the ^C that it shows, or a bar
            print(file=sys.stderr)
        print_line(stop.line)
        raise
    except BrokenPipeError:  # whoever read what is printed has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        print_line(_system_line(error))
        sys.exit(1)
    except Exception as error:  # one_line raises again what is no user's mistake
        from omegaconf.errors import OmegaConfBaseException

        from saelink.mistakes import hydra_line, of_settings

        if hasattr(error, "format_message"):  # Typer's, whichever click it brings
            _say_usage(error)
        elif of_settings(error) and not isinstance(error, OmegaConfBaseException):
            print_line(hydra_line(error))
        elif "No trials are completed yet" in str(error):  # Optuna's, after each trial got a line of its own
            print_line("no trial of the search succeeded, see the lines above")
        else:
            print_line(one_line(error))
        sys.exit(1)
    finally:
        garbage.enable()
