/* SPDX-License-Identifier: MIT */
/* The commands of dsv4(1). */
#pragma once

#include "client/tool.h"

extern const struct verb cmd_run, cmd_chat, cmd_tokenize, cmd_models;
