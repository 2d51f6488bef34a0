# SPDX-License-Identifier: GPL-2.0-or-later
"""How hypothesis searches: the same examples in every run by default, new ones with `--hypothesis-profile=search`."""

from hypothesis import settings

# A change is judged by its own doing: an example that no run has found before is for `make soak`.
# How long one takes says something of the computer.
settings.register_profile("same", derandomize=True, deadline=None)
settings.register_profile("search", derandomize=False, print_blob=True, deadline=None)
settings.load_profile("same")
