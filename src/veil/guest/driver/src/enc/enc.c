// SPDX-License-Identifier: GPL-2.0
/*
 * VeilS-ENC in the kernel: /dev/veil-enclave, on which processes make enclaves, and its line in /dev/veil. There
 *	enclaves	that there are
 *	made		since the driver was loaded
 *	entries		into all of them, after interrupts too
 *	pages		that they have, or may have
 *	reclaimed	pages that the kernel took back from them, encrypted
 *	returned	pages that it gave them again
 *	paging		requests to the service for both
 *	stuck		enclaves that have ended, of which the host keeps pages
 *
 * Who administers the system takes pages back by writing their number to the device.
 */
#include <linux/atomic.h>
#include <linux/capability.h>
#include <linux/fs.h>
#include <linux/kernel.h>
#include <linux/miscdevice.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/pfn.h>
#include <linux/slab.h>
#include <linux/uaccess.h>

#include "../pages.h"
#include "enc.h"

static bool wanted;
module_param_named(enc, wanted, bool, 0444);
MODULE_PARM_DESC(enc, "VeilS-ENC is in the image, and its mode is on");

static atomic64_t present, made;

static int enclave_open(struct inode *inode, struct file *file)
{
	struct veil_enclave *enclave = kzalloc(sizeof(*enclave), GFP_KERNEL_ACCOUNT);
	size_t slot;
	int error;

	if (!enclave)
		return -ENOMEM;
	error = veil_enclave_user_begin(enclave);
	if (error) {
		kfree(enclave);
		return error;
	}
	mutex_init(&enclave->lock);
	INIT_LIST_HEAD(&enclave->list);
	xa_init(&enclave->pages);
	xa_init(&enclave->away);
	for (slot = 0; slot < ARRAY_SIZE(enclave->slots); slot++)
		mutex_init(&enclave->slots[slot].lock);
	file->private_data = enclave;
	return 0;
}

/* No ioctl and no window is left: each holds the file. */
static int enclave_release(struct inode *inode, struct file *file)
{
	struct veil_enclave *enclave = file->private_data;

	veil_enclave_forget(enclave);
	veil_enclave_free_away(enclave);
	if (enclave->created)
		atomic64_dec(&present);
	veil_enclave_destroy(enclave);
	return 0;
}

static int enclave_create(struct veil_enclave *enclave, struct veil_enclave_create *create)
{
	bool before = enclave->created;
	int error = veil_enclave_create(enclave, create);

	if (!before && enclave->created) {
		atomic64_inc(&present);
		atomic64_inc(&made);
	}
	return error;
}

static int make(struct veil_enclave *enclave, unsigned int command, void *argument)
{
	int error;

	if (mutex_lock_killable(&enclave->lock))
		return -EINTR;
	if (command == VEIL_ENCLAVE_CREATE)
		error = enclave_create(enclave, argument);
	else if (command == VEIL_ENCLAVE_ADD)
		error = veil_enclave_add(enclave, argument);
	else
		error = veil_enclave_finish(enclave, argument);
	mutex_unlock(&enclave->lock);
	/* Not under its lock, which whoever takes pages back takes last. */
	if (!error && command == VEIL_ENCLAVE_FINISH)
		veil_enclave_may_be_reclaimed(enclave);
	return error;
}

/* For each system call of a program: no more is copied than somebody reads. */
static int enter_slot(struct veil_enclave *enclave, struct veil_enclave_enter __user *user)
{
	struct veil_enclave_enter enter = {};
	int error;

	if (get_user(enter.slot, &user->slot))
		return -EFAULT;
	error = veil_enclave_enter(enclave, &enter);
	if (put_user(enter.state, &user->state) || (error == -EIO && put_user(enter.answer, &user->answer)))
		return error ?: -EFAULT;
	return error;
}

static long enclave_ioctl(struct file *file, unsigned int command, unsigned long address)
{
	union {
		struct veil_enclave_create create;
		struct veil_enclave_add add;
		struct veil_enclave_finish finish;
	} argument = {};
	void __user *user = (void __user *)address;
	int error;

	if (command == VEIL_ENCLAVE_ENTER)
		return enter_slot(file->private_data, user);
	if (command != VEIL_ENCLAVE_CREATE && command != VEIL_ENCLAVE_ADD && command != VEIL_ENCLAVE_FINISH)
		return -ENOTTY;
	if ((_IOC_DIR(command) & _IOC_WRITE) && copy_from_user(&argument, user, _IOC_SIZE(command)))
		return -EFAULT;
	error = make(file->private_data, command, &argument);
	if ((_IOC_DIR(command) & _IOC_READ) && copy_to_user(user, &argument, _IOC_SIZE(command)) && !error)
		error = -EFAULT;
	return error;
}

static int enclave_mmap(struct file *file, struct vm_area_struct *vma)
{
	struct veil_enclave *enclave = file->private_data;
	unsigned long offset = vma->vm_pgoff << PAGE_SHIFT, slot = offset / VEIL_ENC_WINDOW_STRIDE;
	struct veil_pages *window;
	u32 at;

	if (!smp_load_acquire(&enclave->finished))
		return -EINVAL;
	if (offset % VEIL_ENC_WINDOW_STRIDE || slot >= enclave->slot_count || !(vma->vm_flags & VM_SHARED))
		return -EINVAL;
	/* The hardware would not run it. */
	if (vma->vm_flags & VM_EXEC)
		return -EPERM;
	window = enclave->slots[slot].window;
	if (vma->vm_end - vma->vm_start != window->count * PAGE_SIZE)
		return -EINVAL;
	vm_flags_mod(vma, VM_DONTCOPY | VM_DONTEXPAND, VM_MAYEXEC);
	for (at = 0; at < window->count; at++) {
		int error =
			vm_insert_page(vma, vma->vm_start + at * PAGE_SIZE, pfn_to_page(PHYS_PFN(window->gpas[at])));

		if (error)
			return error;
	}
	return 0;
}

static ssize_t enclave_write(struct file *file, const char __user *from, size_t size, loff_t *at)
{
	unsigned int count;
	int error;

	if (!capable(CAP_SYS_ADMIN))
		return -EPERM;
	error = kstrtouint_from_user(from, size, 10, &count);
	if (!error)
		veil_enclaves_reclaim(NULL, count);
	return error ? error : size;
}

static const struct file_operations operations = {
	.owner = THIS_MODULE,
	.write = enclave_write,
	.open = enclave_open,
	.release = enclave_release,
	.unlocked_ioctl = enclave_ioctl,
	.mmap = enclave_mmap,
};

static struct miscdevice device = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "veil-enclave",
	.fops = &operations,
	.mode = 0666,
};

int veil_enc_begin(void)
{
	int error = wanted ? veil_enclave_pressure_begin() : 0;

	if (!wanted || error)
		return error;
	error = misc_register(&device);
	if (error)
		veil_enclave_pressure_end();
	return error;
}

void veil_enc_end(void)
{
	if (!wanted)
		return;
	misc_deregister(&device);
	veil_enclave_pressure_end();
	veil_enclaves_release_end();
}

int veil_enc_state(char *text, size_t size)
{
	struct veil_paging_state paging = {};

	if (!wanted)
		return 0;
	veil_enclave_reclaim_state(&paging);
	veil_enclave_return_state(&paging);
	return scnprintf(
		text, size,
		" enclaves %lld made %lld entries %lld pages %ld reclaimed %lld returned %lld paging %lld stuck %d",
		atomic64_read(&present), atomic64_read(&made), veil_enclave_entries(), veil_enclaves_pages(),
		paging.reclaimed, paging.returned, paging.requests, veil_enclaves_stuck());
}
