"""The errors a user can meet. Each message is one line: what is wrong, where, what to do."""


class NstBatchError(Exception):
    """Base of the named errors; the command line prints it without a stack trace."""


class InputError(NstBatchError):
    """Something the user pointed at cannot be used: a folder, a picture, an option, a name."""


class CircuitError(NstBatchError):
    """Circuits, weights or keys do not belong together or do not fit this installation."""


class StoreError(NstBatchError):
    """The store cannot be read or written, or what it holds is not what it should be."""


class StoreAddressError(StoreError):
    """A store's name cannot be right, whatever answers there: wrong usage."""


class ClusterError(NstBatchError):
    """A Ray cluster cannot be reached, or refuses a job."""
