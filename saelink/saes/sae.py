"""One sparse autoencoder: encoding and decoding, whatever file it came from (`formats/`)."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import torch


INPUT_NORMS = ("none", "constant_norm_rescale", "layer_norm")
"""What an SAE may do to an activation before it reads it; the names are SAELens'."""

LAYER_NORM_EPS = 1e-5


class Units(NamedTuple):
    """What activations were brought to before encoding: x -> (x - mean) / scale, token by token."""

    mean: torch.Tensor
    """[n, 1]; 0 for an SAE that takes nothing away."""
    scale: torch.Tensor
    """[n, 1]"""

    def select(self, rows: Any) -> Units:
        """Of some of the tokens."""
        return Units(self.mean[rows], self.scale[rows])

    def to(self, device: str) -> Units:
        return Units(self.mean.to(device), self.scale.to(device))


@dataclass
class SAE:
    """latents = activation(x @ W_enc + b_enc), reconstruction = latents @ W_dec + b_dec.

    b_enc already holds what subtracting b_dec from the input would do. A latent is active when its pre-activation is
    above `threshold` and above 0, and with `k` only if it is among the k largest of its token. Gated SAEs are of this
    form too: gate > 0 is the same as magnitude > threshold. A transcoder is one whose output is another hook's.
    """

    W_enc: torch.Tensor
    """[d_in, d_sae]"""
    b_enc: torch.Tensor
    """[d_sae]"""
    W_dec: torch.Tensor
    """[d_sae, d_out]; d_out is d_in but for a transcoder."""
    b_dec: torch.Tensor
    """[d_out]"""
    k: int | None = None
    """TopK: active latents per token; None otherwise."""
    threshold: torch.Tensor | None = None
    """JumpReLU, BatchTopK and gated: a latent is active above this, [d_sae]; None otherwise."""
    input_norm: str = "none"
    """One of INPUT_NORMS."""
    skip: torch.Tensor | None = None
    """Transcoders with an affine skip: [d_in, d_out], added to the output as x @ skip."""
    metadata: dict[str, Any] = field(default_factory=dict)
    """What its file says of where it belongs: hook_name, hook_name_out, neuronpedia_id, prepend_bos, context_size."""

    @property
    def d_in(self) -> int:
        return self.W_enc.shape[0]

    @property
    def d_sae(self) -> int:
        return self.W_enc.shape[1]

    @property
    def d_out(self) -> int:
        return self.W_dec.shape[1]

    def to(self, device: str, dtype: torch.dtype) -> SAE:
        names = ("W_enc", "b_enc", "W_dec", "b_dec", "threshold", "skip")
        tensors = {name: getattr(self, name) for name in names}
        return replace(self, **{name: None if t is None else t.to(device, dtype) for name, t in tensors.items()})

    def units(self, acts: torch.Tensor) -> Units | None:
        """What [n, d_in] activations are divided by and centred around; None for an SAE that takes them as they are."""
        if self.input_norm == "none":
            return None
        acts = acts.to(self.W_enc.dtype)
        if self.input_norm == "constant_norm_rescale":
            scale = acts.norm(dim=1, keepdim=True) / self.d_in**0.5
            return Units(acts.new_zeros(len(acts), 1), scale)
        return Units(acts.mean(1, keepdim=True), acts.std(1, keepdim=True))

    def pre_acts(self, acts: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """[n, d_in] -> [n, d_sae], before the nonlinearity; into `out` [>= n, d_sae] where it is given."""
        import torch

        into = None if out is None else out[: len(acts)]
        acts = acts.to(self.W_enc.dtype)
        units = self.units(acts)
        if units is not None:
            eps = LAYER_NORM_EPS if self.input_norm == "layer_norm" else 0.0
            acts = (acts - units.mean) / (units.scale + eps)
        return torch.addmm(self.b_enc, acts, self.W_enc, out=into)

    def encode_sparse(
        self, acts: torch.Tensor, out: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """[n, d_in] -> row, latent and value of every active latent, in the order of rows, then latents.

        `out` [>= n, d_sae] is room for the pre_acts: using the same again and again saves the memory's page faults.
        """
        import torch

        pre = self.pre_acts(acts, out)
        if pre.device.type == "cpu" and pre.dtype is torch.float32:
            return active_entries(pre, self.k, self.threshold)
        if self.k is None:
            active = pre > (0 if self.threshold is None else self.threshold.clamp(min=0))
            row, latent = active.nonzero(as_tuple=True)
            return row, latent, pre[row, latent]
        latents = torch.topk(pre, self.k, dim=1, sorted=False).indices.sort(dim=1).values
        values = pre.gather(1, latents)
        row, place = (values > 0).nonzero(as_tuple=True)
        return row, latents[row, place], values[row, place]

    def encode(self, acts: torch.Tensor) -> torch.Tensor:
        """[n, d_in] -> latents [n, d_sae], dense."""
        row, latent, value = self.encode_sparse(acts)
        dense = value.new_zeros(len(acts), self.d_sae)
        dense[row, latent] = value
        return dense

    def decode(self, latents: torch.Tensor, units: Units | None = None) -> torch.Tensor:
        """[n, d_sae] -> reconstruction [n, d_out]; `units` of the activations for an SAE that normalises them."""
        return self.output(latents @ self.W_dec, units)

    def output(self, product: torch.Tensor, units: Units | None) -> torch.Tensor:
        """The reconstruction [n, d_out] from latents @ W_dec, however that was computed."""
        out = product + self.b_dec
        if self.input_norm == "none" or self.transcodes:
            return out
        assert units is not None, "an SAE that normalises its input needs the tokens' units to decode"
        return out * units.scale + units.mean

    def transcode(self, acts: torch.Tensor) -> torch.Tensor:
        """[n, d_in] -> what a transcoder makes of it at its other hook, [n, d_out], its skip included."""
        out = self.output(self.encode(acts) @ self.W_dec, None)
        return out if self.skip is None else out + acts.to(self.W_enc.dtype) @ self.skip

    @property
    def transcodes(self) -> bool:
        """Whether it writes to another hook than it reads: a transcoder."""
        return "hook_name_out" in self.metadata or self.skip is not None or self.d_in != self.d_out


def active_entries(
    pre: torch.Tensor, k: int | None, threshold: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Row, latent and value of what is active among pre_acts [n, d_sae] in float32 on the CPU."""
    import torch

    from saelink.kernels import in_parts
    from saelink.kernels.active import above, top_k

    n, d = pre.shape
    counts = torch.empty(n, dtype=torch.int64)
    if k is not None:
        latents, values = torch.empty(n, k, dtype=torch.int64), torch.empty(n, k)
        arrays = [tensor.numpy() for tensor in (latents, values, counts)]
        in_parts(n, 256, lambda first, last: top_k(first, last, pre.numpy(), k, *arrays))
    else:
        least = torch.zeros(d) if threshold is None else threshold.clamp(min=0)
        latents, values = torch.empty(n, d, dtype=torch.int32), torch.empty(n, d)
        arrays = [tensor.numpy() for tensor in (least, latents, values, counts)]
        in_parts(n, 256, lambda first, last: above(first, last, pre.numpy(), *arrays))
    row = torch.repeat_interleave(torch.arange(n), counts)
    if n and int(counts.min()) == latents.shape[1]:
        return row, latents.view(-1).long(), values.view(-1)
    starts = torch.cumsum(counts, 0) - counts
    place = row * latents.shape[1] + torch.arange(len(row)) - starts[row]
    return row, latents.view(-1)[place].long(), values.view(-1)[place]
