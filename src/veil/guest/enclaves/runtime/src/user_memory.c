/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Memory of the program's, by addresses that the program gives: never the runtime's own, nor the window. */
#include "machine.h"
#include "runtime.h"

bool is_user(u64 address, u64 bytes)
{
	u64 end = address + bytes;

	if (end < address || end > VEIL_ENC_TOP)
		return false;
	/* From the windows to the information page nothing is the program's. */
	return end <= VEIL_ENC_WINDOW || address >= VEIL_ENC_INFO + PAGE;
}

s64 copy_in(void *to, u64 from, u64 bytes)
{
	if (!bytes)
		return 0;
	if (!is_user(from, bytes) || copy_user(to, (const void *)from, bytes))
		return -EFAULT;
	return 0;
}

s64 copy_out(u64 to, const void *from, u64 bytes)
{
	if (!bytes)
		return 0;
	if (!is_user(to, bytes) || copy_user((void *)to, from, bytes))
		return -EFAULT;
	return 0;
}

s64 clear_out(u64 to, u64 bytes)
{
	static const u8 zeros[64];

	while (bytes) {
		u64 part = least(bytes, sizeof(zeros));

		if (copy_out(to, zeros, part))
			return -EFAULT;
		to += part;
		bytes -= part;
	}
	return 0;
}

s64 copy_string_in(char *to, u64 from, u64 space)
{
	u64 done = 0;

	while (done < space) {
		/* not past the page: the next may not be there */
		u64 part = least(least(space - done, PAGE - (from + done) % PAGE), 64);

		if (copy_in(to + done, from + done, part))
			return -EFAULT;
		for (u64 i = 0; i < part; i++)
			if (!to[done + i])
				return (s64)(done + i);
		done += part;
	}
	return -ENAMETOOLONG;
}
