/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The mailbox: VeilS-ENC serves what is asked there. The kernel only makes it run, and may leave that. */
#include "machine.h"
#include "runtime.h"

static struct veil_mailbox *mailbox_of(const struct thread *self)
{
	return (struct veil_mailbox *)((u8 *)thread_of(self->slot) + VEIL_ENC_MAILBOX);
}

u32 ask_service(struct thread *self, u32 call, u64 a0, u64 a1, u64 a2, u64 *result)
{
	struct veil_mailbox *mailbox = mailbox_of(self);

	mailbox->args[0] = a0;
	mailbox->args[1] = a1;
	mailbox->args[2] = a2;
	mailbox->result = 0;
	mailbox->call = call;
	WRITE_ONCE(mailbox->status, VEIL_ENC_MAILBOX_PENDING);
	do
		ask_window(self, VEIL_WINDOW_SERVICE, 0, 0);
	while (READ_ONCE(mailbox->status) == VEIL_ENC_MAILBOX_PENDING);
	if (result)
		*result = mailbox->result;
	return mailbox->status;
}

u64 ask_fault(struct thread *self, u64 area, u64 area_pages, u32 prot, u64 *start, u64 *pages)
{
	struct veil_mailbox *mailbox = mailbox_of(self);
	u64 mapped[2] = { 0 }, address;

	memcpy(mailbox->data, mapped, sizeof(mapped));
	if (ask_service(self, VEIL_MAILBOX_FAULT, area, area_pages, prot, &address) != STATUS_OK)
		attacked(self, "the service does not say where a fault was");
	memcpy(mapped, mailbox->data, sizeof(mapped));
	*start = mapped[0];
	*pages = mapped[1];
	return address;
}

bool ask_fill(struct thread *self, u64 start, u64 pages, u32 prot, const void *from)
{
	mailbox_of(self)->args[3] = (u64)from;
	return ask_service(self, VEIL_MAILBOX_FILL, start, pages, prot, NULL) == STATUS_OK;
}

bool derive_key(struct thread *self, const char *label, u64 length, u8 key[32])
{
	struct veil_mailbox *mailbox = mailbox_of(self);

	memcpy(mailbox->data, label, length);
	if (ask_service(self, VEIL_MAILBOX_KEY, length, 0, 0, NULL) != STATUS_OK)
		return false;
	memcpy(key, mailbox->data, 32);
	memset(mailbox->data, 0, 32);
	return true;
}

s64 receive_secret(struct thread *self, const char *name, u64 length, u8 *to, u64 space)
{
	struct veil_mailbox *mailbox = mailbox_of(self);
	u64 bytes;
	u32 status;

	memcpy(mailbox->data, name, length);
	status = ask_service(self, VEIL_MAILBOX_SECRET, length, 0, 0, &bytes);
	if (status == STATUS_UNAVAILABLE)
		return -EAGAIN;
	if (status != STATUS_OK || bytes > space)
		return -EIO;
	memcpy(to, mailbox->data, bytes);
	memset(mailbox->data, 0, bytes);
	return (s64)bytes;
}
