// SPDX-License-Identifier: GPL-2.0
/*
 * Intent records: what a critical event is about to do, kept by VeilS-LOG before the kernel acts. The audit system's own
 * record comes when the system call ends; a kernel that is taken over by the event itself (a module's init function, an
 * exploit behind execve) would never make it.
 *
 * The hooks are the security hooks that come first. Nothing happens while audit is off.
 */
#include <linux/audit.h>
#include <linux/binfmts.h>
#include <linux/cred.h>
#include <linux/fs.h>
#include <linux/hex.h>
#include <linux/in6.h>
#include <linux/kernel_read_file.h>
#include <linux/moduleparam.h>
#include <linux/net.h>
#include <linux/ptrace.h>
#include <linux/sched.h>
#include <linux/socket.h>
#include <linux/string.h>
#include <linux/timekeeping.h>
#include <net/ipv6.h>

#include "../call.h"
#include "../hook.h"
#include "log.h"

/* AUDIT_TRUSTED_APP: free text that ausearch knows how to read. What the kernel says here is an entry of kind INTENT. */
#define INTENT_TYPE 1121
/* Serial numbers of our own: the audit system counts from 1, and what has one number is one event. */
#define FIRST_SERIAL 0x80000000u
#define TEXT_SIZE 1024
#define NAME_SIZE 384

static char *policy = "exec,module,privilege,bind,ptrace";
module_param_named(log_intent, policy, charp, 0444);
MODULE_PARM_DESC(log_intent,
		 "critical events, kept before the kernel acts: exec,module,privilege,bind,ptrace; or none");

static atomic64_t intents;

/* As audit_log_untrustedstring(): in quotes, or in hexadecimal if it could be mistaken for something else. */
static void quote(char *out, size_t size, const char *text)
{
	size_t length = strnlen(text, (size - 1) / 2 - 1), i;

	for (i = 0; i < length; i++) {
		if (text[i] == '"' || text[i] == '\'' || text[i] < 0x21 || text[i] > 0x7e) {
			for (i = 0; i < length; i++)
				out = hex_byte_pack_upper(out, text[i]);
			*out = 0;
			return;
		}
	}
	scnprintf(out, size, "\"%.*s\"", (int)length, text);
}

/* What a hook composes its record in: hooks run in tasks, with preemption off, and do not nest. */
struct scratch {
	struct veil_record head;
	char text[TEXT_SIZE];
	char path[NAME_SIZE / 2];
	char name[NAME_SIZE];
};

static DEFINE_PER_CPU(struct scratch, scratches);

/* `format` is for the event's own part. */
static __printf(2, 3) void record_intent(const char *event, const char *format, ...)
{
	struct scratch *record = this_cpu_ptr(&scratches);
	struct veil_request request = {
		.call = VEIL_LOG_INTENT,
		.head = &record->head,
		.head_length = sizeof(record->head),
		.data = record->text,
	};
	char comm[2 * TASK_COMM_LEN + 3];
	struct timespec64 now;
	va_list arguments;
	size_t length;

	quote(comm, sizeof(comm), current->comm);
	ktime_get_coarse_real_ts64(&now);
	length = scnprintf(record->text, TEXT_SIZE,
			   "audit(%llu.%03lu:%u): pid=%d uid=%u auid=%u ses=%u msg='veil-intent op=%s comm=%s ",
			   (unsigned long long)now.tv_sec, now.tv_nsec / NSEC_PER_MSEC,
			   FIRST_SERIAL + (u32)atomic64_inc_return(&intents), task_tgid_nr(current),
			   from_kuid(&init_user_ns, current_uid()),
			   from_kuid(&init_user_ns, audit_get_loginuid(current)), audit_get_sessionid(current), event,
			   comm);
	va_start(arguments, format);
	length += vscnprintf(record->text + length, TEXT_SIZE - length - 1, format, arguments);
	va_end(arguments);
	record->text[length++] = '\'';
	record->head = (struct veil_record){ .type = INTENT_TYPE, .length = length };
	request.data_length = length;
	veil_log_hand_over(&request);
}

static const char *name_of(struct file *file)
{
	struct scratch *space = this_cpu_ptr(&scratches);
	char *path = file ? file_path(file, space->path, sizeof(space->path)) : "";

	quote(space->name, sizeof(space->name), IS_ERR(path) ? "(too long)" : path);
	return space->name;
}

#define HOOK(name)                                                                                                     \
	static void name(unsigned long ip, unsigned long parent, struct ftrace_ops *ops, struct ftrace_regs *regs)
#define ARGUMENT(number) ftrace_regs_get_argument(regs, number)

/* security_bprm_check(bprm) */
HOOK(on_exec)
{
	struct linux_binprm *bprm = (void *)ARGUMENT(0);

	if (audit_enabled)
		record_intent("exec", "file=%s", name_of(bprm->file));
}

/* security_kernel_read_file(file, id, contents): finit_module, kexec_file_load */
HOOK(on_read_file)
{
	enum kernel_read_file_id id = ARGUMENT(1);

	if (audit_enabled && (id == READING_MODULE || id == READING_KEXEC_IMAGE))
		record_intent("module", "source=%s file=%s", id == READING_MODULE ? "file" : "kexec",
			      name_of((void *)ARGUMENT(0)));
}

/* security_kernel_load_data(id, contents): init_module, kexec_load */
HOOK(on_load_data)
{
	enum kernel_load_data_id id = ARGUMENT(0);

	if (audit_enabled && (id == LOADING_MODULE || id == LOADING_KEXEC_IMAGE))
		record_intent("module", "source=%s", id == LOADING_MODULE ? "memory" : "kexec");
}

/* security_task_fix_setuid(new, old, flags) */
HOOK(on_setuid)
{
	const struct cred *new = (void *)ARGUMENT(0), *old = (void *)ARGUMENT(1);

	if (audit_enabled && !(uid_eq(new->uid, old->uid) && uid_eq(new->euid, old->euid)))
		record_intent("privilege", "call=setuid new-uid=%u new-euid=%u old-euid=%u",
			      from_kuid(&init_user_ns, new->uid), from_kuid(&init_user_ns, new->euid),
			      from_kuid(&init_user_ns, old->euid));
}

/* security_capset(new, old, effective, inheritable, permitted) */
HOOK(on_capset)
{
	const kernel_cap_t *effective = (void *)ARGUMENT(2), *permitted = (void *)ARGUMENT(4);

	if (audit_enabled)
		record_intent("privilege", "call=capset effective=%016llx permitted=%016llx", effective->val,
			      permitted->val);
}

/* security_socket_bind(sock, address, addrlen): the address is the kernel's copy */
HOOK(on_bind)
{
	const struct sockaddr_storage *address = (void *)ARGUMENT(1);
	int length = ARGUMENT(2);

	if (!audit_enabled)
		return;
	if (length >= (int)sizeof(struct sockaddr_in) && address->ss_family == AF_INET) {
		const struct sockaddr_in *in = (void *)address;

		record_intent("bind", "laddr=%pI4 lport=%u", &in->sin_addr, ntohs(in->sin_port));
	} else if (length >= SIN6_LEN_RFC2133 && address->ss_family == AF_INET6) {
		const struct sockaddr_in6 *in = (void *)address;

		record_intent("bind", "laddr=%pI6c lport=%u", &in->sin6_addr, ntohs(in->sin6_port));
	}
}

/* security_ptrace_access_check(child, mode): reading in /proc asks too, and is not an attack */
HOOK(on_ptrace)
{
	struct task_struct *child = (void *)ARGUMENT(0);

	if (audit_enabled && ARGUMENT(1) & PTRACE_MODE_ATTACH)
		record_intent("ptrace", "target=%d", task_tgid_nr(child));
}

static struct veil_hook hooks[] = {
	{ "security_bprm_check", "exec", .ops.func = on_exec },
	{ "security_kernel_read_file", "module", .ops.func = on_read_file },
	{ "security_kernel_load_data", "module", .ops.func = on_load_data },
	{ "security_task_fix_setuid", "privilege", .ops.func = on_setuid },
	{ "security_capset", "privilege", .ops.func = on_capset },
	{ "security_socket_bind", "bind", .ops.func = on_bind },
	{ "security_ptrace_access_check", "ptrace", .ops.func = on_ptrace },
};

static bool wanted(const char *event)
{
	size_t length = strlen(event);
	const char *at;

	for (at = policy; (at = strstr(at, event)); at += length) {
		if ((at == policy || at[-1] == ',') && (!at[length] || at[length] == ','))
			return true;
	}
	return false;
}

void veil_log_intent_end(void)
{
	veil_unhook(hooks, ARRAY_SIZE(hooks));
}

int veil_log_intent_begin(void)
{
	size_t i;

	for (i = 0; i < ARRAY_SIZE(hooks); i++)
		hooks[i].wanted = wanted(hooks[i].event);
	return veil_hook(hooks, ARRAY_SIZE(hooks));
}

int veil_log_intent_state(char *text, size_t size)
{
	return scnprintf(text, size, " intents %lld", atomic64_read(&intents));
}
