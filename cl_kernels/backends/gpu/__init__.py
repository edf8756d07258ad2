"""Host code that GPU backends share: how a problem is cut, filters' ids, the rounds of a search.

Nothing here launches a kernel of a backend.
"""
