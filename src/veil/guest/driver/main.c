// SPDX-License-Identifier: GPL-2.0
/* The driver for Veil's protected services in an unmodified kernel. */
#include <linux/module.h>

#include "veil.h"

static int __init veil_init(void)
{
	return veil_call_init();
}
module_init(veil_init);

static void __exit veil_exit(void)
{
	veil_call_exit();
}
module_exit(veil_exit);

MODULE_DESCRIPTION("Protected services of Veil");
MODULE_LICENSE("GPL");
