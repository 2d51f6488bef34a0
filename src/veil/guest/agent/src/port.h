/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The virtio-console port that leads to the host. */
#ifndef VEIL_PORT_H
#define VEIL_PORT_H

/* A descriptor of the port with this name, or -1 and errno. Waits for the device to tell its ports' names. */
int find_port(const char *name);

#endif
