/* SPDX-License-Identifier: MIT */
/* Between request.c and request-output.c. */
#pragma once

#include "engine/request.h"

/* Chat input: the output is parsed into reasoning, content and tool calls. -ENOMEM. */
int request_output_begin_chat(struct request *r, bool thinking, bool tools);
