// SPDX-License-Identifier: GPL-2.0
/*
 * One CPU asks the services; what another one does while they, or VeilMon, wait for the host is for others to say. No
 * CPU does anything else meanwhile: the host may hold one of them up, and the other would wait for its answers.
 */
#include <linux/cpumask.h>
#include <linux/io.h>
#include <linux/kernel.h>
#include <linux/smp.h>
#include <linux/stop_machine.h>

#include <asm/barrier.h>

#include "attacker.h"

#define CORE_REMAP_CA 0

/* tests/e2e/code_attacks/accomplice.py */
enum what {
	/* words: call, RCX, RDX, R8; from then on in the area of RCX, if that is a call for another area */
	CALL,
	/* code of the attacker's into the frame */
	PUT,
	/* execute what is in the frame */
	RUN,
};

struct desk {
	u64 order;
	u64 what;
	u64 words[4];
	u64 done;
	u64 result;
};

struct request {
	int count;
	char **words;
	int cpu;
	bool answered;
};

static struct desk *desk;
static void *frame;
static u8 *area;

static u64 call(const u64 *words)
{
	u64 result;

	if (!area)
		area = attacker_calling_area();
	result = attacker_call(area, words[0], words[1], words[2], words[3]);
	if (words[0] == CORE_REMAP_CA && !result)
		area = __va(words[1]);
	return result;
}

static void obey(void)
{
	u64 order = smp_load_acquire(&desk->order);

	if (order == desk->done)
		return;
	switch (desk->what) {
	case CALL:
		desk->result = call(desk->words);
		break;
	case PUT:
		attacker_put_code(frame);
		break;
	case RUN:
		desk->result = attacker_run(frame);
		break;
	}
	smp_store_release(&desk->done, order);
}

void attacker_desk(int count, char **words)
{
	desk = __va(simple_strtoull(words[0], NULL, 0));
	frame = attacker_map(words[1]);
}

void attacker_obey(int count, char **words)
{
	obey();
}

static int ask_or_obey(void *data)
{
	struct request *request = data;

	if (smp_processor_id() == request->cpu) {
		attacker_ask(request->count, request->words);
		WRITE_ONCE(request->answered, true);
		return 0;
	}
	while (!READ_ONCE(request->answered)) {
		obey();
		cpu_relax();
	}
	return 0;
}

void attacker_ask_together(int count, char **words)
{
	struct request request = { .count = count, .words = words, .cpu = raw_smp_processor_id() };

	stop_machine(ask_or_obey, &request, cpu_online_mask);
}
