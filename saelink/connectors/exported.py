"""A fitted connector as its files hold it: `connector.safetensors` and `cfg.json`, from a folder or the hub."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from saelink.connectors import CONNECTORS
from saelink.connectors.base import Connector, pieces_of
from saelink.connectors.linear import LinearConnector
from saelink.connectors.wide_linear import WIDE_WEIGHTS, WideLinearConnector
from saelink.errors import SaelinkError
from saelink.fetch import ON_HUB, hub_address, hub_errors
from saelink.latents.rows import Rows, offsets_of
from saelink.store.artifact import Artifact
from saelink.store.manifest import MANIFEST
from saelink.store.seal import SealError, sealed, unsealed

WEIGHTS_FILE = "connector.safetensors"

CONFIG_FILE = "cfg.json"

WEIGHTS_SEAL = "weights_sha256"
"""The entry of an export's `cfg.json` that holds the sha256 of its weights."""

LARGE = 2**24
"""Entries of a matrix from which on it is stored by its non-zero ones, if these are few."""


def packed_state(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A connector's tensors as its file holds them.

    A large matrix most of which is zero becomes `name.shape`, `name.offsets` [rows + 1], `name.indices` (column, int32)
    and `name.values`, by its rows.
    """
    packed: dict[str, torch.Tensor] = {}
    for name, tensor in state.items():
        few = tensor.dim() == 2 and tensor.numel() >= LARGE and _non_zero(tensor) < tensor.numel() // 4
        packed |= _by_rows(name, tensor) if few else {name: tensor}
    return packed


def _non_zero(matrix: torch.Tensor) -> int:
    return sum(int(part.count_nonzero()) for part in pieces_of(matrix))


def _by_rows(name: str, matrix: torch.Tensor) -> dict[str, torch.Tensor]:
    lengths: list[torch.Tensor] = []
    indices: list[torch.Tensor] = []
    values: list[torch.Tensor] = []
    for part in pieces_of(matrix):
        row, column = part.nonzero(as_tuple=True)
        lengths.append(torch.bincount(row, minlength=len(part)))
        indices.append(column.int())
        values.append(part[row, column])
    shape = torch.tensor(matrix.shape)
    parts = {"shape": shape, "offsets": offsets_of(torch.cat(lengths)), "indices": torch.cat(indices)}
    return {f"{name}.{part}": tensor for part, tensor in {**parts, "values": torch.cat(values)}.items()}


def unpacked_state(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What `packed_state` was given."""
    state = {name: tensor for name, tensor in tensors.items() if "." not in name}
    for name in [key.removesuffix(".shape") for key in tensors if key.endswith(".shape")]:
        n, m = (int(size) for size in tensors[f"{name}.shape"])
        matrix = torch.zeros(n, m)
        row = torch.repeat_interleave(torch.arange(len(matrix)), tensors[f"{name}.offsets"].diff())
        matrix[row, tensors[f"{name}.indices"].long()] = tensors[f"{name}.values"]
        state[name] = matrix
    return state


def connector_of(config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> Connector:
    """The connector of `cfg.json`'s content and its tensors, weights in scaled units.

    A wide linear one that is stored by its edges has only these in memory.
    """
    kind = CONNECTORS[config["connector"]["name"]]
    settings: Any = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(kind.Settings), config["connector"]))
    d_source, target_ids = sum(source["d"] for source in config["sources"]), tensors["target_ids"]
    if kind is LinearConnector and "W.shape" in tensors and d_source * len(target_ids) > WIDE_WEIGHTS:
        wide = WideLinearConnector(settings, d_source, target_ids)
        wide.load_tensors(tensors)
        return wide.eval()
    connector = kind(settings, d_source, target_ids)
    connector.load_state_dict(unpacked_state(tensors), assign=True)  # a large matrix is in memory once
    return connector.eval()


def exported_config(config: Mapping[str, Any], weights_sha256: str) -> dict[str, Any]:
    """What `cfg.json` of an export says, given what the connector's own says: it seals itself and the weights."""
    return sealed({**config, "format": "saelink", WEIGHTS_SEAL: weights_sha256})


def _damaged(folder: Path, name: str, how: str) -> SaelinkError:
    return SaelinkError(f"{folder / name} {how}: get the connector again, or write it anew with `saelink export`")


def _checked(folder: Path, config: bytes, weights_sha256: str) -> dict[str, Any]:
    """What an export's `cfg.json` says. Raises SaelinkError when it or the weights are not as they were written."""
    try:
        found = unsealed(config)
    except SealError as error:
        raise _damaged(folder, CONFIG_FILE, str(error)) from None
    if found.get(WEIGHTS_SEAL) != weights_sha256:
        raise _damaged(folder, WEIGHTS_FILE, f"does not have the sha256 that {CONFIG_FILE} names")
    return found


class ExportedConnector:
    """A connector from an exported folder, in the raw units of both SAEs.

    The folder of a fitted connector in a store will do too. Raises SaelinkError when a file is missing, or is not as it
    was written.
    """

    def __init__(self, folder: Path):
        from safetensors.torch import load

        for name in (CONFIG_FILE, WEIGHTS_FILE):
            if not (folder / name).is_file():
                raise SaelinkError(f"{folder}: no connector is there, {name} is missing; `saelink export` makes one")
        data = {name: (folder / name).read_bytes() for name in (CONFIG_FILE, WEIGHTS_FILE)}
        digests = {name: hashlib.sha256(content) for name, content in data.items()}
        if (
            folder.resolve().parent.name == "train" and (folder / MANIFEST).is_file()
        ):  # in its store: checksums are there
            fitted: Artifact[Any] = Artifact(folder)
            self.config = fitted.json(CONFIG_FILE)
            fitted.file(WEIGHTS_FILE)
        else:
            self.config = _checked(folder, data[CONFIG_FILE], digests[WEIGHTS_FILE].hexdigest())
        try:
            if "${" in json.dumps(self.config["connector"]):
                raise ValueError("its settings refer to something outside")
            self.connector = connector_of(self.config, load(data[WEIGHTS_FILE]))
            sides = self.config["sources"]
            self.scales = torch.cat([torch.full((side["d"],), float(side["scale"])) for side in sides])
            self.target_scale = float(self.config["target"]["scale"])
        except Exception as error:  # whatever a broken folder makes the readers raise
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise SaelinkError(f"{folder}: the connector can't be read ({reason})") from None
        self.connector.requires_grad_(False)
        self.sha256 = hashlib.sha256(b"".join(digest.digest() for digest in digests.values())).hexdigest()
        """Of both files."""

    @property
    def target_ids(self) -> torch.Tensor:
        """[d_target] the target SAE's numbers of the columns."""
        return self.connector.target_ids

    @property
    def weight(self) -> torch.Tensor:
        """The output matrix [d_source or d_hidden, d_target], in units of the latents' scales."""
        return self.connector.output_weight()

    def __call__(self, latents: torch.Tensor) -> torch.Tensor:
        """Target latents [n, d_target] from source latents [n, d_source], all sources side by side, both raw."""
        if latents.dim() != 2 or latents.shape[1] != len(self.scales):
            raise SaelinkError(f"latents of shape {list(latents.shape)}: give [tokens, {len(self.scales)}]")
        return self.connector(Rows.from_dense(latents.float() / self.scales)) * self.target_scale

    def in_units(self, scales: torch.Tensor, target_scale: float) -> dict[str, torch.Tensor]:
        """The weights of the same map, its latents divided by these scales [d_source] and this one instead."""
        connector = connector_of(self.config, {name: t.clone() for name, t in self.connector.state_dict().items()})
        with torch.no_grad():
            connector.rescale(scales / self.scales, self.target_scale / target_scale)
        return connector.state_dict()


def load_connector(place: str | Path) -> ExportedConnector:
    """A connector from an exported folder, or from hf://owner/repository[@revision].

    Raises SaelinkError when there is none or it can't be read.
    """
    return ExportedConnector(connector_folder(place))


def connector_folder(place: str | Path) -> Path:
    """The local folder of an exported connector; one on the hub is downloaded.

    Raises SaelinkError when the hub has none.
    """
    address = hub_address(str(place), "connector")
    if address is None:
        return Path(place)
    if address.path:
        raise SaelinkError(f"connector: {place} is not of the form {ON_HUB}owner/repository[@revision]")
    from huggingface_hub import snapshot_download  # pyright: ignore[reportUnknownVariableType] (its tqdm has no argument)

    with hub_errors("connector", address.repository, f"{ON_HUB}{address.repository}@<40 digits>"):
        files = [CONFIG_FILE, WEIGHTS_FILE]
        folder = snapshot_download(address.repository, revision=address.revision, allow_patterns=files)
    return Path(folder)
