"""The errors: one base, one subclass a kind of mistake; each says what, where and what to do."""


class SecateurError(Exception):
    """Base of every error that secateur raises on purpose."""


class TraceError(SecateurError):
    """The model could not be run on the example inputs."""


class PlanError(SecateurError):
    """A plan does not fit the model, or cannot be made."""


class BudgetError(PlanError):
    """The budget cannot be met; the message names the nearest that can."""


class SurgeryError(SecateurError):
    """The plan could not be made physical; the model is as it was."""


class DataError(SecateurError):
    """The data are missing, empty, of the wrong shape, or not finite."""


class StoreError(SecateurError):
    """A file is missing, truncated, tampered with or made for another model."""


class ConfigError(SecateurError):
    """A name or a value that the user gave is not known or not allowed."""


class MissingExtraError(SecateurError):
    """An optional library is needed; the message names the extra to install."""
