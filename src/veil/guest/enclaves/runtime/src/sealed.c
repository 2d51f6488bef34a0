/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "files.h"
#include "handlers.h"

s64 open_sealed(struct thread *self, const char *path, u64 length, u64 flags, u64 mode)
{
	(void)path;
	(void)length;
	(void)flags;
	(void)mode;
	unsupported(self, "sealed files are not supported yet", 257);
	return -EACCES;
}
s64 read_sealed(struct thread *self, struct open_file *f, s32 fd, u64 to, u64 bytes, u64 offset)
{
	(void)self;
	(void)f;
	(void)fd;
	(void)to;
	(void)bytes;
	(void)offset;
	return -EIO;
}
s64 write_sealed(struct thread *self, struct open_file *f, s32 fd, u64 to, u64 bytes, u64 offset)
{
	(void)self;
	(void)f;
	(void)fd;
	(void)to;
	(void)bytes;
	(void)offset;
	return -EIO;
}
u64 sealed_size(const struct open_file *f)
{
	(void)f;
	return 0;
}
s64 truncate_sealed(struct thread *self, struct open_file *f, s32 fd, u64 size)
{
	(void)self;
	(void)f;
	(void)fd;
	(void)size;
	return -EIO;
}
void sealed_status(struct thread *self, const char *path, u64 length, s64 *size)
{
	(void)self;
	(void)path;
	(void)length;
	(void)size;
}
