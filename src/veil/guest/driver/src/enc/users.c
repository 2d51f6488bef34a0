// SPDX-License-Identifier: GPL-2.0
/*
 * What the enclaves of one user take: no more than a part of what there is, so that others' start still. VeilS-ENC itself cannot
 * tell users apart, for who they are is the kernel's word.
 *
 * A user is whoever opened the device, by the real UID; in a user namespace whoever made the outermost one, for who has one can
 * have many UIDs there. Whoever may exceed all limits of resources (CAP_SYS_RESOURCE) has none here either.
 *
 * What an enclave takes counts until it is gone, wherever its pages are meanwhile: what goes from it stays memory of the kernel's.
 */
#include <linux/capability.h>
#include <linux/cred.h>
#include <linux/list.h>
#include <linux/mm.h>
#include <linux/moduleparam.h>
#include <linux/mutex.h>
#include <linux/slab.h>
#include <linux/uidgid.h>
#include <linux/user_namespace.h>

#include "enc.h"

static unsigned int most_enclaves;
module_param_named(enc_user_enclaves, most_enclaves, uint, 0644);
MODULE_PARM_DESC(enc_user_enclaves, "enclaves that one user has at once; 0: any number");

static unsigned int most_memory;
module_param_named(enc_user_memory, most_memory, uint, 0644);
MODULE_PARM_DESC(enc_user_memory, "percent of the memory that one user's enclaves have together; 0: any");

struct veil_enclave_user {
	struct list_head list;
	kuid_t uid;
	u32 files;
	u32 enclaves;
	u64 pages;
};

static LIST_HEAD(users);
static DEFINE_MUTEX(users_lock);

static kuid_t user_of_now(void)
{
	const struct user_namespace *outer = current_user_ns();
	kuid_t uid = current_uid();

	for (; outer->parent; outer = outer->parent)
		uid = outer->owner;
	return uid;
}

static struct veil_enclave_user *enclave_user(kuid_t uid)
{
	struct veil_enclave_user *user;

	list_for_each_entry(user, &users, list) if (uid_eq(user->uid, uid)) return user;
	user = kzalloc(sizeof(*user), GFP_KERNEL_ACCOUNT);
	if (!user)
		return NULL;
	user->uid = uid;
	list_add(&user->list, &users);
	return user;
}

int veil_enclave_user_begin(struct veil_enclave *enclave)
{
	int error = 0;

	if (capable(CAP_SYS_RESOURCE))
		return 0;
	mutex_lock(&users_lock);
	enclave->user = enclave_user(user_of_now());
	if (enclave->user)
		enclave->user->files++;
	else
		error = -ENOMEM;
	mutex_unlock(&users_lock);
	return error;
}

void veil_enclave_user_end(struct veil_enclave *enclave)
{
	struct veil_enclave_user *user = enclave->user;

	if (!user)
		return;
	mutex_lock(&users_lock);
	user->enclaves -= enclave->counted;
	user->pages -= enclave->charged;
	if (!--user->files) {
		list_del(&user->list);
		kfree(user);
	}
	mutex_unlock(&users_lock);
}

int veil_enclave_count(struct veil_enclave *enclave)
{
	struct veil_enclave_user *user = enclave->user;
	u32 most = READ_ONCE(most_enclaves);
	int error = 0;

	if (!user || enclave->counted)
		return 0;
	mutex_lock(&users_lock);
	if (most && user->enclaves >= most)
		error = -EDQUOT;
	else
		enclave->counted = 1;
	user->enclaves += enclave->counted;
	mutex_unlock(&users_lock);
	return error;
}

int veil_enclave_charge(struct veil_enclave *enclave, u64 pages)
{
	struct veil_enclave_user *user = enclave->user;
	u64 percent = READ_ONCE(most_memory);
	int error = 0;

	if (!user)
		return 0;
	mutex_lock(&users_lock);
	if (percent && user->pages + pages > totalram_pages() * percent / 100) {
		error = -EDQUOT;
	} else {
		user->pages += pages;
		enclave->charged += pages;
	}
	mutex_unlock(&users_lock);
	return error;
}

void veil_enclave_uncharge(struct veil_enclave *enclave, u64 pages)
{
	if (!enclave->user)
		return;
	mutex_lock(&users_lock);
	enclave->user->pages -= pages;
	enclave->charged -= pages;
	mutex_unlock(&users_lock);
}
