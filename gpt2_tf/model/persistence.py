"""Reading and writing a model: OpenAI's files, Hugging Face's files, and Keras's configuration."""

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import tensorflow as tf

from encoder.bpe import Encoder
from gpt2_tf.hparams import HParams
from gpt2_tf.weights import checkpoint, huggingface

if TYPE_CHECKING:
    from gpt2_tf.model.gpt2 import GPT2

TOKENS = tf.TensorSpec([None, None], tf.int32, name="tokens")  # [batch, seq]


def check_saved_model_path(path: str | os.PathLike) -> None:
    """Raise ValueError where TensorFlow could not load a SavedModel from a path.

    TensorFlow's loader takes the path of the weights for a pattern, in which some characters match others.

    Example:
        >>> check_saved_model_path("exports/what?")
        Traceback (most recent call last):
        ValueError: ...what? has ? in its name, and TensorFlow cannot load a SavedModel from such a path; choose a ...
    """
    path = os.path.abspath(path)
    special = sorted({*path} & ({*"*?["} | ({"\\"} if os.sep != "\\" else set())))
    if special:
        raise ValueError(
            f"{path} has {' '.join(special)} in its name, and TensorFlow cannot load a SavedModel from such a path; "
            "choose a folder without these characters"
        )


class Persistence:
    """The part of `GPT2` that reads and writes files."""

    @classmethod
    def from_checkpoint(
        cls, folder: str | os.PathLike, *, dropout: float = 0, step: int | None = None, **kwargs
    ) -> "GPT2":
        """Load a model from a folder of OpenAI's files: `hparams.json` and `model.ckpt.*`.

        Args:
            folder: the folder.
            dropout: share of values that training sets to zero, in [0, 1); 0 by default.
            step: load `model-STEP.*`; by default, the checkpoint that the file `checkpoint` names.
            kwargs: `remat`, `lora_rank`, `dtype` and other arguments of `GPT2`.

        Raises:
            FileNotFoundError: a file is missing.
            ValueError: the files are damaged, or do not fit one another; the error names all differences.

        Example:
            >>> from gpt2_tf import GPT2
            >>> model.save_checkpoint("openai")
            >>> copy = GPT2.from_checkpoint("openai")
            >>> bool((copy.wte == model.wte).numpy().all())
            True
        """
        if Path(folder, "config.json").is_file() and not Path(folder, "hparams.json").exists():
            raise FileNotFoundError(
                f"{folder} has a config.json but no hparams.json: it is in Hugging Face's format; load it with "
                "GPT2.from_pretrained"
            )
        hparams = replace(HParams.from_json(Path(folder, "hparams.json")), dropout=dropout)
        checkpoint.check_parameter_count(folder, hparams.n_params, step)
        model = cls(hparams, w_init_stdev=None, **kwargs)
        checkpoint.restore(folder, model.named_weights(), step)
        return model

    def save_checkpoint(self, folder: str | os.PathLike, step: int | None = None) -> None:
        """Write `hparams.json` and `model.ckpt.*`, from which OpenAI's own code restores the model.

        Adapters are merged into the weights.

        Args:
            folder: made if it is missing.
            step: number of a training step. Then the files are named `model-STEP.*` and a file `counter` is written,
                as in the folders of gpt-2-simple and nshepperd's fork.

        Example:
            >>> import os
            >>> model.save_checkpoint("openai")
            >>> "hparams.json" in os.listdir("openai")
            True
        """
        checkpoint.save(folder, self.merged_weights(), step)
        # OpenAI's code accepts only its own five keys; dropout would be a sixth.
        replace(self.hparams, dropout=0).to_json(Path(folder, "hparams.json"))

    @classmethod
    def from_pretrained(
        cls, model: str | os.PathLike, revision: str | None = None, *, dropout: float = 0, **kwargs
    ) -> "GPT2":
        """Load a model in Hugging Face's format. Weights are read from safetensors files only, as float32.

        Args:
            model: "gpt2" or "user/name" on the hub (needs the extra `[hf]`), or a folder.
            revision: branch, tag or commit on the hub; None is the default branch.
            dropout: share of values that training sets to zero, in [0, 1); 0 by default.
            kwargs: `remat`, `lora_rank`, `dtype` and other arguments of `GPT2`.

        Raises:
            OSError: the model is missing, or the download failed.
            ValueError: the files are damaged, or describe a GPT-2 with other arithmetic; the error names its settings.

        Example:
            >>> from gpt2_tf import GPT2
            >>> model.save_pretrained("hf")
            >>> copy = GPT2.from_pretrained("hf")
            >>> bool((copy.wte == model.wte).numpy().all())
            True
        """
        folder = huggingface.find_folder(model, revision)
        hparams = replace(huggingface.read_hparams(folder), dropout=dropout)
        tensors = huggingface.read_tensors(folder, hparams)
        gpt2 = cls(hparams, w_init_stdev=None, **kwargs)
        for name, variable in gpt2.named_weights().items():
            variable.assign(np.asarray(tensors[name]))
        return gpt2

    def save_pretrained(self, folder: str | os.PathLike, enc: Encoder | None = None) -> None:
        """Write `config.json` and `model.safetensors`, as transformers reads them. Adapters are merged.

        Args:
            folder: made if it is missing.
            enc: the model's encoder; if given, its tokenizer files are written too.

        Example:
            >>> import os
            >>> model.save_pretrained("hf", enc)
            >>> {"config.json", "model.safetensors", "tokenizer.json"} <= set(os.listdir("hf"))
            True
        """
        weights = self.merged_weights()
        arrays = (weights[name].numpy() for name in self.hparams.shapes)
        huggingface.save(folder, self.hparams, arrays, enc)

    def save(self, filepath: str | os.PathLike, *args, **kwargs) -> None:
        """Write a `.keras` file with the weights, the configuration and the state of the optimizer.

        `keras.models.load_model` reads the file. The arguments are those of `keras.Model.save`.

        Raises:
            ValueError: `filepath` ends in `.h5`. Keras cannot store GPT2 in its older HDF5 format.

        Example:
            >>> import keras
            >>> model.save("model.keras")
            >>> keras.models.load_model("model.keras").hparams == model.hparams
            True
        """
        if str(filepath).endswith((".h5", ".hdf5")) and not str(filepath).endswith(".weights.h5"):
            raise ValueError(f"{filepath} is HDF5, which cannot hold GPT2; use .keras, or save_weights and .weights.h5")
        super().save(filepath, *args, **kwargs)

    def export(self, filepath: str | os.PathLike, *args, input_signature: list | None = None, **kwargs) -> None:
        """Write a SavedModel whose endpoint `serve` maps tokens, int32 [batch, seq], to logits.

        The arguments are those of `keras.Model.export`. For an export that takes and returns text, use
        `gpt2_tf.serving.export` or the command `gpt2-tf export`.

        Raises:
            ValueError: TensorFlow could not load a SavedModel from the path.

        Example:
            >>> import tensorflow as tf
            >>> model.export("exported", verbose=False)
            >>> exported = tf.saved_model.load("exported")
            >>> exported.serve(tf.constant([[10, 20]])).shape == [1, 2, model.hparams.n_vocab]
            True
        """
        if (args[0] if args else kwargs.get("format", "tf_saved_model")) == "tf_saved_model":
            check_saved_model_path(filepath)
        super().export(filepath, *args, input_signature=input_signature or [TOKENS], **kwargs)

    @property
    def _default_save_signature(self):
        # `tf.saved_model.save` asks for this signature. Keras would make one that takes floats.
        return tf.function(lambda tokens: self(tokens), input_signature=[TOKENS])

    def get_config(self) -> dict:
        """Return the arguments that make this model again. Keras writes them to `.keras` files.

        Example:
            >>> from gpt2_tf import GPT2
            >>> GPT2.from_config(model.get_config()).hparams == model.hparams
            True
        """
        config = {"hparams": self.hparams.to_dict(), "name": self.name, "dtype": self.dtype_policy.name}
        return config | {"remat": self.remat, "lora_rank": self.lora_rank, "lora_targets": list(self.lora_targets)}

    @classmethod
    def from_config(cls, config: dict) -> "GPT2":
        """Make a model, with new weights, from what `get_config` returned.

        Example:
            >>> from gpt2_tf import GPT2
            >>> GPT2.from_config(model.get_config()).hparams == model.hparams
            True
        """
        return cls(**{**config, "hparams": HParams.from_dict(config["hparams"])})
