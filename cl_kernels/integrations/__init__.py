"""Other libraries' losses and searches, computed by this package.

Each library's module has classes with its constructors and calls, to be used in place of its own::

    from cl_kernels.integrations.sentence_transformers import MultipleNegativesRankingLoss

or put there by one line before a script of one's own::

    import cl_kernels.integrations as integrations

    integrations.patch("sentence_transformers")

Nothing is patched, and no library imported, before that is asked for.
"""

from cl_kernels._patches import patched
from cl_kernels.integrations.patching import LIBRARIES, patch, unpatch

__all__ = ["LIBRARIES", "patch", "patched", "unpatch"]
