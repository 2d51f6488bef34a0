// SPDX-License-Identifier: GPL-2.0
/*
 * Audit rules that an owner of the CVM gave to VeilS-LOG. The answer to a heartbeat says which generation is wanted; the
 * text is fetched then, can be read at /dev/veil-rules, and the initramfs's helper gives it to auditctl. If that refuses
 * them, the helper writes its words to /dev/veil-rules, and they go back to the owner.
 */
#include <linux/fs.h>
#include <linux/miscdevice.h>
#include <linux/mutex.h>
#include <linux/umh.h>
#include <linux/workqueue.h>

#include "veil.h"

#define HELPER "/usr/lib/veil/load-rules"

/* veil/formats/log.py, KernelCall.RULES */
struct rules_call {
	u32 loaded;
	s32 status;
	char words[];
};

struct rules_answer {
	u32 wanted;
	char text[];
};

static DEFINE_MUTEX(lock);
static char text[VEIL_BODY_SIZE];
static size_t text_length;
static char words[VEIL_WORDS_MOST];
static size_t words_length;
static u32 loaded;
static s32 loaded_status;

/* Says which rules are loaded, and how loading them ended; gets the ones that are wanted. */
static bool exchange(u32 *now_wanted)
{
	unsigned long flags;
	struct veil_block *block = veil_block_get(&flags);
	bool done = false;

	if (block) {
		struct rules_answer *answer = (void *)block->body;
		struct rules_call *call = (void *)block->body;

		call->loaded = loaded;
		call->status = loaded_status;
		memcpy(call->words, words, words_length);
		done = veil_ask(block, VEIL_LOG_SERVICE, VEIL_LOG_RULES, sizeof(*call) + words_length) == VEIL_OK &&
		       block->length >= sizeof(*answer) && block->length <= VEIL_BODY_SIZE;
		if (done) {
			*now_wanted = answer->wanted;
			text_length = block->length - sizeof(*answer);
			memcpy(text, answer->text, text_length);
		}
	}
	veil_block_put(flags);
	return done;
}

static void load(struct work_struct *work)
{
	static char *arguments[] = { HELPER, NULL };
	static char *environment[] = { "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/", NULL };
	u32 generation, ignored;
	bool done;
	int status;

	mutex_lock(&lock);
	done = exchange(&generation);
	if (done && generation != loaded)
		words_length = 0; /* what auditctl says next is of these rules */
	mutex_unlock(&lock);
	if (!done || generation == loaded)
		return;
	status = call_usermodehelper(HELPER, arguments, environment, UMH_WAIT_PROC);
	/* A program's exit status is in the second byte, as wait() gives it; below zero it could not be run. */
	loaded_status = status > 0xff ? status >> 8 : status;
	WRITE_ONCE(loaded, generation);
	mutex_lock(&lock);
	exchange(&ignored);
	mutex_unlock(&lock);
}
static DECLARE_WORK(loader, load);

void veil_rules_wanted(u32 generation)
{
	if (generation != READ_ONCE(loaded))
		schedule_work(&loader);
}

static ssize_t rules_read(struct file *file, char __user *to, size_t size, loff_t *at)
{
	ssize_t result;

	mutex_lock(&lock);
	result = simple_read_from_buffer(to, size, at, text, text_length);
	mutex_unlock(&lock);
	return result;
}

u32 veil_rules_loaded(void)
{
	return READ_ONCE(loaded);
}

static ssize_t rules_write(struct file *file, const char __user *from, size_t size, loff_t *at)
{
	ssize_t result;

	mutex_lock(&lock);
	result = simple_write_to_buffer(words, sizeof(words), at, from, size);
	if (result > 0)
		words_length = *at;
	mutex_unlock(&lock);
	return result;
}

static const struct file_operations rules_operations = {
	.owner = THIS_MODULE,
	.read = rules_read,
	.write = rules_write,
};

static struct miscdevice rules_device = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "veil-rules",
	.fops = &rules_operations,
	.mode = 0600,
};

int veil_rules_init(void)
{
	return misc_register(&rules_device);
}

void veil_rules_exit(void)
{
	cancel_work_sync(&loader);
	misc_deregister(&rules_device);
}
