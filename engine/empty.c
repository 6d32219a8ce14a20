/* SPDX-License-Identifier: MIT */
extern int engine_empty;
int engine_empty;
