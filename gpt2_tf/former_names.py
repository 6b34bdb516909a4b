"""Keeps the former, flat module names, such as `gpt2_tf.dataset`, working in imports and in `python -m`."""

import importlib
import sys
from importlib.abc import InspectLoader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import CodeType, ModuleType

PACKAGES = {
    "data": "corpus dataset prepare",
    "evaluation": "lm_eval",
    "files": "interrupt progress shard",
    "generation": "likelihood logits",
    "model": "loss",
    "pretrained": "convert keras_nlp",
    "training": "callbacks optimizer train",
    "weights": "checkpoint huggingface safetensors",
}
MODULES = {f"gpt2_tf.{name}": f"gpt2_tf.{room}.{name}" for room, names in PACKAGES.items() for name in names.split()}
MODULES |= {
    "gpt2_tf.beam": "gpt2_tf.generation.beam_search",
    "gpt2_tf.bundle": "gpt2_tf.weights.tensor_bundle",
    "gpt2_tf.cache": "gpt2_tf.model.kv_cache",
    "gpt2_tf.choice": "gpt2_tf.generation.sampler",
    "gpt2_tf.evaluate": "gpt2_tf.evaluation",
    "gpt2_tf.export": "gpt2_tf.serving",
    "gpt2_tf.folder": "gpt2_tf.pretrained",
    "gpt2_tf.replicas": "gpt2_tf.model.distribute",
    "gpt2_tf.sample": "gpt2_tf.generation",
    "gpt2_tf.stops": "gpt2_tf.generation.stop_strings",
    "gpt2_tf.text": "gpt2_tf.generation",
}


class FormerNames(MetaPathFinder, InspectLoader):
    """Finds a module by its former name and returns the current module, which then has both names.

    Example:
        >>> FormerNames().find_spec("gpt2_tf.dataset").name
        'gpt2_tf.dataset'
    """

    def find_spec(self, fullname, path=None, target=None) -> ModuleSpec | None:
        if fullname not in MODULES:
            return None
        # `python -m` takes the program's name, `sys.argv[0]`, from the origin.
        return ModuleSpec(fullname, self, origin=find_spec(MODULES[fullname]).origin)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = importlib.import_module(MODULES[spec.name])
        self.own_spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self.own_spec  # importlib has overwritten it with the spec of the former name.

    def get_source(self, fullname: str) -> str | None:
        return find_spec(MODULES[fullname]).loader.get_source(MODULES[fullname])

    def get_code(self, fullname: str) -> CodeType | None:
        return find_spec(MODULES[fullname]).loader.get_code(MODULES[fullname])


def install() -> None:
    """Let Python find the modules by their former names.

    Example:
        >>> install()
        >>> import gpt2_tf.dataset
        >>> gpt2_tf.dataset.__name__
        'gpt2_tf.data.dataset'
    """
    if not any(isinstance(finder, FormerNames) for finder in sys.meta_path):
        sys.meta_path.append(FormerNames())
