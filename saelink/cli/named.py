"""Commands about what is named behind them: a latent, a prompt, a circuit, keys, a file of answers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from saelink.cli.jobs import Command, same_job

if TYPE_CHECKING:
    from saelink.job import Job


def test(names: list[str]) -> Command:
    """Test the circuits of some target latents."""

    def command(job: Job) -> None:
        from saelink.config.check import single
        from saelink.evidence.names import Names
        from saelink.evidence.protocol import CircuitTestsStage, numbers_of
        from saelink.terminal.protocol import print_tests

        job = job.at(single(job.cfg))
        artifact = CircuitTestsStage(job, numbers_of(job, names)).pull()
        print_tests(job.observer, artifact, Names(job))
        job.observer.say(f"\n  {artifact.path}")

    return command


def track(keys: list[str]) -> Command:
    """Publish train artifacts by their keys."""

    def command(job: Job) -> None:
        from saelink.tracking.project import Project
        from saelink.tracking.runs import publish_key

        project = Project(job.cfg.wandb, job.store)
        project.check()
        for key in keys:
            if not publish_key(job.cfg.wandb, job.store, key):
                job.observer.say(f"wandb: {key} is in project {project.name} already, with all there is of it")

    return command


def show(side: str, latent: str, as_json: bool, verbose: bool) -> Command:
    """Print the card of a target or source latent; with `verbose` also what it was found in."""

    def command(job: Job) -> None:
        import sys
        from dataclasses import replace

        from saelink.config.check import single
        from saelink.report.cards.cards import Cards
        from saelink.terminal.cards import print_card_json, print_new_card
        from saelink.terminal.progress import TerminalObserver

        # A card as JSON is alone on standard output.
        observer = TerminalObserver(sys.stderr if as_json else None, verbose)
        job = replace(job, store=job.store.telling(observer))
        cards = Cards(job.at(single(job.cfg)))
        found = cards.target(int(latent)) if side == "target" else cards.source(cards.source_number(latent))
        if side == "target" and job.cfg.link.sources == ["ov"]:
            from saelink.evidence.moved_edges import moved_edges
            from saelink.terminal.moved import print_moved

            edges = moved_edges(cards.job, int(latent))
            found["moved"] = [edge._asdict() for edge in edges]
            if not as_json:
                print_new_card(found)
                print_moved(found["name"], edges)
                return
        if as_json:
            print_card_json(found)
        else:
            print_new_card(found)

    return command


def show_head(head: int, as_json: bool) -> Command:
    """Print the card of a head of link=ov: what it moves, and which heads move the same."""

    def command(job: Job) -> None:
        import json
        import sys
        from dataclasses import replace

        from saelink.config.check import single
        from saelink.evidence.moved_heads import head_card
        from saelink.terminal.moved import print_head_card
        from saelink.terminal.progress import TerminalObserver

        job = replace(job, store=job.store.telling(TerminalObserver(sys.stderr if as_json else None)))
        card = head_card(job.at(single(job.cfg)), head)
        if as_json:
            edges = [edge._asdict() | {"examples": [e._asdict() for e in edge.examples]} for edge in card.edges]
            print(json.dumps(card._asdict() | {"edges": edges}))
        else:
            print_head_card(card)

    return command


def blind(answers: list[str]) -> Command:
    """Draw pairs for a blind judge, or score the answers in a file."""

    def command(job: Job) -> None:
        from saelink.config.check import single
        from saelink.errors import SaelinkError
        from saelink.share.blind import ANSWERS_FILE, SHEET_FILE, BlindStage, score

        if len(answers) > 1:
            raise SaelinkError(f"blind: give one file of answers, not {', '.join(answers)}")
        artifact = BlindStage(job.at(single(job.cfg))).pull()
        if not answers:
            job.observer.say(f"\n  {artifact.facts['pairs']} pairs, for a person {artifact.path / SHEET_FILE}")
            job.observer.say(f"  answers go into a copy of {artifact.path / ANSWERS_FILE}")
            job.observer.say(f"  then: {same_job('blind', job)} ANSWERS")
            return
        found = score(artifact, answers[0])
        share = found.right / found.answered
        job.observer.say(
            f"\n  {found.right} of {found.answered} right ({share:.0%}, {found.low:.0%} to {found.high:.0%}), "
            f"{found.pairs - found.answered} not answered; by guessing p = {found.p:.2g}"
        )

    return command


def graph(prompt: list[str]) -> Command:
    """A prompt's attribution graph; without a prompt here graph.prompt's."""

    def command(job: Job) -> None:
        from saelink.circuits.stage import LayersGraphStage
        from saelink.report.prompt import GraphPageStage
        from saelink.share.graph.stage import GraphStage
        from saelink.terminal.circuits import print_layers_graph
        from saelink.terminal.graph import print_graph

        job = with_prompt(job, prompt, "graph")
        if job.cfg.layers is not None:
            layered = LayersGraphStage(job).pull()
            page = GraphPageStage(job).pull()
            print_layers_graph(job.observer, layered, page.path / page.facts["file"])
            return
        graph = GraphStage(job).pull()
        page = GraphPageStage(job).pull()
        print_graph(job.observer, graph, page.path / page.facts["file"])

    return command


def with_prompt(job: Job, prompt: list[str], command: str) -> Job:
    """The job with one penalty, and the text that stands behind the command's name, if one does."""
    from dataclasses import replace

    from saelink.config.check import single
    from saelink.errors import SaelinkError

    if len(prompt) > 1:
        raise SaelinkError(f'{command}: give one text, in quotes: saelink {command} "{" ".join(prompt)}"')
    cfg = single(job.cfg)
    return job.at(replace(cfg, graph=replace(cfg.graph, prompt=prompt[0])) if prompt else cfg)


def intervene(prompt: list[str], changes: list[str]) -> Command:
    """Latents changed on a prompt; without one here it is graph.prompt."""

    def command(job: Job) -> None:
        from saelink.circuits.intervene import InterventionStage
        from saelink.terminal.circuits import print_intervention

        print_intervention(job.observer, InterventionStage(with_prompt(job, prompt, "intervene"), changes).pull())

    return command


def circuit(latent: str) -> Command:
    """The ancestors and descendants of a latent over the data set."""

    def command(job: Job) -> None:
        from saelink.circuits.ancestors import CircuitStage
        from saelink.config.check import single
        from saelink.terminal.circuits import print_circuit

        artifact = CircuitStage(job.at(single(job.cfg)), latent).pull()
        print_circuit(job.observer, artifact)

    return command
