"""What ends a run before its last step, and keeps the state and the history so far."""

from jaxmaml.types import MetaInfo, MetaState


class _Stopped(BaseException):
    def __init__(self, message: str, state: MetaState, history: MetaInfo | tuple[()]):
        super().__init__(message)
        self.state = state
        self.history = history


class NonFiniteError(_Stopped, FloatingPointError):
    """A loss, the meta-gradient or the new state was not finite; training stopped before that step.

    The query and support losses, the norm of the meta-gradient and everything in the state are checked: the parameters,
    the meta-learned parameters of the inner rule and the outer optimizer's state.

    Attributes:
      state: The last finite state.
      history: Metrics up to and including the step that failed.
    """


class Interrupted(_Stopped, KeyboardInterrupt):
    """Training was interrupted (Ctrl-C, a notebook's stop button), and stopped after the current dispatch.

    In a notebook, `sys.last_value.state` is the state; a program can catch this error as a `KeyboardInterrupt`. A
    second interrupt stops immediately, with a plain `KeyboardInterrupt` that has no state.

    Attributes:
      state: The last state.
      history: Metrics of the steps that led to it.
    """


class OutOfTasksError(_Stopped, ValueError):
    """`tasks.Batches` ended before the last outer step; training stopped there.

    Attributes:
      state: The state after the last batch.
      history: Metrics of the steps that led to it.
    """
