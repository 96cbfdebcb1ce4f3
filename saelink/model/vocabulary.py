"""The text of every token of a model's vocabulary: the stage `vocabulary`.

Whoever names tokens reads it from here: a tokenizer takes seconds to import and load, a list of texts does not.
"""

from __future__ import annotations

from typing import Any, TypedDict

from saelink import memory
from saelink.config.schema import Config
from saelink.model.dimensions import size_of
from saelink.model.info import ModelInfo
from saelink.model.load import load_tokenizer
from saelink.store.draft import Draft
from saelink.store.stage import Need, Stage
from saelink.store.store import Store

VOCABULARY_FILE = "vocabulary.json"


class VocabularyFacts(TypedDict):
    n_tokens: int


class VocabularyStage(Stage[VocabularyFacts]):
    """What the model's tokenizer decodes each token to, by itself.

    File `vocabulary.json`: a list of texts, a blank in front kept, in the order of the tokens' numbers.
    """

    name = "vocabulary"
    version = 1

    def __init__(self, cfg: Config, store: Store, model: ModelInfo):
        self.cfg, self.store, self._model = cfg, store, model

    def recipe(self) -> dict[str, Any]:
        return {}

    def inputs(self) -> dict[str, str]:
        return {"model": self._model.artifact.key}

    def about(self) -> str:
        return self.cfg.model.label

    def need(self) -> Need:
        return Need(memory.vocabulary(size_of(self.cfg.model, self._model.artifact)), "use a smaller model")

    def make(self, draft: Draft) -> VocabularyFacts:
        tokenizer = load_tokenizer(self.cfg.model, self._model.artifact)
        texts = [tokenizer.decode([token]) for token in range(len(tokenizer))]
        draft.save_json(VOCABULARY_FILE, texts)
        return {"n_tokens": len(texts)}


def vocabulary_of(cfg: Config, store: Store, model: ModelInfo) -> list[str]:
    """By its number the text of every token."""
    stage = VocabularyStage(cfg, store, model)
    return (stage.find() or stage.pull()).json(VOCABULARY_FILE)
