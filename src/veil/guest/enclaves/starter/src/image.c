/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The image: a ustar archive with `layout`, `content`, and trusted files that travel along below `files/`. These are put
 * where the program looks for them unless something is there; the enclave compares what it reads with their hashes.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "starter.h"

#define BLOCK 512
#define FILES "files/"
#define MAX_PATH 256

/* POSIX.1-1988, ustar. */
struct member {
	char name[100], mode[8], owner[8], group[8], size[12], time[12], sum[8], type, link[100];
	char magic[6], version[2], owner_name[32], group_name[32], major[8], minor[8], prefix[155], rest[12];
};
_Static_assert(sizeof(struct member) == BLOCK, "a member's header is a block");

static size_t octal(const char *text, size_t length)
{
	size_t value = 0, at;

	for (at = 0; at < length && text[at] >= '0' && text[at] <= '7'; at++)
		value = value * 8 + (size_t)(text[at] - '0');
	return value;
}

static void member_path(const struct member *member, char *path)
{
	if (member->prefix[0])
		snprintf(path, MAX_PATH, "%.155s/%.100s", member->prefix, member->name);
	else
		snprintf(path, MAX_PATH, "%.100s", member->name);
}

/* No path that leads elsewhere: an image has none, but who has written this one? */
static bool is_plain(const char *path)
{
	size_t length = strlen(path);

	return length > 1 && path[length - 1] != '/' && !strstr(path, "//") && !strstr(path, "/./") &&
	       !strstr(path, "/../") && strcmp(path + length - 2, "/.") != 0 &&
	       (length < 3 || strcmp(path + length - 3, "/..") != 0);
}

static void make_parents(const char *path)
{
	char folder[MAX_PATH];
	char *slash;

	snprintf(folder, sizeof(folder), "%s", path);
	for (slash = strchr(folder + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
		*slash = 0;
		mkdir(folder, 0755);
		*slash = '/';
	}
}

/* What cannot be put there the enclave will miss, and say so. */
static void put_file(const char *path, const struct member *member, const uint8_t *content, size_t size)
{
	int file;

	make_parents(path);
	file = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC,
		    (mode_t)octal(member->mode, sizeof(member->mode)) & 0777);
	if (file < 0)
		return;
	while (size) {
		ssize_t written = write(file, content, size);

		if (written <= 0) {
			int error = written ? errno : EIO;

			/* A part of it would be taken for a file that somebody has changed, the next time as well. */
			unlink(path);
			fail(path, error);
		}
		content += written;
		size -= (size_t)written;
	}
	close(file);
}

void open_image(const char *path, struct image *image)
{
	int file = open(path, O_RDONLY | O_CLOEXEC);
	struct stat status;
	const uint8_t *start;
	size_t at = 0, size;

	if (file < 0 || fstat(file, &status))
		fail(path, errno);
	size = (size_t)status.st_size;
	start = size ? mmap(NULL, size, PROT_READ, MAP_PRIVATE, file, 0) : MAP_FAILED;
	if (start == MAP_FAILED)
		refuse("this is not an enclave's image");
	close(file);
	while (at + BLOCK <= size) {
		const struct member *member = (const struct member *)(start + at);
		size_t length = octal(member->size, sizeof(member->size));
		char name[MAX_PATH];

		if (memcmp(member->magic, "ustar", 5) != 0)
			break;
		member_path(member, name);
		if (member->type != '0' || length > size - at - BLOCK)
			refuse("the image is damaged: it has something else than whole files");
		if (!strcmp(name, "layout")) {
			image->layout = start + at + BLOCK;
			image->layout_size = length;
		} else if (!strcmp(name, "content")) {
			image->content = start + at + BLOCK;
			image->content_size = length;
		} else if (!strncmp(name, FILES, strlen(FILES))) {
			if (!is_plain(name + strlen(FILES) - 1))
				refuse("the image is damaged: a file of it has a path that leads elsewhere");
			put_file(name + strlen(FILES) - 1, member, start + at + BLOCK, length);
		}
		at += BLOCK + (length + BLOCK - 1) / BLOCK * BLOCK;
	}
	if (!image->layout || !image->content)
		refuse("this is not an enclave's image: it has no layout or no content");
}
