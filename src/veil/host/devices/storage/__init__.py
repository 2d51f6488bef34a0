# SPDX-License-Identifier: GPL-2.0-or-later
"""What is behind a disk: an image in a file, or an overlay that keeps what the guest writes for as long as it runs."""
