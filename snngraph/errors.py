"""Every error snngraph raises, under one root.

A message says what was expected, what came, where, and what to do about it. Each kind of bad input has its own class, so that a
caller can tell them apart without reading text; the class, never the wording, is the stable interface.
"""

from __future__ import annotations

__all__ = [
    "ArtifactCorruptError",
    "ArtifactError",
    "ArtifactExistsError",
    "ArtifactHashError",
    "ArtifactReadError",
    "ArtifactVersionError",
    "ArtifactWriteError",
    "BackendError",
    "BatchStatisticsWarning",
    "CaptureError",
    "CaptureMismatchError",
    "CheckpointError",
    "DataDependentError",
    "EngineClosedError",
    "EngineModeError",
    "ForwardFailedError",
    "GraphCheckError",
    "GraphError",
    "GraphParseError",
    "InputBatchError",
    "InputChannelError",
    "InputCountError",
    "InputDeviceError",
    "InputDtypeError",
    "InputError",
    "InputRankError",
    "InputShapeError",
    "InputTimeError",
    "InputTypeError",
    "KeptStateWarning",
    "LoweringError",
    "ModelLoadError",
    "NameClashError",
    "NirCorruptError",
    "NirDiscretisationError",
    "NirError",
    "NirExportError",
    "NirGraphError",
    "NirNotInstalledError",
    "NirReadError",
    "NirVersionError",
    "NonFiniteConstantError",
    "ParameterChangedWarning",
    "PassError",
    "PassRefusedError",
    "PrecisionNotAvailableError",
    "RandomnessError",
    "SnnGraphError",
    "TargetError",
    "TargetNotInstalledError",
    "TimeAxisError",
    "TrainingModeError",
    "UnknownPassError",
    "UnknownPrecisionError",
    "UnknownTargetError",
    "UnsafeArtifactError",
    "UnsupportedOperatorError",
    "VerificationError",
    "WarmStateError",
    "WarmStateWarning",
]


class SnnGraphError(Exception):
    """The root of all errors of this package."""


class NameClashError(SnnGraphError):
    """Two installed packages (or one and snngraph itself) offer an extension under the same name."""


# -- capture -------------------------------------------------------------------------------------------------------------------


class CaptureError(SnnGraphError):
    """A model could not be captured as a graph."""


class ModelLoadError(CaptureError):
    """A model named on the command line, or its weights, could not be loaded."""


class TrainingModeError(CaptureError):
    """The model, or a part of it, is in training mode."""


class ForwardFailedError(CaptureError):
    """The model's own ``forward`` raised on the example input."""


class TimeAxisError(CaptureError):
    """The time axis could not be inferred, or contradicts what was asked for."""


class CaptureMismatchError(CaptureError):
    """The captured graph does not compute what the model computes."""


class DataDependentError(CaptureError):
    """The model's forward reads numbers that depend on its input: branches, loop lengths, indices."""


class RandomnessError(CaptureError):
    """The model's forward draws random numbers."""


class WarmStateError(CaptureError):
    """The model carries state from an earlier call, in an attribute of which no adapter knows how it is reset."""


class WarmStateWarning(UserWarning):
    """The model carried membrane state from an earlier call; it was set aside for the capture and put back afterwards."""


class KeptStateWarning(UserWarning):
    """The model keeps state from call to call; every run of the graph starts from the state as captured."""


class ParameterChangedWarning(UserWarning):
    """The model's forward rewrites its own parameters; the graph is that of the first call."""


class BatchStatisticsWarning(UserWarning):
    """The model normalises by the statistics of the batch it is given, so its answers depend on the samples beside a sample."""


# -- graph and passes ----------------------------------------------------------------------------------------------------------


class GraphError(SnnGraphError):
    """A graph is not what the operation needs."""


class GraphCheckError(GraphError):
    """A graph breaks an invariant of the representation."""


class GraphParseError(GraphError):
    """Graph text could not be parsed."""


class NonFiniteConstantError(GraphError):
    """A constant computed from finite numbers is infinite or NaN, where that can not be meant."""


class PassError(SnnGraphError):
    """A pass failed; the message carries the graph and the passes that ran before it."""


class PassRefusedError(PassError):
    """A pass does not apply to this graph; the message says why."""


class UnknownPassError(PassError):
    """No pass or pipeline of this name is installed."""


# -- lowering and targets ------------------------------------------------------------------------------------------------------


class LoweringError(SnnGraphError):
    """A graph could not be lowered to ONNX."""


class UnsupportedOperatorError(LoweringError):
    """The graph holds an operator that has no ONNX translation."""


class TargetError(SnnGraphError):
    """Something is wrong with the engine target."""


class UnknownTargetError(TargetError):
    """No target of this name exists."""


class TargetNotInstalledError(TargetError):
    """The target exists, but the library behind it is not installed."""


class UnknownPrecisionError(TargetError):
    """No precision of this name exists."""


class PrecisionNotAvailableError(TargetError):
    """The precision exists, but not for this target or not yet."""


class BackendError(TargetError):
    """The engine library itself failed."""


class EngineClosedError(SnnGraphError):
    """The engine was closed and can not run any more."""


class EngineModeError(SnnGraphError):
    """The engine was built for another mode of use (for example ``stream`` on a sequence engine)."""


class OutputRowsError(SnnGraphError):
    """The rows of an output can not be told apart by sample."""


# -- input at run time ---------------------------------------------------------------------------------------------------------


class InputError(SnnGraphError):
    """An input does not fit the engine."""


class InputCountError(InputError):
    """The number of inputs is wrong."""


class InputTypeError(InputError):
    """An input is no array (a list, a number, a tensor that needs gradients)."""


class InputDeviceError(InputError):
    """An input lies on a device the engine does not run on."""


class InputRankError(InputError):
    """The number of dimensions is wrong."""


class InputDtypeError(InputError):
    """The element type is wrong."""


class InputTimeError(InputError):
    """The number of time steps is wrong."""


class InputBatchError(InputError):
    """The batch size is wrong."""


class InputChannelError(InputError):
    """The number of channels (the first dimension after time and batch) is wrong."""


class InputShapeError(InputError):
    """Another dimension is wrong."""


# -- artifact ------------------------------------------------------------------------------------------------------------------


class ArtifactError(SnnGraphError):
    """A ``.snn`` file could not be read or written."""


class ArtifactReadError(ArtifactError):
    """There is no such file, or it can not be opened."""


class ArtifactExistsError(ArtifactError):
    """The output file exists and ``force`` was not given."""


class ArtifactWriteError(ArtifactError):
    """Writing failed (disk full, no permission); what stood at the path before is untouched."""


class ArtifactCorruptError(ArtifactError):
    """The file is truncated or is no ``.snn`` file at all."""


class ArtifactHashError(ArtifactError):
    """The content does not match the hashes in the manifest: the file was edited or damaged."""


class ArtifactVersionError(ArtifactError):
    """The file was written by a newer snngraph, with a schema this version does not know."""


class UnsafeArtifactError(ArtifactError):
    """The file tries something an artifact never needs: paths, external data, unknown operators, absurd sizes."""


# -- NIR -----------------------------------------------------------------------------------------------------------------------


class NirError(SnnGraphError):
    """A NIR file or graph could not be read or written."""


class NirNotInstalledError(NirError):
    """The package ``nir`` is not installed."""


class NirReadError(NirError):
    """There is no such file, or it can not be opened."""


class NirCorruptError(NirError):
    """The file is damaged, no NIR file at all, or holds what a NIR file never needs (links out of it, foreign filters)."""


class NirVersionError(NirError):
    """The file, or snngraph's record in it, has a version that is not known."""


class NirGraphError(NirError):
    """The NIR graph is no network that can be run: an unknown node, shapes that do not fit, an unclear cycle."""


class NirDiscretisationError(NirError):
    """What the file leaves open (the time step, the comparison, the reset ...) is not given, or contradicts the file."""


class NirExportError(NirError):
    """NIR can not express a part of the network; the message names the module and the source line."""


# -- verification --------------------------------------------------------------------------------------------------------------


class CheckpointError(SnnGraphError):
    """A checkpoint does not fit the model it is loaded into."""


class VerificationError(SnnGraphError):
    """Model and engine can not be compared."""
