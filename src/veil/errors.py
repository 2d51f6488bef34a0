# SPDX-License-Identifier: GPL-2.0-or-later
"""The root of the errors that Veil reports to people."""


class VeilError(Exception):
    """Something went wrong that one clear line explains."""
