/* SPDX-License-Identifier: MIT */
/* The fixed texts of the chat format, for chat.c and the completion parsers only. */
#pragma once

#define MARK_BOS "<｜begin▁of▁sentence｜>"
#define MARK_EOS "<｜end▁of▁sentence｜>"
#define MARK_USER "<｜User｜>"
#define MARK_ASSISTANT "<｜Assistant｜>"
#define MARK_REMINDER "<｜latest_reminder｜>"
#define MARK_THINK "<think>"
#define MARK_THINK_END "</think>"
#define MARK_DSML "｜DSML｜"

#define DSML_CALLS "<" MARK_DSML "tool_calls"
#define DSML_CALLS_END "</" MARK_DSML "tool_calls>"
#define DSML_INVOKE "<" MARK_DSML "invoke"
#define DSML_INVOKE_END "</" MARK_DSML "invoke"
#define DSML_PARAMETER "<" MARK_DSML "parameter"
#define DSML_PARAMETER_END "</" MARK_DSML "parameter"
