# SPDX-License-Identifier: GPL-2.0-or-later
"""What a guest is made of: the kernel and what it boots with, the initramfs and its programs, the driver, enclaves.

All of it is built or fetched here; none of it runs here.
"""
