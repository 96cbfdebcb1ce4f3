"""What the help of each stage command says: what the stage does, examples, and which settings matter for it.

The settings' own texts are their docstrings; nothing is said of them here.
"""

from __future__ import annotations

from dataclasses import dataclass

TEXT = "data.max_tokens data.context_size data.prepend_bos data.drop_positions"
TARGETS = "layer targets.min_rate targets.subset"
FIT = "l1_alpha latent_scale normalise seed connector.* solver.*"
SEVERAL = "layers circuit.edges circuit.attention"
PLACE = "runtime.device runtime.threads runtime.memory runtime.outputs"
TRACKED = f"{PLACE} wandb.mode"


@dataclass(frozen=True)
class Page:
    """One command's help."""

    about: str
    """What it does, makes first, writes, and roughly costs."""
    examples: tuple[str, ...]
    """Whole commands."""
    settings: dict[str, str]
    """By heading the settings that matter here; `connector.*` is all that the chosen connector has."""
    arguments: str = ""
    """What stands behind the command's name before the settings."""


PAGES = {
    "run": Page(
        "Runs cache, encode, train, evaluate and report, each only where its result is missing, and with eval.verify "
        "also verify. With experiment=NAME it makes that experiment's fits, table and picture instead. The first run "
        "of the defaults takes under five minutes on 2 cores, a second one seconds.",
        (
            "saelink run",
            "saelink run layer=3 l1_alpha=[1e-4,1e-3] eval.verify=true",
            "saelink run experiment=dense budget=quick",
        ),
        {
            "What is explained": TARGETS,
            "The fit": FIT,
            "What is measured": "eval.circuits eval.ce eval.verify",
            "Experiments": "experiment.seeds experiment.l1_grid experiment.d_hidden",
            "Where it runs": TRACKED,
        },
    ),
    "plan": Page(
        "Prints what `saelink run` and `saelink verify` of these settings will take, stage by stage: tokens, disk, "
        "memory and time, from the sizes of model and SAEs and two seconds of measuring this machine. What is made "
        "already is said as done. Neither weights nor text are fetched. With layers=... it is what `saelink graph`, "
        "`intervene` and `circuit` over these layers take. --json prints it as JSON and nothing else.",
        (
            "saelink plan",
            "saelink plan sae=gemma-scope-2b-pt layer=12",
            "saelink plan layers=0-3",
            "saelink plan data.max_tokens=null --json",
        ),
        {
            "What is explained": TARGETS,
            "The model and the SAEs": "model.path sae.path sae.d_sae sae.k",
            "The text": TEXT,
            "The fit": FIT,
            "Where it runs": PLACE,
        },
        "[--json]",
    ),
    "cache": Page(
        "Reads text into tokens, runs the language model on them and keeps its activations at the hooks of the link, "
        "in bfloat16: for the default 400,000 tokens 461 MB a hook. Several processes can share the work. With "
        "stream=true the other commands do without these files.",
        (
            "saelink cache layer=3",
            "saelink cache data.max_tokens=100000 link=attn",
            "saelink cache runtime.workers=2",
        ),
        {
            "Which activations": "layer link.sources link.target",
            "The model": "model.path model.revision model.dtype model.separator model.center_writing_weights",
            "The text": f"data.path data.split data.revision data.streaming data.text_column data.chat {TEXT}",
            "Where it runs": f"{PLACE} runtime.workers runtime.engine runtime.shared runtime.forward_tokens",
        },
    ),
    "sae": Page(
        "Trains a TopK SAE for each hook of the link that has none, on the training documents, by sae-lens (the extra "
        "saelens); for a hook that has one it says so. Makes the activations first. Minutes for each hook.",
        (
            "saelink sae layer=2",
            "saelink sae sae=train sae.d_sae=4608 sae.k=32",
            "saelink sae link=attn sae.epochs=1",
        ),
        {
            "Which SAEs": "layer link.sources link.target sae.path sae.files sae.hub",
            "Training": "sae.d_sae sae.k sae.epochs sae.batch_tokens sae.lr sae.aux_loss_coefficient "
            "sae.dead_after_steps sae.seed",
            "The text": TEXT,
            "Where it runs": PLACE,
        },
    ),
    "encode": Page(
        "Encodes the activations at the hooks of the link through their SAEs into sparse latents, and trains SAEs that "
        "are missing. Makes the activations first, unless stream=true goes from the model straight to latents.",
        (
            "saelink encode layer=3",
            "saelink encode stream=true data.max_tokens=2000000",
            "saelink encode sae=folder sae.path=my_saes sae.train_missing=false",
        ),
        {
            "Which latents": "layer link.sources link.target stream",
            "The SAEs": "sae.path sae.files sae.hub sae.revision sae.check sae.strict sae.train_missing sae.dtype",
            "The text": f"{TEXT} data.max_norm_ratio",
            "Where it runs": f"{PLACE} runtime.workers runtime.engine runtime.shared runtime.forward_tokens",
        },
    ),
    "train": Page(
        "Fits a connector, a sparse map from source to target latents, on the training documents and measures it on "
        "the validation documents. Makes activations and latents first. -m fits several and ends with a table of "
        "error against sparsity.",
        (
            "saelink train layer=3 l1_alpha=1e-3",
            "saelink train connector=mlp solver=proximal connector.d_hidden=256",
            "saelink train -m l1_alpha=1e-4,1e-3,1e-2",
        ),
        {
            "What is explained": TARGETS,
            "The fit": FIT,
            "The text": "data.max_tokens data.context_size",
            "Where it runs": TRACKED,
        },
    ),
    "evaluate": Page(
        "Measures a connector on the test documents, which no fit sees, and prints its figures and the circuits of its "
        "best predicted targets. Fits the connector first. eval.ce=true splices the predictions into the model and "
        "measures the cross-entropy of the next token.",
        (
            "saelink evaluate l1_alpha=1e-3",
            "saelink evaluate connector=mlp l1_alpha=0",
            "saelink evaluate eval.ce=true eval.circuits=20",
        ),
        {
            "What is explained": TARGETS,
            "What is measured and printed": "eval.circuits eval.edges eval.min_active eval.ce eval.ce_tokens "
            "eval.verify transcoder.path",
            "The fit": FIT,
            "Where it runs": TRACKED,
        },
    ),
    "verify": Page(
        "Takes each source latent out of the running model, measures what every target latent loses, and gives each "
        "edge a verdict: confirmed, weaker, no effect, opposite, unclear or faint. Tests the logic of targets, and "
        "sources together (verify.joint), in the same way. Evaluates the connector first. The "
        "ablations of the default MLP take about half a minute on 2 cores; an exact connector is also fitted 24 times "
        "on halves of the documents, unless verify.stability=false. verify.consequences=6 adds three minutes.",
        (
            "saelink verify",
            "saelink verify l1_alpha=3e-3 verify.stability=false",
            "saelink verify solver=causal verify.consequences=6",
        ),
        {
            "What is explained": TARGETS,
            "The ablations": "verify.tokens verify.tokens_per_source verify.strong verify.null_sources "
            "verify.stability verify.stability_targets verify.consequences verify.chosen verify.ablation verify.joint "
            "verify.qk",
            "The fit": FIT,
            "Where it runs": TRACKED,
        },
    ),
    "qk": Page(
        "Shows which pairs of latents, one at the query and one at the key, decide where the heads of a layer look: "
        "with head=5 one head with example sentences, else a table of all. The latents are those of the residual "
        "stream in front of attention (link=attn's source), trained if they are missing. Pairs are chosen on one half "
        "of the test tokens and judged on the other, against other latents at the same places and null models. "
        "About a minute a head on 2 cores.",
        ("saelink qk layer=1", "saelink qk layer=1 head=5", "saelink qk layer=1 head=5 qk.targets=true"),
        {
            "Which heads": "layer head",
            "The pairs": "qk.tokens qk.pairs qk.latents qk.together qk.nulls qk.targets",
            "The text": TEXT,
            "Where it runs": PLACE,
        },
    ),
    "report": Page(
        "Writes one HTML page of what a connector found: circuits with their logic, cards of all latents with "
        "examples, the edges and the frontier of error against sparsity. Evaluates the connector first, and fits it at "
        "the penalties of report.l1_alphas too.",
        (
            "saelink report",
            "saelink report l1_alpha=3e-3 report.path=report.html",
            "saelink report report.l1_alphas=[] report.ablated=0",
        ),
        {
            "What is explained": TARGETS,
            "The page": "report.path report.l1_alphas report.connectors report.labels report.cards report.top "
            "report.per_size report.random report.ablated report.ablated_examples",
            "The fit": FIT,
            "Where it runs": PLACE,
        },
    ),
    "export": Page(
        "Writes a connector as a folder for others: weights, card, its edges as CSV, parquet, GraphML and JSON. "
        "Evaluates the connector first. `saelink push` sends it to a hub repository.",
        ("saelink export", "saelink export layer=3 l1_alpha=1e-3", "saelink export -m l1_alpha=1e-3,1e-2"),
        {"What is explained": TARGETS, "The fit": FIT, "Your labels": "report.labels", "Where it runs": PLACE},
    ),
    "blind": Page(
        "Draws pairs for a judge who does not know the answer: sentences of a target latent, and of two sources, one "
        "with an edge to it that ablation confirmed, one without. Writes them for a person (sheet.md) and for a model "
        "(pairs.json). With ANSWERS, a CSV or JSON file of the judge's, it prints how many are right. Nothing is sent "
        "anywhere.",
        ("saelink blind", "saelink blind blind.pairs=100", "saelink blind answers.csv"),
        {
            "What is asked": "blind.pairs blind.sentences",
            "What is explained": TARGETS,
            "The fit": FIT,
            "Where it runs": PLACE,
        },
        "[ANSWERS]",
    ),
    "track": Page(
        "Publishes fitted connectors to Weights & Biases later. KEY is the key of a train artifact, or enough of its "
        "first digits; `saelink ls --stage train` lists them.",
        ("saelink track cffb905f7367", "saelink track cffb90 615afd wandb.project=mine"),
        {"W&B": "wandb.mode wandb.project wandb.entity wandb.artifacts", "Where they are": "runtime.outputs"},
        "KEY...",
    ),
    "show": Page(
        "Prints the card of one latent: what it is predicted by or predicts, its logic, tokens, sizes and examples. "
        "target or source says which side; NUMBER is its number in its SAE, such as 353, and where a link has several "
        "sources 1.353 for the second one. --json prints the card as JSON and nothing else, -v also what it was found "
        "in. Evaluates the connector first. With link=ov also `head` and its number: what a head moves, from how far, "
        "and which heads move the same.",
        (
            "saelink show target 1262",
            "saelink show source 353 l1_alpha=3e-3",
            "saelink show target 1262 --json",
            "saelink show head 3 link=ov",
        ),
        {
            "What is explained": TARGETS,
            "The examples": "report.top report.per_size report.random",
            "The fit": FIT,
            "Where it runs": PLACE,
        },
        "(target|source|head) NUMBER [--json] [-v]",
    ),
    "test": Page(
        "Tests whether a circuit is what computes its target in the model: the target by its circuit alone "
        "(equivalence), what is left without it (independence), and whether each edge does more than a random source "
        "(minimality), with p-values corrected for all that are asked. NAME is a target latent such as OF138; its "
        "circuit are the eval.edges strongest edges into it that ablation does not refute. Fits the connector first.",
        ("saelink test OF138", "saelink test OF138 OF1297 eval.edges=3", "saelink test OF138 layer=3 l1_alpha=3e-3"),
        {
            "The circuit": "eval.edges",
            "The ablations": "verify.tokens verify.ablation",
            "What is explained": TARGETS,
            "The fit": FIT,
            "Where it runs": PLACE,
        },
        "NAME...",
    ),
    "graph": Page(
        "Writes what the connector says of one prompt as an attribution graph that circuit-tracer and Neuronpedia "
        "read, and as a page. PROMPT is one text, in quotes. Fits the connector first.",
        (
            'saelink graph "The capital of France is"',
            'saelink graph "The old king" graph.logits=3 graph.node_share=0.5',
        ),
        {
            "The graph": "graph.prompt graph.logits graph.logit_share graph.node_share graph.edge_share",
            "Over several layers": SEVERAL + " circuit.nodes",
            "What is explained": TARGETS,
            "The fit": FIT,
            "Where it runs": PLACE,
        },
        '"PROMPT"',
    ),
    "intervene": Page(
        "Changes latents on a prompt in the running model and shows the next tokens before and after, beside what the "
        "prompt's graph says of it. A change is OF12@L3=0 (a latent of the MLP's output at layer 3), IF7@L1*2 (of its "
        "input) or AF5@L2:4=0 (of attention's output, at position 4 alone). Fits the connectors first.",
        (
            'saelink intervene "The old king sat" OF12@L1=0 layers=0-3',
            "saelink intervene 'The sea' 'IF7@L1*2' layers=0-1 circuit.edges=gradient",
        ),
        {
            "The prompt": "graph.prompt graph.logits",
            "Over several layers": SEVERAL,
            "The fit": FIT,
            "Where it runs": PLACE,
        },
        '"PROMPT" CHANGE...',
    ),
    "circuit": Page(
        "Shows what leads to a latent over several layers and where it leads, averaged over test sequences in which it "
        "is active, and what ablating each does in the running model beside what the graph says. LATENT is OF1262@L3, "
        "IF7@L1 or AF5@L2; without @L3 it is one of `layer`. Fits the connectors first.",
        (
            "saelink circuit OF1262@L1 layers=0-3",
            "saelink circuit AF5@L2 layers=all circuit.edges=gradient circuit.steps=2",
        ),
        {
            "The circuit": "layer circuit.inputs circuit.steps circuit.sequences",
            "Over several layers": SEVERAL,
            "The fit": FIT,
            "Where it runs": PLACE,
        },
        "LATENT",
    ),
}
