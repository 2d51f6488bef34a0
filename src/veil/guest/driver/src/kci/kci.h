/* SPDX-License-Identifier: GPL-2.0 */
/* VeilS-KCI's part of the driver: what its files share. */
#ifndef VEIL_KCI_H
#define VEIL_KCI_H

#include <linux/types.h>

#define VEIL_KCI_SERVICE 2

/* veil/formats/kci.py: KernelCall. */
enum veil_kci_call {
	VEIL_KCI_LOCK_DOWN = 0,
	VEIL_KCI_MODULE_FILE = 1,
	VEIL_KCI_MODULE_PREPARED = 2,
	VEIL_KCI_MODULE_LIVE = 3,
	VEIL_KCI_MODULE_GONE = 4,
};

/* kci.c: all of it, for the driver's table */
int veil_kci_begin(void);
void veil_kci_end(void);
int veil_kci_state(char *text, size_t size);

/* ask.c: the calls */
struct module;
/* A copy of a module's file, from vmalloc. */
struct veil_kci_file {
	void *copy;
	size_t length;
};

/*
 * 0 and the module's number, or -EPERM if the service refused it. -EIO: it failed, and pages of the module may not be the
 * kernel's again. Other errors: it could not be asked.
 */
int veil_kci_ask_admission(const struct module *module, const struct veil_kci_file *file, u32 *number);
/* 0, or an error: pages may not be the kernel's again. */
int veil_kci_say_live(u32 number);
int veil_kci_say_gone(u32 number);
/* 0, -EPERM, or another error. */
int veil_kci_ask_lock_down(void);
int veil_kci_ask_state(char *text, size_t size);

/* files.c: what load_module() is given */
int veil_kci_files_begin(void);
void veil_kci_files_end(void);
/* The file of the module that this task is loading; NULL if there is none. */
const struct veil_kci_file *veil_kci_file_of_load(void);

/* modules.c: modules that come and go */
int veil_kci_modules_begin(void);
void veil_kci_modules_end(void);
/* Asks for admission, and keeps the number. 0 or an error, which it tells of in the kernel's log. */
int veil_kci_admit(struct module *module, const struct veil_kci_file *file);
int veil_kci_modules_state(char *text, size_t size);

/* lock_down.c: /dev/veil-kci */
int veil_kci_lock_down_begin(void);
void veil_kci_lock_down_end(void);
int veil_kci_lock_down_state(char *text, size_t size);
bool veil_kci_is_locked(void);

/* new_code.c: code that Linux would make at run time */
int veil_kci_new_code_begin(void);
void veil_kci_new_code_end(void);

/* processors.c: those that would come up */
int veil_kci_processors_begin(void);
void veil_kci_processors_end(void);

#endif
