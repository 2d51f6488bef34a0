/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The starter's own end: a line that says why. */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "starter.h"

void fail(const char *what, int error)
{
	if (error == EDQUOT)
		refuse("this user's enclaves have all that one user's may have (veil.enc_user_enclaves, "
		       "veil.enc_user_memory)");
	fprintf(stderr, "veil-enclave: %s: %s\n", what, strerror(error));
	_exit(STARTER_FAILED);
}

void refuse(const char *what)
{
	fprintf(stderr, "veil-enclave: %s\n", what);
	_exit(STARTER_FAILED);
}
