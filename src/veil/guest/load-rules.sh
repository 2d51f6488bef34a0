#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
# Run by the driver when VeilS-LOG has new audit rules; auditctl wants a file that is root's alone.
umask 077
cat /dev/veil-rules >/run/veil.rules && exec auditctl -R /run/veil.rules >/dev/null 2>&1
