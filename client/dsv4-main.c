/* SPDX-License-Identifier: MIT */
/* dsv4: the command of users. Each verb is in its own file. */
#include "client/cmd.h"

#include <locale.h>

int main(int argc, char **argv)
{
    static const struct verb *const verbs[] = {&cmd_run, &cmd_chat, &cmd_tokenize, &cmd_models, NULL};
    static const struct option_spec global[] = {OPTIONS_COMMON, {0}};

    setlocale(LC_CTYPE, ""); /* widths of table cells; numbers stay as in C */
    return options_main("dsv4", "Use the DeepSeek-V4 models of this host's dsv4d service.", verbs, NULL, global, argc,
                        argv);
}
