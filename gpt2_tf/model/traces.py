"""Traced graphs of a model, kept for the next call."""

from collections.abc import Callable

MAX_TRACES = 12


class Traces:
    """The part of `GPT2` that keeps traced functions, so that each is traced once per model."""

    def traced(self, build: Callable, *arguments) -> Callable:
        """Return the concrete function of the `tf.function` that `build(self, *arguments)` makes.

        The latest `MAX_TRACES` functions are kept; a call with the same `build` and `arguments` returns the kept one.
        The concrete function is kept instead of the `tf.function`: TensorFlow would count the functions of several
        models as retracing of one function, and warn.

        Args:
            build: a function of the model and `arguments` that returns a `tf.function` with an input signature.
            arguments: hashable values that the graph depends on.

        Example:
            >>> import tensorflow as tf
            >>> def build_argmax(model):
            ...     @tf.function(input_signature=[tf.TensorSpec([None, None], tf.int32)])
            ...     def argmax(tokens):
            ...         return tf.argmax(model(tokens)[:, -1], axis=-1)
            ...     return argmax
            >>> model.traced(build_argmax) is model.traced(build_argmax)
            True
        """
        # Keras tracks attributes that are set, looking for weights; `__dict__` is not tracked.
        traces = self.__dict__.setdefault("_traces", {})
        key = (build, *arguments)
        traces[key] = traces.pop(key, None) or build(self, *arguments).get_concrete_function()
        if len(traces) > MAX_TRACES:  # A caller that makes new filters for each call would fill the memory.
            del traces[next(iter(traces))]
        return traces[key]
