"""Train the SAEs that come with saelink and write their model card: python scripts/train_shipped_saes.py

An hour or so on 2 cores. The settings are those of conf/sae/smollm2.yaml; overrides may follow, as for `saelink`.
The result goes to saelink/saes/shipped/smollm2, one SAELens folder per hook.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from saelink.activations.cache import cache_hooks
from saelink.compose import register
from saelink.config.files import conf_dir
from saelink.config.schema import Config
from saelink.latents.encode import EncodeStage
from saelink.saes.formats.saelens import CONFIG_FILE, WEIGHTS_FILE
from saelink.saes.training import SAEStage
from saelink.store.artifact import Artifact
from saelink.store.store import Store
from saelink.terminal.progress import TerminalObserver

HOOKS = [f"blocks.{layer}.{hook}" for layer in (1, 3) for hook in ("hook_resid_mid", "hook_mlp_out")]

FOLDER = Path(__file__).parent.parent / "saelink" / "saes" / "shipped" / "smollm2"

CARD = """# SAEs for SmolLM2-135M-Instruct

Four TopK sparse autoencoders in SAELens' format, trained by `scripts/train_shipped_saes.py` with sae-lens on the
text of `data=wiki` (10,033 English Wikipedia article introductions, CC BY-SA 4.0), the model being the 4-bit (Q4_1)
build of SmolLM2-135M-Instruct (Apache-2.0), unpacked to float32. Weights are bfloat16.

- d_sae {d_sae}, k {k}, batch {batch_tokens} tokens, Adam with peak learning rate {lr:g}, warm-up 5%, linear decay over
  the last half, auxiliary loss {aux:g}; inputs scaled to a mean norm of sqrt(d_in), the scalar folded into the weights.
- Context {context} tokens, position 0 left out (it carries massive activations). No row filter.
- Only documents of the training split were seen (80%, by a hash of each document's text). FVU and L0 below are on test
  documents, positions 1 and later, as saelink itself uses the SAEs. "Typical" leaves out rows whose norm exceeds three
  medians. Dead: latents that are active on no token of the training split.

| hook | training tokens | FVU | FVU typical | typical rows | L0 | dead |
|---|---|---|---|---|---|---|
"""


def main() -> None:
    register()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        raw = compose("config", ["sae=smollm2", "data.max_tokens=null", *sys.argv[1:], "sae.path=null"])
    cfg = OmegaConf.to_object(raw)
    assert isinstance(cfg, Config)
    store = Store(cfg.runtime.outputs, observer=TerminalObserver())
    acts = cache_hooks(cfg, store, HOOKS)
    card = CARD.format(
        d_sae=cfg.sae.d_sae,
        k=cfg.sae.k,
        batch_tokens=cfg.sae.batch_tokens,
        lr=cfg.sae.lr,
        aux=cfg.sae.aux_loss_coefficient,
        context=cfg.data.context_size,
    )
    FOLDER.mkdir(parents=True, exist_ok=True)
    for hook in HOOKS:
        sae: Artifact = SAEStage(cfg, store, hook).pull()
        for name in (CONFIG_FILE, WEIGHTS_FILE):
            (FOLDER / hook).mkdir(exist_ok=True)
            shutil.copyfile(sae.file(name), FOLDER / hook / name)
        facts = EncodeStage(cfg, store, hook).pull().facts
        card += (
            f"| {hook} | {sae.facts['training_tokens']:,} | {facts['fvu']:.3f} | {facts['fvu_typical']:.3f} "
            f"| {facts['typical']:.1%} | {facts['l0']:.1f} | {facts['dead']} |\n"
        )
        assert acts[hook].key == sae.manifest["inputs"]["acts"]
        (FOLDER / "README.md").write_text(card)
    print(card)


if __name__ == "__main__":
    main()
