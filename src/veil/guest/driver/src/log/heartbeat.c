// SPDX-License-Identifier: GPL-2.0
/* Signs of life: silence is visible, since whoever reads the log sees when the last one came. */
#include <linux/audit.h>
#include <linux/jiffies.h>
#include <linux/moduleparam.h>
#include <linux/timer.h>
#include <linux/workqueue.h>

#include "../call.h"
#include "log.h"

/* veil/formats/log.py: Heartbeat, TICK_NS. */
struct veil_heartbeat {
	u16 version;
	u16 audit;
	u32 rules;
	u64 ticks;
};

#define VEIL_HEARTBEAT_VERSION 1
#define VEIL_TICK_MS 250

static unsigned int interval_ms = 1000;
module_param_named(log_heartbeat, interval_ms, uint, 0444);
MODULE_PARM_DESC(log_heartbeat, "milliseconds between two signs of life; 0 for none");

static atomic64_t ticks;

static void on_tick(struct timer_list *timer);
static DEFINE_TIMER(ticker, on_tick);

/* What the kernel can say of having been run: a machine that stood still for a minute has missed that minute's ticks. */
static void on_tick(struct timer_list *timer)
{
	atomic64_inc(&ticks);
	mod_timer(timer, jiffies + msecs_to_jiffies(VEIL_TICK_MS));
}

static void heartbeat(struct work_struct *work);
static DECLARE_DELAYED_WORK(heartbeat_work, heartbeat);

static void heartbeat(struct work_struct *work)
{
	struct veil_heartbeat message = {
		.version = VEIL_HEARTBEAT_VERSION,
		.audit = audit_enabled,
		.rules = veil_log_rules_loaded(),
		.ticks = atomic64_read(&ticks),
	};
	u32 rules_wanted;
	struct veil_request request = {
		.call = VEIL_LOG_HEARTBEAT,
		.head = &message,
		.head_length = sizeof(message),
		.answer = &rules_wanted,
		.room = sizeof(rules_wanted),
	};
	bool taken = veil_log_hand_over(&request);

	veil_log_flush_dead_tasks();
	if (taken && request.answer_length == sizeof(rules_wanted))
		veil_log_rules_wanted(rules_wanted);
	schedule_delayed_work(&heartbeat_work, msecs_to_jiffies(interval_ms));
}

int veil_log_heartbeat_begin(void)
{
	if (interval_ms) {
		mod_timer(&ticker, jiffies + msecs_to_jiffies(VEIL_TICK_MS));
		schedule_delayed_work(&heartbeat_work, 0);
	}
	return 0;
}

void veil_log_heartbeat_end(void)
{
	cancel_delayed_work_sync(&heartbeat_work);
	timer_shutdown_sync(&ticker);
}

int veil_log_heartbeat_state(char *text, size_t size)
{
	return scnprintf(text, size, " ticks %lld", atomic64_read(&ticks));
}
