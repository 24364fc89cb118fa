/* harness.h: what the harness and the stubs share. */
#ifndef HARNESS_H
#define HARNESS_H

#include <setjmp.h>

#include "pgraft.h"

extern jmp_buf harness_error;
extern void harness_free_all(void);
extern void harness_fail(const char *why) __attribute__((noreturn));

#endif
