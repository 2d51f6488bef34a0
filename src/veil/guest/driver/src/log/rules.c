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

#include "../call.h"
#include "log.h"

#define HELPER "/usr/lib/veil/load-rules"

/* veil/formats/log.py: MAX_RULES, MAX_RULES_MESSAGE. */
#define VEIL_MAX_RULES (16 << 10)
#define VEIL_MAX_RULES_MESSAGE 1024

/* veil/formats/log.py, RULES_CALL; auditctl's words follow. */
struct veil_rules_call {
	u32 loaded;
	s32 status;
};

/* veil/formats/log.py, RULES_ANSWER, and the text that follows. */
struct veil_rules_answer {
	u32 wanted;
	u8 text[VEIL_MAX_RULES];
};

static struct veil_rules_answer rules;

static DEFINE_MUTEX(lock);
static size_t text_length;
static char words[VEIL_MAX_RULES_MESSAGE];
static size_t words_length;
static u32 loaded;
static s32 loaded_status;

/* Says which rules are loaded, and how loading them ended; gets the ones that are wanted. The lock is held. */
static bool exchange(u32 *now_wanted)
{
	struct veil_rules_call call = { loaded, loaded_status };
	struct veil_request request = {
		.service = VEIL_LOG_SERVICE,
		.call = VEIL_LOG_RULES,
		.head = &call,
		.head_length = sizeof(call),
		.data = words,
		.data_length = words_length,
		.answer = &rules,
		.room = sizeof(rules),
	};

	if (veil_ask(&request) != VEIL_OK || request.answer_length < sizeof(rules.wanted) ||
	    request.answer_length > sizeof(rules))
		return false;
	*now_wanted = rules.wanted;
	text_length = request.answer_length - sizeof(rules.wanted);
	return true;
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

void veil_log_rules_wanted(u32 generation)
{
	if (generation != READ_ONCE(loaded))
		schedule_work(&loader);
}

static ssize_t rules_read(struct file *file, char __user *to, size_t size, loff_t *at)
{
	ssize_t result;

	mutex_lock(&lock);
	result = simple_read_from_buffer(to, size, at, rules.text, text_length);
	mutex_unlock(&lock);
	return result;
}

u32 veil_log_rules_loaded(void)
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

int veil_log_rules_begin(void)
{
	return misc_register(&rules_device);
}

void veil_log_rules_end(void)
{
	cancel_work_sync(&loader);
	misc_deregister(&rules_device);
}
