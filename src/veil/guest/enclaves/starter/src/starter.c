/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * veil-enclave IMAGE [ARGUMENT...]: makes the enclave of an image (X.enclave), runs it, ends as it ends.
 *
 * What the image says of arguments, environment and files is enforced inside the enclave; here all is passed.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "starter.h"

extern char **environ;

/* As programs are called: /tmp/busybox.enclave is busybox. */
static char *program_name(const char *path)
{
	const char *slash = strrchr(path, '/');
	char *name = strdup(slash ? slash + 1 : path);
	char *dot = name ? strrchr(name, '.') : NULL;

	if (!name)
		fail("the program's name", ENOMEM);
	if (dot && dot != name && !strcmp(dot, ".enclave"))
		*dot = 0;
	return name;
}

int main(int count, char **arguments)
{
	struct image image = { 0 };
	uint32_t slots;
	int device;

	if (count < 2)
		refuse("usage: veil-enclave IMAGE [ARGUMENT...]");
	open_image(arguments[1], &image);
	device = make_enclave(&image, &slots);
	arguments[1] = program_name(arguments[1]);
	pass_arguments(arguments + 1, environ);
	take_signals();
	allow_descriptors();
	run_enclave(device, slots);
}
