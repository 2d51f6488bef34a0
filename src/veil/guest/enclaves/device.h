/* SPDX-License-Identifier: GPL-2.0-or-later */
/* /dev/veil-enclave: how a process makes an enclave and runs it. One open file is one enclave. */
#ifndef VEIL_ENCLAVE_DEVICE_H
#define VEIL_ENCLAVE_DEVICE_H

#include "abi.h"

#ifdef __KERNEL__
#include <linux/ioctl.h>
#else
#include <sys/ioctl.h>
#endif

/* `layout`, `length`: the packed layout. `enclave`: the number that it gets. */
struct veil_enclave_create {
	uint64_t layout;
	uint64_t length;
	uint64_t enclave;
};

/* The next `pages` pages of content, from the address `from` on; `page` counts from the start of the record. */
struct veil_enclave_add {
	uint64_t record;
	uint64_t page;
	uint64_t from;
	uint64_t pages;
};

struct veil_enclave_finish {
	uint8_t measurement[48];
};

/*
 * Returns when the state in the window of the slot asks for something, which is `state`. While the window's `interrupt` is
 * not 0, the program is interrupted wherever it is.
 */
struct veil_enclave_enter {
	uint32_t slot;
	uint32_t state;
	/* EIO: what the host answered, by which one sees why the slot does not run. */
	uint64_t answer;
};

/*
 * In this order; then the windows are mapped (offset slot * VEIL_ENC_WINDOW_STRIDE, MAP_SHARED, at the same address as in the
 * enclave), and slots are entered, each by one thread at a time. After an ADD that failed there is no other.
 *
 * Errors: EPERM the service refuses it, EINVAL it cannot be, ENOMEM no pages or too many enclaves, EDQUOT this user's have all
 * that one user's may, ENODEV no service, EBUSY the slot is entered already, EINTR a signal is pending, EIO the slot does not
 * run any more, EAGAIN the host is in the way.
 */
#define VEIL_ENCLAVE_CREATE _IOWR('V', 0x40, struct veil_enclave_create)
#define VEIL_ENCLAVE_ADD _IOW('V', 0x41, struct veil_enclave_add)
#define VEIL_ENCLAVE_FINISH _IOR('V', 0x42, struct veil_enclave_finish)
#define VEIL_ENCLAVE_ENTER _IOWR('V', 0x43, struct veil_enclave_enter)

#endif
