"""What latents are called: hook and number, top token, page. Everything that names a latent asks here."""

from __future__ import annotations

from typing import NamedTuple

from saelink.job import Job
from saelink.latents.top_tokens import TopTokens, TopTokensStage, load_top_tokens
from saelink.saes.neuronpedia import neuronpedia_page


def pages_of(job: Job) -> dict[str, str | None]:
    """By hook of the link where Neuronpedia shows its latents, if it does."""
    link = job.link
    return {hook: neuronpedia_page(job.cfg, job.store, hook) for hook in (*link.sources, link.target)}


def names_inputs(job: Job) -> dict[str, str]:
    """The keys that the names of a link's latents are made from, by role: inputs of every stage that writes names."""
    job = job.fit
    hooks = {f"top_tokens{i}": hook for i, hook in enumerate(job.link.sources)} | {"top_tokens": job.link.target}
    return {role: TopTokensStage(job.cfg, job.store, hook).key for role, hook in hooks.items()}


class Unit(NamedTuple):
    """What one end of an edge is called."""

    kind: str
    """target, source or hidden."""
    latent: int
    """Its number in its own SAE, or among the hidden units."""
    hook: str
    """With @h3 behind it as head 3 moves it."""
    short: str
    """OF12, IF17 (IF0.17 with several sources), H3."""
    token: str | None
    """Its top token, a blank in front kept; None for hidden units and latents that never fire."""
    page: str | None

    @property
    def name(self) -> str:
        return f"{self.hook}/{self.latent}" if self.hook else f"hidden/{self.latent}"

    @property
    def label(self) -> str | None:
        """The top token without the blanks around it, where it is not all blank."""
        return self.token if self.token is None else self.token.strip() or self.token


class Names:
    """The latents of a link by name. What they fire on is read, and counted where it is missing, when first asked."""

    def __init__(self, job: Job):
        self._job, self._pages = job.fit, pages_of(job.fit)
        self._found: dict[str, TopTokens] = {}

    def top_tokens(self, hook_name: str) -> TopTokens:
        """The tokens that the latents of one of the link's hooks fire on."""
        if hook_name not in self._found:
            artifact = TopTokensStage(self._job.cfg, self._job.store, hook_name).pull()
            self._found[hook_name] = load_top_tokens(artifact)
        return self._found[hook_name]

    def token_id(self, hook_name: str, latent: int) -> int | None:
        """The vocabulary's number of a latent's top token; None for one that never fires."""
        token = int(self.top_tokens(hook_name).token[latent, 0])
        return token if token >= 0 else None

    def page(self, hook_name: str) -> str | None:
        """Where Neuronpedia shows a hook's latents; None where it does not, and for hidden units."""
        return self._pages.get(hook_name)

    def text(self, token_id: int) -> str:
        """A token as text, a blank in front kept."""
        return self._job.vocabulary[token_id]

    def unit(self, kind: str, number: int) -> Unit:
        """`number` counts through the sources' latents, or is a target SAE's or a hidden unit's own."""
        if kind == "hidden":
            return Unit(kind, number, "", f"H{number}", None, None)
        sides, latent = self._job.sides, number
        side, short = sides.target, sides.target_name(number)
        head: int | None = None
        if kind == "source":
            head = sides.head_of(number)
            place, latent = sides.side_of(number)
            side, short = sides.sources[place], sides.source_name(number)
        hook = side.facts["hook_name"]
        token, page = self.token_id(hook, latent), self._pages[hook]
        return Unit(
            kind,
            latent,
            hook if head is None else f"{hook}@h{head}",
            short,
            None if token is None else self.text(token),
            None if page is None else f"{page}/{latent}",
        )
