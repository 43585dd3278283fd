"""Errors that a user can mend: each names the thing, the value, what was expected, what to do.

The command line prints them without a traceback and exits with 2; anything else is our own bug.
"""


class InputError(ValueError):
    """What the user handed in (a file, a path, an option) cannot be used."""


class ConfigError(InputError):
    """A configuration file or a ``--set`` override is wrong."""


class DataError(InputError):
    """A dataset folder, list, image or label is wrong."""


class SampleError(DataError):
    """A sample of a data set cannot be used.

    Args:
        text: the message.
        sample: its name.
        file: the one of its files that is wrong; empty where that is not known.
    """

    def __init__(self, text: str, *, sample: str, file: str = "") -> None:
        super().__init__(text)
        self.sample, self.file = sample, file


class WeightsError(InputError):
    """A weights file does not fit the model, or cannot be read."""


class CheckpointError(InputError):
    """A training's checkpoint cannot be written, or what is there cannot be resumed from."""


class ParityError(InputError):
    """There is no passing, fresh parity evidence for the configuration to be trained."""


class TrainingError(InputError):
    """A training cannot go on: its loss is not finite, or a file of it cannot be used."""
